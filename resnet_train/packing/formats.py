"""Which of the forms that people hold a data set in lies in a folder, and what it lists."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data import detect, image_folder, shards
from resnet_train.errors import BadInput
from resnet_train.packing import labels, parquet, tars
from resnet_train.packing.manifest import InFolder, InMemory, Listing, stored
from resnet_train.packing.tars import Found

EXPECTED = (
    "train/CLASS/IMAGE and val/CLASS/IMAGE, ILSVRC2012_img_train.tar and _val.tar, parquet files or WebDataset tar "
    "files with train and val in their names, or torchvision's files of CIFAR"
)
_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Source(NamedTuple):
    """A data set that is to be packed."""

    kind: str
    """In words."""
    parts: dict[str, Listing]
    """Of train and val, those that there are."""
    classes: list[str]
    """Ids, in the order of the labels: synsets, names of folders."""
    names: list[str]
    """What people call them; the ids where nothing says."""


def open_source(path: Path, val_labels: Path | None = None, class_names: Path | None = None) -> Source:
    """What a folder holds. Raises `BadInput`, also where val's classes are not known."""
    try:
        held = sorted(entry.name for entry in os.scandir(path))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}; expected a folder that holds {EXPECTED}") from None
    if shards.INDEX not in held and (path / shards.PLAN).exists():
        shards.read_index(path)  # complains: it is a half of something
    used = _Labels(path, val_labels)

    if _TRAIN_TAR in held or _VAL_TAR in held:
        found = _imagenet(path, held, used, class_names)
    elif kind := detect.torchvision_kind(path):
        found = _stored(path, kind, class_names)
    elif files := _files(path, ".parquet"):
        found = _parquet(files, class_names)
    elif files := _files(path, ".tar"):
        found = _webdataset(path, files, class_names)
    elif "train" in held or "val" in held:
        found = _folders(path, held, used, class_names)
    else:
        raise BadInput(f"{path} holds nothing that can be packed; expected {EXPECTED}")
    if val_labels is not None and not used.asked:
        raise BadInput(f"--val-labels has no effect: {path} holds {found.kind}, which know their classes")
    for part, listing in found.parts.items():
        if not len(listing):
            raise BadInput(f"{path} holds no image of its {part} part")
    return found


class _Labels:
    """The classes of validation images, looked for when they are needed."""

    def __init__(self, source: Path, given: Path | None) -> None:
        self.source, self.given, self.asked = source, given, False

    def known(self) -> labels.ClassLabels | None:
        self.asked = True
        path = self.given or labels.find_devkit(self.source)
        return None if path is None else labels.read_class_labels(path)

    def of(self, where: Path, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
        known = self.known()
        if known is None:
            raise BadInput(
                f"nothing says which classes the images of {where} are of: put {labels.DEVKIT}.tar.gz beside it, or "
                "give --val-labels FILE with lines IMAGE,CLASS"
            )
        given = f"--val-labels: {self.given}" if self.given else "the development kit"
        return labels.label_images(known, names, classes, given)


def _folders(path: Path, held: list[str], used: _Labels, class_names: Path | None) -> Source:
    parts: dict[str, Listing] = {}
    classes: list[str] = []
    for part in ("train", "val"):
        if part not in held:
            continue
        root = path / part
        loose = [] if part == "train" else _loose(root)
        if loose:
            if not classes:
                raise BadInput(
                    f"{root} holds images but no class folders, and there is no {path / 'train'} to name them"
                )
            found = used.of(root, loose, classes)
            named = [os.fsencode(f"{classes[label]}/{name}") for label, name in zip(found, loose, strict=True)]
            parts[part] = InFolder(np.array(named, np.bytes_), found, root, np.array([*map(os.fsencode, loose)]))
            continue
        folder = image_folder.open_image_folder(root)
        if classes and list(folder.classes) != classes:
            odd = min(set(folder.classes) ^ set(classes))
            where = path / "train" if odd in classes else root
            raise BadInput(f"train and val have different classes: {odd} is only in {where}")
        classes = list(folder.classes)
        parts[part] = InFolder(folder.names, folder.labels, root, folder.names)
    return Source("class folders", parts, *labels.read_class_names(class_names, classes))


def _loose(root: Path) -> list[str]:
    """The images of a folder that has no folders in it."""
    try:
        entries = list(os.scandir(root))
    except OSError as error:
        raise BadInput(f"cannot read {root}: {error.strerror}") from None
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in image_folder.IMAGE_SUFFIXES)


def _imagenet(path: Path, held: list[str], used: _Labels, class_names: Path | None) -> Source:
    parts: dict[str, Listing] = {}
    if _TRAIN_TAR in held:
        parts["train"], classes = tars.of_tars(path / _TRAIN_TAR)
    known = used.known()
    if _VAL_TAR in held:
        if _TRAIN_TAR not in held:
            classes = sorted(set((known or labels.ClassLabels({}, {})).class_of_image.values()))
        members = list(tars.members(path / _VAL_TAR))
        names = [Path(member.name).name for member in members]
        found = used.of(path / _VAL_TAR, names, classes).tolist()
        listed = zip(members, names, found, strict=True)
        made = [Found(f"{classes[i]}/{name}", i, 0, one.offset, one.length) for one, name, i in listed]
        parts["val"] = tars.listed([path / _VAL_TAR], made)
    ids, names = labels.read_class_names(class_names, classes)
    if class_names is None:
        names = [(known.class_names if known else {}).get(id_, id_) for id_ in ids]
    return Source("ILSVRC2012's tar files", parts, ids, names)


