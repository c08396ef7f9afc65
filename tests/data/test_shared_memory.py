"""Memory that processes share: objects in slots of any size, in a file that is not much longer than what is in it."""

import os
import resource
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from resnet_train.data.shared_memory import Slots


def rows(size: int, value: int) -> dict[str, Any]:
    return {"pixels": np.full(size, value, np.uint8), "labels": np.arange(value), "names": ("a", value)}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture
def largest_file() -> Iterator[int]:
    """The limit of `ulimit -f`, in bytes, while a test runs."""
    size, before = 16 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield size
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_slots_lie_close_together(largest_file: int) -> None:
    """A limit of file sizes holds for memory, too."""
    slots, used = Slots(12), 12 * (300 << 10)
    for slot in range(12):
        slots.write(slot, rows(300 << 10, slot))
    assert used < os.fstat(slots.handle).st_size < 4 * used + (1 << 20) < largest_file


def test_slots_grow_and_do_not_touch_each_other() -> None:
    """Sizes around powers of two and pages, in any order; another process reads, so it maps the file anew."""
    sizes = np.random.default_rng(0).choice([0, 1, 4095, 4096, 4097, 65536, 65537, 100_000, 131_072, 300_000], (40, 5))
    slots = Slots(5)
    reader = Slots(5, os.dup(slots.handle))
    for number, row in enumerate(sizes.tolist()):
        written = [rows(size, number + slot) for slot, size in enumerate(row)]
        parcels = [slots.write(slot, value) for slot, value in enumerate(written)]
        for parcel, value in zip(parcels, written, strict=True):
            assert_same(reader.read(parcel), value)
    assert_same(reader.read(slots.write(4, {})), {})


def test_workers_of_one_slot_write_where_the_reader_reads() -> None:
    """Whatever each process has mapped before: a small object of one worker after a large one of another."""
    reader = Slots(1)
    first, second = (Slots(1, handle=os.dup(reader.handle)) for _ in range(2))
    for writer, size, value in ((first, 20_000, 1), (second, 3_000, 2), (first, 3_000, 3), (second, 20_000, 4)):
        assert_same(reader.read(writer.write(0, rows(size, value))), rows(size, value))
