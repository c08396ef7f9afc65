"""Prefetch buffers: batches in shared memory, which worker processes fill while the device trains on earlier ones.

A buffer holds one rank's samples of a step. Workers write the samples in place: nothing is allocated, pickled or
collated for a sample. The buffer names the samples that it is to hold, so workers need not know their order.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from resnet_train.data import workers as worker_pool
from resnet_train.data.decoding import ImageArray
from resnet_train.data.rng import Ints
from resnet_train.data.sampler import Samples
from resnet_train.data.shared_memory import SharedMemory
from resnet_train.data.workers import Note
from resnet_train.errors import Stop

logger = logging.getLogger(__name__)

_left_pinned: list[ImageArray] = []


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


CollateFn = Callable[[Buffer, Note], tuple[str, ...]]
"""Writes the samples that a buffer names into it. Returns the names of files that it skipped. Raises `BadInput`."""


def filled_buffers(
    collate_fn: CollateFn,
    requests: Iterable[Request],
    shape: Shape,
    workers: int,
    device: torch.device,
    name: Callable[[int], str] = str,
) -> Generator[tuple[Buffer, tuple[str, ...]]]:
    """A buffer for each request, in order, and the names of skipped files.

    A buffer is overwritten once the next one is taken. On a GPU the memory is pinned: a copy from a buffer must be
    complete before the next one is taken, or the generator closed. `name` gives the file of a sample. Raises what
    `workers.in_order` does.
    """
    memory = SharedMemory(shape.bytes * (worker_pool.BATCHES_AHEAD if workers else 1))
    fill = _FillBuffer(collate_fn, shape, memory)
    rows_of_tasks = worker_pool.rows_of_tasks(shape.samples, workers)
    prepared: deque[Buffer] = deque()

    def tasks() -> Iterator[list[_Task]]:
        for number, request in enumerate(requests):
            number %= len(fill.buffers)
            prepared.append(fill.buffers[number].prepared(request))
            yield [_Task(number, rows, request.size) for rows in rows_of_tasks]

    with (
        _pinned(memory.bytes, device),
        closing(worker_pool.in_order(fill, tasks(), workers, name)) as batches,
    ):
        for skipped in batches:
            yield prepared.popleft(), tuple(chain.from_iterable(skipped))


class _Task(NamedTuple):
    """Rows of a buffer that are to be filled."""

    buffer: int
    rows: slice
    size: int | None


class _FillBuffer:
    """What workers do."""

    def __init__(self, collate_fn: CollateFn, shape: Shape, memory: SharedMemory) -> None:
        self.collate_fn, self.shape, self.memory = collate_fn, shape, memory
        self.buffers = shape.buffers(memory.bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _FillBuffer, (self.collate_fn, self.shape, self.memory)

    def __call__(self, task: _Task, note: Note) -> tuple[str, ...]:
        return self.collate_fn(self.buffers[task.buffer].resized(task.size).chunk(task.rows), note)


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
    is_broken = False
    try:
        yield
    except BaseException as end:
        is_broken = _is_failure(end)
        raise
    finally:
        if is_broken:
            # Unregistering may wait for kernels that run, and one may wait for a lost rank. The process ends next.
            _left_pinned.append(memory)
        elif not error:
            cuda.cudaHostUnregister(memory.ctypes.data)


def _is_failure(end: BaseException | None) -> bool:
    """Whether a generator ends by an error of its own or of its user, which the other ranks need not have."""
    while isinstance(end, GeneratorExit):
        end = end.__context__  # the error in whose course it is closed, if there is one
    return end is not None and not (isinstance(end, Stop) and end.on_all_ranks)
