"""The data sets, and how a configuration opens them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
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
from resnet_train.data import image_folder, rng, shards, torchvision_files
from resnet_train.data.class_labels import ValLabeller, read_class_map
from resnet_train.data.dataset import Dataset
from resnet_train.data.decoding import ImageArray
from resnet_train.data.device_cache import device_cached
from resnet_train.data.fixed_size import FixedSizeDataset
from resnet_train.data.image_folder import ImageFolderDataset
from resnet_train.data.rng import Ints
from resnet_train.data.shards import ShardDataset
from resnet_train.errors import BadInput

_DIGITS_FILE = "datasets/data/digits.csv.gz"
"""In the folder of scikit-learn."""


class InMemoryDataset(FixedSizeDataset):
    """Images of one size in memory; each device that asks for them gets a copy of all."""

    def __init__(self, images: ImageArray, labels: Ints, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = images, labels, tuple(classes)
        self.size, self.channels = images.shape[1], images.shape[3]
        self._on_device: dict[torch.device, Tensor] = {}

    @property
    def stays_on_device(self) -> bool:
        return True

    def batch(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        if device not in self._on_device:
            self._on_device[device] = torch.from_numpy(self.images).to(device)
        return self._on_device[device], indices

    def subset(self, indices: Ints) -> "InMemoryDataset":
        return InMemoryDataset(self.images[indices], self.labels[indices], self.classes)


class SyntheticDataset(FixedSizeDataset):
    """Generated images of one size, each a function of its number: noise on the pattern of its class."""

    def __init__(self, cfg: SyntheticConfig, numbers: Ints) -> None:
        self.cfg, self.numbers, self.size, self.channels = cfg, numbers, cfg.size, cfg.channels
        self.labels = numbers % cfg.classes
        self.classes = tuple(f"class-{i}" for i in range(cfg.classes))

    def generate(self, indices: Ints) -> ImageArray:
        """[n] samples -> uint8 [n, size, size, C]."""
        n, size, channels = len(indices), self.cfg.size, self.channels
        epoch = np.zeros_like(indices)
        coarse = rng.uniform(0, epoch, self.labels[indices], 16 * channels).reshape(n, 4, 4, channels)
        grid = np.arange(size) * 4 // size
        pattern = coarse[:, grid][:, :, grid]
        noise = rng.uniform(1, epoch, self.numbers[indices], size * size * channels)
        return (127 * pattern + 128 * noise.reshape(n, size, size, channels)).astype(np.uint8)

    def batch(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        return torch.from_numpy(self.generate(indices)).to(device), np.arange(len(indices))

    def subset(self, indices: Ints) -> "SyntheticDataset":
        return SyntheticDataset(self.cfg, self.numbers[indices])


def open_data(cfg: DataConfig) -> tuple[Dataset, Dataset]:
    """The training and the validation samples. Raises `BadInput`."""
    train, val = _open(cfg)
    if not cfg.holdout:
        return train, val
    if cfg.holdout >= len(train):
        raise BadInput(f"data.holdout = {cfg.holdout}: there are only {len(train)} training images")
    holdout = evenly_spaced(len(train), cfg.holdout)
    return train.subset(np.delete(np.arange(len(train)), holdout)), train.subset(holdout)


def check_data(cfg: DataConfig) -> None:
    """Raise `BadInput` where the data cannot be opened. Downloads what is to be downloaded."""
    open_data(cfg)


def open_validation(cfg: DataConfig) -> Dataset:
    """The validation samples alone. Folders and shards of training images may be absent. Raises `BadInput`."""
    match cfg:
        case ImageFolderConfig(holdout=0):
            return _opened(cfg, image_folder.open_val_folder(Path(cfg.path), _labeller(cfg)))
        case ShardsConfig(holdout=0):
            return _opened(cfg, shards.open_shards(Path(cfg.path), "val"))
    return open_data(cfg)[1]


def describe_changes(cfg: DataConfig) -> str | None:
    """How `prepare` changed the pixels of the images, in words; None where it did not. Raises `BadInput`."""
    return shards.describe_changes(Path(cfg.path)) if isinstance(cfg, ShardsConfig) else None


def evenly_spaced(n: int, count: int) -> Ints:
    """`count` of `n` indices, or all where there are fewer. Of samples sorted by class they keep its proportions."""
    return np.arange(min(n, count)) * n // min(n, count)


def _open(cfg: DataConfig) -> tuple[Dataset, Dataset]:
    match cfg:
        case ImageFolderConfig():
            train, val = image_folder.open_image_folders(Path(cfg.path), _labeller(cfg))
            return _opened(cfg, train), _opened(cfg, val)
        case ShardsConfig():
            train_shards, val_shards = (shards.open_shards(Path(cfg.path), split) for split in ("train", "val"))
            return _opened(cfg, train_shards), _opened(cfg, val_shards)
        case TorchvisionConfig():
            return open_torchvision(cfg, train=True), open_torchvision(cfg, train=False)
        case DigitsConfig():
            return _open_digits()
        case SyntheticConfig():
            numbers = np.arange(cfg.train_images + cfg.val_images)
            train_numbers, val_numbers = np.split(numbers, [cfg.train_images])
            return SyntheticDataset(cfg, train_numbers), SyntheticDataset(cfg, val_numbers)


def _labeller(cfg: ImageFolderConfig) -> ValLabeller:
    file = None if cfg.val_labels is None else Path(cfg.val_labels)
    return ValLabeller(Path(cfg.path), file, "data.val_labels")


def _opened(cfg: ImageFilesConfig, files: ImageFolderDataset | ShardDataset) -> Dataset:
    """The files with the labels of `cfg`; where it asks for that, a data set that holds their images on the device."""
    if cfg.class_map is not None:
        classes = read_class_map(Path(cfg.class_map), files.classes)
        new_label = {name: label for label, name in enumerate(classes)}
        files = files.relabelled(np.array([new_label[name] for name in files.classes]), classes)
    return files if cfg.device_cache_gb is None else device_cached(files, cfg.device_cache_gb, cfg.workers)


def _open_digits() -> tuple[InMemoryDataset, InMemoryDataset]:
    table = _digits_table()
    images = np.rint(table[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    val = np.arange(len(labels)) % 5 == 4
    classes = [str(digit) for digit in range(10)]
    return InMemoryDataset(images[~val], labels[~val], classes), InMemoryDataset(images[val], labels[val], classes)


def _digits_table() -> NDArray[np.float64]:
    """[1797, 64 + 1]: the pixels of each image, 0 to 16, and its label.

    Read from scikit-learn's file: importing scikit-learn also imports SciPy and pandas, and takes longer than torch.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise BadInput("data.kind digits needs scikit-learn: pip install 'resnet-train[digits]'")
    file = Path(package.submodule_search_locations[0], _DIGITS_FILE)
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # another release has the file elsewhere

    pixels, labels = load_digits(return_X_y=True)
    return np.column_stack([pixels, labels])


def open_torchvision(cfg: TorchvisionConfig, train: bool) -> InMemoryDataset:
    """The training or the test images of one of torchvision's data sets. Raises `BadInput`."""
    path = Path(cfg.path)
    try:
        data = torchvision_files.read(cfg.kind, path, train)
    except BadInput as error:
        if not cfg.download:
            raise BadInput(
                f"data.path: no complete {cfg.kind} in {path}; correct the path, or add data.download=true to fetch it "
                f"({error})"
            ) from None
        try:
            torchvision_files.download(cfg.kind, cfg.path, train)
        except (RuntimeError, OSError, ValueError, EOFError) as failure:
            raise BadInput(f"data.path: cannot fetch {cfg.kind} into {path}: {failure}") from None
        data = torchvision_files.read(cfg.kind, path, train)
    return InMemoryDataset(data.images.reshape(*data.images.shape[:3], -1), data.labels, data.classes)
