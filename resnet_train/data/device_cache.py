"""Image files of one size that are read once and then held: on each rank's device, or each rank's part on its own."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from resnet_train.data.decoding import ImageArray
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput

_READ_TOGETHER = 4096
"""Images that are in the CPU's memory at once, on their way to the device."""


class DeviceCachedDataset:
    """Square images of one size, read when they are first asked for. Threads read, since decoding needs no lock."""

    channels = 3

    def __init__(self, files: ImageFileDataset, size: int, gigabytes: float, threads: int) -> None:
        self.files, self.size, self.gigabytes, self.threads = files, size, gigabytes, max(threads, 1)
        self.labels, self.classes = files.labels, files.classes
        self._held: dict[tuple[int, int, torch.device], Tensor] = {}
        self._subsets: dict[bytes, DeviceCachedDataset] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Of a sample: the path of its file."""
        return self.files.name(index)

    def subset(self, indices: Ints) -> "DeviceCachedDataset":
        """The same source, of these samples only; of the same samples the same, which has read them."""
        key = indices.tobytes()
        if key not in self._subsets:
            self._subsets[key] = DeviceCachedDataset(
                self.files.subset(indices), self.size, self.gigabytes, self.threads
            )
        return self._subsets[key]

    def held(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        """uint8 images [m, H, W, C] on a device, and which of them [n] the samples are. Raises `BadInput`."""
        return self.part(0, 1, device), indices

    def part(self, rank: int, ranks: int, device: torch.device) -> Tensor:
        """Every `ranks`-th image from the `rank`-th on. Raises `BadInput`, also at an image of another size."""
        key = rank, ranks, device
        if key not in self._held:
            self._held[key] = self._read(np.arange(rank, len(self), ranks), device)
        return self._held[key]

    def divided(self, ranks: int) -> bool:
        """Whether each rank holds a part, since none may hold the whole. Raises `BadInput` if a part is too much."""
        size = len(self) * self.size**2 * self.channels / 1e9
        if size > self.gigabytes * ranks:
            raise BadInput(
                f"data.device_cache_gb = {self.gigabytes:g}: the {len(self):,} training images take {size:.3g} GB, "
                f"over {ranks} ranks {size / ranks:.3g} GB each: raise it, or use more ranks"
            )
        return size > self.gigabytes

    def _read(self, indices: Ints, device: torch.device) -> Tensor:
        images = torch.empty(len(indices), self.size, self.size, self.channels, dtype=torch.uint8, device=device)
        with ThreadPoolExecutor(self.threads) as pool:
            for first in range(0, len(indices), _READ_TOGETHER):
                read = np.stack(list(pool.map(self._pixels, indices[first : first + _READ_TOGETHER].tolist())))
                images[first : first + len(read)] = torch.from_numpy(read).to(device)
        return images

    def _pixels(self, index: int) -> ImageArray:
        picture = self.files.encoded(index)
        _check_square(picture.size, self.size, self.name(index))
        return picture.region((0, 0, *picture.size)).pixels


def resident(files: ImageFileDataset, gigabytes: float, threads: int) -> DeviceCachedDataset:
    """Files of one size. Raises `BadInput` where the first is not square."""
    first = files.encoded(0).size
    _check_square(first, first[0], files.name(0))
    return DeviceCachedDataset(files, first[0], gigabytes, threads)


def _check_square(size: tuple[int, int], wanted: int, name: str) -> None:
    """Raises `BadInput` where an image is not `wanted` pixels wide and high."""
    if size != (wanted, wanted):
        raise BadInput(
            f"data.device_cache_gb holds square images of one size, {wanted} x {wanted} pixels like the first, "
            f"and {name} is {size[0]} x {size[1]}: make them so by resnet-train prepare --square"
        )


def sent(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array on a device, without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def exchanged(part: Tensor, wanted: Ints, rank: int) -> tuple[Tensor, Ints]:
    """The images that this rank wants, each from the rank that holds it, and which of them [n] its samples are.

    `part` is this rank's part of divided images, `wanted` [ranks, n] what each rank wants: known to all, so that nobody
    has to ask. Every rank calls this at the same time.
    """
    ranks = len(wanted)
    owner = wanted % ranks
    asked = [indices[owns == rank] // ranks for indices, owns in zip(wanted, owner, strict=True)]
    counts = np.bincount(owner[rank], minlength=ranks).tolist()
    received = part.new_empty(wanted.shape[1], *part.shape[1:])
    dist.all_to_all_single(
        received, part[sent(np.concatenate(asked), part.device)], counts, [len(indices) for indices in asked]
    )
    return received, owner[rank].argsort(kind="stable").argsort()
