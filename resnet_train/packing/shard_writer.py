"""Write one shard: the whole or nothing, then a record of its samples, which says that it is finished."""

import errno
import functools
import json
import tarfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from resnet_train.data.shard_index import BLOCK, ENTRY, Size, Text, read_json
from resnet_train.errors import BadInput, exhausted
from resnet_train.packing.encode import PackOptions, encode_image
from resnet_train.packing.manifest import Manifest
from resnet_train.runtime.atomic import atomic_write, atomic_write_text
from resnet_train.runtime.processes import Count

CONTINUE_HINT = "finished shards are kept: run the same command again to continue"
_COUNT_EVERY = 32
"""Samples between two reports of progress."""
_COLUMNS = ("offset", "label", "length", "width", "height", "crc32", "form")
"""Fields of ENTRY in the order of a row of `ShardRecord.entries`."""

Entries = npt.NDArray[np.void]
"""[n] of ENTRY."""
_Row = Annotated[list[Size], Field(min_length=1 + len(_COLUMNS), max_length=1 + len(_COLUMNS))]


@dataclass(frozen=True)
class ShardJob:
    """A shard to be written."""

    path: Path
    record_path: Path
    manifest: Manifest
    """The samples of this shard."""
    first_row: int
    """The row of the first of them in the manifest of the split."""
    options: PackOptions
    skip_bad: bool
    """Leave out images that cannot be decoded."""
    expected_entries: Entries | None = None
    """What the index lists for this shard, if the shard is written again. It must come out the same."""


@dataclass
class ShardRecord:
    """What a shard contains. Stored as JSON while the packing is unfinished."""

    entries: list[_Row] = field(default_factory=list)
    """For each image: its row in the manifest of the split, then _COLUMNS."""
    odd: list[tuple[Text, Text]] = field(default_factory=list)
    """Name of an image, and what is unusual about it."""
    bad: list[tuple[Text, Text]] = field(default_factory=list)
    """Name of an image that was left out, and why."""
    source_bytes: Size = 0
    """The size of the images that were read."""
    size: Size = 0
    """The size of the shard in bytes."""

    @staticmethod
    def read(path: Path) -> "ShardRecord":
        """Raises BadInput if the file cannot be read, ValueError if it is damaged."""
        stored = _stored_record().validate_python(read_json(path))
        if stored.crc32 != _checksum(stored.record):
            raise ValueError(f"the checksum of {path} is wrong")
        return stored.record

    def write(self, path: Path) -> None:
        """Write a file that appears complete or not at all. Raises OSError."""
        atomic_write_text(path, json.dumps(asdict(_StoredRecord(self, _checksum(self)))), unique=True)


@dataclass(frozen=True)
class _StoredRecord:
    record: ShardRecord
    crc32: int


def _checksum(record: ShardRecord) -> int:
    return zlib.crc32(json.dumps(asdict(record)).encode())


@functools.cache
def _stored_record() -> TypeAdapter[_StoredRecord]:
    return TypeAdapter(_StoredRecord)


def write_shard(job: ShardJob, count: Count) -> ShardRecord:
    """Write a shard and its record. `count` is called with the number of samples that are done since the last call.

    Raises BadInput if an image cannot be decoded and may not be skipped, if the shard cannot be written, or if it is
    not the one that the index lists; OSError if memory or open files ran out.
    """
    try:
        # A process that hangs at a disk may outlive its command. It must not touch the file that the next one writes.
        with atomic_write(job.path, unique=True) as file:
            record = _write_samples(file, job, count)
            if job.expected_entries is not None:
                _check_entries(job, job.expected_entries, record)
            file.write(bytes(2 * BLOCK))
            record.size = file.tell()
        record.write(job.record_path)
    except OSError as error:
        if exhausted(error) and error.errno != errno.EFBIG:  # perhaps while an image was read
            raise
        raise BadInput(f"cannot write {job.path}: {error.strerror or error}; {CONTINUE_HINT}") from None
    return record


