"""Memory that processes share. It is anonymous, so it needs no /dev/shm, which is small or read-only in a container.

macOS has no anonymous memory with a handle; there it is a temporary file without a name, which the kernel caches.
"""

import mmap
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np

from resnet_train.data.decoding import ImageArray

_ALIGNMENT = 64
_SMALLEST_ROOM = mmap.ALLOCATIONGRANULARITY


class _SharedFile:
    """An anonymous file in memory. It is freed with the last process that has it."""

    def __init__(self, handle: int | None = None) -> None:
        self.handle = _anonymous_file() if handle is None else handle

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (type(self), reduction.DupFd(self.handle), *self._arguments())

    def _arguments(self) -> tuple[int, ...]:
        """Of the constructor, without the handle."""
        return ()

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("batches")
    handle, name = tempfile.mkstemp()
    os.unlink(name)  # noqa: PTH108
    return handle


def _allocate(handle: int, offset: int, size: int) -> None:
    """Lengthen a file, so that all of it can be mapped; where the system can, raise `OSError` if there is no memory."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, offset, size)
    elif os.fstat(handle).st_size < offset + size:
        os.pwrite(handle, b"\0", offset + size - 1)  # never shorter, as another process may lengthen it


def _attach(kind: Callable[..., _SharedFile], handle: Any, *arguments: int) -> _SharedFile:
    return kind(*arguments, handle=handle.detach())


class SharedMemory(_SharedFile):
    """Memory of a fixed size, zero at first: `bytes`, uint8 [size]."""

    def __init__(self, size: int, handle: int | None = None) -> None:
        super().__init__(handle)
        os.ftruncate(self.handle, size)
        self.bytes: ImageArray = np.frombuffer(mmap.mmap(self.handle, size), np.uint8)

    def _arguments(self) -> tuple[int, ...]:
        return (len(self.bytes),)


class Parcel(NamedTuple):
    """An object whose arrays lie in a slot."""

    slot: int
    pickled: bytes
    """The object without its arrays."""
    ends: tuple[int, ...]
    """Where each array ends, in bytes from the beginning of the slot."""


class Slots(_SharedFile):
    """Places where workers leave objects with NumPy arrays of any size for the process that started them.

    Each process keeps what it has mapped: writing to new pages would take longer than copying.

    The file is of areas, each with room for every slot, and each of twice the room of the one before. So where a slot
    of a size lies needs no agreement, and the file is at most about four times as long as what is in it, as a limit of
    file sizes asks for. Only pages that were written take memory.
    """

    def __init__(self, count: int, handle: int | None = None) -> None:
        super().__init__(handle)
        self.count = count
        self._mapped: dict[tuple[int, int], ImageArray] = {}

    def _arguments(self) -> tuple[int, ...]:
        return (self.count,)

    def write(self, slot: int, value: object) -> Parcel:
        """Overwrite a slot."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        ends, end = list[int](), 0
        for part in parts:
            end = _aligned(end) + len(part)
            ends.append(end)
        memory = self._memory(slot, end)
        for part, end in zip(parts, ends, strict=True):
            memory[end - len(part) : end] = part
        return Parcel(slot, pickled, tuple(ends))

    def read(self, parcel: Parcel) -> Any:
        """The object. Its arrays are valid until its slot is overwritten."""
        slot, pickled, ends = parcel
        memory = self._memory(slot, ends[-1] if ends else 0)
        begins = (0, *map(_aligned, ends[:-1]))
        return pickle.loads(pickled, buffers=[memory[begin:end] for begin, end in zip(begins, ends, strict=False)])

    def _memory(self, slot: int, size: int) -> ImageArray:
        """At least `size` bytes of a slot."""
        # The area follows from the size alone: another process may have mapped this slot in a larger area, or in none.
        room = max(_SMALLEST_ROOM, 1 << max(size - 1, 0).bit_length())
        memory = self._mapped.get((slot, room), np.empty(0, np.uint8))
        if len(memory) < size:
            size = min(size + size // 8, room)  # since the next ones may be somewhat larger
            offset = self.count * (room - _SMALLEST_ROOM) + slot * room
            _allocate(self.handle, offset, size)
            memory = self._mapped[slot, room] = np.frombuffer(mmap.mmap(self.handle, size, offset=offset), np.uint8)
        return memory


def _aligned(offset: int) -> int:
    """The next multiple of a cache line: words are aligned."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
