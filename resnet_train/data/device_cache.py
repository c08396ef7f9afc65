"""Image files of one size that are read once and stay on the device: all of them on each rank, or a part on each."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from resnet_train.data.batch import to_device
from resnet_train.data.decoding import ImageArray
from resnet_train.data.fixed_size import FixedSizeDataset
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.rng import Ints
from resnet_train.data.sampler import Sampler
from resnet_train.data.workers import Note, watched
from resnet_train.errors import BadInput

_IMAGES_PER_COPY = 4096
"""Images that are in the CPU's memory at once, on their way to the device."""


class DeviceCachedDataset(FixedSizeDataset):
    """Square image files of one size, read when they are first needed.

    Where one device may not hold all images, each rank holds every `ranks`-th one, and the ranks exchange the images of
    each step. Threads read the files: decoding releases Python's lock.
    """

    channels = 3
    from_files = True

    def __init__(self, files: ImageFileDataset, size: int, gigabytes: float, threads: int) -> None:
        self.files, self.size, self.gigabytes, self.threads = files, size, gigabytes, max(threads, 1)
        self.labels, self.classes = files.labels, files.classes
        self._parts: dict[tuple[int, int, torch.device], Tensor] = {}
        self._subsets: dict[bytes, DeviceCachedDataset] = {}

    def name(self, index: int) -> str:
        return self.files.name(index)

    def subset(self, indices: Ints) -> "DeviceCachedDataset":
        """The same object for the same samples, so that they are read once."""
        key = indices.tobytes()
        if key not in self._subsets:
            files = self.files.subset(indices)
            self._subsets[key] = DeviceCachedDataset(files, self.size, self.gigabytes, self.threads)
        return self._subsets[key]

    def batch(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        return self._part(0, 1, device), indices

    @property
    def stays_on_device(self) -> bool:
        return not self.is_split

    def rank_batch(self, indices: Ints, sampler: Sampler, steps: range, device: torch.device) -> tuple[Tensor, Ints]:
        if not self.is_split:
            return self.batch(indices, device)
        [step] = steps
        part = self._part(sampler.rank, sampler.ranks, device)
        return exchange(part, sampler.all_rank_indices(step), sampler.rank)

    @property
    def is_split(self) -> bool:
        """Whether each rank holds a part of the images, since a device may not hold all of them."""
        return self._total_gigabytes() > self.gigabytes

    def check_device_memory(self, ranks: int) -> None:
        total = self._total_gigabytes()
        if total > self.gigabytes * ranks:
            raise BadInput(
                f"data.device_cache_gb = {self.gigabytes:g}: the {len(self):,} training images take {total:.3g} GB, "
                f"over {ranks} ranks {total / ranks:.3g} GB each: raise it, or use more ranks"
            )

    def _total_gigabytes(self) -> float:
        return len(self) * self.size**2 * self.channels / 1e9

    def _part(self, rank: int, ranks: int, device: torch.device) -> Tensor:
        """Every `ranks`-th image from number `rank` on. Raises `BadInput`, also for an image of another size."""
        key = rank, ranks, device
        if key not in self._parts:
            self._parts[key] = self._read(np.arange(rank, len(self), ranks), device)
        return self._parts[key]

    def _read(self, indices: Ints, device: torch.device) -> Tensor:
        images = torch.empty(len(indices), self.size, self.size, self.channels, dtype=torch.uint8, device=device)
        with watched(self.name) as note, ThreadPoolExecutor(self.threads) as pool:
            for first in range(0, len(indices), _IMAGES_PER_COPY):
                chunk = indices[first : first + _IMAGES_PER_COPY].tolist()
                decoded = np.stack(list(pool.map(lambda index: self._pixels(index, note), chunk)))
                images[first : first + len(decoded)] = torch.from_numpy(decoded).to(device)
        return images

    def _pixels(self, index: int, note: Note) -> ImageArray:
        note(index)
        image = self.files.encoded(index)
        _check_square(image.size, self.size, self.name(index))
        pixels = image.region((0, 0, *image.size)).pixels
        note(-1)
        return pixels


def device_cached(files: ImageFileDataset, gigabytes: float, threads: int) -> DeviceCachedDataset:
    """Files of the first one's size. Raises `BadInput` where that is not square."""
    first = files.encoded(0).size
    _check_square(first, first[0], files.name(0))
    return DeviceCachedDataset(files, first[0], gigabytes, threads)


def _check_square(size: tuple[int, int], expected: int, name: str) -> None:
    """Raise `BadInput` where an image is not `expected` pixels wide and high."""
    if size != (expected, expected):
        raise BadInput(
            f"data.device_cache_gb needs square images of one size, {expected} x {expected} pixels like the first, "
            f"and {name} is {size[0]} x {size[1]}: convert them with resnet-train prepare --square"
        )


def exchange(part: Tensor, all_rank_indices: Ints, rank: int) -> tuple[Tensor, Ints]:
    """The images of one rank's samples, each from the rank that holds it, and the row of each sample in them.

    part: uint8 [m, H, W, C], the images that this rank holds: every `ranks`-th one of the data set.
    all_rank_indices: int64 [ranks, n], the samples of every rank. Each rank knows them, so none has to send requests.
    Returns images [n, H, W, C] and rows [n]. A collective: every rank calls it at the same time.
    """
    ranks = len(all_rank_indices)
    holders = all_rank_indices % ranks
    requested = [indices[held_by == rank] // ranks for indices, held_by in zip(all_rank_indices, holders, strict=True)]
    received_counts = np.bincount(holders[rank], minlength=ranks).tolist()
    received = part.new_empty(all_rank_indices.shape[1], *part.shape[1:])
    sent = part[to_device(np.concatenate(requested), part.device)]
    dist.all_to_all_single(received, sent, received_counts, [len(indices) for indices in requested])
    return received, holders[rank].argsort(kind="stable").argsort()
