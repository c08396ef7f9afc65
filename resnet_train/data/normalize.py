"""Normalisation: uint8 images to what a network sees, on the device; and its statistics, from the training images."""

from typing import NamedTuple

import torch
from torch import Tensor

from resnet_train.config.schema import Recipe
from resnet_train.data import augment
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset
from resnet_train.data.datasets import evenly_spaced
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.views import View
from resnet_train.errors import BadInput

_FILES = 10_000
"""Image files that the statistics are computed from; of images in memory, all are used."""


class Normalization(NamedTuple):
    """uint8 images to what a network sees: (x + 255 * shift - mean) / std."""

    mean: Tensor
    """float32 [H or 1, W or 1, C], of pixels on a scale of 0 to 255."""
    std: Tensor
    """float32 [C]; 255 where only the mean is subtracted: the first batch norm removes any scale."""

    def to(self, device: torch.device) -> "Normalization":
        """The same statistics on a device."""
        return Normalization(self.mean.to(device), self.std.to(device))

    def __call__(self, batch: Batch) -> Tensor:
        """uint8 [n, H, W, C] -> float32 [n, C, H, W], channels last in memory.

        Images of another size than the mean image are normalised by its mean over the pixels.
        """
        mean = self.mean if self.mean.shape[:2] in ((1, 1), batch.images.shape[1:3]) else self.mean.mean((0, 1))
        images = (batch.images - (mean - 255 * batch.shift[:, None, None])) / self.std
        return images.permute(0, 3, 1, 2)


def check_normalization(normalization: Normalization, source: str) -> None:
    """Raise `BadInput` if statistics that a file holds are not of one size and finite, or divide by 0."""
    mean, std = normalization
    fits = mean.dim() == 3 and std.dim() == 1 and mean.shape[2] == len(std) in (1, 3)
    plain = all((t.dtype, t.layout, t.is_meta) == (torch.float32, torch.strided, False) for t in normalization)
    if not (fits and plain and mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise BadInput(f"{source} is damaged: its mean and standard deviation are not those of images")


def statistics(recipe: Recipe, dataset: Dataset) -> Normalization:
    """The mean and standard deviation of the training images, in integers: the same on any machine.

    Of image files, `_FILES` evenly spaced ones are read. Images of any size are resized and cropped as evaluation would
    at the size of the training crop. Raises `BadInput` where an image cannot be decoded.
    """
    view, data = View(), recipe.data
    if dataset.from_files:
        dataset = dataset.subset(evenly_spaced(len(dataset), _FILES))
    if dataset.size is None:
        size = augment.resized_crop_of(recipe.augment).size
        view = View(round(size * 256 / 224), size)
    images = EvaluationData(
        dataset, (view,), 256, torch.device("cpu"), data.decode_workers, skip_bad=data.skips_bad_images
    )
    total = total_of_squares = torch.zeros((), dtype=torch.int64)
    for batch in images.batches():
        pixels = batch.images.to(torch.int32)
        total = total + pixels.sum(0)
        total_of_squares = total_of_squares + (pixels * pixels).sum((0, 1, 2))
    height, width, channels = total.shape
    pixels_per_channel = len(dataset) * height * width
    if data.normalize == "pixel-mean":
        mean = total.double() / len(dataset)
    else:
        mean = total.sum((0, 1), keepdim=True).double() / pixels_per_channel
    std = torch.full((channels,), 255.0)
    if data.normalize == "channel-mean-std":
        std = (total_of_squares.double() / pixels_per_channel - mean[0, 0] ** 2).sqrt().clamp(min=1)
    return Normalization(mean.float(), std.float())
