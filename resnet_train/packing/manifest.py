"""What is to be packed: lists of samples, each with a name and a label, whose bytes are read when they are due."""

import functools
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_train.config.data import TorchvisionConfig
from resnet_train.data import datasets
from resnet_train.data.rng import Ints
from resnet_train.data.shards import OpenFile
from resnet_train.errors import BadInput

Names = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class Listing(ABC):
    """Samples in the order in which they lie in their source: nothing is sought for twice."""

    names: Names
    """[n], CLASS/FILE as class folders would have it."""
    labels: Ints
    cure: ClassVar[str] = ""
    """What a user may do about a file that is no image, beside leaving it out."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, row: int) -> bytes:
        """A sample's file. Raises `BadInput` where it cannot be read."""

    def name(self, row: int) -> str:
        """Of a sample."""
        return os.fsdecode(self.names[row])

    def where(self, row: int) -> str:
        """The file that a user would open to see a sample."""
        return self.name(row)

    def size(self, row: int) -> int:
        """Of a sample's file, in bytes. Raises `BadInput` where it cannot be read."""
        return len(self.read(row))

    def part(self, rows: slice | Ints) -> Self:
        """These samples only."""
        return replace(self, **{name: array[rows] for name, array in self._arrays()})

    def digest(self) -> str:
        """What tells this list from any other."""
        found = hashlib.sha256()
        for _, array in self._arrays():
            found.update(str(array.dtype).encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def _arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                yield field.name, value


@dataclass(frozen=True)
class InFolder(Listing):
    """Image files."""

    root: Path
    paths: Names
    """[n], below the root."""
    cure = "put a good file in its place (without it the source would be another), or "

    def read(self, row: int) -> bytes:
        with self._path(row) as path:
            return path.read_bytes()

    def size(self, row: int) -> int:
        with self._path(row) as path:
            return path.stat().st_size

    def where(self, row: int) -> str:
        return f"{self.root}/{os.fsdecode(self.paths[row])}"

    @contextmanager
    def _path(self, row: int) -> Iterator[Path]:
        path = Path(self.where(row))
        try:
            yield path
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None


@dataclass(frozen=True)
class InTars(Listing):
    """Members of tar files, or of tar files in them."""

    tars: tuple[Path, ...]
    tar: Ints
    """[n], which of them."""
    offsets: Ints
    lengths: Ints

    def read(self, row: int) -> bytes:
        path, length = self.tars[self.tar[row]], int(self.lengths[row])
        try:
            file = _open(path)
            data = os.pread(file.number, length, int(self.offsets[row]))
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        if len(data) < length:
            raise BadInput(f"cannot read {self.where(row)}: the file is cut short")
        return data

    def where(self, row: int) -> str:
        return f"{self.name(row)} in {self.tars[self.tar[row]]}"

    def size(self, row: int) -> int:
        return int(self.lengths[row])


@dataclass(frozen=True)
class InMemory(Listing):
    """Images of torchvision's small sets, which become PNG files: the pixels are the same."""

    path: Path
    kind: str
    train: bool
    numbers: Ints

    def read(self, row: int) -> bytes:
        pixels = stored(self.path, self.kind, self.train).images[self.numbers[row]]
        file = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(file, "PNG")
        return file.getvalue()


@functools.lru_cache(maxsize=2)
def stored(path: Path, kind: str, train: bool) -> datasets.InMemoryDataset:
    """One of torchvision's small sets, read once a process."""
    section = TorchvisionConfig.model_validate({"kind": kind, "path": str(path)})
    return datasets.open_torchvision(section, train)


@functools.lru_cache(maxsize=64)
def _open(path: Path) -> OpenFile:
    return OpenFile(path)
