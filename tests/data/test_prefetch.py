"""The ring of batches: worker processes that fill it, and their end."""

import multiprocessing
import os
import select
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from resnet_train.data import eval_workers, prefetch
from resnet_train.data.prefetch import Buffer, Shape
from resnet_train.data.sampler import Samples
from resnet_train.errors import BadInput

CPU = torch.device("cpu")
SHAPE = Shape(samples=5, size=3, channels=1)


def write(slot: Buffer) -> tuple[str, ...]:
    """Every pixel is its sample's index; 13 is missing, 66 is broken, and at 99 the worker is killed."""
    slot.images[:] = slot.indices[:, None, None, None]
    slot.labels[:] = slot.epochs
    slot.shift[:] = os.getpid()
    if 66 in slot.indices:
        raise BadInput("66 is broken")
    if 99 in slot.indices:
        os.kill(os.getpid(), signal.SIGKILL)
    return tuple("13" for index in slot.indices if index == 13)


def wanted(*firsts: int) -> Iterator[Samples]:
    return (Samples(np.full(5, first), np.arange(first, first + 5)) for first in firsts)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_whole_and_in_order(workers: int) -> None:
    firsts = [0, 50, 10, 70, 20, 30]
    for first, (slot, skipped) in zip(firsts, prefetch.fill(write, wanted(*firsts), SHAPE, workers, CPU), strict=True):
        assert np.array_equal(slot.images[:, 0, 0, 0], np.arange(first, first + 5))
        assert (slot.images == slot.images[:, :1, :1]).all()
        assert (slot.labels == first).all()
        assert skipped == (("13",) if first == 10 else ())
        assert (os.getpid() in slot.shift) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_smaller_images_lie_in_the_same_memory(workers: int) -> None:
    sizes, firsts = [1, 3, 2, 2, 1, 3], [0, 10, 20, 30, 40, 50]
    filled = prefetch.fill(write, wanted(*firsts), SHAPE, workers, CPU, sizes.__getitem__)
    for first, size, (slot, _) in zip(firsts, sizes, filled, strict=True):
        assert slot.images.shape == (5, size, size, 1)
        assert slot.images.flags.c_contiguous
        assert (slot.images == np.arange(first, first + 5)[:, None, None, None]).all()
        assert (slot.labels == first).all()


def test_a_slot_stays_as_it_is_until_the_next_is_asked_for() -> None:
    batches = prefetch.fill(write, wanted(*range(0, 200, 5)), SHAPE, 2, CPU)
    for number, (slot, _) in enumerate(batches):
        before = slot.images.copy()
        assert (before.ravel()[0], len(multiprocessing.active_children())) == (5 * number, 2)
        if number == 4:
            break
    batches.close()
    assert np.array_equal(slot.images, before)
    assert not multiprocessing.active_children()


def first_is_slowest(slot: Buffer) -> tuple[str, ...]:
    names = tuple(map(str, slot.indices))
    if 0 in slot.indices:
        select.select([], [], [], 0.3)
    return names


def test_skipped_files_are_told_in_their_order() -> None:
    [(_, skipped)] = prefetch.fill(first_is_slowest, wanted(0), SHAPE, 2, CPU)
    assert skipped == ("0", "1", "2", "3", "4")


def test_a_bad_image_is_told_at_its_batch() -> None:
    batches = prefetch.fill(write, wanted(0, 5, 66), SHAPE, 2, CPU)
    assert [slot.images[0, 0, 0, 0] for slot, _ in (next(batches), next(batches))] == [0, 5]
    with pytest.raises(BadInput, match="66 is broken"):
        next(batches)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_told_and_nothing_hangs() -> None:
    with pytest.raises(BadInput, match=r"killed by SIGKILL, .* lower data.workers"):
        list(prefetch.fill(write, wanted(0, 99), SHAPE, 2, CPU))
    assert not multiprocessing.active_children()


def test_arrays_of_a_slot_are_aligned_and_their_own() -> None:
    one, other = Shape(3, 5, 3).slots(np.zeros(2 * Shape(3, 5, 3).bytes, np.uint8))
    for number, array in enumerate(one, 1):
        assert array.flags.aligned
        array[:] = number
    assert [np.unique(array).tolist() for array in one] == [[number] for number in range(1, 6)]
    assert not any(array.any() for array in other)
    assert one.images.shape == (3, 5, 5, 3)


class KilledAt(torch.utils.data.Dataset[torch.Tensor]):
    """The worker that makes item 3 is killed."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(index)


def test_a_killed_worker_of_an_evaluation_is_told() -> None:
    with pytest.raises(BadInput, match=r"a data worker was killed by SIGKILL, .* lower data.workers"):
        list(eval_workers.load_batches(KilledAt(), range(6), 2, CPU))
    assert not multiprocessing.active_children()
