"""Prefetch buffers: worker processes that fill them, and how these end."""

import multiprocessing
import os
import select
import signal
from collections.abc import Iterator
from contextlib import closing, nullcontext

import numpy as np
import pytest
import torch

from resnet_train.data import prefetch
from resnet_train.data.prefetch import Buffer, Request, Shape
from resnet_train.data.sampler import Samples
from resnet_train.data.workers import Note
from resnet_train.errors import BadInput, Diverged

CPU = torch.device("cpu")
SHAPE = Shape(samples=5, size=3, channels=1)


def write_indices(buffer: Buffer, note: Note) -> tuple[str, ...]:
    """Every pixel is its sample's index; 13 is skipped, 66 is broken, and at 99 the worker is killed."""
    buffer.images[:] = buffer.indices[:, None, None, None]
    buffer.labels[:] = buffer.epochs
    buffer.shift[:] = os.getpid()
    if 66 in buffer.indices:
        raise BadInput("66 is broken")
    if 99 in buffer.indices:
        os.kill(os.getpid(), signal.SIGKILL)
    return tuple("13" for index in buffer.indices if index == 13)


def requests(*firsts: int) -> Iterator[Request]:
    """Five samples from each of `firsts` on."""
    return (Request(Samples(np.full(5, first), np.arange(first, first + 5))) for first in firsts)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_complete_and_in_order(workers: int) -> None:
    firsts = [0, 50, 10, 70, 20, 30]
    for first, (buffer, skipped) in zip(
        firsts, prefetch.filled_buffers(write_indices, requests(*firsts), SHAPE, workers, CPU), strict=True
    ):
        assert np.array_equal(buffer.images[:, 0, 0, 0], np.arange(first, first + 5))
        assert (buffer.images == buffer.images[:, :1, :1]).all()
        assert (buffer.labels == first).all()
        assert skipped == (("13",) if first == 10 else ())
        assert (os.getpid() in buffer.shift) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_smaller_images_use_the_same_memory(workers: int) -> None:
    sizes, firsts = [1, 3, 2, 2, 1, 3], [0, 10, 20, 30, 40, 50]
    resized = (request._replace(size=size) for request, size in zip(requests(*firsts), sizes, strict=True))
    filled = prefetch.filled_buffers(write_indices, resized, SHAPE, workers, CPU)
    for first, size, (buffer, _) in zip(firsts, sizes, filled, strict=True):
        assert buffer.images.shape == (5, size, size, 1)
        assert buffer.images.flags.c_contiguous
        assert (buffer.images == np.arange(first, first + 5)[:, None, None, None]).all()
        assert (buffer.labels == first).all()


def test_a_buffer_is_not_overwritten_before_the_next_is_taken() -> None:
    batches = prefetch.filled_buffers(write_indices, requests(*range(0, 200, 5)), SHAPE, 2, CPU)
    for number, (buffer, _) in enumerate(batches):
        before = buffer.images.copy()
        assert (before.ravel()[0], len(multiprocessing.active_children())) == (5 * number, 2)
        if number == 4:
            break
    batches.close()
    assert np.array_equal(buffer.images, before)
    assert not multiprocessing.active_children()


def slow_at_zero(buffer: Buffer, note: Note) -> tuple[str, ...]:
    names = tuple(map(str, buffer.indices))
    if 0 in buffer.indices:
        select.select([], [], [], 0.3)
    return names


def test_skipped_files_are_named_in_the_order_of_samples() -> None:
    [(_, skipped)] = prefetch.filled_buffers(slow_at_zero, requests(0), SHAPE, 2, CPU)
    assert skipped == ("0", "1", "2", "3", "4")


def test_a_bad_image_raises_at_its_batch() -> None:
    batches = prefetch.filled_buffers(write_indices, requests(0, 5, 66), SHAPE, 2, CPU)
    assert [buffer.images[0, 0, 0, 0] for buffer, _ in (next(batches), next(batches))] == [0, 5]
    with pytest.raises(BadInput, match="66 is broken"):
        next(batches)
    assert not multiprocessing.active_children()


def test_a_killed_worker_raises_and_nothing_hangs() -> None:
    with pytest.raises(BadInput, match=r"killed by SIGKILL, .* lower data.workers"):
        list(prefetch.filled_buffers(write_indices, requests(0, 99), SHAPE, 2, CPU))
    assert not multiprocessing.active_children()


def test_arrays_of_a_buffer_are_aligned_and_do_not_overlap() -> None:
    one, other = Shape(3, 5, 3).buffers(np.zeros(2 * Shape(3, 5, 3).bytes, np.uint8))
    for number, array in enumerate(one, 1):
        assert array.flags.aligned
        array[:] = number
    assert [np.unique(array).tolist() for array in one] == [[number] for number in range(1, 6)]
    assert not any(array.any() for array in other)
    assert one.images.shape == (3, 5, 5, 3)


class Cuda:
    """CUDA's calls that pin memory."""

    def __init__(self) -> None:
        self.pinned = 0

    def cudaHostRegister(self, *_: int) -> int:  # noqa: N802
        self.pinned += 1
        return 0

    def cudaHostUnregister(self, _: int) -> int:  # noqa: N802
        self.pinned -= 1
        return 0


@pytest.mark.parametrize(
    ("error", "left"),
    [(None, 0), (BadInput("of this rank"), 1), (Diverged("on all ranks"), 0), (RuntimeError("NCCL"), 1)],
    ids=lambda value: str(value),
)
def test_beside_a_stuck_kernel_memory_stays_pinned(
    error: Exception | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unregistering may wait for it, and the rank would never leave."""
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    batches = prefetch.filled_buffers(write_indices, requests(0, 5, 10), SHAPE, 0, torch.device("cuda"))

    def train() -> Iterator[Buffer]:
        with closing(batches):
            for buffer, _ in batches:
                yield buffer

    with pytest.raises(type(error)) if error else nullcontext(), closing(train()) as steps:
        for number, _ in enumerate(steps):
            assert cuda.pinned == 1
            if number == 1 and error is not None:
                raise error
            if number == 1:
                break
    assert cuda.pinned == left
