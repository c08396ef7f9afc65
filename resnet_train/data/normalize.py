"""From uint8 images to what a network sees, on the device; and the statistics for it, from the training images."""

from typing import NamedTuple

import torch
from torch import Tensor

from resnet_train.config.data import PadCropConfig
from resnet_train.config.schema import Recipe
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset
from resnet_train.data.datasets import evenly_spaced
from resnet_train.data.device_cache import DeviceCachedDataset
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.views import View

_IMAGES = 10_000
"""Image files from which the mean is taken; of stored images all are."""


class Normalization(NamedTuple):
    """uint8 images to what a network sees: (x + 255 * shift - mean) / std."""

    mean: Tensor
    """float32 [H or 1, W or 1, C], of pixels in 0 to 255."""
    std: Tensor
    """float32 [C]; 255 where only the mean is removed: the first batch norm removes any scale."""

    def to(self, device: torch.device) -> "Normalization":
        """The same on a device."""
        return Normalization(self.mean.to(device), self.std.to(device))

    def __call__(self, batch: Batch) -> Tensor:
        """uint8 [n, H, W, C] -> float32 [n, C, H, W], channels last in memory."""
        mean = self.mean if self.mean.shape[:2] in ((1, 1), batch.images.shape[1:3]) else self.mean.mean((0, 1))
        images = (batch.images - (mean - 255 * batch.shift[:, None, None])) / self.std
        return images.permute(0, 3, 1, 2)


def statistics(recipe: Recipe, source: Dataset) -> Normalization:
    """The mean and deviation of the training images, in exact integer arithmetic: the same on any machine.

    Of image files, `_IMAGES` evenly spaced ones are read; where they are of any size, as evaluation would see them at
    the size of the training crop.
    """
    look, cfg = View(), recipe.data
    if isinstance(source, ImageFileDataset | DeviceCachedDataset):
        source = source.subset(evenly_spaced(len(source), _IMAGES))
    if isinstance(source, ImageFileDataset):
        crop = recipe.augment.crop
        assert crop is not None
        assert not isinstance(crop, PadCropConfig)
        look = View(round(crop.size * 256 / 224), crop.size)
    shown = EvaluationData(source, (look,), 256, torch.device("cpu"), cfg.decode_workers, skip_bad=cfg.skips_bad_images)
    first = second = torch.zeros((), dtype=torch.int64)
    for batch in shown.batches():
        pixels = batch.images.to(torch.int32)
        first = first + pixels.sum(0)
        second = second + (pixels * pixels).sum((0, 1, 2))
    per_channel = len(source) * first.shape[0] * first.shape[1]
    if recipe.data.normalize == "pixel-mean":
        mean = first.double() / len(source)
    else:
        mean = first.sum((0, 1), keepdim=True).double() / per_channel
    std = torch.full((first.shape[2],), 255.0)
    if recipe.data.normalize == "channel-mean-std":
        std = (second.double() / per_channel - mean[0, 0] ** 2).sqrt().clamp(min=1)
    return Normalization(mean.float(), std.float())
