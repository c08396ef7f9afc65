"""Images per second of the loader, of the step and of both together, on this machine."""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import profile, tensorboard_trace_handler

from resnet_train.config.batch import check_network
from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.data.batch import Batch, StepBatches
from resnet_train.data.dataset import Dataset
from resnet_train.data.loader import TrainingData
from resnet_train.data.normalize import Normalization
from resnet_train.errors import BadInput
from resnet_train.evaluation import evaluator
from resnet_train.evaluation.evaluator import EnsembleMember
from resnet_train.models import complexity, roofline
from resnet_train.runtime.distributed import AnyRankFlag, World, main_first
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.processes import available_cores
from resnet_train.runtime.progress import Progress
from resnet_train.training import cuda_graph
from resnet_train.training.schedule import build_schedule
from resnet_train.training.step import create_train_state, train_step

logger = logging.getLogger(__name__)

_PROFILED_STEPS = 5
_ENDLESS = 2**62

StepFunction = Callable[[StepBatches], object]


@dataclass(frozen=True)
class Throughput:
    """Images per second of this rank, as means over the whole training where the image size changes in it."""

    network: str
    device: str
    ranks: int
    batch: int
    """Images in a micro-batch of this rank."""
    precision: str
    loader: float
    """Loading batches to the device, nothing else."""
    step: float
    """Training on one batch that stays on the device."""
    step_at: dict[int, float]
    """The same by image height and width."""
    step_in: dict[str, float]
    """`step` in the precisions that may be faster. Which one is depends on the device, the network and `compile`."""
    together: float
    """Loading and training."""
    roofline: float
    """An estimate of the highest possible speed of the step, from a copy and a matrix product measured here."""
    largest_batch: int | None
    """The largest micro-batch that fits the device, by doubling; None on a CPU, where it is not tried."""
    cores: int
    """Processor cores of this node for each of its ranks."""


def measure_throughput(run: Run, data: TrainingData, seconds: float, world: World) -> Throughput:
    """Measure each part for `seconds`. Every rank calls it."""
    with (
        _step_function(run, data.dataset, world) as step,
        Progress("measuring", None, "part", shown=world.is_main, keep=False) as bar,
    ):
        return _measure(run, data, seconds, world, step, bar)


def _measure(
    run: Run, data: TrainingData, seconds: float, world: World, step: StepFunction, bar: Progress
) -> Throughput:
    images = data.sampler.micro_batch_size * data.sampler.grad_accum_steps
    device, dataset = world.device, data.dataset
    limits = roofline.measure_limits(device, run.train.precision)
    sizes = size_fractions(run.augment.progressive_resizing or {0.0: data.image_size})

    def speed(batches: Iterable[StepBatches], function: StepFunction) -> float:
        result = images / seconds_per_step(batches, function, seconds, world)
        bar.update(1)
        return result

    def resident_batch(size: int) -> StepBatches:
        with closing(data.from_step(0, 1, lambda _: size)) as batches:
            return _copy(next(batches))

    def highest_speed(size: int) -> float:
        stages = complexity.stage_table(run.network, size, len(dataset.classes), dataset.channels)
        return roofline.images_per_second(stages, limits, run.train.precision)

    def mean_over_sizes(speed_at: Callable[[int], float]) -> float:
        return 1 / sum(fraction / speed_at(size) for size, fraction in sizes.items())

    def step_in(precision: str) -> float:
        train = run.train.model_copy(update={"precision": precision})
        with _step_function(run.model_copy(update={"train": train}), dataset, world) as other:
            return mean_over_sizes(lambda size: speed(itertools.repeat(resident_batch(size)), other))

    half = {"bf16", "fp16"} if device.type == "cuda" else {"bf16"}
    step_at = {size: speed(itertools.repeat(resident_batch(size)), step) for size in sizes}
    return Throughput(
        network=run.network.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        ranks=world.size,
        batch=data.sampler.micro_batch_size,
        precision=run.train.precision,
        loader=mean_over_sizes(lambda size: speed(data.from_step(0, _ENDLESS, lambda _: size), lambda _: None)),
        step=mean_over_sizes(lambda size: step_at[size]),
        step_at=step_at,
        step_in={precision: step_in(precision) for precision in sorted(half - {run.train.precision})},
        together=mean_over_sizes(lambda size: speed(data.from_step(0, _ENDLESS, lambda _: size), step)),
        roofline=mean_over_sizes(highest_speed),
        largest_batch=(
            largest_batch(run, dataset, resident_batch(max(sizes)).micro_batches[0], device)
            if device.type == "cuda"
            else None
        ),
        cores=available_cores() // world.local_size,
    )


