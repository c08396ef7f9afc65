"""The interface of a data set. There are two kinds, which differ in how their batches are made.

`fixed_size.FixedSizeDataset`: images of one size, cropped and mirrored on the device.
`image_files.ImageFileDataset`: image files of any size, decoded and cropped by worker processes.

A new data set is a subclass of one of them, and a case in `datasets.open_data`.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from resnet_train.config.augment import AugmentConfig
from resnet_train.data.batch import Batch
from resnet_train.data.rng import Ints
from resnet_train.data.sampler import Sampler
from resnet_train.data.views import View, ViewBatch

ImageSizeAt = Callable[[int], int | None]
"""Height and width in pixels of the training images of a step, under progressive resizing; None: those of the crop."""


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are loaded."""

    device: torch.device
    workers: int = 0
    """Worker processes. With 0, images are decoded in this process."""
    skip_bad: bool = False
    """Whether the next image file takes the place of one that cannot be decoded."""
    crops_in_step: bool = False
    """Whether the step crops training images that stay on the device: `Batch.source`."""


class Dataset(Protocol):
    """Labelled images."""

    labels: Ints
    """int64 [n]: the class of each sample, an index into `classes`."""
    classes: tuple[str, ...]
    channels: int
    """1 (grey) or 3 (RGB)."""
    size: int | None
    """Height and width of every image in pixels; None where images may have any size."""
    from_files: bool
    """Whether each image is read from a file, which takes time."""
    has_raw_images: bool
    """Whether some images are stored as raw pixels, which need no decoding."""

    def __len__(self) -> int:
        """The number of samples."""

    def name(self, index: int) -> str:
        """The path of a sample's file, or the sample's number where it has no file."""

    def subset(self, indices: Ints) -> Self:
        """These samples alone, in this order."""

    def training_batches(
        self, sampler: Sampler, augment: AugmentConfig, steps: range, image_size_at: ImageSizeAt, options: LoaderOptions
    ) -> Generator[Batch]:
        """The samples of one rank, augmented: one batch for each step, valid until the next one is requested.

        Only crops that are resized follow `image_size_at`. Closing the generator ends its workers. Raises `BadInput`
        where an image cannot be decoded or a worker was killed.
        """

    def view_batches(
        self, batches: Sequence[Ints], views: Sequence[View], options: LoaderOptions
    ) -> Generator[ViewBatch]:
        """The samples of each of `batches` in each of `views`. Closing it ends its workers, and it raises `BadInput`,
        as with `training_batches`."""

    def check_device_memory(self, ranks: int) -> None:
        """Raise `BadInput` where the images take more memory of each rank's device than the user allows.

        Only a data set that is copied to the device has such a limit.
        """
        return
