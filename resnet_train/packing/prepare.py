"""The verb `prepare`: from what people hold to shards and their index."""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.data import shards
from resnet_train.data.shards import FORMAT, PLAN
from resnet_train.errors import BadInput
from resnet_train.packing import jpeg_restart
from resnet_train.packing.encode import Options
from resnet_train.packing.formats import Source, open_source
from resnet_train.packing.manifest import Listing
from resnet_train.packing.shard_writer import KEPT, Job, indexed, member, pack
from resnet_train.runtime.atomic import atomic_write, atomic_write_text, temporary_path
from resnet_train.runtime.lock import claimed
from resnet_train.runtime.processes import run_jobs
from resnet_train.runtime.progress import Progress

Report = dict[str, Any]


def prepare(
    path: Path,
    dest: Path,
    options: Options,
    per_shard: int,
    workers: int,
    skip_bad: bool,
    val_labels: Path | None = None,
    class_names: Path | None = None,
) -> Report:
    """Pack a data set; what there is to tell of it, which is also in its `index.json`.

    If `dest` holds a part of the same packing, that goes on; if all of it, then shards that are missing or of another
    size are packed again, which the report says. Raises `BadInput`.
    """
    _check_place(path, dest)
    with _interruptible(dest):
        source = open_source(path, val_labels, class_names)
        for part, listing in source.parts.items():
            _check_names(part, listing)
        plan = _plan(source, options, per_shard)
        jobs = {
            part: list(_jobs(dest, part, listing, options, per_shard, skip_bad))
            for part, listing in source.parts.items()
        }
        told = shards.read_index(dest) if os.access(dest / shards.INDEX, os.F_OK) else None
        if told is None:
            left = [job for part in jobs.values() for job in part]
        else:
            _same(told["plan"], plan, dest)
            left = [job for part in jobs for job in _lost(dest, part, told, jobs[part])]
            again = [f"{job.path.parent.name}/{job.path.name}" for job in left]
            if not left:
                return {**told["report"], "packed_again": again}
        if options.tiled:
            jpeg_restart.check_jpegtran()
        with _claimed(dest, plan, told is not None):
            for part in jobs:
                (dest / part).mkdir(exist_ok=True)
            _pack_all(left, workers)
            if told is None:
                return _finish(source, dest, plan, jobs, options)
            shutil.rmtree((dest / PLAN).parent)
            return {**told["report"], "packed_again": again}


def _check_place(path: Path, dest: Path) -> None:
    """Refuse a destination that would be a class, or a part, of the source when the same command is run again."""
    for part in ("train", "val"):
        if Path(os.path.realpath(dest)).is_relative_to(os.path.realpath(path / part)):
            raise BadInput(f"{dest} lies in {path / part}, which is for images of the source: give another folder")