def index_entries(record: ShardRecord, shard: int) -> Entries:
    """The entries of a shard as the index stores them, [n] of ENTRY."""
    entries = np.zeros(len(record.entries), ENTRY)
    columns = np.array(record.entries, np.int64).reshape(-1, 1 + len(_COLUMNS)).T[1:]
    for name, column in zip(_COLUMNS, columns, strict=True):
        entries[name] = column
    entries["shard"] = shard
    return entries


def _check_entries(job: ShardJob, expected: Entries, record: ShardRecord) -> None:
    """Raises BadInput if a shard that is written again is not the one that was lost."""
    entries = index_entries(record, int(job.path.stem))
    if np.array_equal(entries, expected):
        return
    reason = f"it would have {len(entries)} images, and had {len(expected)}"
    for (row, *_), entry, expected_entry in zip(record.entries, entries, expected, strict=False):
        if entry != expected_entry:
            location = job.manifest.location(row - job.first_row)
            reason = f"{location} has changed, or the program that encodes it (jpegtran, Pillow) has"
            break
    raise BadInput(f"cannot write {job.path} again: {reason}; restore it, or pack into another folder")


def _write_samples(file: BinaryIO, job: ShardJob, count: Count) -> ShardRecord:
    record = ShardRecord()
    raw_rows = _choose_raw_rows(job)
    uncounted = 0
    for row in range(len(job.manifest)):
        try:
            _write_sample(file, job, row, row in raw_rows, record)
        except BadInput as error:
            if not job.skip_bad:
                hints = [job.manifest.hint, "leave it out with --on-bad-image skip"]
                raise BadInput(f"{error}; {', or '.join(filter(None, hints))}; {CONTINUE_HINT}") from None
            record.bad.append((job.manifest.name(row), str(error)))
        uncounted += 1
        if uncounted == _COUNT_EVERY:
            count(uncounted)
            uncounted = 0
    count(uncounted)
    return record


def _write_sample(file: BinaryIO, job: ShardJob, row: int, raw: bool, record: ShardRecord) -> None:
    """Append an image and its label to the shard and to its record. Raises BadInput if the image is unreadable."""
    name, label = job.manifest.name(row), int(job.manifest.labels[row])
    data = job.manifest.read(row)
    image = encode_image(data, name, job.manifest.location(row), job.options, raw)
    key = member_key(name)
    offset = _append_member(file, f"{key}.{image.suffix}", image.data)
    _append_member(file, f"{key}.cls", str(label).encode())
    checksum = zlib.crc32(image.data)
    columns = offset, label, len(image.data), image.width, image.height, checksum, image.form
    record.entries.append([job.first_row + row, *columns])
    record.odd += [(name, what) for what in image.odd]
    record.source_bytes += len(data)


def _choose_raw_rows(job: ShardJob) -> set[int]:
    """The rows that are stored as raw pixels: the largest files."""

    def size(row: int) -> int:
        try:
            return job.manifest.size(row)
        except BadInput:  # reported when the image is packed
            return 0

    count = round(job.options.raw_fraction * len(job.manifest))
    if not count:
        return set()
    return set(sorted(range(len(job.manifest)), key=size, reverse=True)[:count])


def member_key(name: str) -> str:
    """CLASS/FILE -> the key of a sample in a shard. WebDataset ends a key at a dot, so dots in it become %2E."""
    folder, _, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    return f"{folder}/{stem.replace('%', '%25').replace('.', '%2E')}"


def _append_member(file: BinaryIO, name: str, data: bytes) -> int:
    """Append a member to a tar file. Returns where its content begins, in bytes."""
    header = tarfile.TarInfo(name)  # without owner and date, so that the same samples make the same shard
    header.size = len(data)
    file.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    offset = file.tell()
    file.write(data + bytes(-len(data) % BLOCK))
    return offset
