"""Packed images: WebDataset tar files and an index of them.

index.json           format, classes, shards with their sizes in bytes, and the options of `prepare`
classes.txt          the name of each class, one a line, in the order of the labels
odd.csv              peculiarities found while packing: split, image, what
train/000000.tar     members KEY.jpg (or .png, .ppm …) and KEY.cls, the label as a decimal number
train/index.npy      one ENTRY a sample, in the order of class folders: sorted by class, then by name
val/                 the same

Shards are read by `pread`, not by memory map: a shard that is cut short or lost is then an error with a name, and not a
signal that kills the process. The index is mapped: processes share its pages, and load only those that they use.
"""

import functools
import json
import os
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
from resnet_train.errors import BadInput, exhausted

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

INDEX = "index.json"
"""Describes a packed folder. `prepare` writes it last, so a folder that has it is complete."""
PLAN = "unfinished/plan.json"
"""The list of what is being packed. Beside it are the records of finished shards, until the index is written."""
_REPACK_HINT = "; pack it again by the same resnet-train prepare command"
"""For a shard that is missing or of another size."""
_DELETE_HINT = "; delete the folder and pack it again with resnet-train prepare"
"""For a damaged index."""
_MAX_OPEN_SHARDS = 256
"""Files that a process keeps open: well below the limit of any system."""


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
        self.entries, self.new_labels = _map_index(folder / "index.npy"), new_labels
        labels = self.entries["label"] if new_labels is None else new_labels[self.entries["label"]]
        self.labels = labels if rows is None else labels[rows]
        self.hint = skip_hint(folder)
        self._paths = [f"{folder}/{name}" for name in self.shards]  # joining Paths for each sample is slow
        self._file = functools.lru_cache(_MAX_OPEN_SHARDS)(OpenFile)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardDataset, (self.folder, self.shards, self.classes, self.rows, self.new_labels)

    @property
    def has_raw_images(self) -> bool:  # type: ignore[override]
        return bool((self.entries["form"] == RAW).any())

    def subset(self, indices: Ints) -> "ShardDataset":
        rows = indices if self.rows is None else self.rows[indices]
        return ShardDataset(self.folder, self.shards, self.classes, rows, self.new_labels)

    def relabelled(self, labels: Ints, classes: Sequence[str]) -> "ShardDataset":
        """The same samples in the same order; what had label i has `labels[i]`, an index into `classes`."""
        return ShardDataset(self.folder, self.shards, classes, self.rows, labels)

    def entry(self, index: int) -> Entry:
        """A sample's entry in the index. Raises `BadInput` where it names a shard that does not exist."""
        entry = Entry(*self.entries[index if self.rows is None else self.rows[index]].item())
        if entry.shard >= len(self.shards):
            raise BadInput(f"the index of {self.folder} names shard {entry.shard} of {len(self.shards)}{_DELETE_HINT}")
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
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
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
        start = self.entry.length - 3 * width * height  # after the header of the PPM
        if start <= 0:
            raise BadInput(f"cannot decode {self.name}: by the index it has more pixels than bytes{_DELETE_HINT}")
        rows = self.shards.read_bytes(self.entry, start + 3 * width * top, 3 * width * (bottom - top))
        pixels = np.frombuffer(rows, np.uint8).reshape(-1, width, 3)
        return Region(pixels[:, left:right].copy(), left, top)


def read_index(folder: Path) -> dict[str, Any]:
    """The content of `index.json`. Raises `BadInput` where it is missing, damaged or of another format."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
        version = index["format"]
    except OSError as error:
        if os.access(folder / PLAN, os.F_OK):
            raise BadInput(
                f"data.path: {folder} is not packed to its end: run the same resnet-train prepare command again"
            ) from None
        reason = f"{error.strerror}; expected a folder made by resnet-train prepare"
        raise BadInput(f"data.path: cannot read {folder / INDEX}: {reason}") from None
    except (ValueError, TypeError, KeyError):
        raise BadInput(f"data.path: {folder / INDEX} is damaged{_DELETE_HINT}") from None
    if version != FORMAT:
        raise BadInput(f"data.path: {folder} is of format {version}, this program reads {FORMAT}{_DELETE_HINT}")
    return index


def describe_changes(folder: Path) -> str | None:
    """How packing changed the pixels, in words; None where it did not. Raises `BadInput`."""
    options = read_index(folder)["report"]["options"]
    if options["short_side"]:
        return f"shorter sides reduced to {options['short_side']} px"
    return f"made {options['square']} x {options['square']} px" if options["square"] else None


def open_shards(folder: Path, split: str) -> ShardDataset:
    """The `train` or `val` split of a packed data set. Raises `BadInput` where its shards do not match its index.

    Only the sizes of the shards are compared with the index; `prepare --verify` reads everything.
    """
    index = read_index(folder)
    if split not in index["parts"]:
        raise BadInput(f"data.path: {folder} was packed without its {split} part")
    for problem in damaged_shards(folder, split, index).values():
        raise BadInput(f"data.path: {problem}{_REPACK_HINT}")
    return open_shards_unchecked(folder, split, index)


def damaged_shards(folder: Path, split: str, index: dict[str, Any]) -> dict[str, str]:
    """The shards that are missing or whose size differs from the index, each with a message."""
    problems = {}
    for name, size in index["parts"][split]["shards"]:
        path = folder / split / name
        try:
            if (length := path.stat().st_size) != size:
                problems[name] = f"{path} has {length:,} bytes, and {size:,} by the index"
        except OSError as error:
            problems[name] = f"the index of {folder} names {path}: {error.strerror}"
    return problems


def open_shards_unchecked(folder: Path, split: str, index: dict[str, Any]) -> ShardDataset:
    """A split as the index lists it, whether or not its shards exist. Raises `BadInput` where the index is damaged."""
    listed = index["parts"][split]
    shards, classes = [name for name, _ in listed["shards"]], [class_id for class_id, _ in index["classes"]]
    dataset = ShardDataset(folder / split, shards, classes)
    if len(dataset) != listed["images"]:
        raise BadInput(
            f"data.path: {folder / split / 'index.npy'} lists {len(dataset):,} images, and {folder / INDEX} "
            f"{listed['images']:,}{_DELETE_HINT}"
        )
    return dataset


def _map_index(path: Path) -> npt.NDArray[np.void]:
    try:
        entries = np.asarray(np.load(path, mmap_mode="r"))
    except OSError as error:
        raise BadInput(f"data.path: cannot read {path}: {error.strerror or error}{_DELETE_HINT}") from None
    except ValueError:
        raise BadInput(f"data.path: {path} is damaged{_DELETE_HINT}") from None
    if entries.dtype != ENTRY or entries.ndim != 1:
        raise BadInput(f"data.path: {path} is no index of samples{_DELETE_HINT}")
    return entries
