"""Prefetch buffers: batches in shared memory, which worker processes fill while the device trains on earlier ones.

A buffer holds one rank's samples of a step. Workers take its chunks from one queue, whichever worker is free, and write
the samples in place: nothing is allocated, pickled or collated for a sample. The buffer names the samples that it is to
hold, so workers need not know their order.
"""

import logging
import mmap
import multiprocessing
import os
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

logger = logging.getLogger(__name__)

WORKERS_HINT = "lower data.workers, and run again"
"""What to do if a data worker is killed."""
_BUFFERS = 3
"""One that is trained on, one that is full, one that is being filled."""


class Request(NamedTuple):
    """A batch to be loaded."""

    samples: Samples
    size: int | None = None
    """Height and width of its images in pixels; None: the largest."""


class Buffer(NamedTuple):
    """Memory for a batch or for a chunk of one."""

    images: ImageArray
    """[n, size, size, C]."""
    labels: Ints
    """[n]."""
    shift: npt.NDArray[np.float32]
    """[n, C]: the PCA lighting of each image, to be added to its pixels on a scale of 0 to 1."""
    epochs: Ints
    """[n]: with `indices`, the samples that the buffer is to hold."""
    indices: Ints
    """[n]."""

    def chunk(self, rows: slice) -> "Buffer":
        """Some samples of this buffer, in the same memory."""
        return Buffer(*(array[rows] for array in self))  # type: ignore[arg-type]

    def prepared(self, request: Request) -> "Buffer":
        """This buffer with the samples and the image size of a request."""
        self.epochs[:], self.indices[:] = request.samples
        return self.resized(request.size)

    def resized(self, size: int | None) -> "Buffer":
        """This buffer with smaller images, at the beginning of the same memory; None: with the largest."""
        if size is None:
            return self
        n, channels = len(self.images), self.images.shape[3]
        images = self.images.reshape(-1)[: n * size * size * channels].reshape(n, size, size, channels)
        return self._replace(images=images)