def _parquet(files: dict[str, list[Path]], class_names: Path | None) -> Source:
    parts: dict[str, Listing] = {}
    classes: list[str] = []
    for part, paths in files.items():
        parts[part], found = parquet.read(paths)
        if found and classes and found != classes:
            raise BadInput(f"{paths[0]} and the files of the training part name different classes")
        highest = int(parts[part].labels.max(initial=-1))
        classes = found or [str(i) for i in range(max(highest + 1, len(classes)))]
    ids, names = labels.read_class_names(class_names, classes, by_line=True)
    return Source("parquet files", {part: _in_classes(parts[part], ids) for part in parts}, ids, names)


def _in_classes(listing: Listing, classes: Sequence[str]) -> Listing:
    """A list of bare names, each put into its class."""
    folders = [os.fsencode(name.replace("/", "_")) for name in classes]
    found = [folders[label] + b"/" + name for label, name in zip(listing.labels, listing.names, strict=True)]
    return replace(listing, names=np.array(found, np.bytes_))


def _webdataset(path: Path, files: dict[str, list[Path]], class_names: Path | None) -> Source:
    ours = (path / shards.INDEX).is_file()  # to be packed in another way
    for part in shards.read_index(path)["parts"] if ours else ():
        shards.open_shards(path, part)  # complains of what is missing
    found = {
        part: [(number, pair) for number, tar in enumerate(paths) for pair in tars.pairs(tar)]
        for part, paths in files.items()
    }
    highest = max((pair.label for pairs in found.values() for _, pair in pairs), default=-1)
    if ours:
        classes, names = ([*column] for column in zip(*shards.read_index(path)["classes"], strict=True))
    else:
        classes, names = labels.read_class_names(class_names, [str(i) for i in range(highest + 1)], by_line=True)
    parts: dict[str, Listing] = {}
    for part, pairs in found.items():
        made = []
        for number, (key, suffix, image, label) in pairs:
            name = key.removeprefix(f"{classes[label]}/").replace("/", "_")
            made.append(Found(f"{classes[label]}/{name}.{suffix}", label, number, image.offset, image.length))
        parts[part] = tars.listed(files[part], made)
    return Source("WebDataset shards", parts, classes, names)


def _stored(path: Path, kind: str, class_names: Path | None) -> Source:
    parts: dict[str, Listing] = {}
    for part in ("train", "val"):
        held = stored(path, kind, part == "train")
        numbers = np.arange(len(held))
        names = np.array(
            [f"{held.classes[label].replace('/', '_')}/{i:05}.png" for i, label in enumerate(held.labels)], "S"
        )
        parts[part] = InMemory(names, held.labels, path, kind, part == "train", numbers)
    return Source(f"torchvision's files of {kind}", parts, *labels.read_class_names(class_names, list(held.classes)))


def _files(path: Path, suffix: str) -> dict[str, list[Path]]:
    """Files below a folder whose paths say which part they are of; test stands for val where there is no val."""
    found: dict[str, list[Path]] = {}
    for file in sorted([*path.glob(f"*{suffix}"), *path.glob(f"*/*{suffix}")]):
        words: Iterable[str] = re.split(r"[^a-z]+", str(file.relative_to(path)).lower())
        part = next((_PARTS[word] for word in words if word in _PARTS), None)
        if part is not None:
            found.setdefault(part, []).append(file)
    test = found.pop("test", None)
    if test and "val" not in found:
        found["val"] = test
    for files in found.values():
        _check_complete(files)
    return {part: found[part] for part in ("train", "val") if part in found}


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse a part of which a numbered file is missing, as after a download that was interrupted.

    Numbers are those of NAME-00001-of-00294, else the last in a name, from 0 or 1 to the highest that there is.
    """
    series: dict[tuple[str, str, str], dict[int, str]] = {}
    for file in files:
        if found := re.match(r"(.*-)(\d+)(-of-\d+)", file.name) or re.match(r"(.*?)(\d+)()$", file.stem):
            before, digits, after = found.groups()
            series.setdefault((f"{file.parent}/{before}", after, file.suffix), {})[int(digits)] = digits
    for (before, after, suffix), held in series.items():
        count = int(after.removeprefix("-of-") or max(held) + (0 in held))
        first = int(0 not in held and count in held)  # such as count from 1
        missing = next((number for number in range(first, first + count) if number not in held), None)
        if missing is not None and (after or len(held) > 1):
            width = min(map(len, held.values()))
            raise BadInput(
                f"{before}{missing:0{width}}{after}{suffix} is missing: {len(held)} of {count} such files are here"
            )
