"""The formats that `prepare` reads: it recognises them by the files in a folder, and makes a manifest of each split."""

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data import image_folder, torchvision_files
from resnet_train.data.class_labels import ValLabeller
from resnet_train.data.image_folder import ImageFolderDataset, open_image_folder, open_val_folder
from resnet_train.data.shard_index import INDEX, PLAN, read_index
from resnet_train.data.shards import open_shards
from resnet_train.errors import BadInput
from resnet_train.packing.class_names import number_labels, read_class_names
from resnet_train.packing.manifest import FolderManifest, InMemoryManifest, Manifest, load_torchvision
from resnet_train.packing.parquet import read_parquet
from resnet_train.packing.tars import TarSample, read_class_tars, read_members, tar_manifest
from resnet_train.packing.webdataset import WebDatasetSample, read_webdataset

logger = logging.getLogger(__name__)

EXPECTED = (
    "train/CLASS/IMAGE and val/CLASS/IMAGE, ILSVRC2012_img_train.tar and _val.tar, parquet files or WebDataset tar "
    "files with train and val in their names, or torchvision's files of CIFAR"
)
_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_TARS = (".tar", ".tar.gz", ".tgz")
_ARCHIVE = re.compile(r"\.(parquet|arrow|tar|tar\.\w+|tgz|tbz2?|txz|tzst|zip|rar|7z|tfrecords?|h5|hdf5|lmdb)$")
"""What may hold images, and is read or refused."""
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Words in the names of files, and the split that they stand for."""


class SourceDataset(NamedTuple):
    """A data set to be packed."""

    format: str
    """In words, such as `parquet files`."""
    manifests: dict[str, Manifest]
    """By split: train, val or both."""
    classes: list[str]
    """Ids in the order of the labels: synsets, or names of folders."""
    class_names: list[str]
    """Human-readable names in the order of the labels; the ids if the source has none."""


def open_source(path: Path, val_labels: Path | None = None, class_names: Path | None = None) -> SourceDataset:
    """Recognise the format of the data set in a folder, and list its samples.

    val_labels: classes of validation images that lie in no class folder. class_names: see `read_class_names`.
    Raises BadInput if nothing is recognised, a file is missing or damaged, or an image has no class.
    """
    try:
        entries = sorted(entry.name for entry in os.scandir(path))
    except OSError as error:
        raise BadInput(
            f"cannot read {path}: {error.strerror or error}; expected a folder that holds {EXPECTED}"
        ) from None
    if INDEX not in entries and (path / PLAN).exists():
        read_index(path)  # raises: this is an unfinished packing
    labeller = ValLabeller(path, val_labels, "--val-labels")
    files: dict[str, list[Path]] | None = None

    if _TRAIN_TAR in entries or _VAL_TAR in entries:
        source = _open_ilsvrc(path, entries, labeller, class_names)
    elif kind := torchvision_files.kind_of(path):
        source = _open_torchvision(path, kind, class_names)
    elif files := _files_by_split(path, (".parquet",)):
        source = _open_parquet(files, class_names)
    elif files := _files_by_split(path, _TARS):
        source = _open_webdataset(path, files, class_names)
    elif "train" in entries or image_folder.val_folder(path).name in entries:
        source = _open_folders(path, entries, labeller, class_names)
    else:
        raise BadInput(f"{path} holds nothing that can be packed; expected {EXPECTED}")
    if val_labels is not None and not labeller.used:
        raise BadInput(f"--val-labels has no effect: the {source.format} in {path} give the class of each image")
    _check_all_read(path, source, {file for split_files in (files or {}).values() for file in split_files})
    for split, manifest in source.manifests.items():
        if not len(manifest):
            raise BadInput(f"{path} has no image in its {split} split")
    return source


# --- class folders ----------------------------------------------------------------------------------------------------


def _open_folders(path: Path, entries: list[str], labeller: ValLabeller, class_names: Path | None) -> SourceDataset:
    folders: dict[str, ImageFolderDataset] = {}
    if "train" in entries:
        folders["train"] = open_image_folder(path / "train")
    if image_folder.val_folder(path).name in entries:
        folders["val"] = open_val_folder(path, labeller, folders["train"].classes if "train" in folders else None)
    manifests: dict[str, Manifest] = {split: _folder_manifest(folder) for split, folder in folders.items()}
    [classes] = {folder.classes for folder in folders.values()}
    return SourceDataset("class folders", manifests, *read_class_names(class_names, list(classes)))


def _folder_manifest(folder: ImageFolderDataset) -> FolderManifest:
    names = folder.names
    if folder.flat:
        classes = [name.encode("utf-8", "surrogateescape") for name in folder.classes]
        pairs = zip(folder.labels.tolist(), names.tolist(), strict=True)
        names = np.array([b"/".join([classes[label], name]) for label, name in pairs])
    return FolderManifest(names, folder.labels, folder.root, folder.names)


# --- ILSVRC2012 -------------------------------------------------------------------------------------------------------


def _open_ilsvrc(path: Path, entries: list[str], labeller: ValLabeller, class_names: Path | None) -> SourceDataset:
    manifests: dict[str, Manifest] = {}
    if _TRAIN_TAR in entries:
        manifests["train"], classes = read_class_tars(path / _TRAIN_TAR)
    class_labels = labeller.class_labels(path / _VAL_TAR)
    if _VAL_TAR in entries:
        if _TRAIN_TAR not in entries:
            classes = sorted(set(class_labels.class_of_image.values()))
        members = read_members(path / _VAL_TAR)
        images = [Path(member.name).name for member in members]
        labels = labeller.label(images, classes, path / _VAL_TAR).tolist()
        samples = [
            TarSample(f"{classes[label]}/{image}", label, 0, member.offset, member.length)
            for image, label, member in zip(images, labels, members, strict=True)
        ]
        manifests["val"] = tar_manifest([path / _VAL_TAR], samples)
    class_ids, names = read_class_names(class_names, classes)
    if class_names is None:
        names = [class_labels.class_names.get(class_id, class_id) for class_id in class_ids]
    return SourceDataset("ILSVRC2012's tar files", manifests, class_ids, names)


# --- parquet, WebDataset, torchvision ---------------------------------------------------------------------------------


def _open_parquet(files: dict[str, list[Path]], class_names: Path | None) -> SourceDataset:
    tables = {split: read_parquet(paths) for split, paths in files.items()}
    known = [table.classes for table in tables.values() if table.classes]
    if any(classes != known[0] for classes in known):
        raise BadInput(f"{files['val'][0]} and the files of the training split name different classes")
    labels = {split: table.labels for split, table in tables.items()}
    numbers, class_ids, names = number_labels(labels, class_names, known[0] if known else None)
    folders = [class_id.replace("/", "_").encode("utf-8", "surrogateescape") for class_id in class_ids]
    manifests: dict[str, Manifest] = {}
    for split, table in tables.items():
        pairs = zip(numbers[split].tolist(), table.names, strict=True)
        sample_names = np.array(
            [folders[number] + b"/" + name.encode("utf-8", "surrogateescape") for number, name in pairs], np.bytes_
        )
        manifests[split] = table.manifest(sample_names, numbers[split])
    return SourceDataset("parquet files", manifests, class_ids, names)


def _open_webdataset(path: Path, files: dict[str, list[Path]], class_names: Path | None) -> SourceDataset:
    """WebDataset shards, those that `prepare` wrote included, to pack them in another way."""
    known: list[tuple[str, str]] | None = None
    if (path / INDEX).is_file():
        index = read_index(path)
        known = index.classes
        for split in index.parts:
            open_shards(path, split)  # raises if a shard is missing or damaged
    samples: dict[str, list[tuple[int, WebDatasetSample]]] = {}
    left_out: Counter[str] = Counter()
    for split, tars in files.items():
        samples[split] = [(i, sample) for i, tar in enumerate(tars) for sample in read_webdataset(tar, left_out)]
    labels = {split: [sample.label for _, sample in rows] for split, rows in samples.items()}
    numbers, classes, names = number_labels(labels, class_names, [class_id for class_id, _ in known] if known else None)
    if known and class_names is None:
        names = [name for _, name in known]
    manifests: dict[str, Manifest] = {}
    for split, rows in samples.items():
        tar_samples = []
        for number, (tar_index, (key, suffix, image, _)) in zip(numbers[split].tolist(), rows, strict=True):
            folder = classes[number].replace("/", "_")
            name = f"{folder}/{key.removeprefix(f'{folder}/').replace('/', '_')}.{suffix}"
            tar_samples.append(TarSample(name, number, tar_index, image.offset, image.length))
        manifests[split] = tar_manifest(files[split], tar_samples)
    if counts := ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count):
        logger.warning("%s: left out %s", path, counts)
    return SourceDataset("WebDataset shards", manifests, classes, names)


def _open_torchvision(path: Path, kind: str, class_names: Path | None) -> SourceDataset:
    manifests: dict[str, Manifest] = {}
    for split in ("train", "val"):
        dataset = load_torchvision(path, kind, split == "train")
        folders = [class_id.replace("/", "_") for class_id in dataset.classes]
        files = [f"{folders[label]}/{i:05}.png" for i, label in enumerate(dataset.labels)]
        names, indices = np.array(files, np.bytes_), np.arange(len(dataset))
        manifests[split] = InMemoryManifest(names, dataset.labels, path, kind, split == "train", indices)
    classes = read_class_names(class_names, list(dataset.classes))
    return SourceDataset(f"torchvision's files of {kind}", manifests, *classes)


# --- numbered files ---------------------------------------------------------------------------------------------------


def _files_by_split(path: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files in a folder whose paths name a split. A test split stands for a missing validation split.

    Raises BadInput if a numbered file is missing.
    """
    files: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*"), *path.glob("*/*")]):
        if file.name.endswith(suffixes) and not file.name.startswith(".") and (split := _split_of(path, file)):
            files.setdefault(split, []).append(file)
    test = files.pop("test", None)
    if test and "val" not in files:
        files["val"] = test
    for split_files in files.values():
        _check_complete(split_files)
    return {split: files[split] for split in ("train", "val") if split in files}


def _split_of(path: Path, file: Path) -> str | None:
    """The split that the name of a file in `path` stands for, or that of its folder."""
    words: Iterable[str] = re.split(r"[^a-z]+", str(file.relative_to(path)).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _check_all_read(path: Path, source: SourceDataset, files: Collection[Path]) -> None:
    """Refuse a source of several kinds, if part of it would be passed over.

    files: the archives that were read; none if the source is of another kind.
    """
    for file in sorted([*path.glob("*"), *path.glob("*/*")]):
        split = _split_of(path, file)
        is_archive = _ARCHIVE.search(file.name) and not file.name.startswith(".")
        is_folder = file.parent == path and file.name in ("train", *image_folder.VAL_FOLDERS) and file.is_dir()
        if split not in ("train", "val") or not (is_archive or is_folder) or file in files:
            continue
        if split not in source.manifests or (files and is_archive):
            raise BadInput(
                f"{path} is packed from its {source.format}, and {file} would be left out: move it away, or convert it"
            )


