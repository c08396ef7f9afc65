"""Images of one size, which are cropped and mirrored on the device."""

from abc import abstractmethod
from collections.abc import Generator, Sequence

import numpy as np
import torch
from torch import Tensor

from resnet_train.config.augment import AugmentConfig, PadCropConfig
from resnet_train.data import augment as augmentation
from resnet_train.data import auto_augment, rng
from resnet_train.data.batch import Batch, Source, to_device
from resnet_train.data.dataset import Dataset, ImageSizeAt, LoaderOptions
from resnet_train.data.rng import Ints
from resnet_train.data.sampler import Sampler
from resnet_train.data.views import View, ViewBatch, ViewGroup

_STEPS_PER_PLAN = 64
"""Steps that are planned together where the images of all are on the device: planning each step by itself would take
as long as training a small network."""


class FixedSizeDataset(Dataset):
    """Square images of one size. A subclass gives `labels`, `classes`, `channels`, `size`, `subset` and `batch`."""

    size: int
    from_files = False
    has_raw_images = True

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    @abstractmethod
    def batch(self, indices: Ints, device: torch.device) -> tuple[Tensor, Ints]:
        """[n] samples -> uint8 images [m, size, size, C] on a device, and the row of each sample in them, int64 [n].

        There may be more images than samples: a data set that is on the device returns all of them and copies nothing.
        Raises `BadInput` where an image cannot be read.
        """

    @property
    def stays_on_device(self) -> bool:
        """Whether `batch` returns all images each time, in the same memory."""
        return False

    def rank_batch(self, indices: Ints, sampler: Sampler, steps: range, device: torch.device) -> tuple[Tensor, Ints]:
        """`batch` of the samples that one rank takes in `steps`. All ranks call it at the same time."""
        return self.batch(indices, device)

    def training_batches(
        self, sampler: Sampler, augment: AugmentConfig, steps: range, image_size_at: ImageSizeAt, options: LoaderOptions
    ) -> Generator[Batch]:
        self.check_device_memory(sampler.ranks)
        # The operations of auto_augment are Pillow's, so the images go to the device after them.
        device = options.device if augment.auto_augment is None else torch.device("cpu")
        n, together = sampler.rank_batch_size, _STEPS_PER_PLAN if self.stays_on_device else 1
        padding = augment.crop.mode if isinstance(augment.crop, PadCropConfig) else "zero"
        crops = augment.crop is not None or augment.flip
        in_step = options.crops_in_step and self.stays_on_device and crops and augment.auto_augment is None
        for first in range(0, len(steps), together):
            planned = steps[first : first + together]
            samples = [sampler.rank_samples(step) for step in planned]
            epochs = np.concatenate([sample.epochs for sample in samples])
            indices = np.concatenate([sample.indices for sample in samples])
            random = rng.uniform(sampler.seed, epochs, indices, augmentation.columns(augment))
            plan = augmentation.plan(augment, random, np.full((len(indices), 2), self.size, float))
            images, rows = self.rank_batch(indices, sampler, planned, device)

            how = np.column_stack([rows, plan.boxes[:, :2].astype(np.int64), plan.flip])
            arrays = (how, self.labels[indices], plan.shift[:, : self.channels])
            batches = zip(*(to_device(array, device).split(n) for array in arrays), strict=True)
            for i, (crop, labels, color) in enumerate(batches):
                batch = Batch(crop, labels, color, source=Source(images, padding))
                if not in_step:
                    batch = batch.cropped() if crops else Batch(images[crop[:, 0]], labels, color)
                if augment.auto_augment is not None:
                    numbers = random[i * n : (i + 1) * n, augmentation.AUTO_AUGMENT_COLUMNS]
                    edits = auto_augment.plan(augment.auto_augment, numbers, self.size)
                    auto_augment.apply(batch.images.numpy(), edits)
                yield batch.to(options.device)

    def view_batches(
        self, batches: Sequence[Ints], views: Sequence[View], options: LoaderOptions
    ) -> Generator[ViewBatch]:
        return (self._view_batch(indices, views, options.device) for indices in batches)

    def _view_batch(self, indices: Ints, views: Sequence[View], device: torch.device) -> ViewBatch:
        """Consecutive samples. Views of images of one size differ in `flip` alone."""
        images, rows = self.batch(indices, device)
        images = images[rows[0] : rows[-1] + 1]  # a slice, so nothing is copied
        labels = torch.from_numpy(self.labels[indices]).to(device)
        shift = images.new_zeros(len(rows), self.channels, dtype=torch.float32)
        batches = [Batch(images.flip(2) if view.flip else images, labels, shift) for view in views]
        groups = (ViewGroup(number, torch.arange(len(rows)), batch) for number, batch in enumerate(batches))
        return ViewBatch(labels, tuple(groups))
