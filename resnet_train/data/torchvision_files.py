"""The files of torchvision's small data sets, where people have them: unpacked or not, a folder above or below."""

import gzip
import hashlib
import os
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_train.data.decoding import ImageArray
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import open_regular, read_bytes

_LIMIT = 1 << 28
"""Bytes of the largest file that is read: CIFAR-100's training images take 154 MB."""


class _Layout(NamedTuple):
    """What is where in the folder that torchvision reads."""

    folder: str
    archive: str | None
    """The file that is downloaded, where there is one for all."""
    files: tuple[str, ...]
    """By which a folder of another name is recognised."""


_LAYOUTS = {
    "cifar10": _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", ("data_batch_1", "batches.meta")),
    "cifar100": _Layout("cifar-100-python", "cifar-100-python.tar.gz", ("train", "test", "meta")),
    "mnist": _Layout("MNIST", None, ("train-images-idx3-ubyte",)),
    "fashion-mnist": _Layout("FashionMNIST", None, ("train-images-idx3-ubyte",)),
    "svhn": _Layout("SVHN", None, ("train_32x32.mat",)),
    "svhn-extra": _Layout("SVHN", None, ("train_32x32.mat", "extra_32x32.mat")),
}


class SmallDataset(NamedTuple):
    """One split of a data set."""

    images: ImageArray
    """[n, H, W] or [n, H, W, 3]."""
    labels: Ints
    """int64 [n]."""
    classes: Sequence[str]


def kind_of(folder: Path) -> str | None:
    """The kind of torchvision's data set that a folder holds; None if there is none."""
    return next((kind for kind in _LAYOUTS if _locate(kind, folder, sure=True) is not None), None)


def read(kind: str, path: Path, train: bool) -> SmallDataset:
    """The training or the test images in `path`. Raises `BadInput` that says what is missing or damaged."""
    place = _locate(kind, path, sure=False)
    if place is None:
        raise BadInput(f"there is no {_LAYOUTS[kind].folder}")
    if kind.startswith("svhn"):
        return _read_svhn(place, _svhn_splits(kind, train))
    return _read_cifar(kind, place, train) if kind.startswith("cifar") else _read_mnist(kind, place, train)


def download(kind: str, path: str, train: bool) -> None:
    """Let torchvision download the training or the test images into `path`. Raises what it raises."""
    if kind.startswith("svhn"):
        for split in _svhn_splits(kind, train):
            _reader_of(kind)(path, split=split, download=True)
    else:
        _reader_of(kind)(path, train=train, download=True)


def _reader_of(kind: str) -> Any:
    """torchvision's class, which downloads the files and knows their names and checksums."""
    from torchvision import datasets

    return {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": datasets.FashionMNIST,
        "mnist": datasets.MNIST,
        "svhn": datasets.SVHN,
        "svhn-extra": datasets.SVHN,
    }[kind]


def _locate(kind: str, path: Path, sure: bool) -> Path | None:
    """The folder of the files, or their archive: in `path`, in a folder of it, or `path` itself.

    sure: MNIST and Fashion-MNIST, which have the same files, only in a folder of that name.
    """
    layout = _LAYOUTS[kind]
    is_unique = sum(other.files == layout.files for other in _LAYOUTS.values()) == 1
    if path.name == layout.archive and path.is_file():
        return path
    for base in (path, *_folders_in(path)):
        for place in (base / layout.folder / "raw", base / layout.folder):
            if place.is_dir():
                return place
        folders = (layout.folder,) if sure and not is_unique else (layout.folder, None)
        for place in (base / "raw", base):
            if _holds(place, layout.files) and _folder_by_name(place) in folders:
                return place
        if layout.archive is not None and (base / layout.archive).is_file():
            return base / layout.archive
    return None


def _holds(place: Path, files: Sequence[str]) -> bool:
    return all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in files)


def _folder_by_name(place: Path) -> str | None:
    """torchvision's folder that a path leads through, the last one if there are several."""
    folders = {layout.folder for layout in _LAYOUTS.values()}
    return next((part for part in reversed(place.resolve().parts) if part in folders), None)


