"""The index of packed images: how a packed folder says what it holds.

index.json           format, classes, shards with their sizes in bytes, and the options of `prepare`
classes.txt          the name of each class, one a line, in the order of the labels
odd.csv              peculiarities found while packing: split, image, what
train/000000.tar     members KEY.jpg (or .png, .ppm …) and KEY.cls, the label as a decimal number
train/index.npy      one ENTRY a sample, in the order of class folders: sorted by class, then by name
val/                 the same
"""

import json
import os
import zlib
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StrictInt, ValidationError

from resnet_train.data import decoding
from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import read_bytes

FORMAT = 1
ENCODED, TILED, RAW = range(3)
"""Forms of a stored image: an image file, restart-tiled JPEG, raw pixels (PPM)."""
BLOCK = 512
"""Bytes of the header of a tar member."""
ENTRY = np.dtype(
    [
        ("offset", "<i8"),
        ("label", "<i8"),
        ("length", "<u4"),
        ("shard", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("crc32", "<u4"),
        ("form", "<u4"),
    ]
)
"""A sample in index.npy: offset and length in bytes, width and height in pixels; crc32 is that of its bytes."""
_HEADER = f"{{{{'descr': {np.lib.format.dtype_to_descr(ENTRY)}, 'fortran_order': False, 'shape': ({{}},), }}}}"
"""What NumPy writes, and pads with spaces, before an array of so many entries."""

INDEX = "index.json"
"""Describes a packed folder. `prepare` writes it last, so a folder that has it is complete."""
PLAN = "unfinished/plan.json"
"""The list of what is being packed. Beside it are the records of finished shards, until the index is written."""
DELETE_HINT = "; delete the folder and pack it again with resnet-train prepare"
"""For a damaged index."""
_MAX_JSON, _MAX_INDEX = 256 << 20, 4 << 30
"""Bytes of the largest files that are read. Those of ImageNet-21k, 14 million images, have 1 MB and 570 MB."""


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


Text = Annotated[str, PlainValidator(_check_text)]
"""Of any characters: the name of a class folder may hold bytes that are no UTF-8."""
Size = Annotated[StrictInt, Field(ge=0, lt=2**62)]


class SplitIndex(BaseModel):
    """A split in `index.json`."""

    images: Size
    shards: list[tuple[Annotated[str, Field(pattern=r"^\d{6,}\.tar$")], Size]]
    """Name and size in bytes of each shard."""
    crc32: StrictInt | None = None
    """Of index.npy. Sets that were packed by the first version have none."""


class _Options(BaseModel):
    model_config = ConfigDict(extra="allow")
    short_side: StrictInt | None
    square: StrictInt | None


class _Report(BaseModel):
    model_config = ConfigDict(extra="allow")
    options: _Options


class Index(BaseModel):
    """The content of `index.json`."""

    classes: Annotated[list[tuple[Text, Text]], Field(min_length=1)]
    """Id and name of each class, in the order of the labels."""
    parts: Annotated[dict[Annotated[str, Field(pattern="^(train|val)$")], SplitIndex], Field(min_length=1)]
    """By split."""
    plan: dict[str, Any]
    """Everything that decided the shards."""
    report: _Report
    """What `prepare` printed."""


def read_index(folder: Path) -> Index:
    """The content of `index.json`. Raises `BadInput` where it is missing, damaged or of another format."""
    path = folder / INDEX
    if not os.access(path, os.F_OK) and os.access(folder / PLAN, os.F_OK):
        raise BadInput(f"data.path: {folder} is not packed to its end: run the same resnet-train prepare command again")
    try:
        tree = read_json(path, "data.path: ")
    except BadInput as error:
        raise BadInput(f"{error}; expected a folder made by resnet-train prepare") from None
    version = tree.get("format") if isinstance(tree, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise BadInput(f"data.path: {folder} is of format {version}, this program reads {FORMAT}{DELETE_HINT}")
    try:
        if version is not None:
            return Index.model_validate(tree)
    except ValidationError:
        pass
    raise BadInput(f"data.path: {path} is damaged{DELETE_HINT}")


def read_json(path: Path, prefix: str = "") -> Any:
    """The value in a JSON file; None if it is damaged, or does not begin to be JSON. Raises `BadInput`."""
    data = read_bytes(path, _MAX_JSON, prefix)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def read_entries(path: Path) -> tuple[npt.NDArray[np.void], int]:
    """The entries of `index.npy`, [n] of ENTRY, read only; and the byte at which they begin. Raises `BadInput`.

    Only the very header that NumPy writes is accepted: NumPy's own reader evaluates it, and fails in many ways.
    """
    try:
        data = read_bytes(path, _MAX_INDEX, "data.path: ")
    except BadInput as error:
        raise BadInput(f"{error}{'' if os.access(path, os.F_OK) else DELETE_HINT}") from None
    first = 10 + int.from_bytes(data[8:10], "little")
    count, rest = divmod(len(data) - first, ENTRY.itemsize)
    if rest or data[:8] != b"\x93NUMPY\x01\x00" or data[10:first].rstrip(b" \n") != _HEADER.format(count).encode():
        raise BadInput(f"data.path: {path} is damaged{DELETE_HINT}")
    return np.frombuffer(data, ENTRY, offset=first), first


def check_entries(path: Path, entries: npt.NDArray[np.void], index: Index, split: str) -> None:
    """Raises `BadInput` where `index.npy` is not the one that was written, or names what does not exist."""
    listed = index.parts[split]
    if len(entries) != listed.images:
        raise BadInput(f"data.path: {path} lists {len(entries):,} images, and {INDEX} {listed.images:,}{DELETE_HINT}")
    counts = {"shard": len(listed.shards), "label": len(index.classes), "form": RAW + 1}
    for name, count in counts.items():
        wrong = entries[name][(entries[name] < 0) | (entries[name] >= count)]
        if len(wrong):
            raise BadInput(f"data.path: {path} names {name} {wrong[0]} of {count}{DELETE_HINT}")
    ends = np.array([size for _, size in listed.shards], np.int64)[entries["shard"]] - entries["length"]
    if ((entries["offset"] < BLOCK) | (entries["offset"] > ends)).any():
        raise BadInput(f"data.path: {path} names an image that is not within its shard{DELETE_HINT}")
    pixels = entries["width"].astype(np.int64) * entries["height"]
    if ((pixels < 1) | (pixels > decoding.MAX_PIXELS)).any():
        raise BadInput(f"data.path: {path} names an image without pixels, or with too many{DELETE_HINT}")
    if listed.crc32 is not None and checksum(entries) != listed.crc32:
        raise BadInput(f"data.path: {path} is damaged: its checksum is not the one in {INDEX}{DELETE_HINT}")


def checksum(entries: npt.NDArray[np.void]) -> int:
    """CRC-32 of the entries."""
    return zlib.crc32(entries.tobytes())
