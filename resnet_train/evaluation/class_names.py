"""Names of classes for people, in place of the ids that label images."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from resnet_train.config.data import DataConfig, ShardsConfig
from resnet_train.data.shard_index import read_index
from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import read_lines

_IMAGENET = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the 1,000 WordNet ids of ILSVRC2012, sorted, one a line."""


def class_names(classes: Sequence[str], data: DataConfig, file: Path | None = None) -> tuple[str, ...]:
    """A name for each class: that of `file`, else of packed data, else of ImageNet's 1,000 classes, else its own.

    data: the section of the data that the classes are of. A name that several classes have is followed by the class.
    Raises `BadInput` if the file does not name every class.
    """
    if file is not None:
        names = read_class_names(file, classes)
    elif isinstance(data, ShardsConfig):
        name_of = {}
        with suppress(BadInput):  # `predict` needs no data
            name_of = dict(read_index(Path(data.path)).classes)
        names = [name_of.get(name, name) for name in classes]
    elif hashlib.sha256("\n".join(sorted(classes)).encode("utf-8", "surrogateescape")).hexdigest() == _IMAGENET:
        from torchvision.models import ResNet18_Weights

        name_of = dict(zip(sorted(classes), ResNet18_Weights.IMAGENET1K_V1.meta["categories"], strict=True))
        names = [name_of[name] for name in classes]
    else:
        return tuple(classes)
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({own})" for name, own in zip(names, classes, strict=True))


def read_class_names(path: Path, classes: Sequence[str]) -> list[str]:
    """The name of each class, from lines such as `n01440764 tench, Tinca tinca` or of one name a line, in their order.

    Lines that begin with a class may be of other classes, too; of names alone there must be one for each class. Raises
    `BadInput`.
    """
    lines = read_lines(path, "--classes: ")
    name_of = {words[0]: words[1] for line in lines if len(words := line.strip().split(maxsplit=1)) == 2}
    if set(classes) <= name_of.keys():
        return [name_of[name] for name in classes]
    if len(lines) != len(classes):
        raise BadInput(f"--classes: {path} has {len(lines)} lines for {len(classes)} classes: give one name a line")
    return lines
