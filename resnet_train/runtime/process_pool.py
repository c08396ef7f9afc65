"""Processes that work on one job after the other, and whose loss is noticed."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from resnet_train.errors import BadInput
from resnet_train.runtime.processes import shield_helpers

_Job = TypeVar("_Job")
_Answer = TypeVar("_Answer")
Count = Callable[[int], object]
"""Called with a number of samples that are done."""


def each(
    do: Callable[[_Job, Count], _Answer], jobs: Iterable[_Job], workers: int, count: Count, kept: str
) -> Iterator[_Answer]:
    """What `do` makes of each job, in the order in which they are done. `do` must be a function of a module.

    Raises what a job raises, and `BadInput` where a process was killed; `kept` says what is not lost then.
    """
    context = multiprocessing.get_context("forkserver")  # not fork: whoever calls may have threads
    shield_helpers()
    waiting = iter(jobs)
    pipes: dict[Connection, Any] = {}
    try:
        for _, job in zip(range(workers), waiting, strict=False):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(do, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes[ours] = process
            ours.send(job)
        while pipes:
            for pipe in wait(list(pipes)):
                assert isinstance(pipe, Connection)
                try:
                    kind, value = pipe.recv()
                except (EOFError, ConnectionResetError):
                    pipes[pipe].join()
                    code = pipes[pipe].exitcode
                    raise BadInput(
                        f"a worker process ended with {code} (-9: killed, perhaps for want of memory: use fewer "
                        f"--workers); {kept}"
                    ) from None
                if kind == "count":
                    count(value)
                    continue
                if kind == "error":
                    raise value
                yield value
                job_left = next(waiting, None)
                if job_left is None:
                    pipes.pop(pipe).join(0)
                    pipe.close()
                else:
                    pipe.send(job_left)
    finally:
        for pipe, process in pipes.items():
            process.kill()  # what it writes has a temporary name
            process.join()
            pipe.close()


def _serve(do: Callable[[Any, Count], Any], pipe: Connection) -> None:
    """The life of a process: until there are no jobs left, or whoever gives them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the process that the user started, which ends this one
    try:
        while True:
            job = pipe.recv()
            try:
                answer = "done", do(job, lambda number: pipe.send(("count", number)))
            except BadInput as error:
                answer = "error", error
            except Exception:
                answer = "error", RuntimeError(traceback.format_exc())
            pipe.send(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