class Shape(NamedTuple):
    """The shape of a buffer with the largest images."""

    samples: int
    size: int
    """Height and width of an image in pixels."""
    channels: int

    @property
    def bytes(self) -> int:
        """Bytes of a buffer, a multiple of 64, so that buffers share no cache line."""
        bytes_per_sample = self.size**2 * self.channels + 3 * 8 + 4 * self.channels
        return -(-self.samples * bytes_per_sample // 64) * 64

    def buffers(self, memory: ImageArray) -> list[Buffer]:
        """The buffers in a stretch of memory."""
        return [self._buffer(memory[at : at + self.bytes]) for at in range(0, len(memory), self.bytes)]

    def _buffer(self, memory: ImageArray) -> Buffer:
        """Words of 8 bytes lie before those of 4, and these before the pixels, so all are aligned."""
        n, size, channels = self
        ends = np.cumsum([3 * 8 * n, 4 * n * channels, n * size * size * channels])
        words, shift, images, _ = np.split(memory, ends)
        labels, epochs, indices = words.view(np.int64).reshape(3, n)
        images = images.reshape(n, size, size, channels)
        return Buffer(images, labels, shift.view(np.float32).reshape(n, channels), epochs, indices)


CollateFn = Callable[[Buffer], tuple[str, ...]]
"""Writes the samples that a buffer names into it. Returns the names of files that it skipped. Raises `BadInput`."""


def filled_buffers(
    collate_fn: CollateFn,
    requests: Iterator[Request],
    shape: Shape,
    workers: int,
    device: torch.device,
) -> Generator[tuple[Buffer, tuple[str, ...]]]:
    """A buffer for each request, in order, and the names of skipped files.

    A buffer is overwritten once the next one is taken. On a GPU the memory is pinned: a copy from a buffer must be
    complete before the next one is taken, or the generator closed. Raises `BadInput` where `collate_fn` did, at that
    batch, and where a worker was killed.
    """
    memory = _SharedMemory(shape.bytes * (_BUFFERS if workers else 1))
    buffers = shape.buffers(memory.bytes)
    with _pinned(memory.bytes, device):
        if workers:
            with _worker_pool(collate_fn, shape, memory, workers) as (tasks, children):
                yield from _filled_by_workers(requests, buffers, workers, tasks, children)
        else:
            for request in requests:
                buffer = buffers[0].prepared(request)
                yield buffer, collate_fn(buffer)


class _Task(NamedTuple):
    """A chunk of a batch."""

    batch: int
    """The number of the batch, and so the number of its buffer."""
    rows: slice
    size: int | None


class _Answer(NamedTuple):
    """A chunk that was filled, or could not be."""

    batch: int
    first_row: int
    result: tuple[str, ...] | BadInput
    """What the `CollateFn` returned or raised."""


class _Pending(NamedTuple):
    """A batch that workers fill."""

    buffer: Buffer
    results: dict[int, tuple[str, ...] | BadInput]
    """By the first row of a chunk."""


def _filled_by_workers(
    requests: Iterator[Request], buffers: list[Buffer], workers: int, tasks: "SimpleQueue[_Task]", children: Children
) -> Iterator[tuple[Buffer, tuple[str, ...]]]:
    n = len(buffers[0].labels)
    rows = -(-n // (2 * workers))  # half of a worker's share of a batch, so that all workers end it together
    chunks = [slice(first, first + rows) for first in range(0, n, rows)]
    numbered = enumerate(requests)
    pending: dict[int, _Pending] = {}

    def send_tasks(batches: int) -> None:
        for number, request in islice(numbered, batches):
            pending[number] = _Pending(buffers[number % len(buffers)].prepared(request), {})
            for chunk in chunks:
                tasks.put(_Task(number, chunk, request.size))

    send_tasks(len(buffers))
    current = 0
    while current in pending:
        batch = pending[current]
        while len(batch.results) < len(chunks):
            for _, answer in children.receive():
                pending[answer.batch].results[answer.first_row] = answer.result
        skipped: list[str] = []
        for _, result in sorted(batch.results.items()):  # in the order of the samples, not of the workers
            if isinstance(result, BadInput):
                raise result
            skipped += result
        yield batch.buffer, tuple(skipped)
        del pending[current]
        send_tasks(1)
        current += 1


class _SharedMemory:
    """Anonymous memory that processes share: it needs no space in /dev/shm, and is freed with its last process."""

    def __init__(self, size: int, handle: int | None = None) -> None:
        self.handle = os.memfd_create("batches") if handle is None else handle
        os.ftruncate(self.handle, size)
        self.bytes: ImageArray = np.frombuffer(mmap.mmap(self.handle, size), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (reduction.DupFd(self.handle), len(self.bytes))

    def __del__(self) -> None:
        os.close(self.handle)


def _attach(handle: Any, size: int) -> _SharedMemory:
    return _SharedMemory(size, handle.detach())


@contextmanager
def _pinned(memory: ImageArray, device: torch.device) -> Iterator[None]:
    """Pin memory for a GPU, which then copies from it without the CPU; with a warning, go on where CUDA refuses."""
    if device.type != "cuda":
        yield
        return
    cuda = torch.cuda.cudart()
    error = int(cuda.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if error:
        logger.warning("batches cannot be pinned (CUDA error %d), so copying them is slower", error)
        with suppress(RuntimeError):
            torch.zeros(1, device=device)  # CUDA reports the error once more, at the next launch
    try:
        yield
    finally:
        if not error:
            cuda.cudaHostUnregister(memory.ctypes.data)


@contextmanager
def _worker_pool(
    collate_fn: CollateFn, shape: Shape, memory: _SharedMemory, workers: int
) -> Iterator[tuple["SimpleQueue[_Task]", Children]]:
    """Workers that take tasks from one queue and send an `_Answer` for each. They end with the block."""
    context = multiprocessing.get_context("forkserver")
    with Children(WORKERS_HINT) as children, closing(context.SimpleQueue()) as tasks:
        for _ in range(workers):
            children.start("a data worker", _work, collate_fn, shape, memory, tasks)
        yield tasks, children


def _work(
    connection: Connection, collate_fn: CollateFn, shape: Shape, memory: _SharedMemory, tasks: "SimpleQueue[_Task]"
) -> None:
    torch.set_num_threads(1)
    buffers = shape.buffers(memory.bytes)
    while True:
        task = tasks.get()
        buffer = buffers[task.batch % len(buffers)].resized(task.size).chunk(task.rows)
        result: tuple[str, ...] | BadInput
        try:
            result = collate_fn(buffer)
        except BadInput as error:
            result = error
        connection.send(_Answer(task.batch, task.rows.start, result))
