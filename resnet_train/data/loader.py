"""Training batches on the device."""

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import torch

from resnet_train.config.augment import AugmentConfig
from resnet_train.config.batch import check_batch
from resnet_train.config.schema import Recipe
from resnet_train.data import augment, mixup, rng
from resnet_train.data.batch import Batch, StepBatches, to_device
from resnet_train.data.dataset import Dataset, ImageSizeAt, LoaderOptions
from resnet_train.data.sampler import Sampler
from resnet_train.errors import Interrupted, RankLost

_STEPS_AHEAD = 3
"""Steps that wait on the GPU: enough that it never waits for the CPU."""
_SECONDS_BETWEEN_QUERIES = 0.0005
"""Little beside the time of `_STEPS_AHEAD` steps."""


@dataclass(frozen=True)
class TrainingData:
    """The training samples of a run, and the batches that one rank takes of them."""

    dataset: Dataset
    sampler: Sampler
    augment: AugmentConfig
    options: LoaderOptions
    step_timeout: float | None = None
    """Seconds that a step may take on the GPU, if nothing else limits them."""

    @property
    def steps_per_epoch(self) -> float:
        """An epoch need not end with a whole batch."""
        return self.sampler.n / self.sampler.batch_size

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the network sees."""
        size = self.dataset.size
        return augment.resized_crop_of(self.augment).size if size is None else size

    def from_step(self, start: int, until: int, image_size_at: ImageSizeAt = lambda _: None) -> Generator[StepBatches]:
        """Batches for steps [start, until), each valid until the next one is requested. Closing it ends its workers.

        `image_size_at` gives the image size of a step where progressive resizing changes it. Raises `BadInput` where an
        image cannot be decoded or a worker was killed, `RankLost` after `step_timeout`. If a signal asks to stop while
        the workers do not answer, the batches end before step `until`; with several ranks `Interrupted` is raised.
        """
        steps = range(start, until)
        rank_batches = self.dataset.training_batches(self.sampler, self.augment, steps, image_size_at, self.options)
        limit_steps_ahead = _limiter(self.options.device, self.step_timeout)
        with closing(rank_batches):
            for step in steps:
                limit_steps_ahead()
                begin = time.perf_counter()
                seeds = self.sampler.seeds(step)
                try:
                    batch = next(rank_batches)
                except Interrupted:
                    if self.sampler.ranks > 1:  # the others may be within the step
                        raise
                    return
                micro_batches = batch.split(self.sampler.grad_accum_steps)
                micro_batches = self._plan_mixing(self._plan_erasing(micro_batches, step), seeds)
                yield StepBatches(micro_batches, seeds, time.perf_counter() - begin)

    def _plan_erasing(self, micro_batches: list[Batch], step: int) -> list[Batch]:
        """Add the boxes of random erasing, which is applied to normalised images."""
        if not self.augment.random_erasing:
            return micro_batches
        height, width = micro_batches[0].image_size
        samples = self.sampler.rank_samples(step)
        random = rng.uniform(self.sampler.seed, samples.epochs, samples.indices, augment.ERASE_COLUMNS.stop)
        boxes = mixup.erase_boxes(self.augment.random_erasing, random[:, augment.ERASE_COLUMNS], height, width)
        parts = to_device(boxes, self.options.device).chunk(len(micro_batches))
        return [batch._replace(erase_boxes=part) for batch, part in zip(micro_batches, parts, strict=True)]

    def _plan_mixing(self, micro_batches: list[Batch], seeds: list[int]) -> list[Batch]:
        """Add the parameters of mixup and cutmix, which are applied to normalised images."""
        if not self.augment.mixes:
            return micro_batches
        height, width = micro_batches[0].image_size
        params = (to_device(mixup.plan(self.augment, seed, height, width), self.options.device) for seed in seeds)
        return [batch._replace(mix_params=mix) for batch, mix in zip(micro_batches, params, strict=True)]

    def sample_names(self, step: int) -> list[str]:
        """The samples of a step's global batch: paths of files, or numbers of images that have no file."""
        return [self.dataset.name(index) for index in self.sampler.batch(step).indices.tolist()]


def _limiter(device: torch.device, timeout: float | None) -> Callable[[], None]:
    """A function to call before each step: it waits until the GPU has done all but the last `_STEPS_AHEAD` steps.

    Otherwise the CPU goes on until the GPU's queue is full. Each queued step holds its batch, and the wait for room in
    the queue counts as a wait for data. Raises `RankLost` if it waits for longer than `timeout` seconds.
    """
    events: deque[torch.cuda.Event] = deque()

    def wait() -> None:
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(device))
        events.append(event)
        if len(events) > _STEPS_AHEAD:
            _wait_for(events.popleft(), timeout)

    return wait if device.type == "cuda" else lambda: None


def _wait_for(event: torch.cuda.Event, timeout: float | None) -> None:
    if timeout is None:
        event.synchronize()
        return
    end = time.monotonic() + timeout
    while not event.query():
        if time.monotonic() > end:
            raise RankLost(
                "another rank has stopped, or its node or network was lost; if no rank has another message, the reason "
                f"is: the GPU waits for it (train.timeout = {timeout:g} s)"
            )
        time.sleep(_SECONDS_BETWEEN_QUERIES)


def training_data(
    recipe: Recipe, dataset: Dataset, seed: int, rank: int, ranks: int, device: torch.device
) -> TrainingData:
    """The training batches of one rank. Raises `BadInput` where the recipe does not suit the data or the ranks."""
    check_batch(recipe, ranks, dataset.size)
    train, data, repeat = recipe.train, recipe.data, recipe.augment.repeated_augmentation
    sampler = Sampler(seed, len(dataset), train.batch_size, train.grad_accum_steps, rank, ranks, repeat)
    options = LoaderOptions(device, data.decode_workers, data.skips_bad_images, crops_in_step=train.cuda_graph)
    # NCCL's watchdog, which limits the time of what one rank sends another, does not see what a graph repeats.
    step_timeout = train.timeout if train.cuda_graph and ranks > 1 else None
    return TrainingData(dataset, sampler, recipe.augment, options, step_timeout)
