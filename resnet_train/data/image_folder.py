"""Image files in class folders: ROOT/CLASS/IMAGE."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_train.data import decoding
from resnet_train.data.decoding import EncodedImage
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class ImageFolderDataset(ImageFileDataset):
    """Image files by their paths below `root`. One array holds the paths as bytes: small, and quick to pickle."""

    def __init__(self, root: Path, names: npt.NDArray[np.bytes_], labels: Ints, classes: Sequence[str]) -> None:
        self.root, self.names, self.labels, self.classes = root, names, labels, tuple(classes)
        self.hint = skip_hint(root)

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.names[index]))

    def encoded(self, index: int) -> EncodedImage:
        return decoding.open_file(Path(self.name(index)))

    def subset(self, indices: Ints) -> "ImageFolderDataset":
        return ImageFolderDataset(self.root, self.names[indices], self.labels[indices], self.classes)


def skip_hint(folder: Path) -> str:
    """How to train without a file that cannot be decoded. There is no hint for validation images: all of them count."""
    return "; data.on_bad_image=skip leaves it out" if folder.name == "train" else ""


def open_image_folder(root: Path) -> ImageFolderDataset:
    """Classes and images are sorted by name, as in torchvision's `ImageFolder`. Raises `BadInput`."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"data.path: cannot read {root}: {error.strerror}; expected CLASS/IMAGE files in it") from None
    classes = [entry.name for entry in entries if entry.is_dir()]
    if not classes:
        has_images = any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES for entry in entries)
        content = "images but no class folders" if has_images else "nothing to train on"
        raise BadInput(f"data.path: {root} holds {content}; expected {root / 'CLASS' / 'IMAGE.jpg'}")
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = list(_image_paths(root, name))
        if not images:
            raise BadInput(f"data.path: class folder {root / name} holds no image")
        names += map(os.fsencode, images)
        labels += [label] * len(images)
    return ImageFolderDataset(root, np.array(names), np.array(labels, np.int64), classes)


def open_image_folders(path: Path) -> tuple[ImageFolderDataset, ImageFolderDataset]:
    """The folders `train` and `val` of `path`. Raises `BadInput`, also where their classes differ."""
    train, val = open_image_folder(path / "train"), open_image_folder(path / "val")
    if train.classes != val.classes:
        unpaired = min(set(train.classes) ^ set(val.classes))
        only_in = path / ("train" if unpaired in train.classes else "val")
        raise BadInput(f"data.path: train and val have different classes: {unpaired} is only in {only_in}")
    return train, val


def _image_paths(root: Path, class_name: str) -> Iterator[str]:
    """The images of a class, those in folders below it included, as paths relative to `root`."""

    def refuse(error: OSError) -> None:
        raise BadInput(f"data.path: cannot read {error.filename}: {error.strerror}")

    for folder, _, files in sorted(os.walk(root / class_name, onerror=refuse, followlinks=True)):
        below = os.path.relpath(folder, root)
        yield from (f"{below}/{file}" for file in sorted(files) if Path(file).suffix.lower() in IMAGE_SUFFIXES)
