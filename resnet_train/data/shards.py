"""Packed images: WebDataset tar files, and an index of them (`shard_index.py`).

Shards and index are read by `pread`, not by memory map: a file that is cut short or lost is then an error with a name,
and not a signal that kills the process. Of the index a process keeps the labels, and reads an entry when it needs it.
"""

import functools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from resnet_train.data import decoding
from resnet_train.data.decoding import Box, EncodedImage, Region
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.image_folder import skip_hint
from resnet_train.data.jpeg_tiles import TiledJpeg
from resnet_train.data.rng import Ints
from resnet_train.data.shard_index import (
    BLOCK,
    DELETE_HINT,
    RAW,
    TILED,
    Index,
    check_entries,
    read_entries,
    read_index,
)
from resnet_train.errors import BadInput, exhausted

_REPACK_HINT = "; pack it again by the same resnet-train prepare command"
"""For a shard that is missing or of another size."""
_MAX_OPEN_SHARDS = 256
"""Files that a process keeps open: well below the limit of any system."""
_ENTRY = struct.Struct("<qqIIIIII")
"""An ENTRY."""


class Entry(NamedTuple):
    """An ENTRY as Python numbers."""

    offset: int
    label: int
    length: int
    shard: int
    width: int
    height: int
    crc32: int
    form: int


