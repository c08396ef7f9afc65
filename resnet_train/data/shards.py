"""Packed images: ordinary WebDataset tar files and an index of them.

index.json           format, classes, shards with their sizes, and how it was made
classes.txt          a class's name a line, in the order of the labels
odd.csv              what was noticed while packing: part, image, what
train/000000.tar     members KEY.jpg (or .png, .ppm …) and KEY.cls, the label as a decimal number
train/index.npy      one ENTRY a sample, in the order of class folders: classes, then names
val/                 the same

Samples are read by position, not by memory map: a file that is cut short or lost is then an error with a name, not a
signal that kills the process. The index is mapped: all processes share it, and none reads more of it than it uses.
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
from resnet_train.data.jpeg_tiles import Tiled
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput

FORMAT = 1
ENCODED, TILED, RAW = range(3)
"""How an image is stored: as an image file, as restart-tiled JPEG, as bare pixels (PPM)."""
BLOCK = 512
"""Bytes of a tar member's header."""
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
"""A sample: where its bytes lie in which shard, its label, its size in pixels, the checksum of its bytes, its form."""

INDEX = "index.json"
"""Describes a packed folder. `prepare` writes it last, so a folder that has it is complete."""
PLAN = "unfinished/plan.json"
"""What is being packed; beside it are the records of finished shards, until the index is made of them."""
_AGAIN = "; pack it again by the same resnet-train prepare command"
"""What mends a shard that is missing or of another size."""
_ANEW = "; delete the folder and pack it anew with resnet-train prepare"
"""What mends an index."""
_OPEN = 256
"""Shards that a process holds open: well below what a system allows."""


class Entry(NamedTuple):
    """Where one sample's bytes are: an ENTRY as numbers."""

    offset: int
    label: int
    length: int
    shard: int
    width: int
    height: int
    crc32: int
    form: int


