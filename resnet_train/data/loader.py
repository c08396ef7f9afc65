"""The order of samples and the way of a batch to the device.

Samples form one endless stream: position p is sample `permutation(seed, p // n)[p % n]` of epoch p // n. Step s takes
the global batch at positions [s * B, (s + 1) * B), cut into `accumulate * ranks` equal shares; rank r's share of pass a
is number a * ranks + r. So every sample is seen once an epoch, whatever the number of ranks and workers, and any step
can be the first.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from resnet_train.config.data import Augment, PadCrop
from resnet_train.config.schema import Recipe
from resnet_train.data import augment, draws
from resnet_train.data.augment import Look
from resnet_train.data.draws import Ints
from resnet_train.data.sources import AnySource, Files
from resnet_train.data.workers import serve
from resnet_train.errors import BadInput


class Batch(NamedTuple):
    """What travels to the device."""

    images: Tensor
    """uint8 [n, H, W, C]."""
    labels: Tensor
    """int64 [n]."""
    shift: Tensor
    """float32 [n, 3 or 1]: the colour augmentation, to add to RGB in [0, 1]."""
    skipped: tuple[str, ...] = ()
    """Files that could not be decoded and in whose place the next one stands."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        images, labels, shift = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Batch(images, labels, shift, self.skipped)


class Viewed(NamedTuple):
    """Images of an evaluation, each in every look at it."""

    labels: Tensor
    """int64 [n]."""
    pieces: tuple[tuple[int, Tensor, Batch], ...]
    """The number of a look, which of the n images [m], and those; images of one shape together."""

    def to(self, device: torch.device) -> "Viewed":
        """The same on a device."""
        moved = [(look, rows.to(device, non_blocking=True), batch.to(device)) for look, rows, batch in self.pieces]
        return Viewed(self.labels.to(device, non_blocking=True), tuple(moved))


class StepData(NamedTuple):
    """One rank's share of one step."""

    batches: list[Batch]
    """One for each pass of the accumulation, on the device."""
    seeds: list[int]
    """One for each batch: what dropout may draw from."""
    waited: float
    """Seconds that the loop stood still for them."""


class Samples(NamedTuple):
    """Which samples a batch is made of."""

    epochs: Ints
    indices: Ints


@dataclass(frozen=True)
class Stream:
    """The endless order of `n` samples, and its share for one of `ranks` ranks."""

    seed: int
    n: int
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    ranks: int = 1

    def batch(self, step: int) -> Samples:
        """The global batch of a step."""
        return self._at(step * self.batch_size, self.batch_size)

    def shares(self, step: int) -> list[Samples]:
        """This rank's share of each accumulation pass of a step."""
        share = self.batch_size // (self.accumulate * self.ranks)
        first = step * self.batch_size + self.rank * share
        return [self._at(first + a * self.ranks * share, share) for a in range(self.accumulate)]

    def seeds(self, step: int) -> list[int]:
        """A seed for each of this rank's shares of a step; the share's, whichever rank it falls to."""
        share = step * self.accumulate * self.ranks + self.rank
        numbers = np.array([share + a * self.ranks for a in range(self.accumulate)])
        return draws.seeds(self.seed, numbers)

    def _at(self, first: int, count: int) -> Samples:
        epochs, places = np.divmod(np.arange(first, first + count), self.n)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = _order(self.seed, int(epoch), self.n)[places[epochs == epoch]]
        return Samples(epochs, indices)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> Ints:
    return draws.permutation(seed, epoch, n)


class _Shares(Sampler[Samples]):
    def __init__(self, stream: Stream, start: int, until: int) -> None:
        self.stream, self.start, self.until = stream, start, until

    def __iter__(self) -> Iterator[Samples]:
        for step in range(self.start, self.until):
            yield from self.stream.shares(step)