@contextmanager
def _interruptible(dest: Path) -> Iterator[None]:
    """Say what becomes of the destination at Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"resnet-train: interrupted{_kept(dest) or '; nothing was written'}", file=sys.stderr)
        raise


def _kept(dest: Path) -> str:
    return f"; {KEPT}" if os.access(dest / PLAN, os.F_OK) else ""


def _check_names(part: str, listing: Listing) -> None:
    """Refuse names that a tar file cannot hold, or holds twice."""
    keys = []
    for row in range(len(listing)):
        name = listing.name(row)
        if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
            raise BadInput(f"{part}: an image is named {name}, which leads outside: refused")
        keys.append(os.fsencode(member(name)))
    found = np.array(keys, np.bytes_)
    order = np.argsort(found, kind="stable")
    for twin in np.flatnonzero(found[order][1:] == found[order][:-1])[:1]:
        one, other = (listing.name(int(order[i])) for i in (twin, twin + 1))
        raise BadInput(f"{part}: {one} and {other} would have the same name in a shard: rename one")


def _plan(source: Source, options: Options, per_shard: int) -> dict[str, Any]:
    """All that decides what is in the shards."""
    return {
        "--tiled": options.tiled,
        "--short-side": options.short_side,
        "--square": options.square,
        "--raw-fraction": options.raw_fraction,
        "--shard-images": per_shard,
        "the source's images": {part: listing.digest()[:16] for part, listing in source.parts.items()},
        "the source's classes": hashlib.sha256(json.dumps([source.classes, source.names]).encode()).hexdigest()[:16],
    }


def _same(held: dict[str, Any], plan: dict[str, Any], dest: Path) -> None:
    for key, value in plan.items():
        if held.get(key) != value and key.startswith("--"):
            raise BadInput(
                f"{dest} was packed with {key} = {held.get(key)}, not {value}: set it back, or give another folder"
            )
        if held.get(key) != value:
            raise BadInput(f"{dest} was packed from another source ({key} differ): give another folder")


@contextmanager
def _claimed(dest: Path, plan: dict[str, Any], again: bool) -> Iterator[None]:
    """The destination for this process alone, and for this plan; `again`: it is packed. Raises `BadInput`."""
    begun = dest / PLAN
    try:
        if not begun.exists():
            if not again and dest.exists() and any(dest.iterdir()):
                raise BadInput(f"{dest} is not empty, and holds no packing that was begun: give another folder")
            begun.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(begun, json.dumps(plan))
        _same(json.loads(begun.read_text()), plan, dest)
        with claimed(begun, f"another resnet-train prepare is at work on {dest}"):
            yield
    except OSError as error:
        raise BadInput(f"cannot write {dest}: {error.strerror}{_kept(dest)}") from None


def _jobs(dest: Path, part: str, listing: Listing, options: Options, per_shard: int, skip_bad: bool) -> Iterator[Job]:
    for number, first in enumerate(range(0, len(listing), per_shard)):
        path = dest / part / f"{number:06}.tar"
        record = (dest / PLAN).with_name(f"{part}-{number:06}.json")
        yield Job(path, record, listing.part(slice(first, first + per_shard)), first, options, skip_bad)


def _lost(dest: Path, part: str, told: dict[str, Any], jobs: list[Job]) -> Iterator[Job]:
    """What is to be packed again, into what the index says: shards that are missing or of another size."""
    entries = shards.open_shards_unchecked(dest, part, told).entries
    unfit = shards.damaged_shards(dest, part, told)
    for number, job in enumerate(jobs):
        if job.path.name in unfit:
            wanted = entries[entries["shard"] == number]
            yield replace(job, wanted=wanted[np.argsort(wanted["offset"])])


def _finished(job: Job) -> dict[str, Any] | None:
    """The record of a shard, if it is there and whole, and no image of it was left out that may not be."""
    try:
        record: dict[str, Any] = json.loads(job.record.read_text())
        complete = job.path.stat().st_size == record["size"]
    except (OSError, ValueError):
        return None
    return record if complete and (job.skip_bad or not record["bad"]) else None


def _pack_all(jobs: list[Job], workers: int) -> None:
    left = [job for job in jobs if _finished(job) is None]
    total = sum(len(job.listing) for job in jobs)
    done = total - sum(len(job.listing) for job in left)
    try:
        with Progress("packing", total, "img", initial=done) as bar:
            for _ in run_jobs(pack, left, workers, bar.update, f"use fewer --workers; {KEPT}"):
                pass
    finally:
        for job in left:  # of processes that were ended because another met something
            temporary_path(job.path).unlink(missing_ok=True)


def _finish(source: Source, dest: Path, plan: dict[str, Any], jobs: dict[str, list[Job]], options: Options) -> Report:
    """Make the index of the records, last of all."""
    parts: dict[str, Any] = {}
    odd: list[tuple[str, str, str]] = []
    report: Report = {"source": source.kind, "classes": len(source.classes), "options": asdict(options), "parts": {}}
    for part, listed in jobs.items():
        records = [record for job in listed if (record := _finished(job)) is not None]
        if not any(record["entries"] for record in records):
            raise BadInput(f"not one image of {part} can be decoded")
        entries = _entries(source.parts[part], records)
        with atomic_write(dest / part / "index.npy") as file:
            np.save(file, entries)
        sizes = [record["size"] for record in records]
        parts[part] = {"images": len(entries), "shards": [*zip([job.path.name for job in listed], sizes, strict=True)]}
        odd += [(part, name, what) for record in records for name, what in record["odd"]]
        odd += [(part, name, f"left out: {why}") for record in records for name, why in record["bad"]]
        report["parts"][part] = {
            "images": len(entries),
            "shards": len(sizes),
            "bytes": sum(sizes),
            "source_bytes": sum(record["source_bytes"] for record in records),
            "left_out": sum(len(record["bad"]) for record in records),
            "as_files": int((entries["form"] == shards.ENCODED).sum()),
            "tiled": int((entries["form"] == shards.TILED).sum()),
            "raw": int((entries["form"] == shards.RAW).sum()),
        }
    report["odd"] = dict(Counter(what.split(":")[0] for _, _, what in odd).most_common())
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("part", "image", "what"), *odd])
    atomic_write_text(dest / "odd.csv", table.getvalue())
    atomic_write_text(dest / "classes.txt", "".join(f"{' '.join(name.split())}\n" for name in source.names))
    classes = [*zip(source.classes, source.names, strict=True)]
    about = {"format": FORMAT, "classes": classes, "parts": parts, "plan": plan, "report": report}
    atomic_write_text(dest / shards.INDEX, json.dumps(about))
    shutil.rmtree((dest / PLAN).parent)
    return report


def _entries(listing: Listing, records: list[dict[str, Any]]) -> np.ndarray:
    """The index of a part, in the order of class folders: classes, then names."""
    made = np.concatenate([indexed(record["entries"], number) for number, record in enumerate(records)])
    rows = np.array([entry[0] for record in records for entry in record["entries"]], np.int64)
    folders, _, files = np.char.rpartition(listing.names[rows], b"/").T
    result: np.ndarray = made[np.lexsort((files, folders, listing.labels[rows]))]
    return result
