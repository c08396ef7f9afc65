"""What the rest of the program knows of a data set."""

from typing import Protocol, Self

from resnet_train.data.rng import Ints


class Dataset(Protocol):
    """Labelled images."""

    labels: Ints
    """int64 [n]: the class of each sample, an index into `classes`."""
    classes: tuple[str, ...]
    channels: int
    """1 (grey) or 3 (RGB)."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The path of a sample's file, or its number where it has none."""

    def subset(self, indices: Ints) -> Self:
        """These samples alone, in this order."""
