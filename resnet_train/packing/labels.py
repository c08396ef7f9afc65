"""What tells the classes of images that do not lie in class folders, and the names of classes."""

import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.errors import BadInput
from resnet_train.packing import matlab

DEVKIT = "ILSVRC2012_devkit_t12"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_IMAGE = "ILSVRC2012_val_{:08}"


class Known(NamedTuple):
    """What a file says of classes."""

    of_image: Mapping[str, str]
    """Class of an image, by its file's name without folder and suffix."""
    names: Mapping[str, str]
    """Human name of a class."""


def find_devkit(source: Path) -> Path | None:
    """The development kit beside ILSVRC2012's files: packed, unpacked, or its two files alone."""
    for path in (source / f"{DEVKIT}.tar.gz", source / DEVKIT, source):
        if path.is_file() or (path / _TRUTH).is_file() or (path / "data" / _TRUTH).is_file():
            return path
    return None


def of_images(path: Path) -> Known:
    """The classes of validation images by the development kit (packed or not) or a table. Raises `BadInput`."""
    if path.is_dir() or path.name.endswith((".tar.gz", ".tgz")):
        return _devkit(path)
    found: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = re.split(r"[,\s]+", line.strip())
        if words == [""] or (number == 1 and words[0].lower() in ("imageid", "image", "filename", "file", "name")):
            continue
        if len(words) < 2:
            raise BadInput(
                f"--val-labels: {path}, line {number}: expected an image and its class (IMAGE,CLASS), or give the "
                f"development kit, {DEVKIT}.tar.gz"
            )
        key = Path(words[0]).stem
        if found.setdefault(key, words[1]) != words[1]:
            raise BadInput(f"--val-labels: {path}, line {number}: {key} has two classes, {found[key]} and {words[1]}")
    return Known(found, {})


def _devkit(path: Path) -> Known:
    """`meta.mat` numbers the synsets, and the ground truth is a number for each validation image in order."""
    read = _in_tar(path) if path.is_file() else _in_folder(path)
    try:
        truth = [int(line) for line in read(_TRUTH).decode("ascii").split()]
        synsets = matlab.read(read("meta.mat"))["synsets"]
        ids = {int(one["ILSVRC2012_ID"][0]): one["WNID"] for one in synsets}
        names = {one["WNID"]: one["words"] for one in synsets}
        return Known({_IMAGE.format(i): ids[number] for i, number in enumerate(truth, 1)}, names)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BadInput(f"cannot read the development kit {path}: {error}") from None


def _in_folder(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        inside = path / "data" / name
        try:
            return (inside if inside.exists() else path / name).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {inside} of the development kit: {error.strerror}") from None

    return read


def _in_tar(path: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if Path(member.name).name == name and (file := tar.extractfile(member)) is not None:
                        return file.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise BadInput(f"cannot read {path}: {error}") from None
        raise BadInput(f"{path} has no {name} in it: expected {DEVKIT}.tar.gz of ILSVRC2012")

    return read


def numbered(known: Known, names: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """The label of each image, int64 [n]. Raises `BadInput` where an image or its class is not known."""
    number = {name: label for label, name in enumerate(classes)}
    labels = []
    for name in names:
        found = known.of_image.get(Path(name).stem)
        if found is None:
            raise BadInput(f"{where} has no class for {name}: it must name every validation image")
        if found not in number:
            said = "expected a class of the training part"
            raise BadInput(f"{where} says that {name} is of class {found}: {said}, such as {classes[0]}")
        labels.append(number[found])
    return np.array(labels, np.int64)


def read_names(path: Path | None, classes: list[str], bare: bool = False) -> tuple[list[str], list[str]]:
    """Ids and human names of classes, from lines such as `n01440764 tench, Tinca tinca`. Raises `BadInput`.

    A class is found by its id; where the source has none but only numbers or names (`bare`), line i + 1 is class i.
    Without a file the ids are the names.
    """
    if path is None:
        return classes, classes
    lines = [line.strip().split(maxsplit=1) for line in _text(path).splitlines() if line.strip()]
    table = {words[0]: words[-1] for words in lines}
    if set(classes) <= table.keys():
        return list(classes), [table[id_] for id_ in classes]
    if not bare:
        missing = next(id_ for id_ in classes if id_ not in table)
        raise BadInput(
            f"--class-names: {path} has no line for class {missing}: expected lines such as `{missing} NAME`"
        )
    if len(lines) != len(classes) or len(table) != len(lines):
        raise BadInput(f"--class-names: {path} names {len(table)} classes, and the source has {len(classes)}")
    names = list(table.values())
    for label, name in enumerate(classes):
        if name in names and names.count(name) == 1 and names.index(name) != label:
            raise BadInput(f"--class-names: {path}: {name} is line {names.index(name) + 1}, and label {label} here")
    return list(table), names


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
