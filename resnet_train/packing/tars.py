"""Tar files as sources, indexed without unpacking: ILSVRC2012's tar file of tar files, and WebDataset shards."""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from resnet_train.data.image_paths import IMAGE_SUFFIXES
from resnet_train.data.shard_index import BLOCK
from resnet_train.errors import BadInput
from resnet_train.packing.manifest import TarManifest
from resnet_train.runtime.progress import Progress


class TarMember(NamedTuple):
    """A regular file in a tar file."""

    name: str
    offset: int
    """Where its content begins, in bytes."""
    length: int


class TarSample(NamedTuple):
    """A row of a TarManifest."""

    name: str
    """CLASS/FILE."""
    label: int
    tar_index: int
    offset: int
    length: int


def tar_manifest(tars: Sequence[Path], samples: Sequence[TarSample]) -> TarManifest:
    """The manifest of samples in some tar files."""
    names = np.array([sample.name.encode("utf-8", "surrogateescape") for sample in samples], np.bytes_)
    labels, indices, offsets, lengths = np.array([sample[1:] for sample in samples], np.int64).reshape(-1, 4).T
    return TarManifest(names, labels, tuple(tars), indices, offsets, lengths)


@contextmanager
def open_tar(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar file or, with `file`, one that lies within `path`.

    Raises BadInput, also from within the block, if it cannot be read or is no tar file.
    """
    try:
        with tarfile.open(path if file is None else None, "r:", fileobj=file) as tar:
            yield tar
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or f"it is truncated, or no tar file ({error})"
        raise BadInput(f"cannot read {path}: {reason}") from None


def regular_files(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of an open tar file that are not folders.

    Raises BadInput if a member is a link or a device, if its path leads outside, or if the end marker is missing.
    """
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        if member.isdir():
            continue
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise BadInput(f"{path}: member {member.name} leads outside of the archive: refused")
        if not member.isfile():
            raise BadInput(f"{path}: member {member.name} is a link or a device: refused")
        yield member
    # tarfile stops silently at whatever is no member. A whole archive has at least one block of zeros there.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(BLOCK) != bytes(BLOCK):
        raise BadInput(f"cannot read {path}: it is truncated or damaged after {member.name}: the end marker is missing")


# --- ILSVRC2012 -------------------------------------------------------------------------------------------------------


def read_class_tars(path: Path) -> tuple[TarManifest, list[str]]:
    """`ILSVRC2012_img_train.tar`: a tar file for each class, named by its synset. The manifest and the sorted classes.

    Raises BadInput.
    """
    samples: list[TarSample] = []
    classes: list[str] = []
    with open_tar(path) as outer, Progress(path.name, None, "class") as bar:
        for class_tar in regular_files(outer, path):
            class_id = Path(class_tar.name).name.removesuffix(".tar")
            if not class_tar.name.endswith(".tar"):
                raise BadInput(f"{path}: member {class_tar.name} is not the tar file of a class")
            with open_tar(path, outer.extractfile(class_tar)) as inner:
                for image in regular_files(inner, path):
                    name, offset = f"{class_id}/{Path(image.name).name}", class_tar.offset_data + image.offset_data
                    samples.append(TarSample(name, len(classes), 0, offset, image.size))
            classes.append(class_id)
            bar.update(1)
    label_of_class = {class_id: label for label, class_id in enumerate(sorted(classes))}
    samples = [sample._replace(label=label_of_class[classes[sample.label]]) for sample in samples]
    return tar_manifest([path], samples), sorted(classes)


def read_members(path: Path) -> list[TarMember]:
    """All files of a tar file. Raises BadInput."""
    with open_tar(path) as tar:
        return [TarMember(file.name, file.offset_data, file.size) for file in regular_files(tar, path)]


# --- WebDataset -------------------------------------------------------------------------------------------------------

_KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^./]*)\.([^/]*)", re.S)
"""WebDataset's rule: the key ends at the first dot of the file name, and the rest says what the member is."""


class WebDatasetSample(NamedTuple):
    """An image in a WebDataset shard, and its label."""

    key: str
    suffix: str
    image: TarMember
    label: int


def read_webdataset(path: Path) -> Iterator[WebDatasetSample]:
    """The samples of a WebDataset shard: KEY.jpg (or .png, …) beside KEY.cls. Raises BadInput."""
    image: tuple[str, str, TarMember] | None = None
    label: tuple[str, int] | None = None
    with open_tar(path) as tar:
        for member in regular_files(tar, path):
            match = _KEY_AND_SUFFIX.fullmatch(member.name)
            if match is None:
                continue
            key, suffix = match[1], match[2].lower()
            if f".{suffix}" in IMAGE_SUFFIXES:
                _check_labelled(path, image)
                image = (key, suffix, TarMember(member.name, member.offset_data, member.size))
            elif suffix == "cls":
                label = (key, _read_label(path, tar, member))
            if image is not None and label is not None and image[0] == label[0]:
                yield WebDatasetSample(*image, label[1])
                image = label = None
    _check_labelled(path, image)


def _read_label(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    text = file.read()
    if not text.strip().isdigit():
        raise BadInput(f"{path}: {member.name} is no label: expected a number, found {text[:20]!r}")
    return int(text)


def _check_labelled(path: Path, image: tuple[str, str, TarMember] | None) -> None:
    """Raises BadInput if an image still waits for its label."""
    if image is not None:
        key, _, member = image
        raise BadInput(f"{path}: {member.name} has no label: expected {key}.cls beside it")
