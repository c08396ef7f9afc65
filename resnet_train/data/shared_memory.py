"""Memory that processes share. It is anonymous, so it needs no /dev/shm, which is small or read-only in a container."""

import mmap
import os
import pickle
from collections.abc import Callable
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np

from resnet_train.data.decoding import ImageArray

_SLOT_BYTES = 1 << 40
"""The distance between slots: more than a result can take. Only pages that were written take memory."""
_ALIGNMENT = 64


class _SharedFile:
    """An anonymous file in memory. It is freed with the last process that has it."""

    def __init__(self, handle: int | None = None) -> None:
        self.handle = os.memfd_create("batches") if handle is None else handle

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (type(self), reduction.DupFd(self.handle), *self._arguments())

    def _arguments(self) -> tuple[int, ...]:
        """Of the constructor, without the handle."""
        return ()

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


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
    """Places where workers leave objects with NumPy arrays of any size for the process that started them."""

    def write(self, slot: int, value: object) -> Parcel:
        """Overwrite a slot."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        ends, end = list[int](), 0
        for buffer in buffers:
            data = buffer.raw()
            begin = _aligned(end)
            end = begin + len(data)
            ends.append(end)
            while data:  # the kernel writes 2 GB at a time
                data = data[os.pwrite(self.handle, data, slot * _SLOT_BYTES + end - len(data)) :]
        return Parcel(slot, pickled, tuple(ends))

    def read(self, parcel: Parcel) -> Any:
        """The object. Its arrays are valid until its slot is overwritten."""
        slot, pickled, ends = parcel
        if not ends:
            return pickle.loads(pickled)
        memory = np.frombuffer(mmap.mmap(self.handle, ends[-1], offset=slot * _SLOT_BYTES), np.uint8)
        begins = (0, *map(_aligned, ends[:-1]))
        return pickle.loads(pickled, buffers=[memory[begin:end] for begin, end in zip(begins, ends, strict=True)])


def _aligned(offset: int) -> int:
    """The next multiple of a cache line: words are aligned."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
