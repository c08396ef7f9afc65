"""The record of a run, and where it goes: `metrics.jsonl`, TensorBoard, the terminal."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from resnet_train.config.schema import Run
from resnet_train.data.batch import StepBatches
from resnet_train.errors import BadInput
from resnet_train.runs import environment
from resnet_train.runs.run_folder import Record, defining_keys
from resnet_train.runtime import progress
from resnet_train.runtime.atomic import atomic_write_text
from resnet_train.runtime.distributed import World, all_reduce_sum

TAGS = {
    "train": {
        "error": "error/train_running",
        "loss": "loss/train_running",
        "lr": "optimizer/lr",
        "grad_norm": "optimizer/grad_norm",
        "images_per_second": "speed/images_per_second",
        "data_wait_seconds": "speed/data_wait_seconds",
    },
    "eval": {
        "clean_train_error_top1": "error/train_clean",
        "clean_train_loss": "loss/train_clean",
        "val_error_top1": "error/val_top1",
        "val_error_top5": "error/val_top5",
        "val_loss": "loss/val",
    },
}
"""TensorBoard's name for each figure of a record."""


def running_averages(world: World, sums: Tensor) -> dict[str, float]:
    """The running loss and error (percent) over all ranks, of the samples since `sums` was last set to zero."""
    loss, wrong, seen = all_reduce_sum(world, sums).tolist()
    sums.zero_()
    return {"loss": loss / seen, "error": 100 * wrong / seen}


class Sink(Protocol):
    """Somewhere a record goes."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Clock:
    """Time spent training, over all sessions, and the speed since the last log line."""

    images_per_step: int
    before: float
    """Seconds of earlier sessions."""
    step: int
    """The step at which the window began."""
    probed: float = 0.0
    """Seconds spent in probes, of all sessions."""

    def __post_init__(self) -> None:
        self.start = self.window = time.perf_counter()
        self.waited = 0.0

    def seconds(self) -> float:
        """Of the run so far, evaluation and saving included."""
        return self.before + time.perf_counter() - self.start

    def speed(self, step: int) -> dict[str, float]:
        """Images per second and seconds waited for data since the last call; then a new window begins."""
        now = time.perf_counter()
        speed = (step - self.step) * self.images_per_step / (now - self.window)
        figures = {"images_per_second": speed, "data_wait_seconds": self.waited}
        self.step, self.window, self.waited = step, now, 0.0
        return figures

    @contextmanager
    def stopped(self, world: World) -> Iterator[None]:
        """What happens in this block is no part of the window; what the device still has to do before it, is."""
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        begin = time.perf_counter()
        yield
        self.window += time.perf_counter() - begin


class Log:
    """Writes records to every sink; on ranks other than the first there is none."""

    def __init__(self, sinks: Sequence[Sink], clock: Clock, skipped: Path) -> None:
        self.sinks, self.clock, self.skipped = sinks, clock, skipped

    def received(self, share: StepBatches) -> None:
        """Note the time that a step waited for its data, and list the images that it had to do without."""
        self.clock.waited += share.data_wait_seconds
        for path in (path for batch in share.micro_batches for path in batch.skipped):
            listed = self.skipped.read_text().splitlines() if self.skipped.exists() else []
            if path not in listed:
                with _writing(), self.skipped.open("a") as file:
                    file.write(f"{path}\n")
                print(f"warning: cannot decode {path}; {len(listed) + 1} listed in {self.skipped}", file=sys.stderr)

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """One record. Tensors are read, so a device is waited for here."""
        plain = {key: value.item() if isinstance(value, Tensor) else value for key, value in figures.items()}
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}  # as JSON
        record = {"step": step, "kind": kind, **plain, "seconds": self.clock.seconds(), "time": time.time()}
        with _writing():
            for sink in self.sinks:
                sink.write(record)

    def flush(self) -> None:
        """Make what was written durable; do so before a checkpoint, which promises it."""
        with _writing():
            for sink in self.sinks:
                sink.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _writing() if error is None else suppress(OSError):
            for sink in self.sinks:
                sink.close()


@contextmanager
def _writing() -> Iterator[None]:
    """Raises `BadInput` where the record cannot be written."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"cannot write the run's record: {error.strerror or error}; its checkpoints are intact"
        ) from None


def open_log(folder: Path, run: Run, step: int, total: int, kept: Sequence[Record], later: float, world: World) -> Log:
    """The log of a run that continues at `step` of `total`; `kept` are its records up to there.

    `later` is the work of the experiment's other runs, in units of this one's.
    """
    probed = sum(record.get("probe_seconds", 0.0) for record in kept)
    clock = Clock(run.train.batch_size, kept[-1]["seconds"] if kept else 0.0, step, probed)
    skipped = folder / "skipped-images.txt"
    if not world.is_main:
        return Log([], clock, skipped)
    with _writing():
        environment.add_session(folder, step, world)
        sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl", kept), TensorBoard(folder, run, kept)]
    sinks.append(Progress(f"{run.network.name} seed {run.seed}", step, total, later))
    return Log(sinks, clock, skipped)


class JsonLines:
    """`metrics.jsonl`: the kept records, then each new one."""

    def __init__(self, path: Path, kept: Sequence[Record]) -> None:
        atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = path.open("a")

    def write(self, record: Record) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def flush(self) -> None:
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """The same figures as scalars, and the hyper-parameters.

    Written anew from the kept records when a run resumes, so that nothing of an abandoned stretch can show.
    """

    def __init__(self, folder: Path, run: Run, kept: Sequence[Record]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        assert self.writer.file_writer is not None
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in defining_keys(run).items()}
        for summary in hparams(plain, {"error/val_top1": 0, "error/train_clean": 0}):
            self.writer.file_writer.add_summary(summary)
        for record in kept:
            self.write(record)

    def write(self, record: Record) -> None:
        nested = {key: values for key, values in record.items() if isinstance(values, dict)}  # of a probe, by depth
        for key, values in nested.items():
            for name, value in values.items():
                tag = f"{record['kind']}/{key}/{name}".replace(" ", "-")
                if value is not None:
                    self.writer.add_scalar(tag, value, record["step"], walltime=record["time"])
        for key, tag in TAGS.get(record["kind"], {}).items():
            if record.get(key) is not None:
                self.writer.add_scalar(tag, record[key], record["step"], walltime=record["time"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Progress:
    """The progress of a run, and its errors as they are measured, on standard error."""

    def __init__(self, name: str, step: int, total: int, later: float) -> None:
        self.total, self.later = total, later
        self.progress = progress.Progress(name, total, "step", initial=step)

    def write(self, record: Record) -> None:
        step, name = record["step"], self.progress.name
        if record["kind"] == "train":
            self.progress.advance(step - self.progress.done)
            experiment = progress.format_seconds(self.progress.seconds_for(self.total - step + self.later * self.total))
            self.progress.show(
                f"experiment {experiment} left, train error {record['error']:.2f} %, "
                f"{record['images_per_second']:.0f} images/s"
            )
        elif record["kind"] == "eval":
            errors = f"validation error {record['val_error_top1']:.2f} %"
            if "clean_train_error_top1" in record:
                errors += f", clean training error {record['clean_train_error_top1']:.2f} %"
            progress.write_line(f"{name}: step {step}, {errors}")
        elif "probe_share" in record:
            progress.write_line(
                f"{name}: step {step}, probed {record['kind']} in {record['probe_seconds']:.2f} s; probes so far "
                f"{100 * record['probe_share']:.2f} % of the time"
            )

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.progress.close()
