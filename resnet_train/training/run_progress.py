"""How far runs are, on standard error: on a terminal a line for each run that trains and one for all of them, which are
drawn over; elsewhere now and then a line.
"""

import io
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from select import select
from typing import TextIO

from resnet_train.runs.records import Record
from resnet_train.runtime import progress
from resnet_train.runtime.progress import BarLine, format_seconds

SECONDS_BETWEEN_DRAWINGS = 0.1


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. A run in a process of its own sends it to the process that shows it."""

    name: str
    first_step: int
    """Where this session began."""
    step: int
    steps: int
    """Of the whole training."""
    error: float | None = None
    """Running, in percent, at the last log line."""
    images_per_second: float = 0.0
    activity: str = ""
    """What it does beside training, such as `evaluating`."""
    done: int = 0
    total: int = 0
    """Images of the activity; 0 where they are not counted."""

    @property
    def fraction(self) -> float:
        """How much of the training is done."""
        return self.step / self.steps if self.steps else 0.0


Show = Callable[[RunProgress], object]


class ProgressSink:
    """Shows where a run is, and its errors as they are measured."""

    def __init__(self, name: str, step: int, total_steps: int, show: Show) -> None:
        self.state, self.show = RunProgress(name, step, step, total_steps), show
        show(self.state)

    def write(self, record: Record) -> None:
        start = f"{self.state.name}: step {record['step']}, "
        self.state = replace(self.state, activity="")
        if record["kind"] == "train":
            self._change(step=record["step"], error=record["error"], images_per_second=record["images_per_second"])
        elif record["kind"] == "eval":
            errors = f"val error {record['val_error_top1']:.2f} %"
            if "clean_train_error_top1" in record:
                errors += f", clean train {record['clean_train_error_top1']:.2f} %"
            progress.write_line(start + errors)
        elif "probe_share" in record:
            progress.write_line(
                f"{start}{record['kind']} probed in {record['probe_seconds']:.2f} s "
                f"({100 * record['probe_share']:.2f} % of the time)"
            )
        elif record["kind"] == "end" and record["status"] == "finished":
            progress.write_line(f"{self.state.name}: finished in {format_seconds(record['seconds'])}")

    def count_step(self) -> None:
        """One more step was taken."""
        self._change(step=self.state.step + 1, activity="")

    def begin(self, activity: str, total: int = 0) -> None:
        """Something other than training begins; it goes through `total` images."""
        self._change(activity=activity, done=0, total=total)

    def count_images(self, images: int) -> None:
        """So many more images of the activity are done."""
        self._change(done=min(self.state.total, self.state.done + images))

    def _change(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        self.show(self.state)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Parent:
    """The way from the process of a run to the one that shows its progress and messages.

    stderr: for messages, once that process is gone.
    """

    def __init__(self, connection: Connection, stderr: TextIO) -> None:
        self.connection, self.stderr = connection, stderr
        self.lock = threading.Lock()
        self.last_progress = float("-inf")

    def send_progress(self, state: RunProgress) -> None:
        """Send where the run is, unless something was sent just now or the parent is behind: the run does not wait."""
        now = time.perf_counter()
        if now - self.last_progress < SECONDS_BETWEEN_DRAWINGS:
            return
        self.last_progress = now
        with self.lock, suppress(OSError):
            if select([], [self.connection], [], 0)[1]:
                self.connection.send(state)

    def send_line(self, line: str) -> None:
        """Send a message, or write it here if nobody is there to show it."""
        with self.lock:
            try:
                self.connection.send(line)
            except OSError:
                self.stderr.write(f"{line}\n")


class LinesToParent(io.TextIOBase):
    """A standard error whose lines are sent to the parent."""

    def __init__(self, parent: Parent) -> None:
        self.parent, self.rest = parent, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.parent.send_line(line)
        return len(text)


class GridProgress:
    """The runs of a grid, `jobs` at a time.

    names: of the runs. work: the multiply-adds of an image of each. All are taken to have as many steps, unless they
    say otherwise.
    """

    def __init__(self, names: Sequence[str], work: Sequence[float], jobs: int, shown: bool = True) -> None:
        self.names, self.work, self.jobs = names, work, min(jobs, len(work))
        self.states: dict[int, RunProgress] = {}
        self.begins: dict[int, float] = {}
        self.ended: set[int] = set()
        self.places: dict[int, int] = {}
        """The line of each run that trains."""
        self.usual_steps = 1
        """Of a run that has not said how many it has."""
        self.begin = time.perf_counter()
        self.last_drawing = float("-inf")
        self.last_line: dict[int, float] = {}
        width = max(map(len, [*names, self._runs_done()]))
        self.bars = [BarLine(place, width, shown) for place in range(self.jobs + (len(work) > 1))]

    def start(self, index: int) -> None:
        """Run number `index` opens its data and builds its network."""
        self.last_line[index] = time.perf_counter()
        self.places[index] = min({*range(self.jobs)} - {*self.places.values()})
        self.states[index] = RunProgress(self.names[index], 0, 0, 0, activity="starting")
        self.draw()

    def show(self, index: int, state: RunProgress) -> None:
        """Run number `index` is so far. Costs nothing if something was drawn just now."""
        now = time.perf_counter()
        self.begins.setdefault(index, now)
        self.states[index] = state
        self.usual_steps = state.steps
        if progress.is_terminal():
            if now - self.last_drawing >= SECONDS_BETWEEN_DRAWINGS:
                self.draw()
        elif now - self.last_line[index] > progress.Progress.seconds_between_lines:
            self.last_line[index] = now
            progress.write_line(self._plain_line(index))

    def end(self, index: int) -> None:
        """Run number `index` trains no longer: its line is free."""
        self.ended.add(index)
        self.bars[self.places.pop(index)].clear()
        self._draw_all()

    def close(self) -> None:
        """Clear the lines."""
        for bar in reversed(self.bars):  # the first one leaves the cursor where a line begins
            bar.close()

    def draw(self) -> None:
        """Draw every line."""
        self.last_drawing = time.perf_counter()
        for index, place in self.places.items():
            self._draw_run(self.bars[place], index)
        self._draw_all()

    def _draw_run(self, bar: BarLine, index: int) -> None:
        state = self.states[index]
        if state.activity:
            counted = f"{state.done}/{state.total} images" if state.total else ""
            texts = [f"{state.activity} {counted}".strip(), state.activity]
            bar.draw(state.name, state.done / state.total if state.total else 0.0, texts)
            return
        left, steps = self._left(self._seconds_left(index)), f"{state.step}/{state.steps}"
        error = [] if state.error is None else [f"train error {state.error:.2f} %"]
        speed = [f"{state.images_per_second:.0f} images/s"] if error else []
        choices = ([steps, *left, *error, *speed], [steps, *left, *error], [*left, *error], [*left])
        bar.draw(state.name, state.fraction, [", ".join(choice) for choice in choices])

    def _draw_all(self) -> None:
        if len(self.work) > 1:
            speed = sum(self.states[index].images_per_second for index in self.places)
            speeds = [f"{speed:.0f} images/s"] if speed else []
            left = self._left(self._experiment_seconds_left())
            costs = [self._cost(index) for index in range(len(self.work))]
            fraction = sum(cost * self._fraction(index) for index, cost in enumerate(costs)) / sum(costs)
            self.bars[-1].draw(self._runs_done(), fraction, [", ".join([*left, *speeds]), *left, ""])

    def _runs_done(self) -> str:
        return f"{len(self.ended)} of {len(self.work)} runs done"

    def _plain_line(self, index: int) -> str:
        state = self.states[index]
        parts = [f"step {state.step}/{state.steps}", *self._left(self._seconds_left(index))]
        if len(self.work) > 1:
            parts += [f"experiment {text}" for text in self._left(self._experiment_seconds_left())]
        if state.error is not None:
            parts += [f"train error {state.error:.2f} %", f"{state.images_per_second:.0f} images/s"]
        if state.activity:
            parts.append(state.activity + (f" {state.done}/{state.total} images" if state.total else ""))
        return f"{state.name}: {', '.join(parts)}"

    @staticmethod
    def _left(seconds: float | None) -> list[str]:
        return [] if seconds is None else [f"{format_seconds(seconds)} left"]

    def _seconds_left(self, index: int) -> float | None:
        """Of a run, at the mean speed of its session. None before its first step."""
        state = self.states[index]
        done = state.step - state.first_step
        return (state.steps - state.step) * (time.perf_counter() - self.begins[index]) / done if done else None

    def _experiment_seconds_left(self) -> float | None:
        """Of all runs, at the mean speed of this session, in multiply-adds. None before the first step."""
        done = left = 0.0
        for index in range(len(self.work)):
            cost, state = self._cost(index), self.states.get(index)
            if state is not None and state.steps:
                done += cost * (state.step - state.first_step) / state.steps
            left += cost * (1 - self._fraction(index))
        return left * (time.perf_counter() - self.begin) / done if done else None

    def _cost(self, index: int) -> float:
        """In multiply-adds for each image of a batch."""
        state = self.states.get(index)
        return self.work[index] * ((state.steps if state else 0) or self.usual_steps)

    def _fraction(self, index: int) -> float:
        """How much of a run is done."""
        if index in self.ended:
            return 1.0
        return self.states[index].fraction if index in self.states else 0.0
