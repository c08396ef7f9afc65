"""`prepare --verify`: compare every byte of a packed data set with its index."""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_train.data.rng import Ints
from resnet_train.data.shard_index import read_index
from resnet_train.data.shards import ShardDataset, open_shards
from resnet_train.errors import BadInput
from resnet_train.runtime.processes import Count, run_jobs
from resnet_train.runtime.progress import Progress

_COUNT_EVERY = 32
"""Samples between two reports of progress."""


@dataclass
class VerifyReport:
    """The differences between a packed data set and its index."""

    images: dict[str, int]
    """The number of images by split."""
    errors: list[str] = field(default_factory=list)
    """One line for each image that differs."""
    damaged_shards: list[Path] = field(default_factory=list)
    """The shards of these images."""


class _ShardJob(NamedTuple):
    dataset: ShardDataset
    rows: Ints
    """The samples of one shard, in the order of their bytes."""


def verify(folder: Path, workers: int) -> VerifyReport:
    """Compare the checksum, the pixels and the label of every image with the index.

    Raises BadInput if the index or a shard is missing or damaged as a whole.
    """
    datasets = {split: open_shards(folder, split) for split in read_index(folder).parts}
    report = VerifyReport({split: len(dataset) for split, dataset in datasets.items()})
    jobs = [job for dataset in datasets.values() for job in _make_jobs(dataset)]
    with Progress("verifying", sum(report.images.values()), "img") as bar:
        for shard, errors in run_jobs(find_errors, jobs, workers, bar.update, "use fewer --workers"):
            report.errors += errors
            if errors:
                report.damaged_shards.append(shard)
    report.damaged_shards.sort()
    return report


def _make_jobs(dataset: ShardDataset) -> Iterator[_ShardJob]:
    order = np.lexsort((dataset.entries["offset"], dataset.entries["shard"]))
    ends = np.searchsorted(dataset.entries["shard"][order], np.arange(len(dataset.shards) + 1))
    if ends[-1] < len(order):
        dataset.entry(int(order[-1]))  # raises: the index names a shard that does not exist
    for first, last in pairwise(ends.tolist()):
        if last > first:
            yield _ShardJob(dataset, order[first:last])


def find_errors(job: _ShardJob, count: Count) -> tuple[Path, list[str]]:
    """The path of a shard, and one line for each of its images that differs from the index."""
    dataset, errors = job.dataset, []
    shard = dataset.folder / dataset.shards[dataset.entry(int(job.rows[0])).shard]
    labels = dict(_stored_labels(shard))
    uncounted = 0
    for row in job.rows.tolist():
        try:
            _check_image(dataset, row, labels)
        except BadInput as error:
            errors.append(f"{dataset.name(row)}: {error}")
        uncounted += 1
        if uncounted == _COUNT_EVERY:
            count(uncounted)
            uncounted = 0
    count(uncounted)
    return shard, errors


def _check_image(dataset: ShardDataset, row: int, labels: dict[int, bytes]) -> None:
    """Raises BadInput if an image or its label differs from the index."""
    entry = dataset.entry(row)
    if zlib.crc32(dataset.read_bytes(entry)) != entry.crc32:
        raise BadInput("its bytes are not those that were packed")
    label = labels.get(entry.offset)
    if label != str(entry.label).encode():
        raise BadInput(f"its label is {entry.label} in the index, and {label!r} in the shard")
    image = dataset.encoded(row)
    pixels = image.region((0, 0, *image.size)).pixels
    if image.size != (entry.width, entry.height) or pixels.shape != (entry.height, entry.width, 3):
        raise BadInput(f"its size is not {entry.width} x {entry.height} pixels, as in the index")


def _stored_labels(path: Path) -> Iterator[tuple[int, bytes]]:
    """The offset of each image in a shard, and the text of its label, which is the next member.

    Ends at the first damage: the labels that are missing then differ from the index.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            image: tarfile.TarInfo | None = None
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if suffix != "cls":
                    image = member
                elif image is not None and image.name.rpartition(".")[0] == stem and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None  # it is a regular file
                    yield image.offset_data, file.read()
    except (tarfile.TarError, OSError):
        return
