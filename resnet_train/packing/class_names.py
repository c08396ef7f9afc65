"""The classes of labels, and their names, which `prepare` reads from a file."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import read_lines

logger = logging.getLogger(__name__)

Label = int | str
_MAX_CLASSES = 1_000_000


def number_labels(
    labels: Mapping[str, Sequence[Label]], class_names: Path | None, known: Sequence[str] | None = None
) -> tuple[dict[str, Ints], list[str], list[str]]:
    """By split, the labels as indices of classes, int64 [n]; then ids and human-readable names of the classes.

    labels: by split; numbers, or names of classes. known: the class of each number, if the source says it; otherwise
    the classes are the labels that occur, in order. Raises BadInput, also if a validation image has a class that no
    training image has.
    """
    values: Sequence[Label] = sorted(
        {label for split in labels.values() for label in split}, key=lambda x: (str(type(x)), x)
    )
    if len({type(value) for value in values}) > 1:
        raise BadInput(f"some labels are numbers and some are texts, such as {values[0]!r} and {values[-1]!r}")
    if known is not None and values and isinstance(values[0], int):
        if int(values[-1]) >= len(known):
            raise BadInput(f"label {values[-1]} is not one of the {len(known)} classes that the source names")
        values = range(len(known))
        ids, names = read_class_names(class_names, list(known), by_line=True)
    else:
        values, ids, names = _name_values(values, class_names)
        unknown = set(labels.get("val", ())) - set(labels.get("train", values))
        if unknown:
            raise BadInput(f"validation images have the label {min(unknown)!r}, and no training image has it")
        if values and isinstance(values[0], int) and values != range(len(values)):
            number = next(number for number, value in enumerate(values) if value != number)
            last = len(values) - 1
            logger.warning(
                "the labels are not 0 to %d: class %d is label %s%s",
                last,
                number,
                values[number],
                f", and so on: class {last} is label {values[-1]}" if number < last else "",
            )
    number_of = {value: number for number, value in enumerate(values)}
    numbers = {split: np.array([number_of[label] for label in column], np.int64) for split, column in labels.items()}
    return numbers, ids, names


def _name_values(values: Sequence[Label], class_names: Path | None) -> tuple[Sequence[Label], list[str], list[str]]:
    """The labels that are classes, their ids and names: a file of names may list classes of which there is no image."""
    highest = values[-1] if values else 0
    if class_names is not None and isinstance(highest, int) and len(values) <= highest < _MAX_CLASSES:
        numbers = range(highest + 1)
        with suppress(BadInput):
            return numbers, *read_class_names(class_names, [str(value) for value in numbers], by_line=True)
    if values == list(range(len(values))):
        values = range(len(values))
    return values, *read_class_names(class_names, [str(value) for value in values], by_line=isinstance(highest, int))


def read_class_names(path: Path | None, classes: list[str], by_line: bool = False) -> tuple[list[str], list[str]]:
    """Ids and human-readable names of the classes, from lines such as `n01440764 tench, Tinca tinca`.

    Each id of `classes` is looked up in the file. `by_line`: `classes` may be numbers or names rather than ids; if they
    are not in the file, line i + 1 is class i. Without a file, the ids are the names. Raises BadInput.
    """
    if path is None:
        return classes, classes
    lines = [line.strip().split(maxsplit=1) for line in read_lines(path, "--class-names: ") if line.strip()]
    name_of_id = {words[0]: words[-1] for words in lines}
    if set(classes) <= name_of_id.keys():
        return list(classes), [name_of_id[class_id] for class_id in classes]
    if not by_line:
        missing = next(class_id for class_id in classes if class_id not in name_of_id)
        raise BadInput(
            f"--class-names: {path} has no line for class {missing}: expected lines such as `{missing} NAME`"
        )
    if len(lines) != len(classes) or len(name_of_id) != len(lines):
        raise BadInput(f"--class-names: {path} names {len(name_of_id)} classes, and the source has {len(classes)}")
    names = list(name_of_id.values())
    for label, name in enumerate(classes):
        if names.count(name) == 1 and names.index(name) != label:
            raise BadInput(f"--class-names: {path}: {name} is line {names.index(name) + 1}, and label {label} here")
    return list(name_of_id), names
