"""Manifests: what is to be packed. Each lists samples with names and labels, and reads an image when it is due."""

import functools
import gzip
import hashlib
import io
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_train.config.data import TorchvisionConfig
from resnet_train.data import datasets
from resnet_train.data.decoding import MAX_BYTES
from resnet_train.data.rng import Ints
from resnet_train.data.shards import OpenFile
from resnet_train.errors import BadInput, exhausted
from resnet_train.runtime.regular_file import read_bytes

GZIP_MAGIC = b"\x1f\x8b"
"""The first bytes of a file that gzip has compressed."""
Names = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Manifest(ABC):
    """Samples in the order in which the source stores them, so that it is read from front to back."""

    names: Names
    """[n], CLASS/FILE, as in class folders."""
    labels: Ints
    """int64 [n]."""
    hint: ClassVar[str] = ""
    """What a user can do about an unreadable image, other than leave it out."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, row: int) -> bytes:
        """The bytes of a sample's image file. Raises BadInput if it cannot be read."""

    def name(self, row: int) -> str:
        """The name of a sample, CLASS/FILE."""
        return os.fsdecode(self.names[row])

    def location(self, row: int) -> str:
        """Where a user finds the sample, for messages."""
        return self.name(row)

    def size(self, row: int) -> int:
        """The number of bytes of a sample's image file. Raises BadInput if it cannot be read."""
        return len(self.read(row))

    def subset(self, rows: slice | Ints) -> Self:
        """A manifest of these rows only."""
        return replace(self, **{name: array[rows] for name, array in self._arrays()})

    def digest(self) -> str:
        """A checksum of all names, labels and locations, but not of the images."""
        checksum = hashlib.sha256()
        for _, array in self._arrays():
            checksum.update(str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
        return checksum.hexdigest()

    def _arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                yield field.name, value


@dataclass(frozen=True)
class FolderManifest(Manifest):
    """Image files in folders."""

    root: Path
    paths: Names
    """[n], relative to the root."""
    hint = "replace the file (do not delete it, which would change the source)"

    def read(self, row: int) -> bytes:
        return read_bytes(self.location(row), MAX_BYTES)

    def size(self, row: int) -> int:
        path = self.location(row)
        try:
            return Path(path).stat().st_size
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None

    def location(self, row: int) -> str:
        return f"{self.root}/{os.fsdecode(self.paths[row])}"


@dataclass(frozen=True)
class TarManifest(Manifest):
    """Image files in tar files, or in tar files within tar files. They are read by position, without unpacking.

    One that gzip has compressed is read from front to back: each worker reads it once, since its shards are in order.
    """

    tars: tuple[Path, ...]
    tar_indices: Ints
    """[n], an index into `tars`."""
    offsets: Ints
    """[n], in bytes."""
    lengths: Ints
    """[n], in bytes."""

    def read(self, row: int) -> bytes:
        path, length = self._tar(row), int(self.lengths[row])
        if length > MAX_BYTES:
            raise BadInput(f"cannot read {self.location(row)}: it is larger than {MAX_BYTES:,} bytes")
        try:
            file = _open_file(path)
            if isinstance(file, OpenFile):
                data = os.pread(file.number, length, int(self.offsets[row]))
            else:
                file.seek(int(self.offsets[row]))
                data = file.read(length)
        except (OSError, EOFError, zlib.error) as error:
            if exhausted(error):  # not the file's fault, so it is not to be left out
                raise
            raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        if len(data) < length:
            raise BadInput(f"cannot read {self.location(row)}: the tar file is truncated")
        return data

    def location(self, row: int) -> str:
        return f"{self.name(row)} in {self._tar(row)}"

    def size(self, row: int) -> int:
        return int(self.lengths[row])

    def _tar(self, row: int) -> Path:
        return self.tars[int(self.tar_indices[row])]


@dataclass(frozen=True)
class InMemoryManifest(Manifest):
    """Images of a torchvision data set that is kept in memory. They become PNG files of the same pixels."""

    path: Path
    kind: str
    """As in `data.kind`."""
    train: bool
    indices: Ints
    """[n], indices into the data set."""

    def read(self, row: int) -> bytes:
        pixels = load_torchvision(self.path, self.kind, self.train).images[self.indices[row]]
        file = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file, "PNG")
        return file.getvalue()


@functools.lru_cache(maxsize=2)
def load_torchvision(path: Path, kind: str, train: bool) -> datasets.InMemoryDataset:
    """One split of a torchvision data set, read once in each process. Raises BadInput."""
    section = TorchvisionConfig.model_validate({"kind": kind, "path": str(path)})
    return datasets.open_torchvision(section, train)


@functools.lru_cache(maxsize=64)
def _open_file(path: Path) -> OpenFile | gzip.GzipFile:
    file = OpenFile(path)
    return gzip.open(path) if os.pread(file.number, 2, 0) == GZIP_MAGIC else file
