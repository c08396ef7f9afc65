"""Pack a data set of any format that `formats.py` reads into shards and their index.

While it runs, DEST/unfinished/ holds the plan, which is all that decides the shards, and a record of each finished one.
A run with the same plan continues from there. index.json is written last: it says that the packing is complete.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.data import shard_index, shards
from resnet_train.data.image_folder import VAL_FOLDERS
from resnet_train.data.shard_index import FORMAT, INDEX, PLAN, Index
from resnet_train.errors import BadInput
from resnet_train.packing.encode import PackOptions
from resnet_train.packing.formats import SourceDataset, open_source
from resnet_train.packing.jpeg_restart import check_jpegtran
from resnet_train.packing.manifest import Manifest
from resnet_train.packing.report import PackReport, SplitReport
from resnet_train.packing.shard_writer import (
    CONTINUE_HINT,
    Entries,
    ShardJob,
    ShardRecord,
    index_entries,
    member_key,
    write_shard,
)
from resnet_train.runtime.atomic import atomic_write, atomic_write_text, temporary_path
from resnet_train.runtime.file_lock import locked
from resnet_train.runtime.processes import run_jobs
from resnet_train.runtime.progress import Progress
from resnet_train.runtime.regular_file import exists

Plan = dict[str, Any]


def prepare(
    path: Path,
    dest: Path,
    options: PackOptions,
    shard_images: int,
    workers: int,
    skip_bad: bool,
    val_labels: Path | None = None,
    class_names: Path | None = None,
) -> PackReport:
    """Pack the data set in the folder `path` into shards of `shard_images` images in the folder `dest`.

    An unfinished packing in `dest` is continued. Of a finished one, shards that are missing or of the wrong size are
    written again. skip_bad: leave out images that cannot be decoded. val_labels, class_names: see `open_source`.
    Raises BadInput, and KeyboardInterrupt with a message that says what is kept.
    """
    _check_destination(path, dest)
    try:
        source = open_source(path, val_labels, class_names)
        for split, manifest in source.manifests.items():
            _check_names(split, manifest)
        plan = _make_plan(source, options, shard_images)
        jobs = {
            split: _make_jobs(dest / split, manifest, options, shard_images, skip_bad)
            for split, manifest in source.manifests.items()
        }
        if os.access(dest / INDEX, os.F_OK):
            return _repair(dest, plan, jobs, options, workers)
        return _pack(source, dest, plan, jobs, options, workers)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {_continue_hint(dest) or 'run the same command again'}") from None


def _pack(
    source: SourceDataset, dest: Path, plan: Plan, jobs: dict[str, list[ShardJob]], options: PackOptions, workers: int
) -> PackReport:
    if options.tiled:
        check_jpegtran()
    with _lock_destination(dest, plan):
        _write_shards([job for split_jobs in jobs.values() for job in split_jobs], workers)
        return _write_index(source, dest, plan, jobs, options)


def _repair(dest: Path, plan: Plan, jobs: dict[str, list[ShardJob]], options: PackOptions, workers: int) -> PackReport:
    """Write the shards of a finished packing again that are missing or of the wrong size."""
    index = shard_index.read_index(dest)
    _check_same_plan(index.plan, plan, dest)
    try:
        report = PackReport.from_json(index.report.model_dump())
    except ValueError:
        raise BadInput(f"{dest / INDEX} is damaged{shard_index.DELETE_HINT}") from None
    damaged = [job for split in jobs for job in _damaged_jobs(dest, split, index, jobs[split])]
    if damaged and options.tiled:
        check_jpegtran()
    if damaged or os.access((dest / PLAN).parent, os.F_OK):  # killed while it removed that folder
        with _lock_destination(dest, plan):
            _write_shards(damaged, workers)
    return replace(report, packed_again=tuple(f"{job.path.parent.name}/{job.path.name}" for job in damaged))


def _check_destination(path: Path, dest: Path) -> None:
    """Refuse a destination within a split of the source, where it would be a class or an image of the next run."""
    for split in ("train", *VAL_FOLDERS):
        if Path(os.path.realpath(dest)).is_relative_to(os.path.realpath(path / split)):
            raise BadInput(f"{dest} lies in {path / split}, which holds images of the source: give another folder")


def _check_names(split: str, manifest: Manifest) -> None:
    """Refuse names that lead outside of a tar file, and two samples of the same name."""
    keys = []
    for row in range(len(manifest)):
        name = manifest.name(row)
        if name.startswith("/") or "\0" in name or {"", ".", ".."} & set(name.split("/")):
            raise BadInput(f"{split}: an image is named {name}, which leads outside of the shard: refused")
        keys.append(os.fsencode(member_key(name)))
    order = np.argsort(np.array(keys, np.bytes_), kind="stable").tolist()
    for row, next_row in pairwise(order):
        if keys[row] == keys[next_row]:
            one, other = manifest.name(row), manifest.name(next_row)
            raise BadInput(f"{split}: {one} and {other} would have the same name in a shard: rename one")


# --- the plan ---------------------------------------------------------------------------------------------------------


def _make_plan(source: SourceDataset, options: PackOptions, shard_images: int) -> Plan:
    """Everything that decides the shards."""
    classes = json.dumps([source.classes, source.class_names])
    return {
        "--tiled": options.tiled,
        "--short-side": options.short_side,
        "--square": options.square,
        "--raw-fraction": options.raw_fraction,
        "--shard-images": shard_images,
        "the source's images": {split: manifest.digest()[:16] for split, manifest in source.manifests.items()},
        "the source's classes": hashlib.sha256(classes.encode()).hexdigest()[:16],
    }


def _check_same_plan(earlier: Any, plan: Plan, dest: Path) -> None:
    if not isinstance(earlier, dict):
        raise BadInput(f"{dest / PLAN} is damaged: delete {dest}, and run the same command again")
    for key, value in plan.items():
        if earlier.get(key) == value:
            continue
        if key.startswith("--"):
            raise BadInput(
                f"{dest} was packed with {key} = {earlier.get(key)}, not {value}: use that value, or another folder"
            )
        raise BadInput(f"{dest} was packed from another source ({key} differ): give another folder")


@contextmanager
def _lock_destination(dest: Path, plan: Plan) -> Iterator[None]:
    """Write the plan and keep other processes out while the block packs; then remove the plan and the records.

    Raises BadInput if `dest` is in use, has another plan, is a folder of something else, or cannot be written.
    """
    path, lock = dest / PLAN, (dest / PLAN).with_name("lock")
    try:
        if not exists(path) and not exists(dest / INDEX) and not _holds_nothing(dest):
            raise BadInput(f"{dest} is not empty, and holds no unfinished packing: give another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, f"another resnet-train prepare is at work on {dest}"):
            if exists(path):
                _check_same_plan(shard_index.read_json(path), plan, dest)
            else:
                atomic_write_text(path, json.dumps(plan))
            yield
            shutil.rmtree(path.parent)
    except OSError as error:
        hint = _continue_hint(dest)
        raise BadInput(f"cannot write {dest}: {error.strerror or error}{f'; {hint}' if hint else ''}") from None


def _holds_nothing(dest: Path) -> bool:
    """Whether a folder is new or empty, but for what a packing leaves that is killed before it has written its plan."""
    path = dest / PLAN
    left = [*dest.iterdir()] if exists(dest) else []
    if left == [path.parent] and path.parent.is_dir():
        left = [*path.parent.iterdir()]
    return {file.name for file in left} <= {"lock", temporary_path(path).name}


def _continue_hint(dest: Path) -> str:
    return CONTINUE_HINT if os.access(dest / PLAN, os.F_OK) else ""


# --- shards -----------------------------------------------------------------------------------------------------------


def _make_jobs(
    folder: Path, manifest: Manifest, options: PackOptions, shard_images: int, skip_bad: bool
) -> list[ShardJob]:
    """The jobs of a split."""
    jobs = []
    for number, first_row in enumerate(range(0, len(manifest), shard_images)):
        record_path = (folder.parent / PLAN).with_name(f"{folder.name}-{number:06}.json")
        subset = manifest.subset(slice(first_row, first_row + shard_images))
        jobs.append(ShardJob(folder / f"{number:06}.tar", record_path, subset, first_row, options, skip_bad))
    return jobs


def _damaged_jobs(dest: Path, split: str, index: Index, jobs: Sequence[ShardJob]) -> Iterator[ShardJob]:
    """The jobs of shards that are missing or of the wrong size, with the entries that they must have."""
    entries = shards.open_shards_unchecked(dest, split, index).entries
    damaged = shards.damaged_shards(dest, split, index)
    for number, job in enumerate(jobs):
        if job.path.name in damaged:
            expected = entries[entries["shard"] == number]
            yield replace(job, expected_entries=expected[np.argsort(expected["offset"])])


def _write_shards(jobs: Sequence[ShardJob], workers: int) -> None:
    """Write the shards that are not finished."""
    pending = [job for job in jobs if _read_record(job) is None]
    total = sum(len(job.manifest) for job in jobs)
    done = total - sum(len(job.manifest) for job in pending)
    for folder in {job.path.parent for job in jobs}:
        folder.mkdir(exist_ok=True)
    _remove_temporary_files(jobs)
    try:
        with Progress("packing", total, "img", initial=done) as bar:
            for _ in run_jobs(write_shard, pending, workers, bar.update, f"use fewer --workers; {CONTINUE_HINT}"):
                pass
    finally:
        _remove_temporary_files(jobs)


def _remove_temporary_files(jobs: Sequence[ShardJob]) -> None:
    """Remove what processes that were killed have left."""
    for folder in {path.parent for job in jobs for path in (job.path, job.record_path)}:
        for path in folder.glob("*.tmp"):
            path.unlink(missing_ok=True)


def _read_record(job: ShardJob) -> ShardRecord | None:
    """The record of a shard if it is finished, and lacks no image that may not be left out."""
    try:
        record = ShardRecord.read(job.record_path)
        is_whole = job.path.stat().st_size == record.size
    except (BadInput, OSError, ValueError):
        return None
    rows = [row - job.first_row for row, *_ in record.entries]
    is_whole &= all(0 <= row < len(job.manifest) for row in rows)
    is_whole &= len(rows) + len(record.bad) == len(job.manifest)
    return record if is_whole and (job.skip_bad or not record.bad) else None


# --- the index --------------------------------------------------------------------------------------------------------


def _write_index(
    source: SourceDataset, dest: Path, plan: Plan, jobs: dict[str, list[ShardJob]], options: PackOptions
) -> PackReport:
    """Write the index of each split, odd.csv, classes.txt and, last, index.json."""
    parts: dict[str, Any] = {}
    split_reports: dict[str, SplitReport] = {}
    odd: list[tuple[str, str, str]] = []
    for split, split_jobs in jobs.items():
        records = [_finished_record(job) for job in split_jobs]
        if not any(record.entries for record in records):
            raise BadInput(f"no image of the {split} split can be decoded")
        entries = _sort_entries(source.manifests[split], records)
        with atomic_write(dest / split / "index.npy") as file:
            np.save(file, entries)
        names = [job.path.name for job in split_jobs]
        sizes = [(name, record.size) for name, record in zip(names, records, strict=True)]
        parts[split] = {"images": len(entries), "shards": sizes, "crc32": shard_index.checksum(entries)}
        split_reports[split] = _split_report(entries, records)
        odd += [(split, name, what) for record in records for name, what in record.odd]
        odd += [(split, name, f"left out: {why}") for record in records for name, why in record.bad]

    counts = dict(Counter(what.split(":")[0] for _, _, what in odd).most_common())
    report = PackReport(source.format, len(source.classes), options, split_reports, counts)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("part", "image", "what"), *odd])
    atomic_write_text(dest / "odd.csv", table.getvalue())
    atomic_write_text(dest / "classes.txt", "".join(f"{' '.join(name.split())}\n" for name in source.class_names))
    classes = [*zip(source.classes, source.class_names, strict=True)]
    index = {"format": FORMAT, "classes": classes, "parts": parts, "plan": plan, "report": report.to_json()}
    atomic_write_text(dest / INDEX, json.dumps(index))
    return report


def _finished_record(job: ShardJob) -> ShardRecord:
    record = _read_record(job)
    if record is None:
        raise BadInput(f"{job.path} or its record was changed by another program: {CONTINUE_HINT}")
    return record


def _sort_entries(manifest: Manifest, records: Sequence[ShardRecord]) -> Entries:
    """The index of a split, in the order of class folders: sorted by class, then by name."""
    entries = np.concatenate([index_entries(record, number) for number, record in enumerate(records)])
    rows = np.array([row for record in records for row, *_ in record.entries], np.int64)
    folders, _, files = np.char.rpartition(manifest.names[rows], b"/").T
    order = np.lexsort((files, folders, manifest.labels[rows]))
    return np.asarray(entries[order])


def _split_report(entries: Entries, records: Sequence[ShardRecord]) -> SplitReport:
    forms = entries["form"]
    return SplitReport(
        images=len(entries),
        shards=len(records),
        bytes=sum(record.size for record in records),
        source_bytes=sum(record.source_bytes for record in records),
        left_out=sum(len(record.bad) for record in records),
        as_files=int((forms == shard_index.ENCODED).sum()),
        tiled=int((forms == shard_index.TILED).sum()),
        raw=int((forms == shard_index.RAW).sum()),
    )
