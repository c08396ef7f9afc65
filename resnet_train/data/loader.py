"""Batches for training, on the device: image files cut by workers, images of one size cut where they are held."""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnet_train.config.data import Augment, PadCrop
from resnet_train.config.schema import Recipe
from resnet_train.data import augment, draws, mix, policy, resident, ring
from resnet_train.data.draws import Ints
from resnet_train.data.files import Files, usable
from resnet_train.data.order import Stream
from resnet_train.data.pictures import Picture, Pixels
from resnet_train.data.resident import Resident, sent
from resnet_train.data.ring import Shape, Slot
from resnet_train.data.sources import AnySource, Generated, Stored
from resnet_train.errors import BadInput

_PLANNED_TOGETHER = 64
"""Steps whose plans are made at once where images are held: by the step it would take as long as a small network's."""


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
    erased: Tensor | None = None
    """int64 [n, 4]: what `mix.erase` leaves out of each normalised image."""
    blend: Tensor | None = None
    """float32 [5]: how `mix.mix` mixes them."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return self.of(tensor.to(device, non_blocking=True) for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that it has."""
        return [value for value in self if isinstance(value, Tensor)]

    def of(self, tensors: Iterable[Tensor]) -> "Batch":
        """The same with other tensors, in the order of its own."""
        others = iter(tensors)
        return Batch(*(next(others) if isinstance(value, Tensor) else value for value in self))  # type: ignore[arg-type]

    def split(self, parts: int) -> list["Batch"]:
        """As many equal parts, before it is planned what to erase and to mix; the first names what was skipped."""
        pieces = zip(*(tensor.chunk(parts) for tensor in (self.images, self.labels, self.shift)), strict=True)
        return [Batch(*piece)._replace(skipped=() if i else self.skipped) for i, piece in enumerate(pieces)]


class StepData(NamedTuple):
    """One rank's share of one step."""

    batches: list[Batch]
    """One for each pass of the accumulation, on the device."""
    seeds: list[int]
    """One for each batch: what dropout may draw from."""
    waited: float
    """Seconds that the loop stood still for them."""


