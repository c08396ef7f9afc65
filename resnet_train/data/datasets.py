"""Where samples come from: one small class a kind, each with `len`, `classes`, `labels` and a way to read images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resnet_train.config.data import (
    DataConfig,
    DigitsConfig,
    ImageFilesConfig,
    ImageFolderConfig,
    ShardsConfig,
    SyntheticConfig,
    TorchvisionConfig,
)
from resnet_train.data import decoding, rng, shards
from resnet_train.data.dataset import Dataset
from resnet_train.data.decoding import EncodedImage, ImageArray
from resnet_train.data.device_cache import DeviceCachedDataset, resident
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class InMemoryDataset:
    """Images of one size, held in memory; once asked for them, on the device."""

    def __init__(self, images: ImageArray, labels: Ints, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = images, labels, tuple(classes)
        self.size, self.channels = images.shape[1], images.shape[3]
        self._held: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    def held(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        """uint8 images [m, H, W, C] on a device, and which of them [n] the samples are."""
        if device not in self._held:
            self._held[device] = torch.from_numpy(self.images).to(device)
        return self._held[device], indices

    def subset(self, indices: Ints) -> "InMemoryDataset":
        """The same source, of these samples only."""
        return InMemoryDataset(self.images[indices], self.labels[indices], self.classes)


class SyntheticDataset:
    """Synthetic images of one size, each a function of its number: noise around its class's pattern."""

    def __init__(self, cfg: SyntheticConfig, numbers: Ints) -> None:
        self.cfg, self.numbers, self.size, self.channels = cfg, numbers, cfg.size, cfg.channels
        self.labels = numbers % cfg.classes
        self.classes = tuple(f"class-{i}" for i in range(cfg.classes))

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, indices: Ints) -> ImageArray:
        """[n] -> uint8 [n, H, W, C]."""
        n, size, channels = len(indices), self.cfg.size, self.channels
        coarse = rng.uniform(0, np.zeros_like(indices), self.labels[indices], 16 * channels).reshape(n, 4, 4, channels)
        grid = np.arange(size) * 4 // size
        pattern = coarse[:, grid][:, :, grid]
        noise = rng.uniform(1, np.zeros_like(indices), self.numbers[indices], size * size * channels)
        return (127 * pattern + 128 * noise.reshape(n, size, size, channels)).astype(np.uint8)

    def name(self, index: int) -> str:
        return str(index)

    def held(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        """uint8 images [n, H, W, C] on a device, and which of them [n] the samples are."""
        return torch.from_numpy(self.read(indices)).to(device), np.arange(len(indices))

    def subset(self, indices: Ints) -> "SyntheticDataset":
        """The same source, of these samples only."""
        return SyntheticDataset(self.cfg, self.numbers[indices])


class ImageFolderDataset(ImageFileDataset):
    """Image files in class folders. Names are kept as bytes in one array: small, and cheap to send."""

    def __init__(self, root: Path, names: npt.NDArray[np.bytes_], labels: Ints, classes: Sequence[str]) -> None:
        self.root, self.names, self.labels, self.classes = root, names, labels, tuple(classes)
        if root.name == "train":
            self.hint = "; data.on_bad_image=skip leaves it out"

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.names[index]))

    def encoded(self, index: int) -> EncodedImage:
        return decoding.open_file(Path(self.name(index)))

    def subset(self, indices: Ints) -> "ImageFolderDataset":
        return ImageFolderDataset(self.root, self.names[indices], self.labels[indices], self.classes)


def open_data(cfg: DataConfig) -> tuple[Dataset, Dataset]:
    """The training and the validation samples. Raises `BadInput`."""
    train, val = _open(cfg)
    if not cfg.holdout:
        return train, val
    if cfg.holdout >= len(train):
        raise BadInput(f"data.holdout = {cfg.holdout}: there are only {len(train)} training images")
    held = evenly_spaced(len(train), cfg.holdout)
    return train.subset(np.delete(np.arange(len(train)), held)), train.subset(held)


def open_validation(cfg: DataConfig) -> Dataset:
    """The validation samples alone; of image files, the training part need not be there. Raises `BadInput`."""
    match cfg:
        case ImageFolderConfig(holdout=0):
            return _files(cfg, open_image_folder(Path(cfg.path) / "val"))
        case ShardsConfig(holdout=0):
            return _files(cfg, shards.open_shards(Path(cfg.path), "val"))
    return open_data(cfg)[1]


