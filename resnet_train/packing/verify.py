"""`prepare --verify`: every byte of a packed set against its index."""

import sys
import tarfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data import shards
from resnet_train.data.rng import Ints
from resnet_train.data.shards import ShardDataset, open_shards
from resnet_train.errors import BadInput
from resnet_train.runtime.processes import Count, run_jobs
from resnet_train.runtime.progress import Progress


class _Job(NamedTuple):
    source: ShardDataset
    rows: Ints
    """The samples of one shard, in the order of their bytes."""


def verify(folder: Path, workers: int) -> dict[str, int]:
    """Read every sample: its checksum, its pixels, and its label as the tar file has it. The images of each part.

    What is wrong is named on standard error, one line each, then `BadInput` raised.
    """
    parts = {part: open_shards(folder, part) for part in shards.read_index(folder)["parts"]}
    jobs = [job for source in parts.values() for job in _jobs(source)]
    total, wrong, damaged = sum(map(len, parts.values())), 0, []
    with Progress("verifying", total, "img") as bar:
        for shard, lines in run_jobs(check, jobs, workers, bar.update, "use fewer --workers"):
            wrong += len(lines)
            damaged += [str(shard)] * (len(lines) > 0)
            for line in lines:
                print(line, file=sys.stderr)
    if wrong:
        raise BadInput(
            f"{folder}: {wrong} of {total} images are not as they were packed: they are named above; delete "
            f"{', '.join(sorted(damaged))} and run the same resnet-train prepare command again, which packs that anew"
        )
    return {part: len(source) for part, source in parts.items()}


def told(images: dict[str, int]) -> str:
    """What a check that found nothing has to say."""
    counts = ", ".join(f"{count:,} of {part}" for part, count in images.items())
    return f"every checksum, pixel and label is as it was packed ({counts})"


def _jobs(source: ShardDataset) -> Iterator[_Job]:
    order = np.lexsort((source.entries["offset"], source.entries["shard"]))
    ends = np.searchsorted(source.entries["shard"][order], np.arange(len(source.shards) + 1))
    if ends[-1] < len(order):
        source.entry(int(order[-1]))  # complains: there is no such shard
    for first, last in pairwise(ends.tolist()):
        if last > first:
            yield _Job(source, order[first:last])


def check(job: _Job, count: Count) -> tuple[Path, list[str]]:
    """A shard, and what is wrong with its samples, a line each."""
    source, wrong = job.source, []
    shard = source.folder / source.shards[source.entry(int(job.rows[0])).shard]
    labels = dict(_labels(shard))
    for done, row in enumerate(job.rows.tolist(), 1):
        place = source.entry(row)
        try:
            if zlib.crc32(source.read_bytes(place)) != place.crc32:
                raise BadInput("its bytes are not those that were packed")
            if labels.get(place.offset) != str(place.label).encode():
                raise BadInput(f"its label is {place.label} by the index and {labels.get(place.offset)!r} by the shard")
            picture = source.encoded(row)
            pixels = picture.region((0, 0, *picture.size)).pixels
            if picture.size != (place.width, place.height) or pixels.shape != (place.height, place.width, 3):
                raise BadInput(f"it is of another size than {place.width} x {place.height}")
        except BadInput as error:
            wrong.append(f"{source.name(row)}: {error}")
        if done % 32 == 0:
            count(32)
    count(len(job.rows) % 32)
    return shard, wrong


def _labels(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where each image of a shard begins, and the text of its label, which is the next member."""
    try:
        with tarfile.open(path, "r:") as tar:
            for image, label in zip(*[iter(tar)] * 2, strict=False):
                file = tar.extractfile(label)
                same = image.name.rpartition(".")[0] + ".cls" == label.name
                if same and file is not None:
                    yield image.offset_data, file.read()
    except (tarfile.TarError, OSError):
        return
