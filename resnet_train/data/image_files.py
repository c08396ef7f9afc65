"""Samples that are image files of any size, wherever their bytes lie."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, TypeVar

from PIL import Image

from resnet_train.data.decoding import EncodedImage
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput

_T = TypeVar("_T")


class ImageFileDataset(ABC):
    """Image files of any size, in RGB."""

    channels = 3
    hint = ""
    """What a user may do about one that cannot be decoded."""
    labels: Ints
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Of a sample: the path of its file."""

    @abstractmethod
    def encoded(self, index: int) -> EncodedImage:
        """A sample, read and not yet decoded. Raises `BadInput` that names a file which cannot be."""

    @abstractmethod
    def subset(self, indices: Ints) -> Self:
        """The same source, of these samples only."""

    def decoded(self, index: int) -> Image.Image:
        """One decoded image. Raises `BadInput` that names a file which cannot be decoded."""
        return decode(self.encoded(index))


def decode(picture: EncodedImage) -> Image.Image:
    """The whole of a picture, in RGB. Raises `BadInput`."""
    return Image.fromarray(picture.region((0, 0, *picture.size)).pixels)


def usable(
    source: ImageFileDataset, index: int, skip_bad: bool, use: Callable[[EncodedImage], _T]
) -> tuple[_T, int, list[str]]:
    """What `use` makes of a sample or, where that cannot be decoded and may be skipped, of the next one that can.

    Also that one's index, and the names of those skipped. Raises `BadInput`.
    """
    skipped: list[str] = []
    for other in range(index, index + len(source)):
        number = other % len(source)
        try:
            return use(source.encoded(number)), number, skipped
        except BadInput as error:
            if not skip_bad:
                raise BadInput(f"{error}{source.hint}") from None
            skipped.append(source.name(number))
    raise BadInput(f"not one image can be decoded, from {source.name(0)} to {source.name(len(source) - 1)}")