@dataclass(frozen=True)
class _Cut:
    """Makes training samples of files: reads them, plans their crops, then decodes no more than these need."""

    source: Files
    cfg: Augment
    seed: int
    skip_bad: bool

    def __call__(self, slot: Slot) -> tuple[str, ...]:
        crop, source = self.cfg.crop, self.source
        assert crop is not None
        assert not isinstance(crop, PadCrop)
        random = draws.uniform(self.seed, slot.epochs, slot.indices, augment.columns(self.cfg))
        found = [usable(source, index, self.skip_bad, lambda picture: picture) for index in slot.indices.tolist()]
        plan = augment.plan(self.cfg, random, np.array([picture.size for picture, _, _ in found], float))
        indices, skipped = [], []
        for row, (picture, index, names) in enumerate(found):
            flip, out = bool(plan.flip[row]), slot.images[row]
            try:
                augment.cut_and_resize(picture, plan.boxes[row], flip, crop, out)
            except BadInput:  # it opens, but cannot be decoded

                def planned(other: Picture, row: int = row, flip: bool = flip, out: Pixels = out) -> None:
                    anew = augment.plan(self.cfg, random[[row]], np.array([other.size], float))
                    augment.cut_and_resize(other, anew.boxes[0], flip, crop, out)

                _, index, more = usable(source, index, self.skip_bad, planned)
                names += more
            indices.append(index)
            skipped += names
        if self.cfg.policy is not None:
            policy.apply(slot.images, policy.plan(self.cfg.policy, random[:, augment.POLICY], slot.images.shape[1]))
        slot.labels[:] = source.labels[indices]
        slot.shift[:] = plan.shift
        return tuple(skipped)


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
        """Steps of as many images as there are samples; an epoch need not end with a batch."""
        return self.stream.n / self.stream.batch_size

    @property
    def image_size(self) -> int:
        """Height of the images that the network sees."""
        if not isinstance(self.source, Files):
            return self.source.size
        assert self.augment.crop is not None
        assert not isinstance(self.augment.crop, PadCrop)
        return self.augment.crop.size

    def from_step(
        self, start: int, until: int, size_at: Callable[[int], int | None] = lambda _: None
    ) -> Generator[StepData]:
        """Batches for steps [start, until), each good until the next is asked for. Close it to end its workers.

        `size_at` says the height and width of a step's images, where they are not those of the recipe's crop.
        Raises `BadInput` at an image that cannot be decoded, or if a worker was killed.
        """
        source, steps = self.source, range(start, until)
        shares = self._cut(source, steps, size_at) if isinstance(source, Files) else self._held(source, steps)
        with closing(shares):
            for step in steps:
                begin = time.perf_counter()
                ready, seeds = next(shares).split(self.stream.accumulate), self.stream.seeds(step)
                yield StepData(self._planned(ready, step, seeds), seeds, time.perf_counter() - begin)

    def _planned(self, batches: list[Batch], step: int, seeds: list[int]) -> list[Batch]:
        """With what the device is to do to them once they are normalised."""
        cfg, (height, width) = self.augment, batches[0].images.shape[1:3]
        if cfg.erase:
            samples = self.stream.own(step)
            random = draws.uniform(self.stream.seed, samples.epochs, samples.indices, augment.ERASE.stop)
            boxes = sent(mix.erase_boxes(cfg.erase, random[:, augment.ERASE], height, width), self.device).chunk(
                len(batches)
            )
            batches = [batch._replace(erased=part) for batch, part in zip(batches, boxes, strict=True)]
        if cfg.mixes:
            blends = (sent(mix.plan(cfg, seed, height, width), self.device) for seed in seeds)
            batches = [batch._replace(blend=blend) for batch, blend in zip(batches, blends, strict=True)]
        return batches

    def _cut(self, source: Files, steps: range, size_at: Callable[[int], int | None]) -> Generator[Batch]:
        """Files: each worker cuts its crops out of them, and a stream of its own copies these to the device."""
        make = _Cut(source, self.augment, self.stream.seed, self.skip_bad)
        shape = Shape(self.stream.share * self.stream.accumulate, self.image_size, source.channels)
        wanted = (self.stream.own(step) for step in steps)
        side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        filled = ring.fill(make, wanted, shape, self.workers, self.device, lambda number: size_at(steps[number]))
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

    def _held(self, source: Stored | Generated | Resident, steps: range) -> Generator[Batch]:
        """Images of one size: held, cut and mirrored on the device, after plans for many steps at a time.

        On the CPU where a policy edits them.
        """
        cfg, n = self.augment, self.stream.share * self.stream.accumulate
        mode = cfg.crop.mode if isinstance(cfg.crop, PadCrop) else "zero"
        place = self.device if cfg.policy is None else torch.device("cpu")
        together, hold = self._hold(source, place)
        for first in range(0, len(steps), together):
            own = [self.stream.own(step) for step in steps[first : first + together]]
            epochs, indices = (np.concatenate([samples[i] for samples in own]) for i in (0, 1))
            random = draws.uniform(self.stream.seed, epochs, indices, augment.columns(cfg))
            plan = augment.plan(cfg, random, np.full((len(indices), 2), source.size, float))
            held, rows = hold(steps[first], indices)
            corners, shift = plan.boxes[:, :2].astype(np.int64), plan.shift[:, : source.channels]
            planned = (
                sent(array, place).split(n) for array in (rows, corners, plan.flip, source.labels[indices], shift)
            )
            for i, (row, corner, flip, label, color) in enumerate(zip(*planned, strict=True)):
                moved = cfg.crop is not None or cfg.flip
                images = augment.pad_and_crop(held, row, corner, flip, mode) if moved else held[row]
                if cfg.policy is not None:
                    drawn = random[i * n : (i + 1) * n, augment.POLICY]
                    policy.apply(images.numpy(), policy.plan(cfg.policy, drawn, source.size))
                yield Batch(images, label, color).to(self.device)

    def _hold(
        self, source: Stored | Generated | Resident, place: torch.device
    ) -> tuple[int, Callable[[int, Ints], tuple[Tensor, Ints]]]:
        """How many steps to plan together, and what finds their images: by the first step and the wanted samples."""
        rank, ranks = self.stream.rank, self.stream.ranks
        if not (isinstance(source, Resident) and source.divided(ranks)):
            together = 1 if isinstance(source, Generated) else _PLANNED_TOGETHER
            return together, lambda _, indices: source.held(indices, place)
        part = source.part(rank, ranks, place)
        return 1, lambda step, _: resident.exchanged(part, self.stream.by_rank(step), rank)

    def describe(self, step: int) -> list[str]:
        """The samples of a step's global batch: the paths of files, the numbers of stored images."""
        indices = self.stream.batch(step).indices.tolist()
        return [self.source.name(i) if isinstance(self.source, Files | Resident) else str(i) for i in indices]


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
        size = source.size
        if crop.mode == "reflect" and crop.padding >= size:
            raise BadInput(
                f"augment.crop.padding = {crop.padding}: reflection needs less than the image's {size} pixels"
            )
    repeat = recipe.augment.repeat
    stream = Stream(seed, len(source), train.batch_size, train.accumulate, rank, ranks, repeat)
    if recipe.augment.mixes and stream.share == 1:
        raise BadInput(
            "augment.mixup and cutmix need more than one image at a time: a larger train.batch_size, or less "
            "train.accumulate or ranks"
        )
    return TrainingData(source, stream, recipe.augment, device, data.processes, data.skips_bad_images)
