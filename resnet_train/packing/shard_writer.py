"""One shard: written whole or not at all, with a record of what is in it that says it is finished."""

import json
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resnet_train.data.shards import BLOCK, ENTRY
from resnet_train.errors import BadInput
from resnet_train.packing.encode import Options, keep
from resnet_train.packing.manifest import Listing
from resnet_train.runtime.atomic import atomic_write, atomic_write_text
from resnet_train.runtime.processes import Count

KEPT = "finished shards are kept: run the same command again to go on"
_TOLD = 32
"""Samples after which progress is told."""


@dataclass(frozen=True)
class Job:
    """Which samples go into a shard, and where that lies."""

    path: Path
    record: Path
    listing: Listing
    first: int
    """Row of the first one in the whole list."""
    options: Options
    skip_bad: bool
    wanted: np.ndarray | None = None
    """[n] of ENTRY: what an index says of the shard, if it is made a second time; else None."""


def pack(job: Job, count: Count) -> dict[str, Any]:
    """Write a shard and its record; the record. Raises `BadInput`.

    Its `entries` are [row, offset, label, length, width, height, crc32, form].
    """
    try:
        with atomic_write(job.path) as file:
            record = _fill(file, job, count)
            if job.wanted is not None:
                _compare(job, record["entries"])
            file.write(bytes(2 * BLOCK))
            record["size"] = file.tell()
        atomic_write_text(job.record, json.dumps(record))
    except OSError as error:
        raise BadInput(f"cannot write {job.path}: {error.strerror}; {KEPT}") from None
    return record


def indexed(entries: list[list[int]], shard: int) -> np.ndarray:
    """The entries of a record as an index has them, [n] of ENTRY."""
    made = np.zeros(len(entries), ENTRY)
    columns = np.array(entries, np.int64).reshape(-1, 8).T[1:]
    for name, column in zip(("offset", "label", "length", "width", "height", "crc32", "form"), columns, strict=True):
        made[name] = column
    made["shard"] = shard
    return made


def _compare(job: Job, entries: list[list[int]]) -> None:
    """Refuse a shard that is not the one that was lost. Raises `BadInput`."""
    assert job.wanted is not None
    found = indexed(entries, int(job.path.stem))
    if np.array_equal(found, job.wanted):
        return
    pairs = zip(entries, found, job.wanted, strict=False)
    changed = next((entry[0] - job.first for entry, one, other in pairs if one != other), None)
    said = f"it would have {len(found)} images, and had {len(job.wanted)}"
    if changed is not None:
        said = f"{job.listing.where(changed)} or what stores it (jpegtran, Pillow) is not what it was"
    raise BadInput(f"cannot make {job.path} again: {said}; put that back, or pack into another folder")


def _fill(file: BinaryIO, job: Job, count: Count) -> dict[str, Any]:
    entries, odd, bad, read = [], [], [], 0
    raw = _raw(job)
    for row in range(len(job.listing)):
        name, label = job.listing.name(row), int(job.listing.labels[row])
        if row % _TOLD == 0 and row:
            count(_TOLD)
        try:
            data = job.listing.read(row)
            kept = keep(data, name, job.listing.where(row), job.options, row in raw)
        except BadInput as error:
            if not job.skip_bad:
                raise BadInput(f"{error}; {job.listing.cure}--on-bad-image skip leaves it out; {KEPT}") from None
            bad.append([name, str(error)])
            continue
        read += len(data)
        odd += [[name, what] for what in kept.odd]
        key = member(name)
        offset = _add(file, f"{key}.{kept.suffix}", kept.data)
        _add(file, f"{key}.cls", str(label).encode())
        about = [len(kept.data), kept.width, kept.height, zlib.crc32(kept.data), kept.form]
        entries.append([job.first + row, offset, label, *about])
    count(len(job.listing) - max(len(job.listing) - 1, 0) // _TOLD * _TOLD)
    return {"entries": entries, "odd": odd, "bad": bad, "source_bytes": read}


def _raw(job: Job) -> set[int]:
    """The rows that become bare pixels."""

    def size(row: int) -> int:
        try:
            return job.listing.size(row)
        except BadInput:  # which is told when it is packed
            return 0

    count = round(job.options.raw_fraction * len(job.listing))
    return set(sorted(range(len(job.listing)), key=size, reverse=True)[:count]) if count else set()


def member(name: str) -> str:
    """The key of a sample in a tar file. To WebDataset a dot ends the key, so a name's dots are written as %2E."""
    folder, _, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    return f"{folder}/{stem.replace('%', '%25').replace('.', '%2E')}"


def _add(file: BinaryIO, name: str, data: bytes) -> int:
    """Append a member; where its data begin."""
    about = tarfile.TarInfo(name)  # of no owner and no date: the same samples make the same shard
    about.size = len(data)
    file.write(about.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    offset = file.tell()
    file.write(data + bytes(-len(data) % BLOCK))
    return offset