def _folders_in(path: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except OSError:
        return
    yield from (Path(entry.path) for entry in entries if entry.is_dir())


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def _read_cifar(kind: str, place: Path, train: bool) -> SmallDataset:
    reader = _reader_of(kind)
    checksums = dict(reader.train_list if train else reader.test_list)
    meta = reader.meta["filename"]
    files = _read_files(place, [*checksums, meta])
    for name, checksum in (checksums | {meta: reader.meta["md5"]}).items():
        if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != checksum:
            raise BadInput(f"{name} is damaged")
    batches = [pickle.loads(files[name], encoding="latin1") for name in checksums]  # its checksum makes it safe
    images = np.vstack([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = [label for batch in batches for label in batch["labels" if "labels" in batch else "fine_labels"]]
    classes = pickle.loads(files[meta], encoding="latin1")[reader.meta["key"]]
    return SmallDataset(images, np.array(labels, np.int64), classes)


def _read_files(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files by name, from a folder or an archive. Raises `BadInput`."""
    if place.is_dir():
        return {name: read_bytes(place / name, _LIMIT) for name in names}
    files: dict[str, bytes] = {}
    try:
        with open_regular(place) as packed, tarfile.open(fileobj=packed, mode="r|gz") as tar:
            for member in tar:
                name = Path(member.name).name
                if name in names and name not in files and member.isreg() and member.size <= _LIMIT:
                    content = tar.extractfile(member)
                    assert content is not None  # it is a regular file
                    files[name] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise BadInput(f"cannot read {place}: {error}") from None
    for name in names:
        if name not in files:
            raise BadInput(f"{place} has no {name} in it")
    return files


# --- MNIST ------------------------------------------------------------------------------------------------------------


def _read_mnist(kind: str, place: Path, train: bool) -> SmallDataset:
    part = "train" if train else "t10k"
    images = _read_idx(place / f"{part}-images-idx3-ubyte", 3)
    labels = _read_idx(place / f"{part}-labels-idx1-ubyte", 1).astype(np.int64)
    classes = _reader_of(kind).classes
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max(initial=0) >= len(classes):
        raise BadInput(f"images and labels of {place} do not fit together")
    return SmallDataset(images, labels, classes)


def _read_idx(path: Path, dimensions: int) -> ImageArray:
    """uint8 array of a file in MNIST's format, or of its .gz."""
    if path.is_file():
        data = read_bytes(path, _LIMIT)
    else:
        packed = path.with_name(f"{path.name}.gz")
        try:
            with open_regular(packed) as file, gzip.open(file) as stream:
                data = stream.read(_LIMIT)
        except (OSError, EOFError, zlib.error) as error:
            raise BadInput(f"cannot read {packed}: {error}") from None
    header = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(data[4:header], ">u4").tolist()) if len(data) >= header else ()
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != header + int(np.prod(shape, dtype=object)):
        raise BadInput(f"{path} is damaged")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


# --- SVHN -------------------------------------------------------------------------------------------------------------


def _svhn_splits(kind: str, train: bool) -> tuple[str, ...]:
    if not train:
        return ("test",)
    return ("train", "extra") if kind == "svhn-extra" else ("train",)


def _read_svhn(place: Path, splits: Sequence[str]) -> SmallDataset:
    from scipy.io import loadmat

    mats = []
    for split in splits:
        _, name, checksum = _reader_of("svhn").split_list[split]
        with open_regular(place / name) as file:
            digest = hashlib.md5(usedforsecurity=False)
            while chunk := file.read(1 << 24):
                digest.update(chunk)
            if digest.hexdigest() != checksum:
                raise BadInput(f"{name} is damaged")
            file.seek(0)
            mats.append(loadmat(file))  # its checksum makes it safe
    images = np.empty((sum(mat["X"].shape[3] for mat in mats), 32, 32, 3), np.uint8)
    np.concatenate([mat["X"].transpose(3, 0, 1, 2) for mat in mats], out=images)
    labels = np.concatenate([mat["y"][:, 0] for mat in mats]).astype(np.int64)
    return SmallDataset(images, labels % 10, [str(digit) for digit in range(10)])  # the file calls 0 10
