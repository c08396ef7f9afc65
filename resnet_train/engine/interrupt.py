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
def listening() -> Iterator[Request]:
    """Within the block the first signal only leaves a note; a second SIGINT ends the process at once."""
    request = Request()

    def handle(number: int, _: FrameType | None) -> None:
        request.interrupts += number == signal.SIGINT
        if request.interrupts > 1:
            os._exit(130)
        request.name = signal.Signals(number).name

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
