"""Tar files as sources, read without unpacking: ILSVRC2012's tar of tars, and WebDataset shards."""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from resnet_train.data.image_folder import IMAGE_SUFFIXES
from resnet_train.data.shards import BLOCK
from resnet_train.errors import BadInput
from resnet_train.packing.manifest import InTars
from resnet_train.runtime.progress import Progress


class TarMember(NamedTuple):
    """A file in a tar file."""

    name: str
    offset: int
    length: int


class Found(NamedTuple):
    """A sample in a tar file."""

    name: str
    """CLASS/FILE."""
    label: int
    tar: int
    offset: int
    length: int


def members(path: Path, file: Any = None) -> Iterator[TarMember]:
    """The files in a tar file, or in one that is open (and lies in `path`).

    Raises `BadInput` where it is none, or where a member is no plain file or its path leads outside.
    """
    try:
        with tarfile.open(path if file is None else None, "r:", fileobj=file) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                if member.isdir():
                    continue
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise BadInput(f"{path}: member {member.name} leads outside: refused")
                if not member.isfile():
                    raise BadInput(f"{path}: member {member.name} is a link or a device: refused")
                yield TarMember(member.name, member.offset_data, member.size)
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)  # where tarfile stops, at an end or at what is no member
            if tar.fileobj.read(BLOCK) != bytes(BLOCK):
                said = "blocks of zeros end a tar file, and here are none"
                raise BadInput(f"cannot read {path}: it is cut short, or damaged, after {member.name}: {said}")
    except (tarfile.TarError, OSError, EOFError) as error:
        said = getattr(error, "strerror", None) or f"it is cut short, or no tar file ({error})"
        raise BadInput(f"cannot read {path}: {said}") from None


def listed(tars: Sequence[Path], found: Sequence[Found]) -> InTars:
    """A list of samples."""
    names = np.array([os.fsencode(one.name) for one in found], np.bytes_)
    label, tar, offset, length = np.array([one[1:] for one in found], np.int64).reshape(-1, 4).T
    return InTars(names, label, tuple(tars), tar, offset, length)


def of_tars(path: Path) -> tuple[InTars, list[str]]:
    """`ILSVRC2012_img_train.tar`: a tar file for each class, named by its synset. The classes are in order."""
    found, classes = [], []
    try:
        with path.open("rb") as file, Progress(path.name, None, "class") as bar:
            for outer in members(path):
                name = Path(outer.name).name
                if not name.endswith(".tar"):
                    raise BadInput(f"{path}: member {outer.name} is no tar file of a class")
                classes.append(name.removesuffix(".tar"))
                for inner in members(path, _Part(file, outer)):
                    place = outer.offset + inner.offset
                    file_name = Path(inner.name).name
                    found.append(Found(f"{classes[-1]}/{file_name}", len(classes) - 1, 0, place, inner.length))
                bar.update(1)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    order = sorted(range(len(classes)), key=classes.__getitem__)
    rank = {old: new for new, old in enumerate(order)}
    return listed([path], [one._replace(label=rank[one.label]) for one in found]), sorted(classes)


class _Part:
    """As much of a file object as tarfile needs, over a part of an open file."""

    def __init__(self, file: IO[bytes], member: TarMember) -> None:
        self.file, self.member, self.at = file, member, 0

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self.at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        size = min(size if size >= 0 else self.member.length, max(self.member.length - self.at, 0))
        data = os.pread(self.file.fileno(), size, self.member.offset + self.at)
        self.at += len(data)
        return data


# --- WebDataset -------------------------------------------------------------------------------------------------------

_MEMBER = re.compile(r"((?:.*/)?[^./]*)\.([^/]*)", re.S)
"""WebDataset's rule: what follows the first dot of the file's name tells what a member is, the rest is the key."""


class Pair(NamedTuple):
    """An image of a WebDataset shard and its label."""

    key: str
    suffix: str
    image: TarMember
    label: int


def pairs(path: Path) -> Iterator[Pair]:
    """The samples of a WebDataset shard, KEY.jpg (or .png, …) beside KEY.cls. Raises `BadInput`."""
    image: tuple[str, str, TarMember] | None = None
    label: tuple[str, int] | None = None
    with path.open("rb") as file:
        for member in members(path):
            match = _MEMBER.fullmatch(member.name)
            if match is None:
                continue
            key, suffix = match[1], match[2].lower()
            if f".{suffix}" in IMAGE_SUFFIXES:
                if image is not None:
                    raise _lone(path, image)
                image = (key, suffix, member)
            elif suffix == "cls":
                text = os.pread(file.fileno(), member.length, member.offset)
                if not text.strip().isdigit():
                    raise BadInput(f"{path}: {member.name} is no label: expected a number, found {text[:20]!r}")
                label = (key, int(text))
            if image is not None and label is not None and image[0] == label[0]:
                yield Pair(*image, label[1])
                image = label = None
    if image is not None:
        raise _lone(path, image)


def _lone(path: Path, image: tuple[str, str, TarMember]) -> BadInput:
    return BadInput(f"{path}: {image[2].name} has no {image[0]}.cls beside it, which would hold its label")
