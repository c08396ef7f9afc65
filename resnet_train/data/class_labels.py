"""The classes of validation images that do not lie in class folders."""

import gzip
import io
import resource
import signal
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput
from resnet_train.runtime.processes import Count, Killed, run_jobs
from resnet_train.runtime.regular_file import open_regular, read_bytes, read_lines

DEVKIT = "ILSVRC2012_devkit_t12"
_ANNOTATIONS = "val_annotations.txt"
_SYNSETS = "meta.mat"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VAL_IMAGE = "ILSVRC2012_val_{:08}"
_MAX_BYTES = 64 << 20
"""The largest development kit, and the largest file of it, that is read. ImageNet's own is far smaller."""
_MAX_MEMORY = 4 << 30
"""Bytes that the process which reads `meta.mat` may take."""
_OF_OTHERS = (signal.SIGKILL, signal.SIGTERM)
"""Signals by which the kernel, where memory runs out, or a person ends a process. A crash has others."""
_COMPRESSED = 15
"""The type of a compressed element of a MATLAB file."""
_HEADER_WORDS = ("imageid", "image", "filename", "file", "name")
"""First words of a line of column names."""


class ClassLabels(NamedTuple):
    """The class of each validation image, and the names of the classes."""

    class_of_image: Mapping[str, str]
    """Class id by image name (the file name without folder and suffix)."""
    class_names: Mapping[str, str]
    """Human-readable name by class id. Empty if the file gives none."""


class ValLabeller:
    """Labels validation images that lie in no class folder. Reads the file of their classes when it is needed."""

    def __init__(self, source: Path, file: Path | None, option: str) -> None:
        """file: as the user gave it by `option`, such as `--val-labels`. Without one, Tiny ImageNet's annotations are
        looked for beside the images, and a development kit in `source`."""
        self.source, self.file, self.option, self.used = source, file, option, False
        self._read = cache(read_class_labels)

    def label(self, images: Sequence[str], classes: Sequence[str], location: Path) -> Ints:
        """The labels of image files in `location`, int64 [n]. Raises BadInput if a class is unknown."""
        path = self._find(location)
        if path is None:
            raise BadInput(
                f"the classes of the images in {location} are unknown: put {DEVKIT}.tar.gz beside it, or name a file "
                f"of lines IMAGE,CLASS by {self.option}"
            )
        return label_images(self._read(path, self._prefix), images, classes, f"{self._prefix}{path}")

    def class_labels(self, location: Path) -> ClassLabels:
        """The classes of the images in `location`; of none where no file is found. Raises BadInput."""
        path = self._find(location)
        return ClassLabels({}, {}) if path is None else self._read(path, self._prefix)

    def classes(self, location: Path) -> list[str]:
        """Those of the images in `location`, sorted. Raises BadInput."""
        return sorted(set(self.class_labels(location).class_of_image.values()))

    def check_no_effect(self, location: Path) -> None:
        """Raise BadInput if the user gave a file, and `location` holds class folders."""
        if self.file is not None:
            raise BadInput(f"{self.option} has no effect: {location} holds class folders, so remove it")

    @property
    def _prefix(self) -> str:
        return f"{self.option}: " if self.file else ""

    def _find(self, location: Path) -> Path | None:
        self.used = True
        annotations = (folder / _ANNOTATIONS for folder in (location, location.parent))
        return self.file or next((file for file in annotations if file.is_file()), None) or find_devkit(self.source)


class Synset(NamedTuple):
    """A class of ImageNet."""

    number: int
    """ILSVRC2012_ID, from 1 on: how the ground truth refers to the class."""
    wnid: str
    words: str


def find_devkit(source: Path) -> Path | None:
    """The development kit in the folder of ILSVRC2012's files: packed, unpacked, or only its two files."""
    for path in (source / f"{DEVKIT}.tar.gz", source / DEVKIT, source):
        if path.is_file() or (path / _GROUND_TRUTH).is_file() or (path / "data" / _GROUND_TRUTH).is_file():
            return path
    return None


