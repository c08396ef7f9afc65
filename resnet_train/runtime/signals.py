"""Signals that ask a run to save and stop: SIGTERM and SIGINT, and SIGUSR1, which Slurm sends before its time limit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Request:
    """Whether a signal has come."""

    name: str | None = None
    interrupts = 0


@contextmanager
def listening(speaks: bool) -> Iterator[Request]:
    """Within the block the first signal only leaves a note; a second SIGINT ends the process at once.

    Who `speaks` says so, since the step that is to be the last may take its time, as the first one does.
    """
    request = Request()

    def handle(number: int, _: FrameType | None) -> None:
        request.interrupts += number == signal.SIGINT
        if request.interrupts > 1:
            os._exit(130)
        if request.name is None and speaks:
            more = "; again to stop at once, unsaved" if number == signal.SIGINT else ""
            os.write(2, f"\n{signal.Signals(number).name}: saving and stopping at the next step{more}\n".encode())
        request.name = signal.Signals(number).name

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
