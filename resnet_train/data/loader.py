"""Batches for training, on the device: image files cut by workers, images of one size cut where they are held."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resnet_train.config.data import AugmentConfig, PadCropConfig
from resnet_train.config.schema import Recipe
from resnet_train.data import augment, auto_augment, device_cache, mixup, prefetch, rng
from resnet_train.data.batch import Batch, StepBatches
from resnet_train.data.dataset import Dataset
from resnet_train.data.datasets import InMemoryDataset, SyntheticDataset
from resnet_train.data.decoding import EncodedImage, ImageArray
from resnet_train.data.device_cache import DeviceCachedDataset, sent
from resnet_train.data.image_files import ImageFileDataset, usable
from resnet_train.data.prefetch import Buffer, Shape
from resnet_train.data.rng import Ints
from resnet_train.data.sampler import Sampler
from resnet_train.errors import BadInput

_PLANNED_TOGETHER = 64
"""Steps whose plans are made at once where images are held: by the step it would take as long as a small network's."""


@dataclass(frozen=True)
class _Cut:
    """Makes training samples of files: reads them, plans their crops, then decodes no more than these need."""

    source: ImageFileDataset
    cfg: AugmentConfig
    seed: int
    skip_bad: bool

    def __call__(self, slot: Buffer) -> tuple[str, ...]:
        crop, source = self.cfg.crop, self.source
        assert crop is not None
        assert not isinstance(crop, PadCropConfig)
        random = rng.uniform(self.seed, slot.epochs, slot.indices, augment.columns(self.cfg))
        found = [usable(source, index, self.skip_bad, lambda picture: picture) for index in slot.indices.tolist()]
        plan = augment.plan(self.cfg, random, np.array([picture.size for picture, _, _ in found], float))
        indices, skipped = [], []
        for row, (picture, index, names) in enumerate(found):
            flip, out = bool(plan.flip[row]), slot.images[row]
            try:
                augment.resized_crop(picture, plan.boxes[row], flip, crop, out)
            except BadInput:  # it opens, but cannot be decoded

                def planned(other: EncodedImage, row: int = row, flip: bool = flip, out: ImageArray = out) -> None:
                    anew = augment.plan(self.cfg, random[[row]], np.array([other.size], float))
                    augment.resized_crop(other, anew.boxes[0], flip, crop, out)

                _, index, more = usable(source, index, self.skip_bad, planned)
                names += more
            indices.append(index)
            skipped += names
        if self.cfg.auto_augment is not None:
            auto_augment.apply(
                slot.images, auto_augment.plan(self.cfg.auto_augment, random[:, augment.POLICY], slot.images.shape[1])
            )
        slot.labels[:] = source.labels[indices]
        slot.shift[:] = plan.shift
        return tuple(skipped)