class OpenFile:
    """A file that is open for reading, and closed when nothing refers to this object."""

    def __init__(self, path: Path | str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardDataset(ImageFileDataset):
    """One split, train or val, of a packed data set. Pickled, it is its paths, and its rows where it is a subset.

    new_labels: what had label i in the index has `new_labels[i]`, an index into `classes`.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[str],
        classes: Sequence[str],
        rows: Ints | None = None,
        new_labels: Ints | None = None,
    ) -> None:
        self.folder, self.shards, self.classes, self.rows = folder, tuple(shards), tuple(classes), rows
        self.new_labels = new_labels
        entries, self._first = read_entries(folder / "index.npy")
        self.has_raw_images = bool((entries["form"] == RAW).any())
        labels = entries["label"] if rows is None else entries["label"][rows]
        self.labels = labels.copy() if new_labels is None else new_labels[labels]
        self.hint = skip_hint(folder)
        self._paths = [f"{folder}/{name}" for name in self.shards]  # joining Paths for each sample is slow
        self._file = functools.lru_cache(_MAX_OPEN_SHARDS)(OpenFile)
        self._index = OpenFile(folder / "index.npy")

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardDataset, (self.folder, self.shards, self.classes, self.rows, self.new_labels)

    @functools.cached_property
    def entries(self) -> npt.NDArray[np.void]:
        """The whole index, [n] of ENTRY, those rows that a subset leaves out included. Raises `BadInput`."""
        return read_entries(self.folder / "index.npy")[0]

    def subset(self, indices: Ints) -> "ShardDataset":
        rows = indices if self.rows is None else self.rows[indices]
        return ShardDataset(self.folder, self.shards, self.classes, rows, self.new_labels)

    def relabelled(self, labels: Ints, classes: Sequence[str]) -> "ShardDataset":
        """The same samples in the same order; what had label i has `labels[i]`, an index into `classes`."""
        return ShardDataset(self.folder, self.shards, classes, self.rows, labels)

    def entry(self, index: int) -> Entry:
        """A sample's entry in the index. Raises `BadInput` where it names a shard that does not exist."""
        row = index if self.rows is None else int(self.rows[index])
        data = os.pread(self._index.number, _ENTRY.size, self._first + row * _ENTRY.size)
        if len(data) != _ENTRY.size:
            raise BadInput(f"data.path: {self.folder / 'index.npy'} is cut short{DELETE_HINT}")
        entry = Entry(*_ENTRY.unpack(data))
        if entry.shard >= len(self.shards):
            raise BadInput(f"the index of {self.folder} names shard {entry.shard} of {len(self.shards)}{DELETE_HINT}")
        return entry

    def name(self, index: int) -> str:
        """SHARD:MEMBER, by which `tar` finds the file."""
        return self._name(self.entry(index))

    def encoded(self, index: int) -> EncodedImage:
        entry = self.entry(index)
        name, size = self._name(entry), (entry.width, entry.height)
        if entry.form == RAW:
            return _RawImage(self, entry, name, size)
        data = self.read_bytes(entry)
        return TiledJpeg(data, name, size) if entry.form == TILED else decoding.open_bytes(data, name)

    def read_bytes(self, entry: Entry, start: int = 0, length: int | None = None) -> bytes:
        """The stored bytes of a sample; `length` of them from `start` on. Raises `BadInput`."""
        path = self._paths[entry.shard]
        length = entry.length - start if length is None else length
        try:
            # The name keeps the file open: another thread may drop it from the cache, and reuse its number.
            file = self._file(path)
            data = os.pread(file.number, length, entry.offset + start)
        except OSError as error:
            if exhausted(error):  # not the file's fault, so it is not to be skipped
                raise
            raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
        if len(data) != length:
            raise BadInput(f"cannot read {path}: it is cut short{_REPACK_HINT}")
        return data

    def _name(self, entry: Entry) -> str:
        try:
            header = self.read_bytes(entry, -BLOCK, BLOCK)
        except BadInput:
            header = b""
        if header[257:262] != b"ustar":
            return f"{self._paths[entry.shard]}, where the index has an image at byte {entry.offset} and there is none"
        member = header[:100].partition(b"\0")[0]
        return f"{self._paths[entry.shard]}:{os.fsdecode(member)}"


@dataclass(frozen=True)
class _RawImage:
    """Raw pixels, of which only the rows of a box are read."""

    shards: ShardDataset
    entry: Entry
    name: str
    size: tuple[int, int]

    def region(self, box: Box) -> Region:
        """The box itself. Raises `BadInput`."""
        left, top, right, bottom = box
        width, height = self.size
        start = len(f"P6\n{width} {height}\n255\n")
        if start + 3 * width * height != self.entry.length:
            raise BadInput(f"cannot decode {self.name}: by the index it has other pixels than bytes{DELETE_HINT}")
        rows = self.shards.read_bytes(self.entry, start + 3 * width * top, 3 * width * (bottom - top))
        pixels = np.frombuffer(rows, np.uint8).reshape(-1, width, 3)
        return Region(pixels[:, left:right].copy(), left, top)


def describe_changes(folder: Path) -> str | None:
    """How packing changed the pixels, in words; None where it did not. Raises `BadInput`."""
    options = read_index(folder).report.options
    if options.short_side:
        return f"shorter sides reduced to {options.short_side} px"
    return f"made {options.square} x {options.square} px" if options.square else None


def open_shards(folder: Path, split: str) -> ShardDataset:
    """The `train` or `val` split of a packed data set. Raises `BadInput` where its shards do not match its index.

    Only the sizes of the shards are compared with the index; `prepare --verify` reads everything.
    """
    index = read_index(folder)
    if split not in index.parts:
        raise BadInput(f"data.path: {folder} was packed without its {split} part")
    for problem in damaged_shards(folder, split, index).values():
        raise BadInput(f"data.path: {problem}{_REPACK_HINT}")
    return open_shards_unchecked(folder, split, index)


def damaged_shards(folder: Path, split: str, index: Index) -> dict[str, str]:
    """The shards that are missing or whose size differs from the index, each with a message."""
    problems = {}
    for name, size in index.parts[split].shards:
        path = folder / split / name
        try:
            if (length := path.stat().st_size) != size:
                problems[name] = f"{path} has {length:,} bytes, and {size:,} by the index"
        except OSError as error:
            problems[name] = f"the index of {folder} names {path}: {error.strerror or error}"
    return problems


def open_shards_unchecked(folder: Path, split: str, index: Index) -> ShardDataset:
    """A split as the index lists it, whether or not its shards exist. Raises `BadInput` where the index is damaged."""
    path, names = folder / split, [name for name, _ in index.parts[split].shards]
    check_entries(path / "index.npy", read_entries(path / "index.npy")[0], index, split)
    return ShardDataset(path, names, [class_id for class_id, _ in index.classes])
