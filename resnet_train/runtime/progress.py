"""What a user sees on standard error while a command works: progress, notes and warnings.

A terminal that is gone never ends a run: nothing here raises where standard error cannot be written.
"""

import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from tqdm import tqdm

from resnet_train.errors import one_line, stderr_width, wrap


class _Bar(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no thread that redraws: a bar changes only when work is done


class _TextBar(_Bar):
    """A bar with a text after it: the first of `texts` that leaves room for the bar."""

    texts: Sequence[str] = ("",)

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        values = dict(super().format_dict)
        room = (values["ncols"] or 80) - len(values["prefix"]) - _LEAST_BAR
        return values | {"text": next((text for text in self.texts if len(text) <= room), self.texts[-1])}

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        super().display(msg, pos)
        self.fp.write("\r")  # a terminal shows ^C at the cursor: at the end of the line it would begin another one


_LEAST_BAR = 10 + len("  45%|| ")
_WIDEST_NAME = 32


class _NoLock:
    """In place of tqdm's lock, which it does not release where writing fails."""

    def acquire(self, *_: object, **__: object) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_Bar.set_lock(_NoLock())  # type: ignore[arg-type]
_lock = threading.RLock()
"""Of what writes on standard error: a signal's message comes from a thread of its own."""


@contextmanager
def _writing() -> Iterator[None]:
    """For one thread at a time. What cannot be written is lost."""
    with _lock, suppress(OSError, ValueError):  # ValueError: standard error is closed
        yield


def is_terminal() -> bool:
    """Whether standard error is a terminal whose lines can be drawn over. A child process leaves that to its parent."""
    stream = sys.stderr
    if stream is None or stream.closed or multiprocessing.parent_process() is not None:
        return False
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class BarLine:
    """One of some lines at the bottom of a terminal: a name, a bar and a text. Messages are written above them.

    place: 0 for the first line. width_of_name: in characters, so that bars begin in one column. Elsewhere than on a
    terminal, and if not `shown`, nothing is drawn.
    """

    def __init__(self, place: int, width_of_name: int, shown: bool = True) -> None:
        self.width_of_name = min(width_of_name, _WIDEST_NAME)
        self.bar = _TextBar(
            total=1,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {text}",
            position=place,
            leave=False,
            disable=not (shown and is_terminal()),
            delay=1e-9,
            dynamic_ncols=True,
        )

    def draw(self, name: str, fraction: float, texts: Sequence[str]) -> None:
        """Draw the line; of `texts`, the longest first, the first that fits."""
        if len(name) > _WIDEST_NAME:
            name = f"{name[: _WIDEST_NAME // 2]}…{name[1 - _WIDEST_NAME // 2 :]}"
        self.bar.desc, self.bar.texts, self.bar.n = name.ljust(self.width_of_name), texts, fraction
        with _writing():
            self.bar.refresh()

    def clear(self) -> None:
        """Leave the line empty until it is drawn again."""
        with _writing():
            self.bar.clear()

    def close(self) -> None:
        """Remove the line."""
        with _writing():
            self.bar.close()


class Progress:
    """A bar on a terminal. Elsewhere, and in child processes, whose bars would overwrite each other, a line a minute.

    `total` is None where it is not known. shown: False on ranks other than the first. keep: whether the bar stays where
    it is once it is closed.
    """

    seconds_between_lines = 60.0

    def __init__(
        self, name: str, total: int | None, unit: str, initial: int = 0, shown: bool = True, keep: bool = True
    ) -> None:
        self.name, self.total, self.unit, self.shown = name, total, unit, shown
        self.initial = self.done = initial
        self.start = self.last_line = time.perf_counter()
        hidden = not shown or not is_terminal()
        # `delay` keeps the constructor from drawing: that may fail, as any other writing.
        self.bar = _Bar(
            total=total,
            initial=initial,
            desc=name,
            unit=unit,
            disable=hidden,
            delay=1e-9,
            dynamic_ncols=True,
            leave=keep,
        )
        with _writing():
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
        with _writing():
            self.bar.set_postfix_str(details, refresh=False)
            self.bar.update(self.done - self.bar.n)
        now = time.perf_counter()
        if self.shown and self.bar.disable and now - self.last_line > self.seconds_between_lines:
            self.last_line = now
            parts = [f"{self.unit} {self.done}"]
            if self.total is not None:
                left = (self.total - self.done) * (now - self.start) / (self.done - self.initial)
                parts = [f"{self.unit} {self.done}/{self.total}", f"{format_seconds(left)} left"]
            write_line(f"{self.name}: {', '.join(filter(None, [*parts, details]))}")

    def close(self) -> None:
        """Leave the bar where it is, or remove it."""
        with _writing():
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


@contextmanager
def without_repetitions() -> Iterator[None]:
    """Within the block a message is shown once: the runs of an experiment have the same notes."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_repeated = message in shown
        shown.add(message)
        return not is_repeated

    handlers = list(logging.getLogger("resnet_train").handlers)
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)


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
    with _writing():
        _Bar.write(wrap(line, stderr_width()), file=sys.stderr)
        sys.stderr.flush()


def write_line_at_once(line: str) -> None:
    """The same from another thread than the main one, which may be stuck within a line: not waited for long."""
    if _lock.acquire(timeout=1):
        try:
            write_line(line)
        finally:
            _lock.release()
    else:
        with suppress(OSError):
            os.write(2, f"\n{line}\n".encode())


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 02:03."""
    return str(tqdm.format_interval(seconds))
