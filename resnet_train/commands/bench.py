"""The verb `bench`: where the time of a training goes on this machine, and what would change it."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import profile, tensorboard_trace_handler

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.data.batch import Batch, StepBatches
from resnet_train.data.dataset import Dataset
from resnet_train.data.loader import TrainingData
from resnet_train.data.normalize import Normalization
from resnet_train.errors import BadInput
from resnet_train.models import complexity, roofline
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import AnyRankFlag, World
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.tables import columns
from resnet_train.training import cuda_graph
from resnet_train.training.step import create_train_state, train_step

_WARM_UP = cuda_graph.WARM_UP_CALLS + 1
"""Steps before the clock starts: kernels are chosen and compiled in the first ones, and recorded in the last."""
_PROFILED = 5
_ENDLESS = 2**62


@dataclass(frozen=True)
class Measured:
    """Images per second of this rank, and what bounds them: over the whole training where images grow in it."""

    network: str
    device: str
    ranks: int
    batch: int
    """Images of this rank at once."""
    precision: str
    loader: float
    """Batches made and brought to the device, nothing else."""
    step: float
    """Training on one batch that lies on the device."""
    step_at: dict[int, float]
    """The same by the height and width of the images."""
    together: float
    roofline: float
    """An estimate of the most that the step could reach, from a copy and a matrix product measured here."""
    largest_batch: int | None
    """Images at once that the device has memory for, a power of two times the batch; None: not tried on a CPU."""
    cores: int
    """Of this node, for each of its ranks."""


def bench(run: Run, seconds: float, trace: Path | None, as_json: bool) -> None:
    """Print where the time goes, each part measured for so many seconds, and advice. Raises `BadInput`."""
    with distributed.start(run.train.device) as world:
        if world.is_main and (load := os.getloadavg()[0]) > 0.5:
            print(f"note: others use {load:.1f} of {os.cpu_count()} cores, so figures are noisy", file=sys.stderr)
        set_precision(run.train.precision, world.device)
        train_set, _ = distributed.main_first(world, lambda: datasets.open_data(run.data))
        data = loader.training_data(run, train_set, run.seed, world.rank, world.size, world.device)
        found = _measure(run, data, seconds, world)
        if world.is_main:
            print(json.dumps(asdict(found), indent=2) if as_json else _told(found, run, train_set))
        if trace is not None:
            _profile(run, data, trace, world)
            if world.is_main:
                print(f"wrote {trace}, for TensorBoard or Perfetto", file=sys.stderr)


def _measure(run: Run, data: TrainingData, seconds: float, world: World) -> Measured:
    images, device, source = data.sampler.micro_batch_size * data.sampler.grad_accum_steps, world.device, data.dataset

    def speed(shares: Iterable[StepBatches], use: Callable[[StepBatches], object]) -> float:
        return images / _each(shares, use, seconds, world)

    def resting(size: int) -> StepBatches:
        with closing(data.from_step(0, 1, lambda _: size)) as shares:
            return _copied(next(shares))

    def bound(size: int) -> float:
        parts = complexity.stage_table(run.network, size, len(source.classes), source.channels)
        return roofline.images_per_second(parts, limits, run.train.precision)

    def mean(speed_at: Callable[[int], float]) -> float:
        return 1 / sum(part / speed_at(size) for size, part in sizes.items())

    sizes = _size_parts(run.augment.progressive_resizing or {0.0: data.image_size})
    train = _trainer(run, source, world)
    limits = roofline.measure_limits(device, run.train.precision)
    step_at = {size: speed(itertools.repeat(resting(size)), train) for size in sizes}
    return Measured(
        network=run.network.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        ranks=world.size,
        batch=data.sampler.micro_batch_size,
        precision=run.train.precision,
        loader=mean(lambda size: speed(data.from_step(0, _ENDLESS, lambda _: size), lambda share: None)),
        step=mean(lambda size: step_at[size]),
        step_at=step_at,
        together=mean(lambda size: speed(data.from_step(0, _ENDLESS, lambda _: size), train)),
        roofline=mean(bound),
        largest_batch=_largest(run, source, resting(max(sizes)).micro_batches[0], device)
        if device.type == "cuda"
        else None,
        cores=len(os.sched_getaffinity(0)) // world.local_size,
    )


def _size_parts(resize: dict[float, int]) -> dict[int, float]:
    """Of progressive resizing each height and width, and the part of the training's steps that is spent at it."""
    parts: dict[int, float] = {}
    for (begin, size), end in zip(resize.items(), [*resize, 1.0][1:], strict=True):
        parts[size] = parts.get(size, 0.0) + end - begin
    return parts


def _each(shares: Iterable[StepBatches], use: Callable[[StepBatches], object], seconds: float, world: World) -> float:
    """Seconds of a step, warm. All ranks take as many, since a step waits for every rank."""
    found, agreement = iter(shares), AnyRankFlag(world)
    for share in itertools.islice(found, _WARM_UP):
        use(share)
    roofline.synchronize(world.device)
    begin = time.perf_counter()
    steps = 0
    for share in found:
        use(share)
        steps += 1
        if agreement.any(time.perf_counter() - begin > seconds):
            break
    agreement.settle()
    roofline.synchronize(world.device)
    took = (time.perf_counter() - begin) / steps
    if hasattr(found, "close"):
        found.close()
    return took