class _Training(Dataset[Batch | BadInput]):
    """Batches of augmented images."""

    def __init__(self, source: AnySource, cfg: Augment, seed: int, skip_bad: bool) -> None:
        self.source, self.cfg, self.seed, self.skip_bad = source, cfg, seed, skip_bad

    def __getitem__(self, samples: Samples) -> Batch | BadInput:
        random = draws.uniform(self.seed, samples.epochs, samples.indices, augment.DRAWS)
        if isinstance(self.source, Files):
            return self._folder(self.source, samples, random)
        images = torch.from_numpy(self.source.read(samples.indices))
        sizes = np.full((len(images), 2), images.shape[2:0:-1], float)
        plan = augment.plan(self.cfg, random, sizes)
        if self.cfg.crop is not None or self.cfg.flip:
            mode = self.cfg.crop.mode if isinstance(self.cfg.crop, PadCrop) else "zero"
            corners = torch.from_numpy(plan.boxes[:, :2].astype(np.int64))
            images = augment.pad_and_crop(images, corners, torch.from_numpy(plan.flip), mode)
        labels = torch.from_numpy(self.source.labels[samples.indices])
        return Batch(images, labels, torch.from_numpy(plan.shift[:, : self.source.channels]))

    def _folder(self, source: Files, samples: Samples, random: draws.Floats) -> Batch | BadInput:
        crop = self.cfg.crop
        assert crop is not None
        assert not isinstance(crop, PadCrop)
        try:
            read = _read(source, samples.indices, self.skip_bad)
        except BadInput as error:
            return error  # returned, not raised: DataLoader would bury its one line in tracebacks
        plan = augment.plan(self.cfg, random, np.array([image.size for image in read.images], float))
        cuts = zip(read.images, plan.boxes, plan.flip, strict=True)
        pixels = np.stack([augment.cut_and_resize(image, box, bool(flip), crop) for image, box, flip in cuts])
        labels = torch.from_numpy(source.labels[read.indices])
        return Batch(torch.from_numpy(pixels), labels, torch.from_numpy(plan.shift), read.skipped)


class _Evaluation(Dataset[Viewed | BadInput]):
    """Batches of images as evaluation sees them."""

    def __init__(self, source: AnySource, looks: Sequence[Look], skip_bad: bool) -> None:
        self.source, self.looks, self.skip_bad = source, looks, skip_bad

    def __getitem__(self, indices: Ints) -> Viewed | BadInput:
        if isinstance(self.source, Files):
            try:
                read = _read(self.source, indices, self.skip_bad)
            except BadInput as error:
                return error
            indices = read.indices
            views = list(zip(*(augment.seen(image, self.looks) for image in read.images), strict=True))
        else:
            images = self.source.read(indices)
            views = [tuple(images[:, :, ::-1] if look.flip else images) for look in self.looks]
        labels = torch.from_numpy(self.source.labels[indices])
        return Viewed(labels, tuple(self._pieces(labels, views)))

    def _pieces(self, labels: Tensor, views: Sequence[Sequence[np.ndarray]]) -> Iterator[tuple[int, Tensor, Batch]]:
        for look, images in enumerate(views):
            by_shape: dict[tuple[int, ...], list[int]] = {}
            for row, image in enumerate(images):
                by_shape.setdefault(image.shape, []).append(row)
            for rows in by_shape.values():
                stacked = torch.from_numpy(np.stack([images[row] for row in rows]))
                which = torch.tensor(rows)
                yield look, which, Batch(stacked, labels[which], torch.zeros(len(rows), self.source.channels))


class _Read(NamedTuple):
    images: list[Image.Image]
    indices: Ints
    """Of the images: those asked for, but for the skipped."""
    skipped: tuple[str, ...]


def _read(source: Files, indices: Ints, skip_bad: bool) -> _Read:
    """Images of a folder; in the place of one that cannot be decoded, if that is allowed, the next one that can."""
    images: list[Image.Image] = []
    found: list[int] = []
    skipped: list[str] = []
    for index in indices.tolist():
        for other in range(index, index + len(source)):
            try:
                images.append(source.read(other % len(source)))
                found.append(other % len(source))
                break
            except BadInput as error:
                if not skip_bad:
                    raise BadInput(f"{error}{source.cure}") from None
                skipped.append(source.name(other % len(source)))
        else:
            raise BadInput(f"not one image can be decoded, from {source.name(0)} to {source.name(len(source) - 1)}")
    return _Read(images, np.array(found), tuple(skipped))


