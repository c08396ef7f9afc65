"""Image files in class folders, ROOT/CLASS/IMAGE, and validation images that a file labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_train.data import decoding
from resnet_train.data.class_labels import ValLabeller
from resnet_train.data.decoding import EncodedImage
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.image_paths import ImageTree, as_text, is_image, list_folder
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput

_PREFIX = "data.path: "
VAL_FOLDERS = ("val", "validation", "valid")


class ImageFolderDataset(ImageFileDataset):
    """Image files by their paths below `root`. One array holds the paths as bytes: small, and quick to pickle."""

    def __init__(self, root: Path, names: npt.NDArray[np.bytes_], labels: Ints, classes: Sequence[str]) -> None:
        self.root, self.names, self.labels, self.classes = root, names, labels, tuple(classes)
        self.hint = skip_hint(root)

    @property
    def flat(self) -> bool:
        """Whether the images lie in no class folders."""
        return b"/" not in self.names[0]

    def name(self, index: int) -> str:
        return str(self.root / os.fsdecode(self.names[index]))

    def encoded(self, index: int) -> EncodedImage:
        return decoding.open_file(Path(self.name(index)))

    def subset(self, indices: Ints) -> "ImageFolderDataset":
        return ImageFolderDataset(self.root, self.names[indices], self.labels[indices], self.classes)

    def relabelled(self, labels: Ints, classes: Sequence[str]) -> "ImageFolderDataset":
        """The same samples in the same order; what had label i has `labels[i]`, an index into `classes`."""
        return ImageFolderDataset(self.root, self.names, labels[self.labels], classes)


def skip_hint(folder: Path) -> str:
    """How to train without a file that cannot be decoded. There is no hint for validation images: all of them count."""
    return "; data.on_bad_image=skip leaves it out" if folder.name == "train" else ""


def open_image_folder(root: Path) -> ImageFolderDataset:
    """Classes and images are sorted by name, as in torchvision's `ImageFolder`. Raises `BadInput`."""
    classes, loose = list_classes(root)
    tree = ImageTree(root, _PREFIX)
    tree.loose = loose
    for name in classes:
        if not tree.visit(name):
            raise BadInput(f"data.path: class folder {root / name} links to another class, or to a folder above it")
    names: list[bytes] = []
    labels: list[int] = []
    for label, (name, images) in enumerate(zip(classes, tree.images(classes), strict=True)):
        if not images:
            raise BadInput(f"data.path: class folder {root / name} holds no image")
        names += map(os.fsencode, images)
        labels += [label] * len(images)
    tree.warn()
    return ImageFolderDataset(root, np.array(names), np.array(labels, np.int64), list(map(as_text, classes)))


def list_classes(root: Path) -> tuple[list[str], int]:
    """The names of the class folders, sorted, and the number of images beside them.

    Raises `BadInput` where there are fewer than two class folders.
    """
    classes, files = list_folder(root, _PREFIX, "; expected CLASS/IMAGE files in it")
    if len(classes) > 1:
        return classes, sum(map(is_image, files))
    expected = f"expected {root / 'CLASS' / 'IMAGE.jpg'}"
    if not classes:
        content = "images but no class folders" if any(map(is_image, files)) else "nothing to train on"
        raise BadInput(f"data.path: {root} holds {content}; {expected}")
    [name] = classes
    if list_folder(root / name, _PREFIX)[0]:
        expected += f", so move the folders in {root / name} up into {root}"
    raise BadInput(f"data.path: {root} holds a single class folder, {name}; {expected}")


def open_image_folders(path: Path, labeller: ValLabeller) -> tuple[ImageFolderDataset, ImageFolderDataset]:
    """The training and the validation images in `path`. Raises `BadInput`, also where their classes differ."""
    train = open_image_folder(path / "train")
    return train, open_val_folder(path, labeller, train.classes)


def open_val_folder(path: Path, labeller: ValLabeller, classes: Sequence[str] | None = None) -> ImageFolderDataset:
    """The validation images in `path`: in class folders, or in one folder with a file that labels them.

    classes: those of the training images; None: as their folders say, or without them the labels. Raises `BadInput`.
    """
    root = val_folder(path)
    if flat := _flat_images(root):
        return _label_flat(path, *flat, labeller, classes)
    labeller.check_no_effect(root)
    val = open_image_folder(root)
    if classes is not None and val.classes != tuple(classes):
        unpaired = min(set(classes) ^ set(val.classes))
        only_in = path / "train" if unpaired in classes else root
        raise BadInput(f"data.path: train and val have different classes: {unpaired} is only in {only_in}")
    return val


def val_folder(path: Path) -> Path:
    """The folder of the validation images: `val`, or another word for it. Raises `BadInput` if there are two."""
    first, *others = [path / name for name in VAL_FOLDERS if (path / name).is_dir()] or [path / "val"]
    for other in others:
        if not other.samefile(first):
            raise BadInput(f"data.path: {path} holds {first.name} and {other.name}: move one of them away")
    return first


def _flat_images(root: Path) -> tuple[Path, list[str]] | None:
    """The folder that holds the images, and their names, where no class folders do: `root`, or `images` in it."""
    folders, files = list_folder(root, _PREFIX, "; expected CLASS/IMAGE files in it")
    if folders == ["images"]:  # as in Tiny ImageNet
        root = root / "images"
        folders, files = list_folder(root, _PREFIX)
    images = [name for name in files if is_image(name)]
    return (root, images) if images and not folders else None


def _label_flat(
    path: Path, root: Path, images: Sequence[str], labeller: ValLabeller, classes: Sequence[str] | None
) -> ImageFolderDataset:
    """The images in the order of class folders: by class, then by name."""
    if classes is None:
        train = path / "train"
        classes = list(map(as_text, list_classes(train)[0])) if train.is_dir() else labeller.classes(root)
    labels = labeller.label(list(map(as_text, images)), classes, root)
    order = np.argsort(labels, kind="stable")
    names = np.array([os.fsencode(image) for image in images])
    return ImageFolderDataset(root, names[order], labels[order], classes)
