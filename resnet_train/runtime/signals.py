"""Signals that ask a run to save and stop: SIGTERM and SIGINT, and SIGUSR1, which Slurm sends before its time limit."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class StopRequest:
    """Whether a signal has asked this process to stop, and which."""

    signal_name: str | None = None


_requests: list[StopRequest] = []
"""Of the blocks that are entered: handlers are the process's, too."""


def stop_requested() -> str | None:
    """The signal that came within a block of `catch_stop_signals` that is not yet left, if one did."""
    return _requests[-1].signal_name if _requests else None


@contextmanager
def catch_stop_signals(announce: bool) -> Iterator[StopRequest]:
    """Within the block the first signal only sets `signal_name`; a second SIGINT ends the process at once.

    announce: write a line on standard error at the first signal, since the current step may take long.
    """
    request = StopRequest()
    interrupts = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal interrupts
        if number == signal.SIGINT:
            interrupts += 1
        if interrupts > 1:
            os._exit(130)
        if request.signal_name is None and announce:
            again = "; again to stop at once, unsaved" if number == signal.SIGINT else ""
            line = f"\n{signal.Signals(number).name}: saving and stopping at the next step{again}\n"
            with suppress(OSError):  # nobody may read standard error any more
                os.write(2, line.encode())
        request.signal_name = signal.Signals(number).name

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.remove(request)
        for number, handler in before.items():
            signal.signal(number, handler)
