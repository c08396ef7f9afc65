"""What a user sees on standard error while a command works: progress, notes and warnings.

A terminal that is gone never ends a run: nothing here raises where standard error cannot be written.
"""

import logging
import multiprocessing
import sys
import threading
import time
from contextlib import suppress
from typing import Self

from tqdm import tqdm

from resnet_train.errors import one_line


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no thread that redraws: a bar changes only when work is done


_Bar.set_lock(threading.RLock())  # tqdm's own lock would start a helper process of multiprocessing


class Progress:
    """A bar on a terminal. Elsewhere, and in child processes, whose bars would overwrite each other, a line a minute.

    `total` is None where it is not known.
    """

    seconds_between_lines = 60.0

    def __init__(self, name: str, total: int | None, unit: str, initial: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.initial = self.done = initial
        self.start = self.last_line = time.perf_counter()
        is_child = multiprocessing.parent_process() is not None
        hidden = is_child or sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty()
        # `delay` keeps the constructor from drawing: that may fail, as any other writing.
        self.bar = _Bar(
            total=total, initial=initial, desc=name, unit=unit, disable=hidden, delay=1e-9, dynamic_ncols=True
        )
        with suppress(OSError, ValueError):
            self.bar.refresh()

    def update(self, count: int) -> None:
        """`count` more units are done."""
        self.advance(count)
        self.show()

    def advance(self, count: int) -> None:
        """As `update`, but show nothing yet."""
        self.done += count

    def show(self, details: str = "") -> None:
        """Show how far the task is and the time that is left, then `details`."""
        with suppress(OSError, ValueError):  # ValueError: standard error is closed
            self.bar.set_postfix_str(details, refresh=False)
            self.bar.update(self.done - self.bar.n)
        now = time.perf_counter()
        if self.bar.disable and now - self.last_line > self.seconds_between_lines:
            self.last_line = now
            parts = [f"{self.unit} {self.done}"]
            if self.total is not None:
                left = format_seconds(self.seconds_for(self.total - self.done))
                parts = [f"{self.unit} {self.done}/{self.total}", f"{left} left"]
            write_line(f"{self.name}: {', '.join(filter(None, [*parts, details]))}")

    def seconds_for(self, count: float) -> float:
        """The expected time for `count` units at the mean speed so far. At least one unit must be done."""
        return count * (time.perf_counter() - self.start) / (self.done - self.initial)

    def close(self) -> None:
        """Leave the bar where it is."""
        with suppress(OSError, ValueError):
            self.bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MessageHandler(logging.Handler):
    """Writes each message as one line on standard error, above any progress bar; a warning says that it is one."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        write_line(prefix + one_line(record.getMessage()))


def show_messages() -> None:
    """Show the notes and warnings of this package in this process; a second call changes nothing."""
    logger = logging.getLogger("resnet_train")
    if not any(isinstance(handler, MessageHandler) for handler in logger.handlers):
        logger.addHandler(MessageHandler())
    logger.setLevel(logging.INFO)


def write_line(line: str) -> None:
    """Write a line on standard error, above any progress bar."""
    if sys.stderr is None:  # tqdm would write to standard output
        return
    with suppress(OSError, ValueError):
        _Bar.write(line, file=sys.stderr)


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 02:03."""
    return str(tqdm.format_interval(seconds))
