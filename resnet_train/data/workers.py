"""Worker processes that make batches for training, evaluation and statistics.

A batch is cut into tasks. Whichever worker is free takes the next one, and batches come in order. Tasks travel through
a socket that all workers read, so a stopped worker holds no lock that others need; results travel through anonymous
memory.
"""

import logging
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from resnet_train.data.rng import Ints
from resnet_train.data.shared_memory import Parcel, SharedMemory, Slots
from resnet_train.errors import BadInput, Interrupted
from resnet_train.runtime import signals
from resnet_train.runtime.processes import Children

logger = logging.getLogger(__name__)

HINT = "lower data.workers, and run again"
"""What to do if memory or another resource runs out."""
BATCHES_AHEAD = 3
"""One that is used, one that is full, one that is being made."""
_TASKS_PER_WORKER = 2
"""Tasks of a batch for each worker: halves of its part, so that all workers end a batch together."""
_MAX_TASK_BYTES = 4096

_SECONDS_TO_WARNING = 30.0
"""How long no worker may answer until a warning says where they are; then twice as long, and so on."""
_SECONDS_TO_STOP = 10.0
"""How long no worker may answer until a signal ends the wait: the step or the evaluation will not end soon."""
_SECONDS_TO_LOOK = 0.5
_SECONDS_TO_NAME = 1.0

Note = Callable[[int], object]
"""Called with the index of a sample before it is read, so that a worker that waits for a disk can be named."""
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def rows_of_tasks(samples: int, workers: int) -> list[slice]:
    """The rows of a batch that each of its tasks makes. Without workers a batch is one task."""
    rows = -(-samples // (_TASKS_PER_WORKER * workers)) if workers else samples
    return [slice(first, min(first + rows, samples)) for first in range(0, samples, rows)]


def in_order(
    work: Callable[[_Task, Note], _Result], batches: Iterable[Sequence[_Task]], workers: int, name: Callable[[int], str]
) -> Generator[list[_Result]]:
    """The results of each batch's tasks, from as many worker processes, or from this one if `workers` is 0.

    `work` and its tasks are pickled, and a task is small; the rows of each are those of `rows_of_tasks`. A batch is
    asked for `BATCHES_AHEAD` batches before it is returned, and its arrays are valid until the next one is requested.
    `name` gives the file of a sample. Closing the generator ends the workers. Raises `BadInput` where `work` did, at
    that batch, and where a worker was killed; `Interrupted` if a signal asks to stop while the workers do not answer.
    """
    if not workers:
        with watched(name) as note:
            for tasks in batches:
                results = [work(task, note) for task in tasks]
                note(-1)
                yield results
        return
    remaining = iter(batches)
    numbered = 0
    pending: deque[range] = deque()
    with _worker_pool(work, workers, name) as pool:

        def send(count: int) -> None:
            nonlocal numbered
            for tasks in islice(remaining, count):
                assert len(tasks) <= _TASKS_PER_WORKER * workers
                numbers = range(numbered, numbered + len(tasks))
                numbered = numbers.stop
                pending.append(numbers)
                pool.send(zip(numbers, tasks, strict=True))

        send(BATCHES_AHEAD)
        while pending:
            yield pool.results(pending.popleft())
            send(1)


@contextmanager
def watched(name: Callable[[int], str]) -> Iterator[Note]:
    """A note for threads of this process that read samples: -1 after the last one. Warns where none ends for long."""
    reading: dict[int, int] = {}
    last = [time.monotonic()]
    is_done = threading.Event()

    def note(sample: int) -> None:
        last[0] = time.monotonic()
        reading[threading.get_ident()] = sample

    def watch() -> None:
        patience = _SECONDS_TO_WARNING
        while not is_done.wait(_SECONDS_TO_LOOK):
            seconds, samples = time.monotonic() - last[0], [sample for sample in list(reading.values()) if sample >= 0]
            if seconds < _SECONDS_TO_WARNING:
                patience = _SECONDS_TO_WARNING
            elif seconds >= patience and samples:
                names = ", ".join(_name_if_quick(name, sample) for sample in samples[:8])
                logger.warning("no images for %.0f seconds: at %s: does the disk answer?", seconds, names)
                patience *= 2

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield note
    finally:
        is_done.set()


def _name_if_quick(name: Callable[[int], str], sample: int) -> str:
    """The file of a sample, or its number: the name may be on the disk that does not answer."""
    names: list[str] = []

    def ask() -> None:
        with suppress(BadInput, OSError):
            names.append(name(sample))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_NAME)
    return names[0] if names else f"sample {sample}"