@dataclass(frozen=True)
class TrainingData:
    """The training samples of a run, and the batches that one rank takes of them."""

    dataset: Dataset
    sampler: Sampler
    augment: AugmentConfig
    device: torch.device
    workers: int = 0
    skip_bad: bool = False

    @property
    def steps_per_epoch(self) -> float:
        """Steps of as many images as there are samples; an epoch need not end with a batch."""
        return self.sampler.n / self.sampler.batch_size

    @property
    def image_size(self) -> int:
        """Height of the images that the network sees."""
        if not isinstance(self.dataset, ImageFileDataset):
            return self.dataset.size
        assert self.augment.crop is not None
        assert not isinstance(self.augment.crop, PadCropConfig)
        return self.augment.crop.size

    def from_step(
        self, start: int, until: int, size_at: Callable[[int], int | None] = lambda _: None
    ) -> Generator[StepBatches]:
        """Batches for steps [start, until), each good until the next is asked for. Close it to end its workers.

        `size_at` says the height and width of a step's images, where they are not those of the recipe's crop.
        Raises `BadInput` at an image that cannot be decoded, or if a worker was killed.
        """
        source, steps = self.dataset, range(start, until)
        shares = (
            self._cut(source, steps, size_at) if isinstance(source, ImageFileDataset) else self._held(source, steps)
        )
        with closing(shares):
            for step in steps:
                begin = time.perf_counter()
                ready, seeds = next(shares).split(self.sampler.grad_accum_steps), self.sampler.seeds(step)
                yield StepBatches(self._planned(ready, step, seeds), seeds, time.perf_counter() - begin)

    def _planned(self, batches: list[Batch], step: int, seeds: list[int]) -> list[Batch]:
        """With what the device is to do to them once they are normalised."""
        cfg, (height, width) = self.augment, batches[0].images.shape[1:3]
        if cfg.random_erasing:
            samples = self.sampler.rank_samples(step)
            random = rng.uniform(self.sampler.seed, samples.epochs, samples.indices, augment.ERASE.stop)
            boxes = sent(
                mixup.erase_boxes(cfg.random_erasing, random[:, augment.ERASE], height, width), self.device
            ).chunk(len(batches))
            batches = [batch._replace(erase_boxes=part) for batch, part in zip(batches, boxes, strict=True)]
        if cfg.mixes:
            blends = (sent(mixup.plan(cfg, seed, height, width), self.device) for seed in seeds)
            batches = [batch._replace(mix_params=blend) for batch, blend in zip(batches, blends, strict=True)]
        return batches

    def _cut(self, source: ImageFileDataset, steps: range, size_at: Callable[[int], int | None]) -> Generator[Batch]:
        """Files: each worker cuts its crops out of them, and a stream of its own copies these to the device."""
        make = _Cut(source, self.augment, self.sampler.seed, self.skip_bad)
        shape = Shape(self.sampler.micro_batch_size * self.sampler.grad_accum_steps, self.image_size, source.channels)
        wanted = (self.sampler.rank_samples(step) for step in steps)
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        filled = prefetch.fill(make, wanted, shape, self.workers, self.device, lambda number: size_at(steps[number]))
        with closing(filled) as slots:
            for slot, skipped in slots:
                images, labels, shift = map(torch.from_numpy, slot[:3])
                batch = Batch(images, labels, shift, skipped)
                if side is None:
                    yield batch
                    continue
                with torch.cuda.stream(side):
                    moved = batch.to(self.device)
                copied = side.record_event()
                torch.cuda.current_stream().wait_event(copied)
                for tensor in moved[:3]:
                    tensor.record_stream(torch.cuda.current_stream())
                try:
                    yield moved
                finally:  # the slot is about to be written again, or unpinned
                    copied.synchronize()  # alone: a step of ranks may never end, once one of them has

    def _held(self, source: InMemoryDataset | SyntheticDataset | DeviceCachedDataset, steps: range) -> Generator[Batch]:
        """Images of one size: held, cut and mirrored on the device, after plans for many steps at a time.

        On the CPU where a policy edits them.
        """
        cfg, n = self.augment, self.sampler.micro_batch_size * self.sampler.grad_accum_steps
        mode = cfg.crop.mode if isinstance(cfg.crop, PadCropConfig) else "zero"
        place = self.device if cfg.auto_augment is None else torch.device("cpu")
        together, hold = self._hold(source, place)
        for first in range(0, len(steps), together):
            own = [self.sampler.rank_samples(step) for step in steps[first : first + together]]
            epochs, indices = (np.concatenate([samples[i] for samples in own]) for i in (0, 1))
            random = rng.uniform(self.sampler.seed, epochs, indices, augment.columns(cfg))
            plan = augment.plan(cfg, random, np.full((len(indices), 2), source.size, float))
            held, rows = hold(steps[first], indices)
            corners, shift = plan.boxes[:, :2].astype(np.int64), plan.shift[:, : source.channels]
            planned = (
                sent(array, place).split(n) for array in (rows, corners, plan.flip, source.labels[indices], shift)
            )
            for i, (row, corner, flip, label, color) in enumerate(zip(*planned, strict=True)):
                moved = cfg.crop is not None or cfg.flip
                images = augment.pad_and_crop(held, row, corner, flip, mode) if moved else held[row]
                if cfg.auto_augment is not None:
                    drawn = random[i * n : (i + 1) * n, augment.POLICY]
                    auto_augment.apply(images.numpy(), auto_augment.plan(cfg.auto_augment, drawn, source.size))
                yield Batch(images, label, color).to(self.device)

    def _hold(
        self, source: InMemoryDataset | SyntheticDataset | DeviceCachedDataset, place: torch.device
    ) -> tuple[int, Callable[[int, Ints], tuple[Tensor, Ints]]]:
        """How many steps to plan together, and what finds their images: by the first step and the wanted samples."""
        rank, ranks = self.sampler.rank, self.sampler.ranks
        if not (isinstance(source, DeviceCachedDataset) and source.divided(ranks)):
            together = 1 if isinstance(source, SyntheticDataset) else _PLANNED_TOGETHER
            return together, lambda _, indices: source.held(indices, place)
        part = source.part(rank, ranks, place)
        return 1, lambda step, _: device_cache.exchanged(part, self.sampler.all_rank_indices(step), rank)

    def describe(self, step: int) -> list[str]:
        """The samples of a step's global batch: the paths of files, the numbers of stored images."""
        indices = self.sampler.batch(step).indices.tolist()
        return [
            self.dataset.name(i) if isinstance(self.dataset, ImageFileDataset | DeviceCachedDataset) else str(i)
            for i in indices
        ]


def training_data(
    recipe: Recipe, source: Dataset, seed: int, rank: int, ranks: int, device: torch.device
) -> TrainingData:
    """The training batches of one rank. Raises `BadInput` where the ranks do not divide the global batch."""
    train, data, crop = recipe.train, recipe.data, recipe.augment.crop
    if train.batch_size % (train.grad_accum_steps * ranks):
        shares = train.grad_accum_steps * ranks
        raise BadInput(
            f"train.batch_size = {train.batch_size} (global) is not divisible by {ranks} ranks x "
            f"{train.grad_accum_steps} train.grad_accum_steps: use {max(1, train.batch_size // shares) * shares}"
        )
    if not isinstance(source, ImageFileDataset) and isinstance(crop, PadCropConfig):
        size = source.size
        if crop.mode == "reflect" and crop.padding >= size:
            raise BadInput(
                f"augment.crop.padding = {crop.padding}: reflection needs less than the image's {size} pixels"
            )
    repeat = recipe.augment.repeated_augmentation
    stream = Sampler(seed, len(source), train.batch_size, train.grad_accum_steps, rank, ranks, repeat)
    if recipe.augment.mixes and stream.micro_batch_size == 1:
        raise BadInput(
            "augment.mixup and cutmix need more than one image at a time: a larger train.batch_size, or less "
            "train.grad_accum_steps or ranks"
        )
    return TrainingData(source, stream, recipe.augment, device, data.decode_workers, data.skips_bad_images)