def read_class_labels(path: Path, prefix: str = "") -> ClassLabels:
    """Read the classes of the validation images from the development kit (packed or not) or a table IMAGE,CLASS.

    prefix: begins the message, such as `--val-labels: `. Raises BadInput if the file cannot be read or contradicts
    itself.
    """
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz")):
        return _read_devkit(path)
    return ClassLabels(_read_table(path, prefix), {})


def _read_table(path: Path, prefix: str) -> dict[str, str]:
    """Class by image name. Each line holds an image and its class; further columns are ignored, as in Kaggle's file."""
    class_of_image: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, prefix), 1):
        fields = _split_row(line)
        if not any(fields) or (number == 1 and fields[0].lower() in _HEADER_WORDS):
            continue
        if len(fields) < 2 or not all(fields[:2]):
            raise BadInput(
                f"{prefix}{path}, line {number}: expected an image and its class (IMAGE,CLASS), or give the "
                f"development kit, {DEVKIT}.tar.gz"
            )
        image, class_id = Path(fields[0]).stem, fields[1]
        earlier = class_of_image.setdefault(image, class_id)
        if earlier != class_id:
            raise BadInput(f"{prefix}{path}, line {number}: {image} has two classes, {earlier} and {class_id}")
    return class_of_image


def _split_row(line: str) -> list[str]:
    """The fields of a row, between commas or tabs, or else between spaces. Kaggle adds boxes to the class."""
    separator = next((mark for mark in ",\t" if mark in line), None)
    if separator is None:
        return line.split()
    image, class_id, *_ = (field.strip().strip('"') for field in line.split(separator))
    name, *box = class_id.split()[:5] or [""]
    # Four numbers, since the name of a class may end in one: Boeing 747.
    return [image, name if len(box) == 4 and all(map(str.isdecimal, box)) else class_id]


def _read_devkit(path: Path) -> ClassLabels:
    """`meta.mat` numbers the synsets. The ground truth has one such number for each validation image, in order."""
    files = _unpack_devkit(path) if path.is_file() else _read_devkit_folder(path)
    try:
        numbers = [int(line) for line in files[_GROUND_TRUTH].decode("ascii").split()]
        synsets = {synset.number: synset for synset in _load_synsets(files[_SYNSETS])}
        classes = {_VAL_IMAGE.format(i): synsets[number].wnid for i, number in enumerate(numbers, 1)}
    except KeyError as error:
        raise BadInput(f"cannot read the development kit {path}: {_SYNSETS} has no synset {error}") from None
    except ValueError as error:
        raise BadInput(f"cannot read the development kit {path}: {error}") from None
    return ClassLabels(classes, {synset.wnid: synset.words for synset in synsets.values()})


def _load_synsets(data: bytes) -> list[Synset]:
    """Read meta.mat in a process of its own. Raises ValueError if it is damaged.

    SciPy's reader does not check every length that it finds: some damaged files crash the process.
    """
    _check_inflated_size(data)
    try:
        [result] = run_jobs(_synsets_or_error, [data], workers=1, count=int, hint="run again")
    except Killed as killed:
        if killed.signal in _OF_OTHERS:
            raise
        raise ValueError(f"{_SYNSETS} is damaged") from None
    if isinstance(result, ValueError):
        raise result
    return result


def _synsets_or_error(data: bytes, _: Count) -> list[Synset] | ValueError:
    # A damaged number of elements must not take the memory of the machine.
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = _MAX_MEMORY if hard == resource.RLIM_INFINITY else min(_MAX_MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        return parse_synsets(data)
    except ValueError as error:
        return error


def _check_inflated_size(data: bytes) -> None:
    """Raises ValueError if an element of a MATLAB file is damaged, or larger than `_MAX_BYTES` when it is unpacked."""
    order, start = "<" if data[126:128] == b"IM" else ">", 128
    while start + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, start)
        start += 8 + size
        if kind == _COMPRESSED:
            try:
                inflated = zlib.decompressobj().decompress(data[start - size : start], _MAX_BYTES)
            except zlib.error as error:
                raise ValueError(f"{_SYNSETS} is damaged ({error})") from None
            if len(inflated) == _MAX_BYTES:
                raise ValueError(f"{_SYNSETS} is damaged: unpacked, it is larger than {_MAX_BYTES >> 20} MiB")


