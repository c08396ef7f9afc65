"""Batches: what the loaders give to the device."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from resnet_train.data import augment


class Source(NamedTuple):
    """Images that stay on the device, and how a crop of them is padded."""

    images: Tensor
    """uint8 [m, H, W, C]."""
    padding: str


class Batch(NamedTuple):
    """Images and labels, and the augmentation that is applied to them on the device."""

    images: Tensor
    """uint8 [n, H, W, C]. With `source`, how `cropped` makes them: int64 [n, 4], the row in it, left, top and flip."""
    labels: Tensor
    """int64 [n]."""
    shift: Tensor
    """float32 [n, C]: the PCA lighting of each image, added to its pixels on a scale of 0 to 1."""
    skipped: tuple[str, ...] = ()
    """Paths of image files that could not be decoded; each was replaced by the next one that could."""
    erase_boxes: Tensor | None = None
    """int64 [n, 4]: the box of each normalised image that `mixup.erase` sets to zero."""
    mix_params: Tensor | None = None
    """float32 [5]: how `mixup.mix` mixes the images; `mixup.plan` draws it."""
    source: Source | None = None
    """What the images are crops of, if the step makes them: a CUDA graph then holds the cropping, too."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        height, width = (self.images if self.source is None else self.source.images).shape[1:3]
        return height, width

    def cropped(self) -> "Batch":
        """This batch with its images, if it has a source."""
        if self.source is None:
            return self
        rows, corners, flip = self.images[:, 0], self.images[:, 1:3], self.images[:, 3].bool()
        images = augment.pad_and_crop(self.source.images, rows, corners, flip, self.source.padding)
        return self._replace(images=images, source=None)

    def to(self, device: torch.device) -> "Batch":
        """This batch on a device, copied asynchronously from pinned memory."""
        return self.with_tensors(tensor.to(device, non_blocking=device.type == "cuda") for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """The tensors of this batch, in the order of the fields."""
        return [value for value in self if isinstance(value, Tensor)]

    def with_tensors(self, tensors: Iterable[Tensor]) -> "Batch":
        """This batch with other tensors in place of its own, in the order of `tensors()`."""
        others = iter(tensors)
        return Batch(*(next(others) if isinstance(value, Tensor) else value for value in self))  # type: ignore[arg-type]

    def split(self, count: int) -> list["Batch"]:
        """`count` equal micro-batches. The first one carries `skipped`; erasing and mixing are not planned yet."""
        columns = zip(*(tensor.chunk(count) for tensor in (self.images, self.labels, self.shift)), strict=True)
        first, *others = (Batch(images, labels, shift, source=self.source) for images, labels, shift in columns)
        return [first._replace(skipped=self.skipped), *others]


class StepBatches(NamedTuple):
    """The micro-batches of one rank in one step."""

    micro_batches: list[Batch]
    """One for each pass of gradient accumulation, on the device."""
    seeds: list[int]
    """One for each micro-batch, for dropout."""
    data_wait_seconds: float
    """Seconds that the training loop waited for this step's images."""


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device, copied asynchronously; on the CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.to(device) if device.type != "cuda" else tensor.pin_memory().to(device, non_blocking=True)
