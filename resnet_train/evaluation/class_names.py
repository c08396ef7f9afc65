"""Names of classes for people, in place of the ids that label images."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from resnet_train.config.data import DataConfig, ShardsConfig
from resnet_train.data.shard_index import read_index
from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import read_lines

_IMAGENET_IDS = Path(__file__).with_name("imagenet_ids.txt")
"""The WordNet ids of ILSVRC2012's 1,000 classes, sorted, which is the order of torchvision's names."""


def class_names(classes: Sequence[str], data: DataConfig, file: Path | None = None) -> tuple[str, ...]:
    """A name for each class: that of `file`, else of packed data, else of classes of ImageNet, else its own.

    data: the section of the data that the classes are of. A name that several classes have is followed by the class.
    Raises `BadInput` if the file does not name every class.
    """
    names = list(classes) if file is None else read_class_names(file, classes)
    if file is None and isinstance(data, ShardsConfig):
        with suppress(BadInput):  # `predict` needs no data
            name_of = dict(read_index(Path(data.path)).classes)
            names = [name_of.get(name, name) for name in classes]
    if names == list(classes) and set(classes) <= set(ids := _IMAGENET_IDS.read_text().split()):
        from torchvision.models import ResNet18_Weights

        name_of = dict(zip(ids, ResNet18_Weights.IMAGENET1K_V1.meta["categories"], strict=True))
        names = [name_of[name] for name in classes]
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
        raise BadInput(
            f"--classes: {path} has {len(lines)} lines for {len(classes)} classes: give one name a line, "
            "or lines CLASS NAME that name them all"
        )
    return lines