def _check_complete(files: Sequence[Path]) -> None:
    """Raises BadInput if a numbered file is missing, as after an interrupted download.

    Numbers are those of NAME-00001-of-00294. Otherwise the last number in a name counts, from 0 or 1 to the highest.
    """
    series: dict[tuple[str, str, str], dict[int, str]] = {}
    for file in files:
        if match := re.match(r"(.*-)(\d+)(-of-\d+)", file.name) or re.match(r"(.*?)(\d+)()$", _stem(file)):
            before, digits, after = match.groups()
            series.setdefault((f"{file.parent}/{before}", after, file.name[len(_stem(file)) :]), {})[int(digits)] = (
                digits
            )
    for (before, after, suffix), digits_of_number in series.items():
        starts_at_zero = 0 in digits_of_number
        count = int(after.removeprefix("-of-")) if after else max(digits_of_number) + (1 if starts_at_zero else 0)
        first = 0 if starts_at_zero or count not in digits_of_number else 1
        missing = next((number for number in range(first, first + count) if number not in digits_of_number), None)
        if missing is not None and (after or len(digits_of_number) > 1):
            width = min(len(digits) for digits in digits_of_number.values())
            raise BadInput(
                f"{before}{missing:0{width}}{after}{suffix} is missing: {len(digits_of_number)} of {count} such files "
                "are here"
            )


def _stem(file: Path) -> str:
    """A file's name without `.tar.gz` and the like."""
    return next((file.name.removesuffix(end) for end in _TARS if file.name.endswith(end)), file.stem)
