"""Child processes: they end with the block or the process that started them, and a killed one is noticed. No torch.

multiprocessing's fork server starts them, since this process may have threads and a CUDA context. Ctrl-C and the
signals of a scheduler reach every process of a job; they are for the process that the user started, which ends its
children.
"""

import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self, TypeVar

from resnet_train.errors import BadInput, Stop, exhausted, report
from resnet_train.runtime import process_exit
from resnet_train.runtime.progress import show_messages
from resnet_train.runtime.streams import prepare_streams

logger = logging.getLogger(__name__)

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")
Count = Callable[[int], object]
"""Called with a number of samples that are done."""

_JOB_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that may reach all processes of a job."""
_PRELOADED = ["resnet_train.data.image_files"]
"""What the fork server imports once, with torch, so that each child need not."""
_FILES_TO_START = 12
"""Files that are open in this process while it starts a child, at most."""
_SECONDS_TO_POLL = 1.0
"""Between two looks at a process, where the system does not report its end (macOS)."""
_SECONDS_TO_DIE = 30.0
"""After SIGKILL. A process that waits for a disk may not die."""


@dataclass(frozen=True, eq=False)
class Child:
    """A child process."""

    name: str
    """For messages, such as `a data worker`."""
    process: BaseProcess
    connection: Connection

    def send(self, message: object) -> None:
        """Send a message. If the child is gone nothing happens: `Children.receive` raises."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)


class Children:
    """The child processes of a block.

    hint: what to do if memory runs out and the kernel kills one, such as `lower data.workers`.
    end_by: the signal that ends them with the block. SIGKILL is for workers, which have nothing to lose: they ignore
    the signals of a job. SIGTERM is for children that save their state first: they handle these signals themselves.
    last_messages: called with a child and a message of it that comes while they end.
    """

    def __init__(
        self,
        hint: str,
        end_by: signal.Signals = signal.SIGKILL,
        last_messages: Callable[[Child, Any], object] | None = None,
    ) -> None:
        self.hint, self.end_by, self.last_messages = hint, end_by, last_messages
        self.running: list[Child] = []
        if end_by == signal.SIGKILL:
            # For a block that is never left. Else multiprocessing would end them by SIGTERM at the end of this process,
            # and wait.
            util.Finalize(self, _kill, [self.running], exitpriority=1)

    def start(self, name: str, function: Callable[..., object], *arguments: object) -> Child:
        """Start a child that calls `function(connection, *arguments)`; `function` is one of a module.

        Raises `BadInput` if the fork server could not start it, `OSError` if the limit of open files is too low.
        """
        _check_file_limit()
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_run_child,
            args=(name, self.hint, os.getpid(), self.end_by, theirs, function, arguments),
            daemon=self.end_by == signal.SIGKILL,  # a daemon may have no children, as a run has
        )
        try:
            process.start()
        except EOFError:
            raise BadInput(
                f"{name} cannot be started, perhaps because memory or processes ran out: {self.hint}"
            ) from None
        theirs.close()
        child = Child(name, process, ours)
        self.running.append(child)
        return child

    def receive(self, timeout: float | None = None) -> Iterator[tuple[Child, Any]]:
        """Messages of children; waits for the first, or until a child ends, for at most `timeout` seconds.

        Raises `Killed` if a child was killed; if it failed, a `Stop` of its exit code, since it has reported why.
        """
        children = {child.connection: child for child in self.running}
        for connection in wait(list(children), timeout):
            child = children[connection]  # type: ignore[index]
            try:
                message = child.connection.recv()
            except (EOFError, OSError):  # OSError: it ended within a message
                self._check_end(child)
            else:
                yield child, message

    def _check_end(self, child: Child) -> None:
        child.process.join()
        child.connection.close()
        self.running.remove(child)
        code = child.process.exitcode or 0
        check_not_killed(child.name, code, self.hint)
        if code > 0:
            failed = Stop(f"{child.name} failed; the reason is above")
            failed.exit_code, failed.reported = code, True
            raise failed

    def __enter__(self) -> Self:
        ensure_fork_server()
        return self

    def __exit__(self, *_: object) -> None:
        begin = time.monotonic()
        # Again and again: a child that has only just started may still ignore SIGTERM.
        while alive := [child.process for child in self.running if child.process.exitcode is None]:
            if self.end_by == signal.SIGKILL and time.monotonic() - begin > _SECONDS_TO_DIE:
                logger.warning(
                    "the kernel does not end %s: it waits for a disk", ", ".join(f"process {p.pid}" for p in alive)
                )
                process_exit.skip_cleanup()  # which would wait for it
                break
            for process in alive:
                with suppress(ProcessLookupError):
                    os.kill(process.pid or 0, self.end_by)
            wait([process.sentinel for process in alive], timeout=0.2)
            self._receive_last()
        self._receive_last()
        for child in self.running:
            child.connection.close()

    def _receive_last(self) -> None:
        if self.last_messages is None:
            return
        for child in self.running:
            with suppress(EOFError, OSError):
                while child.connection.poll():
                    self.last_messages(child, child.connection.recv())


