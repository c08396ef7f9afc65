"""Evaluation batches on the device: samples in dataset order, each exactly once over all ranks."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset, LoaderOptions
from resnet_train.data.views import View, ViewBatch


@dataclass(frozen=True)
class EvaluationData:
    """Samples to evaluate on, and the batches that one rank takes of them.

    Rank r takes batches r, r + ranks, and so on. Batches are never divided, so each sample is in the same batch, and
    meets the same kernels, at any number of ranks. The last batch may be shorter.
    """

    dataset: Dataset
    views: tuple[View, ...]
    batch_size: int
    device: torch.device
    workers: int = 0
    rank: int = 0
    ranks: int = 1
    skip_bad: bool = False

    def __len__(self) -> int:
        """The number of samples, over all ranks."""
        return len(self.dataset)

    @property
    def rounds(self) -> int:
        """The number of batches of the rank that has most of them: of the first."""
        return -(-len(self) // (self.batch_size * self.ranks))

    def view_batches(self) -> Generator[ViewBatch]:
        """This rank's batches, in each view. Raises `BadInput` where an image cannot be decoded."""
        return self._batches(self.views)

    def batches(self) -> Generator[Batch]:
        """This rank's batches in the first view alone, whose images must have one shape. Raises `BadInput` as above."""
        for view_batch in self._batches(self.views[:1]):
            [group] = view_batch.groups
            yield group.batch

    def _batches(self, views: tuple[View, ...]) -> Generator[ViewBatch]:
        n = len(self.dataset)
        starts = range(self.rank * self.batch_size, n, self.ranks * self.batch_size)
        batches = [np.arange(start, min(start + self.batch_size, n)) for start in starts]
        options = LoaderOptions(self.device, self.workers, self.skip_bad)
        return self.dataset.view_batches(batches, views, options)