class OpenFile:
    """A file that is open for reading, closed when nothing refers to it."""

    def __init__(self, path: Path | str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardDataset(ImageFileDataset):
    """One part, train or val, of a packed set. Pickled it is its paths, and its rows where it is a subset."""

    def __init__(self, folder: Path, shards: Sequence[str], classes: Sequence[str], rows: Ints | None = None) -> None:
        self.folder, self.shards, self.classes, self.rows = folder, tuple(shards), tuple(classes), rows
        self.entries = _mapped(folder / "index.npy")
        labels = self.entries["label"]
        self.labels = labels if rows is None else labels[rows]
        self._paths = [f"{folder}/{name}" for name in self.shards]  # Path's own arithmetic is slow
        self._file = functools.lru_cache(_OPEN)(OpenFile)
        if folder.name == "train":
            self.hint = "; data.on_bad_image=skip leaves it out"

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardDataset, (self.folder, self.shards, self.classes, self.rows)

    def subset(self, indices: Ints) -> "ShardDataset":
        return ShardDataset(
            self.folder, self.shards, self.classes, indices if self.rows is None else self.rows[indices]
        )

    def entry(self, index: int) -> Entry:
        """Where a sample is. Raises `BadInput`."""
        place = Entry(*self.entries[index if self.rows is None else self.rows[index]].item())
        if place.shard >= len(self.shards):
            raise BadInput(f"the index of {self.folder} names shard {place.shard} of {len(self.shards)}{_ANEW}")
        return place

    def name(self, index: int) -> str:
        return self._name(self.entry(index))

    def encoded(self, index: int) -> EncodedImage:
        place = self.entry(index)
        name, size = self._name(place), (place.width, place.height)
        if place.form == RAW:
            return _Raw(self, place, name, size)
        data = self.read_bytes(place)
        return Tiled(data, name, size) if place.form == TILED else decoding.open_bytes(data, name)

    def read_bytes(self, place: Entry, start: int = 0, length: int | None = None) -> bytes:
        """A sample's stored bytes, or a part of them. Raises `BadInput`."""
        path = self._paths[place.shard]
        length = place.length - start if length is None else length
        try:
            file = self._file(path)  # by a name, or another thread may close it, and open another under its number
            data = os.pread(file.number, length, place.offset + start)
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        if len(data) != length:
            raise BadInput(f"cannot read {path}: it is cut short{_AGAIN}")
        return data

    def _name(self, place: Entry) -> str:
        """The shard and its member, by which `tar` finds it."""
        try:
            header = self.read_bytes(place, -BLOCK, BLOCK)
        except BadInput:
            header = b""
        if header[257:262] != b"ustar":
            return f"{self._paths[place.shard]}, where the index has an image at byte {place.offset} and there is none"
        member = header[:100].partition(b"\0")[0]
        return f"{self._paths[place.shard]}:{os.fsdecode(member)}"


@dataclass(frozen=True)
class _Raw:
    """Bare pixels, of which only the rows of a box are read."""

    shards: ShardDataset
    place: Entry
    name: str
    size: tuple[int, int]

    def region(self, box: Box) -> Region:
        """Exactly the box. Raises `BadInput`."""
        left, top, right, bottom = box
        width, height = self.size
        start = self.place.length - 3 * width * height  # after the PPM's header
        if start <= 0:
            raise BadInput(f"cannot decode {self.name}: by the index it has more pixels than bytes{_ANEW}")
        rows = self.shards.read_bytes(self.place, start + 3 * width * top, 3 * width * (bottom - top))
        pixels = np.frombuffer(rows, np.uint8).reshape(-1, width, 3)
        return Region(pixels[:, left:right].copy(), left, top)


def read_index(folder: Path) -> dict[str, Any]:
    """What `index.json` says. Raises `BadInput` where there is none, or one of another format."""
    try:
        told: dict[str, Any] = json.loads((folder / INDEX).read_text())
        version = told["format"]
    except OSError as error:
        if os.access(folder / PLAN, os.F_OK):
            said = "is not packed to its end: run the same resnet-train prepare command again"
            raise BadInput(f"data.path: {folder} {said}") from None
        said = f"{error.strerror}; expected a folder made by resnet-train prepare"
        raise BadInput(f"data.path: cannot read {folder / INDEX}: {said}") from None
    except (ValueError, TypeError, KeyError):
        raise BadInput(f"data.path: {folder / INDEX} is damaged{_ANEW}") from None
    if version != FORMAT:
        raise BadInput(f"data.path: {folder} is of format {version}, this program reads {FORMAT}{_ANEW}")
    return told


def describe_changes(folder: Path) -> str | None:
    """What packing did to the pixels of a set, in words; `None` where they are the source's. Raises `BadInput`."""
    options = read_index(folder)["report"]["options"]
    if options["short_side"]:
        return f"shorter sides reduced to {options['short_side']} px"
    return f"made {options['square']} x {options['square']} px" if options["square"] else None


def open_shards(folder: Path, part: str) -> ShardDataset:
    """The `train` or `val` part of a packed set. Raises `BadInput` where its shards are not those of its index.

    A shard that is missing or of another size is noticed, by its size alone: `prepare --verify` reads everything.
    """
    told = read_index(folder)
    if part not in told["parts"]:
        raise BadInput(f"data.path: {folder} was packed without its {part} part")
    for wrong in damaged_shards(folder, part, told).values():
        raise BadInput(f"data.path: {wrong}{_AGAIN}")
    return open_shards_unchecked(folder, part, told)


def damaged_shards(folder: Path, part: str, told: dict[str, Any]) -> dict[str, str]:
    """The shards of a part that are missing or of another size than by the index, and what is wrong with each."""
    found = {}
    for name, size in told["parts"][part]["shards"]:
        path = folder / part / name
        try:
            if (length := path.stat().st_size) != size:
                found[name] = f"{path} has {length:,} bytes, and {size:,} by the index"
        except OSError as error:
            found[name] = f"the index of {folder} names {path}: {error.strerror}"
    return found


def open_shards_unchecked(folder: Path, part: str, told: dict[str, Any]) -> ShardDataset:
    """What a packed set lists of a part, whether or not its shards are there. Raises `BadInput`."""
    listed = told["parts"][part]
    source = ShardDataset(folder / part, [name for name, _ in listed["shards"]], [id_ for id_, _ in told["classes"]])
    if len(source) != listed["images"]:
        raise BadInput(
            f"data.path: {folder / part / 'index.npy'} lists {len(source):,} images, and {folder / INDEX} "
            f"{listed['images']:,}{_ANEW}"
        )
    return source


def _mapped(path: Path) -> npt.NDArray[np.void]:
    try:
        entries = np.asarray(np.load(path, mmap_mode="r"))
    except OSError as error:
        raise BadInput(f"data.path: cannot read {path}: {error.strerror or error}{_ANEW}") from None
    except ValueError:
        raise BadInput(f"data.path: {path} is damaged{_ANEW}") from None
    if entries.dtype != ENTRY or entries.ndim != 1:
        raise BadInput(f"data.path: {path} is no index of samples{_ANEW}")
    return entries
