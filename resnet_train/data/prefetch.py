"""A ring of batches in shared memory, filled by worker processes while the device trains on those before.

Each slot is one rank's share of a step, cut into parts that whichever worker is free takes on and writes in place:
nothing is allocated, pickled or collated for a sample. Workers are told which samples to make, and so know no order.
"""

import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from resnet_train.data.decoding import ImageArray
from resnet_train.data.rng import Ints
from resnet_train.data.sampler import Samples
from resnet_train.errors import BadInput
from resnet_train.runtime.processes import Children

WORKERS_HINT = "lower data.workers, and run again"
"""What to do if a data worker is killed."""
_SLOTS = 3
"""One that is trained on, one that is ready, one that is filled."""


class Buffer(NamedTuple):
    """Room for a batch, or for a part of one."""

    images: ImageArray
    """[n, size, size, C]."""
    labels: Ints
    """[n]."""
    shift: npt.NDArray[np.float32]
    """[n, C]: the colour augmentation, to add to pixels in [0, 1]."""
    epochs: Ints
    indices: Ints
    """[n] and [n]: the samples that are wanted. Here, so that what a worker is told is no longer than a line."""

    def part(self, rows: slice) -> "Buffer":
        """Some of its rows, the same memory."""
        return Buffer(*(array[rows] for array in self))  # type: ignore[arg-type]

    def sized(self, size: int | None) -> "Buffer":
        """For smaller images, which lie one after the other at the beginning of the same memory."""
        if size is None:
            return self
        n, channels = len(self.images), self.images.shape[3]
        images = self.images.reshape(-1)[: n * size * size * channels].reshape(n, size, size, channels)
        return self._replace(images=images)


class Shape(NamedTuple):
    """Of the images of a slot, where they are largest."""

    samples: int
    size: int
    channels: int

    @property
    def bytes(self) -> int:
        """Of one slot, a whole number of cache lines."""
        return -(-self.samples * (self.size**2 * self.channels + 3 * 8 + 4 * self.channels) // 64) * 64

    def slots(self, memory: ImageArray) -> list[Buffer]:
        """The slots that a stretch of memory holds."""
        return [self._slot(memory[at : at + self.bytes]) for at in range(0, len(memory), self.bytes)]

    def _slot(self, memory: ImageArray) -> Buffer:
        n, size, channels = self
        numbers, rest = np.split(memory, [3 * 8 * n])  # in the order of their alignment
        shift, images, _ = np.split(rest, np.cumsum([4 * n * channels, n * size * size * channels]))
        return Buffer(
            images.reshape(n, size, size, channels),
            shift=shift.view(np.float32).reshape(n, channels),
            **dict(zip(("labels", "epochs", "indices"), numbers.view(np.int64).reshape(3, n), strict=True)),
        )


CollateFn = Callable[[Buffer], tuple[str, ...]]
"""Writes the wanted samples into a slot; the names of files that it had to do without. Raises `BadInput`."""


def fill(
    make: CollateFn,
    wanted: Iterator[Samples],
    shape: Shape,
    workers: int,
    device: torch.device,
    size_of: Callable[[int], int | None] = lambda _: None,
) -> Generator[tuple[Buffer, tuple[str, ...]]]:
    """The wanted batches in order, each in a slot that is overwritten once the next one is asked for.

    `size_of` says the size of a batch, by its number, where it is not the largest. The memory is pinned where the
    device is a GPU: whoever copies from it waits for the copy before asking for the next batch, or closing. Raises
    `BadInput` where `make` did, at the batch that it concerns, or if a worker was killed.
    """
    memory = _Memory(shape.bytes * (_SLOTS if workers else 1))
    slots = shape.slots(memory.bytes)
    with _pinned(memory.bytes, device):
        if not workers:
            for number, samples in enumerate(wanted):
                slot = slots[0].sized(size_of(number))
                slot.epochs[:], slot.indices[:] = samples
                yield slot, make(slot)
            return
        rows = -(-shape.samples // (2 * workers))  # of a part: small enough for the workers to end a batch together
        parts = [slice(first, first + rows) for first in range(0, shape.samples, rows)]
        with _worker_pool(make, shape, memory, workers) as (tasks, children):
            asked = enumerate(wanted)
            answers: dict[int, dict[int, tuple[str, ...] | BadInput]] = {}

            def ask(count: int) -> None:
                for number, samples in islice(asked, count):
                    answers[number] = {}
                    slot = slots[number % _SLOTS]
                    slot.epochs[:], slot.indices[:] = samples
                    for part in parts:
                        tasks.put((number, part, size_of(number)))

            ask(_SLOTS)
            current = 0
            while current in answers:
                while len(answers[current]) < len(parts):
                    for _, (number, first, answer) in children.receive():
                        answers[number][first] = answer
                skipped: list[str] = []
                for _, answer in sorted(answers.pop(current).items()):  # in their order, whoever was the faster
                    if isinstance(answer, BadInput):
                        raise answer
                    skipped += answer
                yield slots[current % _SLOTS].sized(size_of(current)), tuple(skipped)
                current += 1
                ask(1)


class _Memory:
    """Memory that processes share. Anonymous, so it needs no room in /dev/shm and is gone with its last process."""

    def __init__(self, size: int, handle: int | None = None) -> None:
        self.handle = os.memfd_create("batches") if handle is None else handle
        os.ftruncate(self.handle, size)
        self.bytes: ImageArray = np.frombuffer(mmap.mmap(self.handle, size), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attached, (reduction.DupFd(self.handle), len(self.bytes))

    def __del__(self) -> None:
        os.close(self.handle)


def _attached(handle: Any, size: int) -> _Memory:
    return _Memory(size, handle.detach())


@contextmanager
def _pinned(memory: ImageArray, device: torch.device) -> Iterator[None]:
    """Within the block a GPU copies from this memory by itself; where it may not be pinned, with the CPU's help."""
    if device.type != "cuda":
        yield
        return
    cuda = torch.cuda.cudart()
    refused = int(cuda.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if refused:
        print(f"warning: batches cannot be pinned (CUDA error {refused}), so copying them is slower", file=sys.stderr)
        with suppress(RuntimeError):
            torch.zeros(1, device=device)  # CUDA tells the error again, to whoever launches next
    try:
        yield
    finally:
        if not refused:
            cuda.cudaHostUnregister(memory.ctypes.data)


@contextmanager
def _worker_pool(
    make: CollateFn, shape: Shape, memory: _Memory, workers: int
) -> Iterator[tuple["SimpleQueue[Any]", Children]]:
    """Workers that take tasks from one queue and answer each through a pipe of its own; ended with the block."""
    tasks = multiprocessing.get_context("forkserver").SimpleQueue()
    with closing(tasks), Children(WORKERS_HINT) as children:
        for _ in range(workers):
            children.start("a data worker", _work, make, shape, memory, tasks)
        yield tasks, children


def _work(connection: Connection, make: CollateFn, shape: Shape, memory: _Memory, tasks: "SimpleQueue[Any]") -> None:
    torch.set_num_threads(1)
    slots = shape.slots(memory.bytes)
    while True:
        number, rows, size = tasks.get()
        answer: tuple[str, ...] | BadInput
        try:
            answer = make(slots[number % _SLOTS].sized(size).part(rows))
        except BadInput as error:
            answer = error
        connection.send((number, rows.start, answer))