def _kill(children: Iterable[Child]) -> None:
    for child in children:
        child.process.kill()


def _check_file_limit() -> None:
    """Raise `OSError` if too few files can be opened to start a child: multiprocessing would end with a traceback."""
    pipes: list[int] = []
    try:
        while len(pipes) < _FILES_TO_START:
            pipes += os.pipe()
    finally:
        for end in pipes:
            os.close(end)


class Killed(BadInput):
    """A process was ended by a signal."""

    signal: signal.Signals


def check_not_killed(name: str, exit_code: int, hint: str) -> None:
    """Raise `Killed` if a process was ended by a signal."""
    if exit_code < 0:
        number = signal.Signals(-exit_code)
        killed = Killed(f"{name} was killed by {number.name}, perhaps because memory ran out: {hint}")
        killed.signal = number
        raise killed from None


def run_jobs(
    function: Callable[[_Job, Count], _Result], jobs: Iterable[_Job], workers: int, count: Count, hint: str
) -> Iterator[_Result]:
    """Call `function` for each job in one of `workers` processes; its results in the order in which they are ready.

    `function` is one of a module; what it passes to its `Count` is passed on to `count`. Raises `BadInput` where a job
    does, or where a process was killed (see `Children`).
    """
    waiting = iter(jobs)
    with Children(hint) as children:
        for job in islice(waiting, workers):
            children.start("a worker process", _work, function).send(job)
        while children.running:
            for child, (kind, value) in children.receive():
                if kind == "count":
                    count(value)
                elif kind == "error":
                    raise value
                else:
                    yield value
                    child.send(next(waiting, None))


def _work(connection: Connection, function: Callable[[Any, Count], Any]) -> None:
    """Work on jobs until None comes."""
    while (job := connection.recv()) is not None:
        try:
            answer = "result", function(job, lambda number: connection.send(("count", number)))
        except BadInput as error:
            answer = "error", error
        connection.send(answer)


def _run_child(
    name: str,
    hint: str,
    parent: int,
    end_by: signal.Signals,
    connection: Connection,
    function: Callable[..., object],
    arguments: Any,
) -> None:
    for number in _JOB_SIGNALS:  # a worker goes on until its parent has saved; a run handles them soon
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _JOB_SIGNALS)  # the fork server blocks them
    end_with(parent, end_by)
    prepare_streams()
    show_messages()
    try:
        function(connection, *arguments)
    except (Exception, KeyboardInterrupt) as error:
        reason = exhausted(error)
        sys.exit(report(BadInput(f"{name}: {reason}: {hint}") if reason else error))


def ensure_fork_server() -> None:
    """Start multiprocessing's own processes, if they are not running; they block the signals of a job.

    This process blocks them meanwhile, and so inherits them to these: one that comes is handled afterwards.
    """
    with _blocked({signal.SIGUSR1}):  # it takes care of the others, and unblocks them
        resource_tracker.ensure_running()
    forkserver.set_forkserver_preload(_PRELOADED)
    with _blocked(_JOB_SIGNALS):
        forkserver.ensure_running()


@contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """The number of cores that this process may use; all of the machine where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_of(process: int) -> Callable[[], None]:
    """A function that waits for the end of a process. Raises `ProcessLookupError` if it has ended."""
    if hasattr(os, "pidfd_open"):
        handle = os.pidfd_open(process)
        return lambda: select.select([handle], [], []) and None
    os.kill(process, 0)

    def poll() -> None:
        with suppress(ProcessLookupError):
            while True:
                time.sleep(_SECONDS_TO_POLL)
                os.kill(process, 0)

    return poll


def end_with(parent: int, end_by: signal.Signals) -> None:
    """End this process by a signal once process `parent` is gone, which is not its parent for the kernel."""
    try:
        wait_for_end = _end_of(parent)
    except ProcessLookupError:  # killed while this process was started
        os._exit(1)

    def watch() -> None:
        wait_for_end()
        while True:  # this process may not handle SIGTERM yet
            os.kill(os.getpid(), end_by)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()