class _Pool(Generic[_Task, _Result]):
    """Worker processes, and what they are asked to do."""

    def __init__(
        self, children: Children, tasks: socket.socket, slots: Slots, samples: Ints, name: Callable[[int], str]
    ) -> None:
        self.children, self.tasks, self.slots, self.samples, self.name = children, tasks, slots, samples, name
        self.unsent: deque[bytes] = deque()
        self.answers: dict[int, Parcel | BadInput] = {}

    def send(self, tasks: Iterable[tuple[int, _Task]]) -> None:
        """Queue tasks, each with its number."""
        self.unsent.extend(map(pickle.dumps, tasks))
        self._send_what_fits()

    def _send_what_fits(self) -> None:
        # BlockingIOError: the socket is full. The others: no worker is left, which `Children.receive` reports.
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent:
                self.tasks.send(self.unsent[0])
                self.unsent.popleft()

    def results(self, numbers: Sequence[int]) -> list[_Result]:
        """Wait for the results of tasks. Raises what `in_order` raises."""
        while not all(number in self.answers for number in numbers):
            self._receive()
        answers = [self.answers.pop(number) for number in numbers]
        for answer in answers:
            if isinstance(answer, BadInput):
                raise answer
        return [self.slots.read(answer) for answer in answers if isinstance(answer, Parcel)]

    def _receive(self) -> None:
        """Wait for an answer, of whatever task. Warns if none comes."""
        begin, patience, before = time.monotonic(), _SECONDS_TO_WARNING, self.samples.copy()
        while not (messages := list(self.children.receive(_SECONDS_TO_LOOK))):
            self._send_what_fits()
            seconds = time.monotonic() - begin
            name = signals.stop_requested()
            if name is not None and seconds >= _SECONDS_TO_STOP:
                interrupted = Interrupted(
                    f"{name}: stopped while the data workers do not answer ({self._places(before)}); run again to "
                    "continue from the last checkpoint"
                )
                interrupted.on_all_ranks = False
                raise interrupted
            if seconds >= patience:
                logger.warning("no images for %.0f seconds: %s", seconds, self._places(before))
                patience, before = 2 * patience, self.samples.copy()
        self.answers.update(answer for _, answer in messages)
        self._send_what_fits()

    def _places(self, before: Ints) -> str:
        """Which workers have been at one sample since `before` was noted, in words."""
        pids = [child.process.pid for child in self.children.running]
        stuck = [
            f"data worker {pid} is at {_name_if_quick(self.name, now)}"
            for pid, now, then in zip(pids, self.samples.tolist(), before.tolist(), strict=True)
            if now == then >= 0
        ]
        if stuck:
            return f"{', '.join(stuck)}: does its disk answer, or is the process stopped?"
        if (self.samples >= 0).any():
            return "the data workers read slowly"
        names = ", ".join(map(str, pids))
        return f"none of the data workers {names} takes work: are these processes stopped, or still starting?"


@contextmanager
def _worker_pool(
    work: Callable[[Any, Note], Any], workers: int, name: Callable[[int], str]
) -> Iterator[_Pool[Any, Any]]:
    """Workers that end with the block."""
    slots, board = Slots(BATCHES_AHEAD * _TASKS_PER_WORKER * workers), SharedMemory(workers * 8)
    samples = board.bytes.view(np.int64)
    samples[:] = -1
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a packet goes to one reader, as a whole
    with Children(HINT) as children, ours:
        with theirs:
            for place in range(workers):
                children.start("a data worker", _work, work, theirs, slots, board, place)
        ours.setblocking(False)
        yield _Pool(children, ours, slots, samples, name)


def _work(
    connection: Connection,
    work: Callable[[Any, Note], Any],
    tasks: socket.socket,
    slots: Slots,
    board: SharedMemory,
    place: int,
) -> None:
    torch.set_num_threads(1)
    samples = board.bytes.view(np.int64)
    tasks.setblocking(True)

    def note(sample: int) -> None:
        samples[place] = sample

    while packet := tasks.recv(_MAX_TASK_BYTES):
        number, task = pickle.loads(packet)
        answer: Parcel | BadInput
        try:
            answer = slots.write(number % slots.count, work(task, note))
        except BadInput as error:
            answer = error
        note(-1)
        connection.send((number, answer))