@dataclass(frozen=True)
class TrainingData:
    """The training samples of a run, and the batches that one rank takes of them."""

    source: AnySource
    stream: Stream
    augment: Augment
    device: torch.device
    workers: int = 0
    skip_bad: bool = False

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every sample is seen once; an epoch need not end with a batch."""
        return self.stream.n / self.stream.batch_size

    @property
    def image_size(self) -> int:
        """Height of the images that the network sees."""
        if isinstance(self.source, Files):
            assert self.augment.crop is not None
            assert not isinstance(self.augment.crop, PadCrop)
            return self.augment.crop.size
        return int(self.source.read(np.array([0])).shape[1])

    def from_step(self, start: int, until: int) -> Iterator[StepData]:
        """Batches for steps [start, until). Raises `BadInput` at an image that cannot be decoded."""
        dataset = _Training(self.source, self.augment, self.stream.seed, self.skip_bad)
        batches = serve(dataset, _Shares(self.stream, start, until), self.workers, self.device)
        for step in range(start, until):
            begin = time.perf_counter()
            ready = [next(batches) for _ in range(self.stream.accumulate)]
            yield StepData(ready, self.stream.seeds(step), time.perf_counter() - begin)

    def describe(self, step: int) -> list[str]:
        """The samples of a step's global batch: the paths of files, the numbers of stored images."""
        indices = self.stream.batch(step).indices.tolist()
        return [self.source.name(i) if isinstance(self.source, Files) else str(i) for i in indices]


def training_data(
    recipe: Recipe, source: AnySource, seed: int, rank: int, ranks: int, device: torch.device
) -> TrainingData:
    """The training batches of one rank. Raises `BadInput` where the ranks do not divide the global batch."""
    train, data, crop = recipe.train, recipe.data, recipe.augment.crop
    if train.batch_size % (train.accumulate * ranks):
        shares = train.accumulate * ranks
        raise BadInput(
            f"train.batch_size = {train.batch_size} (global) is not divisible by {ranks} ranks x {train.accumulate} "
            f"train.accumulate: use {max(1, train.batch_size // shares) * shares}"
        )
    if not isinstance(source, Files) and isinstance(crop, PadCrop):
        size = min(source.read(np.array([0])).shape[1:3])
        if crop.mode == "reflect" and crop.padding >= size:
            raise BadInput(
                f"augment.crop.padding = {crop.padding}: reflection needs less than the image's {size} pixels"
            )
    stream = Stream(seed, len(source), train.batch_size, train.accumulate, rank, ranks)
    return TrainingData(source, stream, recipe.augment, device, data.processes, data.skips_bad_images)


@dataclass(frozen=True)
class EvaluationData:
    """Samples to evaluate on, each exactly once over all ranks."""

    source: AnySource
    looks: tuple[Look, ...]
    batch_size: int
    device: torch.device
    workers: int = 0
    rank: int = 0
    ranks: int = 1
    skip_bad: bool = False

    def __len__(self) -> int:
        return len(self.source)

    def viewed(self) -> Iterator[Viewed]:
        """This rank's batches: every `ranks`-th one, the last of all as short as it is.

        Whole batches, so that each sample meets the same kernels in the same company at any number of ranks.
        """
        starts = range(self.rank * self.batch_size, len(self.source), self.ranks * self.batch_size)
        parts = [np.arange(start, min(start + self.batch_size, len(self.source))) for start in starts]
        return serve(_Evaluation(self.source, self.looks, self.skip_bad), parts, self.workers, self.device)

    def batches(self) -> Iterator[Batch]:
        """The same, in the first look alone, whose images are of one shape."""
        for viewed in replace(self, looks=self.looks[:1]).viewed():
            [(_, _, batch)] = viewed.pieces
            yield batch