def describe_changes(cfg: DataConfig) -> str | None:
    """What `prepare` did to the pixels, in words; `None` where they are the source's. Raises `BadInput`."""
    return shards.describe_changes(Path(cfg.path)) if isinstance(cfg, ShardsConfig) else None


def evenly_spaced(n: int, count: int) -> Ints:
    """`count` of `n` indices at even distances: the same share of every class where classes lie one after the other."""
    return np.arange(min(n, count)) * n // min(n, count)


def _open(cfg: DataConfig) -> tuple[Dataset, Dataset]:
    match cfg:
        case ImageFolderConfig():
            train, val = _folders(Path(cfg.path))
            return _files(cfg, train), _files(cfg, val)
        case ShardsConfig():
            packed = [_files(cfg, shards.open_shards(Path(cfg.path), part)) for part in ("train", "val")]
            return packed[0], packed[1]
        case TorchvisionConfig():
            return _torchvision(cfg, train=True), _torchvision(cfg, train=False)
        case DigitsConfig():
            return _digits()
        case SyntheticConfig():
            every = np.arange(cfg.train_images + cfg.val_images)
            return SyntheticDataset(cfg, every[: cfg.train_images]), SyntheticDataset(cfg, every[cfg.train_images :])


def _files(cfg: ImageFilesConfig, found: ImageFileDataset) -> ImageFileDataset | DeviceCachedDataset:
    return found if cfg.device_cache_gb is None else resident(found, cfg.device_cache_gb, cfg.workers)


def _digits() -> tuple[InMemoryDataset, InMemoryDataset]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput("data.kind digits needs scikit-learn: pip install 'resnet-train[digits]'") from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    val = np.arange(len(labels)) % 5 == 4
    classes = [str(name) for name in digits.target_names]
    return InMemoryDataset(images[~val], labels[~val], classes), InMemoryDataset(images[val], labels[val], classes)


def _torchvision(cfg: TorchvisionConfig, train: bool) -> InMemoryDataset:
    from torchvision import datasets

    reader = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": datasets.FashionMNIST,
        "mnist": datasets.MNIST,
    }[cfg.kind]
    try:
        data: Any = reader(cfg.path, train=train, download=cfg.download)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        if cfg.download:
            raise BadInput(f"data.path: cannot fetch {cfg.kind} into {cfg.path}: {error}") from None
        raise BadInput(
            f"data.path: no complete {cfg.kind} in {cfg.path}; correct the path, or add data.download=true to fetch it"
        ) from None
    images = np.asarray(data.data)
    return InMemoryDataset(images.reshape(*images.shape[:3], -1), np.asarray(data.targets, np.int64), data.classes)


def _folders(root: Path) -> tuple[ImageFolderDataset, ImageFolderDataset]:
    train, val = open_image_folder(root / "train"), open_image_folder(root / "val")
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        where = "train" if odd[0] in train.classes else "val"
        raise BadInput(f"data.path: train and val have different classes: {odd[0]} is only in {root / where}")
    return train, val


def open_image_folder(root: Path) -> ImageFolderDataset:
    """Class folders: classes in the order of their names, and so their images. Raises `BadInput`."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"data.path: cannot read {root}: {error.strerror}; expected CLASS/IMAGE files in it") from None
    classes = [entry.name for entry in entries if entry.is_dir()]
    if not classes:
        loose = any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in entries)
        found = "images but no class folders" if loose else "nothing to train on"
        raise BadInput(f"data.path: {root} holds {found}; expected {root / 'CLASS' / 'IMAGE.jpg'}")
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list(_below(root, name))
        if not images:
            raise BadInput(f"data.path: class folder {root / name} holds no image")
        names += map(os.fsencode, images)
        labels += [label] * len(images)
    return ImageFolderDataset(root, np.array(names), np.array(labels, np.int64), classes)


def _below(root: Path, name: str) -> Iterator[str]:
    """The images of a class, those of folders in it included, in the order of torchvision's `ImageFolder`."""

    def refuse(error: OSError) -> None:
        raise BadInput(f"data.path: cannot read {error.filename}: {error.strerror}")

    for folder, _, files in sorted(os.walk(root / name, onerror=refuse, followlinks=True)):
        below = os.path.relpath(folder, root)
        yield from (f"{below}/{file}" for file in sorted(files) if Path(file).suffix.lower() in IMAGE_SUFFIXES)