def parse_synsets(data: bytes) -> list[Synset]:
    """The struct array `synsets` of meta.mat. Raises ValueError if there is none."""
    from scipy.io import loadmat

    try:
        rows = np.atleast_1d(loadmat(io.BytesIO(data), variable_names=["synsets"], squeeze_me=True)["synsets"])
        return [Synset(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in rows]
    except Exception as error:  # loadmat raises a dozen kinds, TypeError and UnboundLocalError among them
        raise ValueError(f"{_SYNSETS} is damaged, or has other variables ({error})") from None


def _unpack_devkit(path: Path) -> dict[str, bytes]:
    """The two files of the packed development kit. It is read to its end, so that gzip compares the checksum."""
    files: dict[str, bytes] = {}
    try:
        with open_regular(path) as packed, gzip.open(packed) as stream:
            data = stream.read(_MAX_BYTES + 1)
        _check_size(path, len(data))
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and name in (_SYNSETS, _GROUND_TRUTH) and name not in files:
                    _check_size(path, member.size)  # a sparse file is larger than the archive
                    file = tar.extractfile(member)
                    assert file is not None  # it is a regular file
                    files[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise BadInput(f"cannot read {path}: {error}") from None
    for name in (_SYNSETS, _GROUND_TRUTH):
        if name not in files:
            raise BadInput(f"{path} has no {name} in it: expected {DEVKIT}.tar.gz of ILSVRC2012")
    return files


def _read_devkit_folder(path: Path) -> dict[str, bytes]:
    folder = path / "data" if (path / "data" / _GROUND_TRUTH).exists() else path
    files: dict[str, bytes] = {}
    for name in (_SYNSETS, _GROUND_TRUTH):
        files[name] = read_bytes(folder / name, _MAX_BYTES)
    return files


def _check_size(path: Path, size: int) -> None:
    if size > _MAX_BYTES:
        raise BadInput(f"cannot read {path}: it is larger than {_MAX_BYTES >> 20} MiB, which no development kit is")


def label_images(class_labels: ClassLabels, images: Sequence[str], classes: Sequence[str], origin: str) -> Ints:
    """The label of each image, int64 [n].

    images: file names. classes: ids in the order of the labels. origin: where the classes come from, for messages.
    Raises BadInput if the class of an image is missing or not one of `classes`.
    """
    label_of_class = {class_id: label for label, class_id in enumerate(classes)}
    image_labels = []
    for image in images:
        class_id = class_labels.class_of_image.get(Path(image).stem)
        if class_id is None:
            raise BadInput(f"{origin} has no class for {image}: it must name every validation image")
        if class_id not in label_of_class:
            raise BadInput(
                f"{origin} gives {image} the class {class_id}: expected a class of the training split, "
                f"such as {classes[0]}"
            )
        image_labels.append(label_of_class[class_id])
    return np.array(image_labels, np.int64)


def read_class_map(path: Path, classes: Sequence[str]) -> list[str]:
    """The classes in an order of the user's: one a line, alone or before its human-readable name. Raises BadInput."""
    prefix = f"data.class_map: {path}"
    known, names = set(classes), list[str]()
    for line in filter(str.strip, read_lines(path, "data.class_map: ")):
        # A class may have spaces in its name, or before its human-readable one.
        names.append(next((name for name in (line, line.strip()) if name in known), line.split(maxsplit=1)[0]))
    if missing := set(classes) - set(names):
        raise BadInput(f"{prefix} has no line for class {min(missing)}: it must name each class once, one a line")
    if unknown := set(names) - set(classes):
        raise BadInput(f"{prefix} names {min(unknown)}, which is no class of the data, such as {classes[0]}")
    if len(names) != len(classes):
        raise BadInput(f"{prefix} names {max(names, key=names.count)} twice")
    return names
