"""The record of a run: one line of figures at each log line, evaluation and probe, written to several sinks."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from resnet_train.config.schema import Run
from resnet_train.data.batch import StepBatches
from resnet_train.models.roofline import synchronize
from resnet_train.runs import environment
from resnet_train.runs.records import Record
from resnet_train.runs.run_folder import named_write_errors
from resnet_train.runtime.atomic import append_lines
from resnet_train.runtime.distributed import World, all_reduce_sum
from resnet_train.runtime.regular_file import split_lines
from resnet_train.training.run_progress import ProgressSink, Show
from resnet_train.training.sinks import JsonLinesSink, Sink, TensorBoardSink

logger = logging.getLogger(__name__)


def running_averages(world: World, sums: Tensor) -> dict[str, float]:
    """Mean loss and error (percent) over all ranks, of the samples since the last call. Sets `sums` to zero.

    sums: float64 [3]: loss, errors and number of this rank's samples.
    """
    loss, errors, samples = all_reduce_sum(world, sums).tolist()
    sums.zero_()
    return {"loss": loss / samples, "error": 100 * errors / samples}


@dataclass
class Pause:
    """Something that is not training."""

    seconds: float = 0.0
    """That it took, once it is over."""


@dataclass
class Clock:
    """The time that a run has taken over all its sessions, and its speed since the last log line."""

    images_per_step: int
    earlier_seconds: float
    """Seconds of earlier sessions."""
    window_step: int
    """The step of the last log line, where the window of the next one begins."""
    probe_seconds: float = 0.0
    """Seconds spent in probes, over all sessions."""

    def __post_init__(self) -> None:
        self.session_start = self.window_start = time.perf_counter()
        self.data_wait_seconds = 0.0

    def seconds(self) -> float:
        """Seconds of the run so far, evaluation and saving included."""
        return self.earlier_seconds + time.perf_counter() - self.session_start

    def speed(self, step: int) -> dict[str, float]:
        """Images per second, and seconds waited for data, since the last call. Starts a new window."""
        now = time.perf_counter()
        images = (step - self.window_step) * self.images_per_step
        figures = {
            "images_per_second": images / (now - self.window_start),
            "data_wait_seconds": self.data_wait_seconds,
        }
        self.window_step, self.window_start, self.data_wait_seconds = step, now, 0.0
        return figures

    @contextmanager
    def paused(self, world: World) -> Iterator["Pause"]:
        """The time of the block does not count as training. Waits first for the work that the device still has."""
        pause = Pause()
        synchronize(world.device)
        begin = time.perf_counter()
        yield pause
        pause.seconds = time.perf_counter() - begin
        self.window_start += pause.seconds


class Log:
    """Writes the records of a run to its sinks. Only the main rank has any."""

    def __init__(self, sinks: Sequence[Sink], clock: Clock, folder: Path, progress: ProgressSink | None) -> None:
        self.sinks, self.clock, self.folder, self.progress = sinks, clock, folder, progress
        self.skipped_images = folder / "skipped-images.txt"

    def note_loading(self, batches: StepBatches) -> None:
        """Count a step, add the time that it waited for its data, and list the images that could not be decoded."""
        if self.progress is not None:
            self.progress.count_step()
        self.clock.data_wait_seconds += batches.data_wait_seconds
        for image in (image for batch in batches.micro_batches for image in batch.skipped):
            path = self.skipped_images
            with named_write_errors(self.folder):
                text = path.read_bytes() if path.exists() else b""
                listed = split_lines(text.decode("utf-8", "surrogateescape"))
                if image in listed:
                    continue
                append_lines(path, [image])
            logger.warning("cannot decode %s; %d listed in %s", image, len(listed) + 1, path)

    def begin(self, activity: str, images: int = 0) -> None:
        """Show that something other than training begins, which goes through so many images."""
        if self.progress is not None:
            self.progress.begin(activity, images)

    def count_images(self, images: int) -> None:
        """Show that so many more images of it are done."""
        if self.progress is not None:
            self.progress.count_images(images)

    def write(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Write one record. Reads tensors, so this waits for the device."""
        values = {key: value.item() if isinstance(value, Tensor) else value for key, value in figures.items()}
        # JSON has no infinity and no NaN.
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        record = {"step": step, "kind": kind, **values, "seconds": self.clock.seconds(), "time": time.time()}
        with named_write_errors(self.folder):
            for sink in self.sinks:
                sink.write(record)

    def flush(self) -> None:
        """Make the records durable. Call it before a checkpoint is saved, which continues from them."""
        with named_write_errors(self.folder):
            for sink in self.sinks:
                sink.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with named_write_errors(self.folder) if error is None else suppress(OSError), ExitStack() as stack:
            for sink in self.sinks:
                stack.callback(sink.close)  # each, also if another fails


def open_log(
    folder: Path,
    run: Run,
    step: int,
    total_steps: int,
    records: Sequence[Record],
    queue: Sequence[str],
    world: World,
    show: Show,
) -> Log:
    """The log of a run that continues at `step`; `records` are those of its earlier sessions.

    queue: the experiment's later runs, such as cifar-resnet-20/seed-0. show: called with how far the run is.
    """
    clock = Clock(
        images_per_step=run.train.batch_size,
        earlier_seconds=records[-1]["seconds"] if records else 0.0,
        window_step=step,
        probe_seconds=sum(record.get("probe_seconds", 0.0) for record in records),
    )
    if not world.is_main:
        return Log([], clock, folder, None)
    with named_write_errors(folder):
        environment.add_session(folder, step, world, queue)
        sinks: list[Sink] = [
            JsonLinesSink(folder / "metrics.jsonl", records),
            TensorBoardSink(folder, run, records),
        ]
    progress = ProgressSink(run.title, step, total_steps, show)
    return Log([*sinks, progress], clock, folder, progress)
