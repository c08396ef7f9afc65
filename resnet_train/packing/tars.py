"""Tar files as sources, indexed without unpacking, among them ILSVRC2012's tar file of tar files."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from resnet_train.data.shard_index import BLOCK
from resnet_train.errors import BadInput
from resnet_train.packing.manifest import GZIP_MAGIC, TarManifest
from resnet_train.runtime.progress import Progress
from resnet_train.runtime.regular_file import open_regular


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
    """Open a tar file, which may be compressed by gzip, or, with `file`, one that lies within `path`.

    Raises BadInput, also from within the block, if it cannot be read or is no tar file.
    """
    try:
        with ExitStack() as stack:
            file = file or stack.enter_context(open_source_file(path))
            yield stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"it is truncated, or no tar file ({error})"
        raise BadInput(f"cannot read {path}: {reason}") from None


@contextmanager
def open_source_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, and decompress it if gzip has compressed it. Raises BadInput."""
    with open_regular(path) as file:
        if file.peek(2)[:2] != GZIP_MAGIC:  # type: ignore[attr-defined]
            yield file
            return
        with gzip.open(file) as unpacked:
            yield cast(IO[bytes], unpacked)


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
        if member.issparse():
            raise BadInput(f"{path}: member {member.name} is stored with holes, as tar --sparse does: refused")
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