def measure_run(run: Run, world: World, seconds: float = 2.0) -> float:
    """The seconds of a run's steps and evaluations, from some of each on this machine. Every rank calls it.

    Probes, checkpoints and the statistics of the training images are left out. Raises `BadInput`.
    """
    set_precision(run.train.precision, world.device)
    train_set, val_set = main_first(world, lambda: datasets.open_data(run.data))
    data = loader.training_data(run, train_set, run.seed, world.rank, world.size, world.device)
    check_network(run, world.size, train_set.size)
    schedule = build_schedule(run, data.steps_per_epoch)
    sizes = size_fractions(run.augment.progressive_resizing or {0.0: data.image_size})
    with _step_function(run, train_set, world) as step:

        def step_at(size: int) -> float:
            return seconds_per_step(data.from_step(0, _ENDLESS, lambda _: size), step, seconds, world)

        per_step = sum(fraction * step_at(size) for size, fraction in sizes.items())
    net = create_train_state(run, len(train_set.classes), train_set.channels, world).eval_net
    members = [
        EnsembleMember(evaluator.as_evaluated(net, run), _any_normalization(train_set, world), run.train.precision)
    ]

    def seconds_to_evaluate(images: int) -> float:
        part = val_set.subset(datasets.evenly_spaced(len(val_set), images))
        begin = time.perf_counter()
        evaluator.evaluate(members, evaluator.evaluation_data(run, part, world), run.eval.average, world)
        return time.perf_counter() - begin

    batch = min(len(val_set), run.eval.batch_size * world.size)
    seconds_to_evaluate(batch)  # warms up
    per_image = seconds_to_evaluate(batch) / batch
    images = len(val_set) + min(len(train_set), run.eval.clean_train_images)
    evaluations = schedule.eval.times(schedule.total_steps)
    return schedule.total_steps * per_step + evaluations * images * per_image


def size_fractions(progressive_resizing: dict[float, int]) -> dict[int, float]:
    """The fraction of the training's steps at each image size."""
    fractions: dict[int, float] = {}
    ends = [*progressive_resizing, 1.0][1:]
    for (begin, size), end in zip(progressive_resizing.items(), ends, strict=True):
        fractions[size] = fractions.get(size, 0.0) + end - begin
    return fractions


def seconds_per_step(batches: Iterable[StepBatches], function: StepFunction, seconds: float, world: World) -> float:
    """The mean time of a step after the warm-up. All ranks take the same number of steps: a step waits for all."""
    iterator, time_is_over = iter(batches), AnyRankFlag(world)
    for batch in itertools.islice(iterator, _warm_up_steps(world)):
        function(batch)
    roofline.synchronize(world.device)
    begin = time.perf_counter()
    steps = 0
    for batch in iterator:
        function(batch)
        steps += 1
        if time_is_over.any(time.perf_counter() - begin > seconds):
            break
    time_is_over.settle()
    roofline.synchronize(world.device)
    mean = (time.perf_counter() - begin) / steps
    if hasattr(iterator, "close"):
        iterator.close()
    return mean


def _warm_up_steps(world: World) -> int:
    """Steps before the clock starts: kernels are chosen and compiled in the first ones, and recorded in the last."""
    return cuda_graph.warm_up_calls(world.size) + 1


@contextmanager
def _step_function(run: Run, dataset: Dataset, world: World) -> Iterator[StepFunction]:
    """A training step of a new network. Images are not normalised by their own statistics, which takes no time."""
    state = create_train_state(run, len(dataset.classes), dataset.channels, world)
    normalization = _any_normalization(dataset, world)
    with cuda_graph.freed_at_end(state.launch):
        yield lambda batches: train_step(state, batches, normalization, run.optimizer.lr, run.train)


def _any_normalization(dataset: Dataset, world: World) -> Normalization:
    mean, std = torch.full((1, 1, dataset.channels), 127.5), torch.full((dataset.channels,), 64.0)
    return Normalization(mean, std).to(world.device)


def _copy(batches: StepBatches) -> StepBatches:
    """A copy that stays valid when the loader goes on."""
    copies = [batch.with_tensors(map(torch.clone, batch.tensors())) for batch in batches.micro_batches]
    return batches._replace(micro_batches=copies)


def largest_batch(run: Run, dataset: Dataset, batch: Batch, device: torch.device) -> int:
    """The largest batch that fits the device, by doubling `batch` until memory ends.

    Each rank tries alone, since one may run out of memory before another. Memory can end in cuDNN or cuBLAS too, each
    with an error of its own.
    """
    largest = len(batch.labels)
    try:
        while True:
            images, labels, shift = (torch.cat([t, t]) for t in (batch.images, batch.labels, batch.shift))
            batch = Batch(images, labels, shift, source=batch.source)
            with _step_function(run, dataset, World(device)) as step:
                for _ in range(2):
                    step(StepBatches([batch], [0], 0.0))
                roofline.synchronize(device)
            largest = len(batch.labels)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError):
            reason = str(error).partition("\n")[0]
            logger.info("%d images at once ended with: %s", 2 * largest, reason)
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
        return largest


def write_trace(run: Run, data: TrainingData, folder: Path, world: World) -> None:
    """Profile some steps after the warm-up, for TensorBoard or Perfetto. Raises `BadInput`."""
    warm_up = _warm_up_steps(world)
    try:
        with (
            _step_function(run, data.dataset, world) as step,
            closing(data.from_step(0, warm_up + _PROFILED_STEPS)) as batches,
        ):
            for batch in itertools.islice(batches, warm_up):
                step(batch)
            with profile(on_trace_ready=tensorboard_trace_handler(str(folder))):
                for batch in batches:
                    step(batch)
                roofline.synchronize(world.device)
    except OSError as error:
        raise BadInput(f"--profile: cannot write {folder}: {error.strerror or error}") from None
