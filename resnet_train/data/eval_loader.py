"""Samples as evaluation sees them: in order, each exactly once over all ranks, in every look at it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from resnet_train.data import augment
from resnet_train.data.augment import View
from resnet_train.data.batch import Batch
from resnet_train.data.datasets import AnyDataset, InMemoryDataset, SyntheticDataset
from resnet_train.data.device_cache import DeviceCachedDataset
from resnet_train.data.image_files import ImageFileDataset, decoded, usable
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput
from resnet_train.runtime.processes import serve


class ViewBatch(NamedTuple):
    """Images of an evaluation, each in every look at it."""

    labels: Tensor
    """int64 [n]."""
    pieces: tuple[tuple[int, Tensor, Batch], ...]
    """The number of a look, which of the n images [m], and those; images of one shape together."""

    def to(self, device: torch.device) -> "ViewBatch":
        """The same on a device."""
        moved = [(look, rows.to(device, non_blocking=True), batch.to(device)) for look, rows, batch in self.pieces]
        return ViewBatch(self.labels.to(device, non_blocking=True), tuple(moved))


class _Files(Dataset[ViewBatch | BadInput]):
    """Batches of image files as evaluation sees them."""

    def __init__(self, source: ImageFileDataset, looks: Sequence[View], skip_bad: bool) -> None:
        self.source, self.looks, self.skip_bad = source, looks, skip_bad

    def __getitem__(self, indices: Ints) -> ViewBatch | BadInput:
        try:
            found = [usable(self.source, index, self.skip_bad, decoded) for index in indices.tolist()]
        except BadInput as error:
            return error  # returned, not raised: DataLoader would bury its one line in tracebacks
        views = zip(*(augment.apply_views(image, self.looks) for image, _, _ in found), strict=True)
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

    source: AnyDataset
    looks: tuple[View, ...]
    batch_size: int
    device: torch.device
    workers: int = 0
    rank: int = 0
    ranks: int = 1
    skip_bad: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def viewed(self) -> Iterator[ViewBatch]:
        """This rank's batches: every `ranks`-th one, the last of all as short as it is.

        Whole batches, so that each sample meets the same kernels in the same company at any number of ranks.
        """
        starts = range(self.rank * self.batch_size, len(self.source), self.ranks * self.batch_size)
        parts = [np.arange(start, min(start + self.batch_size, len(self.source))) for start in starts]
        if isinstance(self.source, ImageFileDataset):
            return serve(_Files(self.source, self.looks, self.skip_bad), parts, self.workers, self.device)
        return (self._whole(self.source, indices) for indices in parts)

    def _whole(self, source: InMemoryDataset | SyntheticDataset | DeviceCachedDataset, indices: Ints) -> ViewBatch:
        held, rows = source.held(indices, self.device)
        images = held[rows[0] : rows[-1] + 1]  # samples in order: a view, where all are held
        labels = torch.from_numpy(source.labels[indices]).to(self.device)
        shift, every = images.new_zeros(len(rows), source.channels, dtype=torch.float32), torch.arange(len(rows))
        batches = (Batch(images.flip(2) if look.flip else images, labels, shift) for look in self.looks)
        return ViewBatch(labels, tuple((look, every, batch) for look, batch in enumerate(batches)))

    def batches(self) -> Iterator[Batch]:
        """The same, in the first look alone, whose images are of one shape."""
        for viewed in replace(self, looks=self.looks[:1]).viewed():
            [(_, _, batch)] = viewed.pieces
            yield batch
