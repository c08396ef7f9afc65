"""Samples as evaluation sees them: in order, each exactly once over all ranks, in every look at it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset
from resnet_train.data.datasets import InMemoryDataset, SyntheticDataset
from resnet_train.data.device_cache import DeviceCachedDataset
from resnet_train.data.eval_workers import load_batches
from resnet_train.data.image_files import ImageFileDataset, decode, usable
from resnet_train.data.rng import Ints
from resnet_train.data.views import View, ViewBatch, apply_views
from resnet_train.errors import BadInput


class _Files(torch_data.Dataset[ViewBatch | BadInput]):
    """Batches of image files as evaluation sees them."""

    def __init__(self, source: ImageFileDataset, looks: Sequence[View], skip_bad: bool) -> None:
        self.source, self.looks, self.skip_bad = source, looks, skip_bad

    def __getitem__(self, indices: Ints) -> ViewBatch | BadInput:
        try:
            found = [usable(self.source, index, self.skip_bad, decode) for index in indices.tolist()]
        except BadInput as error:
            return error  # returned, not raised: DataLoader would bury its one line in tracebacks
        views = zip(*(apply_views(image, self.looks) for image, _, _ in found), strict=True)
        labels = torch.from_numpy(self.source.labels[[index for _, index, _ in found]])
        return ViewBatch(labels, tuple(self._pieces(labels, list(views))))

    def _pieces(self, labels: Tensor, views: Sequence[Sequence[np.ndarray]]) -> Iterator[tuple[int, Tensor, Batch]]:
        for look, images in enumerate(views):
            by_shape: dict[tuple[int, ...], list[int]] = {}
            for row, image in enumerate(images):
                by_shape.setdefault(image.shape, []).append(row)
            for rows in by_shape.values():
                stacked = torch.from_numpy(np.stack([images[row] for row in rows]))
                which = torch.tensor(rows)
                yield look, which, Batch(stacked, labels[which], torch.zeros(len(rows), self.source.channels))


@dataclass(frozen=True)
class EvaluationData:
    """Samples to evaluate on, each exactly once over all ranks."""

    dataset: Dataset
    views: tuple[View, ...]
    batch_size: int
    device: torch.device
    workers: int = 0
    rank: int = 0
    ranks: int = 1
    skip_bad: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def view_batches(self) -> Iterator[ViewBatch]:
        """This rank's batches: every `ranks`-th one, the last of all as short as it is.

        Whole batches, so that each sample meets the same kernels in the same company at any number of ranks.
        """
        starts = range(self.rank * self.batch_size, len(self.dataset), self.ranks * self.batch_size)
        parts = [np.arange(start, min(start + self.batch_size, len(self.dataset))) for start in starts]
        if isinstance(self.dataset, ImageFileDataset):
            return load_batches(_Files(self.dataset, self.views, self.skip_bad), parts, self.workers, self.device)
        return (self._whole(self.dataset, indices) for indices in parts)

    def _whole(self, source: InMemoryDataset | SyntheticDataset | DeviceCachedDataset, indices: Ints) -> ViewBatch:
        held, rows = source.held(indices, self.device)
        images = held[rows[0] : rows[-1] + 1]  # samples in order: a view, where all are held
        labels = torch.from_numpy(source.labels[indices]).to(self.device)
        shift, every = images.new_zeros(len(rows), source.channels, dtype=torch.float32), torch.arange(len(rows))
        batches = (Batch(images.flip(2) if look.flip else images, labels, shift) for look in self.views)
        return ViewBatch(labels, tuple((look, every, batch) for look, batch in enumerate(batches)))

    def batches(self) -> Iterator[Batch]:
        """The same, in the first look alone, whose images are of one shape."""
        for viewed in replace(self, views=self.views[:1]).view_batches():
            [(_, _, batch)] = viewed.groups
            yield batch
