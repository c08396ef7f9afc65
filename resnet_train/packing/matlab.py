"""MATLAB's level 5 files, as far as `meta.mat` of ImageNet's development kit goes: no scipy needed.

Format: MathWorks, "MAT-File Format", version 5. Data elements are a type, a length and bytes; an array is an element
whose bytes are elements: flags, dimensions, name, then the values.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8", 16: "u1"}
_UTF16, _ARRAY, _COMPRESSED = 17, 14, 15
_CELL, _STRUCT, _CHAR, _SPARSE = 1, 2, 4, 5


def read(data: bytes) -> dict[str, Any]:
    """The variables of a file: text as str, numbers as arrays, structures as lists of dicts, cells as lists.

    Raises `ValueError` where it is none, or holds what is not read here.
    """
    if len(data) < 128 or data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError("not a MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    try:
        return dict(_array(body, order) for kind, body in _elements(data[128:], order) if kind == _ARRAY)
    except (struct.error, zlib.error, IndexError, StopIteration, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged, or of a kind that is not read here: {error}") from None


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # a small one: its length and up to four bytes of data share the eight bytes
            kind, length, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        else:
            start, step = at + 8, 8 + length + (-length % 8 if kind != _COMPRESSED else 0)
        if start + length > len(data):
            raise ValueError("cut short")
        if kind == _COMPRESSED:
            yield from _elements(zlib.decompress(data[start : start + length]), order)
        else:
            yield kind, data[start : start + length]
        at += step


def _array(data: bytes, order: str) -> tuple[str, Any]:
    parts = _elements(data, order)
    if not data:
        return "", np.zeros(0)  # an empty cell or field
    kind = struct.unpack(order + "I", next(parts)[1][:4])[0] & 0xFF
    count = int(_numbers(*next(parts), order).prod())
    name = next(parts)[1].decode("ascii")
    if kind == _SPARSE or kind == 3 or kind > 15:
        raise ValueError(f"arrays of class {kind} are not read here")
    if kind == _CELL:
        return name, [_array(body, order)[1] for _, body in parts]
    if kind == _STRUCT:
        width = int(_numbers(*next(parts), order)[0])
        text = next(parts)[1]
        fields = [text[i : i + width].rstrip(b"\0").decode("ascii") for i in range(0, len(text), width)]
        values = [_array(body, order)[1] for _, body in parts]
        return name, [dict(zip(fields, values[i * len(fields) :], strict=False)) for i in range(count)]
    kind_of_data, body = next(parts)
    if kind != _CHAR:
        return name, _numbers(kind_of_data, body, order)
    if kind_of_data == _UTF16:
        return name, body.decode("utf-16-le" if order == "<" else "utf-16-be")
    return name, body.decode("utf-8") if kind_of_data == 16 else "".join(map(chr, _numbers(kind_of_data, body, order)))


def _numbers(kind: int, data: bytes, order: str) -> np.ndarray:
    return np.frombuffer(data, order + _NUMBERS[kind])
