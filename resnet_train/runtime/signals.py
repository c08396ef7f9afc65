"""Signals that ask a run to save and stop: SIGTERM and SIGINT, and SIGUSR1, which Slurm sends before its time limit."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from resnet_train.runtime.progress import write_line_at_once

_NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether a signal has asked this process to stop, and which."""

    signal_name: str | None = None


_requests: list[StopRequest] = []
"""Of the blocks that are entered: handlers are the process's, too."""


def stop_requested() -> str | None:
    """The signal that came within a block of `catch_stop_signals` that is not yet left, if one did."""
    return _requests[-1].signal_name if _requests else None


_too_early: list[int] = []
"""Signals that came before the first block."""


def note_early_warnings() -> None:
    """From here on SIGUSR1 ends no process, which is its default: the first `catch_stop_signals` answers it.

    A scheduler may send its warning while Python imports torch, for seconds.
    """
    signal.signal(signal.SIGUSR1, lambda number, _: _too_early.append(number))


@contextmanager
def catch_stop_signals(announce: bool) -> Iterator[StopRequest]:
    """Within the block the first signal only sets `signal_name`; a second SIGINT ends the process at once.

    announce: write a line on standard error at the first signal, since the current step may take long.
    """
    request = StopRequest()

    def handle(number: int, _: FrameType | None) -> None:
        request.signal_name = request.signal_name or signal.Signals(number).name

    # A handler waits for the main thread, which may wait for a GPU or for another rank: so a thread learns of signals.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=_watch, args=(reader, announce), daemon=True)
    thread.start()
    handlers = {number: signal.signal(number, handle) for number in _NUMBERS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _requests.append(request)
    if _too_early:
        signal.raise_signal(_too_early.pop())
    try:
        yield request
    finally:
        _requests.remove(request)
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)
        thread.join()
        os.close(reader)


def _watch(reader: int, announce: bool) -> None:
    """Read the numbers of signals until the pipe ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)  # they interrupt what the main thread waits for
    interrupts = 0
    while number := int.from_bytes(os.read(reader, 1)):
        if number not in _NUMBERS:
            continue
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            os._exit(130)
        if announce:
            announce = False
            again = "; again to stop at once, unsaved" if number == signal.SIGINT else ""
            write_line_at_once(f"{signal.Signals(number).name}: saving and stopping at the next step{again}")