def _trainer(run: Run, source: Dataset, world: World) -> Callable[[StepBatches], object]:
    """A training step of a new state; images are normalised, though not by their own statistics."""
    state = create_train_state(run, len(source.classes), source.channels, world)
    mean, std = torch.full((1, 1, source.channels), 127.5), torch.full((source.channels,), 64.0)
    normalization = Normalization(mean, std).to(world.device)
    return lambda share: train_step(state, share, normalization, run.optimizer.lr, run.train)


def _copied(share: StepBatches) -> StepBatches:
    """A share that stays when the loader goes on."""
    return share._replace(
        micro_batches=[batch.with_tensors(map(torch.clone, batch.tensors())) for batch in share.micro_batches]
    )


def _largest(run: Run, source: Dataset, batch: Batch, device: torch.device) -> int:
    """The most images at once, by doubling until memory ends; on one rank by itself, which may end before another.

    Memory may end in cuDNN, too, or in cuBLAS, and each has an error of its own.
    """
    fitting = len(batch.labels)
    try:
        while True:
            images, labels, shift = (
                torch.cat([tensor, tensor]) for tensor in (batch.images, batch.labels, batch.shift)
            )
            batch = Batch(images, labels, shift)
            train = _trainer(run, source, World(device))
            for _ in range(2):
                train(StepBatches([batch], [0], 0.0))
            roofline.synchronize(device)
            fitting = len(batch.labels)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError):
            said = str(error).partition("\n")[0]
            print(f"note: {2 * fitting} images at once ended with: {said}", file=sys.stderr)
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
        return fitting


def _profile(run: Run, data: TrainingData, folder: Path, world: World) -> None:
    """A trace of some warm steps, for TensorBoard or Perfetto."""
    train = _trainer(run, data.dataset, world)
    try:
        with closing(data.from_step(0, _WARM_UP + _PROFILED)) as shares:
            for share in itertools.islice(shares, _WARM_UP):
                train(share)
            with profile(on_trace_ready=tensorboard_trace_handler(str(folder))):
                for share in shares:
                    train(share)
                roofline.synchronize(world.device)
    except OSError as error:
        raise BadInput(f"--profile: cannot write {folder}: {error.strerror}") from None


# --- words ------------------------------------------------------------------------------------------------------------


def _told(found: Measured, run: Run, source: Dataset) -> str:
    slower = min(found.loader, found.step)
    parts = _size_parts(run.augment.progressive_resizing or {})
    speeds = [(f"  at {px} px", f"{found.step_at[px]:,.0f}", f"{part:.0%} of the steps") for px, part in parts.items()]
    rows = [
        ("", "images/s", "over the whole training" if parts else ""),
        ("loader alone", f"{found.loader:,.0f}", _loading(run, source)),
        ("step alone", f"{found.step:,.0f}", f"{found.step / found.roofline:.0%} of the roofline (an estimate)"),
        *speeds,
        ("both together", f"{found.together:,.0f}", f"{found.together / slower:.0%} of the slower one"),
    ]
    head = f"{found.network}, {found.batch} images at once, {found.precision}, {found.ranks} x {found.device}"
    most = found.largest_batch
    room = [] if most is None else [f"memory: enough for {most} images at once, not for twice that"]
    return "\n".join([head, columns(rows), *room, *advice(found, run, source)])


def _loading(run: Run, source: Dataset) -> str:
    return f"{run.data.decode_workers} workers" if source.size is None else "images held on the device"


def advice(found: Measured, run: Run, source: Dataset) -> list[str]:
    """What binds, and what to change, the cheapest first."""
    files, cpu = source.size is None, found.device == "CPU"
    if cpu and files and found.together < 0.9 * min(found.loader, found.step):
        said = [
            "the cores bind, which loader and step share:",
            "- fewer data.workers, or train.device=cuda",
            *_packing(run, source),
        ]
    elif found.loader < found.step:
        said = ["the loader binds:"]
        if files and run.data.decode_workers < found.cores - 1:
            said.append(f"- data.workers={found.cores - 1}: there are {found.cores} cores for each rank")
        said += _packing(run, source)
    else:
        said = ["the step binds:"]
        if run.train.precision == "fp32":
            said.append("- train.precision=bf16" + ", if the processor has AMX" * cpu)
        if not cpu and not run.train.compile:
            said.append("- train.compile=true fuses what stands between convolutions, after a minute of compiling")
        small = run.network.stem == "cifar" and run.train.grad_accum_steps == found.ranks == 1
        if not cpu and small and not run.train.cuda_graph:
            said.append(
                "- train.cuda_graph=true launches a small network's kernels together; --jobs N trains N at a time"
            )
        if found.largest_batch is not None and found.largest_batch > found.batch and run.train.grad_accum_steps > 1:
            said.append(
                f"- train.grad_accum_steps={max(1, run.train.grad_accum_steps * found.batch // found.largest_batch)}"
            )
        if found.together < 0.95 * found.step and files:
            said.append("- the loader takes time from the step: fewer data.workers, or packed images")
    return said if len(said) > 1 else [*said, "- nothing that we know of would change that"]


def _packing(run: Run, source: Dataset) -> list[str]:
    """Forms of the same images that are read faster than theirs."""
    said = []
    if run.data.kind == "imagefolder":
        said.append("- resnet-train prepare --tiled packs the same images so that a crop is decoded alone")
    if not source.has_raw_images:
        said.append("- resnet-train prepare --tiled --raw-fraction 0.5 trades disk for speed")
    return said
