"""Image files of any size, which worker processes decode and crop."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from resnet_train.config.augment import AugmentConfig
from resnet_train.data import augment as augmentation
from resnet_train.data import auto_augment, prefetch, rng, workers
from resnet_train.data.batch import Batch, to_device
from resnet_train.data.dataset import Dataset, ImageSizeAt, LoaderOptions
from resnet_train.data.decoding import EncodedImage, ImageArray
from resnet_train.data.prefetch import Buffer, Request, Shape
from resnet_train.data.rng import Floats, Ints
from resnet_train.data.sampler import Sampler
from resnet_train.data.views import View, ViewBatch, ViewGroup, apply_views
from resnet_train.data.workers import Note
from resnet_train.errors import BadInput

_T = TypeVar("_T")


class ImageFileDataset(Dataset):
    """Image files of any size, in RGB. A subclass gives `labels`, `classes`, `name`, `encoded` and `subset`."""

    channels = 3
    size = None
    from_files = True
    has_raw_images = False
    hint = ""
    """Ends the message for a file that cannot be decoded."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def encoded(self, index: int) -> EncodedImage:
        """A sample, read and not yet decoded. Raises `BadInput` that names the file where it cannot be read."""

    def decoded(self, index: int) -> Image.Image:
        """A sample, decoded as a whole. Raises `BadInput` that names the file where it cannot be decoded."""
        return decode(self.encoded(index))

    def training_batches(
        self, sampler: Sampler, augment: AugmentConfig, steps: range, image_size_at: ImageSizeAt, options: LoaderOptions
    ) -> Generator[Batch]:
        """Workers write the crops into shared buffers; on a GPU a CUDA stream of its own copies them to the device."""
        crops = _TrainingCrops(self, augment, sampler.seed, options.skip_bad)
        shape = Shape(sampler.rank_batch_size, augmentation.resized_crop_of(augment).size, self.channels)
        requests = (Request(sampler.rank_samples(step), image_size_at(step)) for step in steps)
        device = options.device
        copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        with closing(prefetch.filled_buffers(crops, requests, shape, options.workers, device, self.name)) as buffers:
            for buffer, skipped in buffers:
                images, labels, shift = map(torch.from_numpy, (buffer.images, buffer.labels, buffer.shift))
                batch = Batch(images, labels, shift, skipped)
                if copying is None:
                    yield batch
                    continue
                with torch.cuda.stream(copying):
                    on_device = batch.to(device)
                copied = copying.record_event()
                torch.cuda.current_stream().wait_event(copied)
                for tensor in on_device.tensors():
                    tensor.record_stream(torch.cuda.current_stream())
                try:
                    yield on_device
                finally:  # the buffer is about to be overwritten, or unpinned
                    # Only the copy is waited for: a collective of the step may never end once another rank has failed.
                    copied.synchronize()

    def view_batches(
        self, batches: Sequence[Ints], views: Sequence[View], options: LoaderOptions
    ) -> Generator[ViewBatch]:
        count = min(options.workers, sum(map(len, batches)))
        tasks = (
            [_ViewTask(number, rows) for rows in workers.rows_of_tasks(len(indices), count)]
            for number, indices in enumerate(batches)
        )
        apply = _ApplyViews(self, batches, views, options.skip_bad)
        with closing(workers.in_order(apply, tasks, count, self.name)) as results:
            for parts in results:
                yield _view_batch(parts, options.device)


def decode(image: EncodedImage) -> Image.Image:
    """The whole image, in RGB. Raises `BadInput`."""
    return Image.fromarray(image.region((0, 0, *image.size)).pixels)


def first_usable(
    dataset: ImageFileDataset, index: int, skip_bad: bool, note: Note, use: Callable[[EncodedImage], _T]
) -> tuple[_T, int, list[str]]:
    """Apply `use` to a sample or, where that raises `BadInput` and `skip_bad` is set, to the next one that it accepts.

    Returns the result, the index of the sample that was used, and the names of those that were skipped. Raises
    `BadInput`.
    """
    skipped: list[str] = []
    for position in range(index, index + len(dataset)):
        candidate = position % len(dataset)
        note(candidate)
        try:
            return use(dataset.encoded(candidate)), candidate, skipped
        except BadInput as error:
            if not skip_bad:
                raise BadInput(f"{error}{dataset.hint}") from None
            skipped.append(dataset.name(candidate))
    raise BadInput(f"not one image can be decoded, from {dataset.name(0)} to {dataset.name(len(dataset) - 1)}")


@dataclass(frozen=True)
class _TrainingCrops:
    """Writes augmented samples into a buffer; a `CollateFn`.

    The files' headers are read first, since a crop depends on the image's size; then no more is decoded than the crop
    covers.
    """

    dataset: ImageFileDataset
    augment: AugmentConfig
    seed: int
    skip_bad: bool

    def __call__(self, buffer: Buffer, note: Note) -> tuple[str, ...]:
        dataset, augment = self.dataset, self.augment
        random = rng.uniform(self.seed, buffer.epochs, buffer.indices, augmentation.columns(augment))
        opened = [first_usable(dataset, index, self.skip_bad, note, _itself) for index in buffer.indices.tolist()]
        plan = augmentation.plan(augment, random, np.array([image.size for image, _, _ in opened], float))
        indices, skipped = [], []
        for row, (image, index, names) in enumerate(opened):
            flip, out = bool(plan.flip[row]), buffer.images[row]
            note(index)
            try:
                self._crop(image, plan.boxes[row], flip, out)
            except BadInput:  # the header could be read, and the image cannot be decoded
                index, more = self._crop_next(index, random[[row]], flip, note, out)
                names += more
            indices.append(index)
            skipped += names
        if augment.auto_augment is not None:
            edits = auto_augment.plan(
                augment.auto_augment, random[:, augmentation.AUTO_AUGMENT_COLUMNS], buffer.images.shape[1]
            )
            auto_augment.apply(buffer.images, edits)
        buffer.labels[:] = dataset.labels[indices]
        buffer.shift[:] = plan.shift
        return tuple(skipped)

    def _crop(self, image: EncodedImage, box: Floats, flip: bool, out: ImageArray) -> None:
        augmentation.resized_crop(image, box, flip, augmentation.resized_crop_of(self.augment), out)

    def _crop_next(self, index: int, random: Floats, flip: bool, note: Note, out: ImageArray) -> tuple[int, list[str]]:
        """Crop the next image that can be decoded, by the same random numbers: its index, and the names of the others.

        Raises `BadInput` where none may be skipped.
        """

        def crop(image: EncodedImage) -> None:
            plan = augmentation.plan(self.augment, random, np.array([image.size], float))
            self._crop(image, plan.boxes[0], flip, out)

        _, index, skipped = first_usable(self.dataset, index, self.skip_bad, note, crop)
        return index, skipped


def _itself(image: EncodedImage) -> EncodedImage:
    return image


class _ViewTask(NamedTuple):
    """Samples of a batch that are to be read."""

    batch: int
    rows: slice


class _ViewImages(NamedTuple):
    """Images of one view that have one shape."""

    view: int
    rows: Ints
    """int64 [m]: which samples of the batch these images are of."""
    images: ImageArray
    """[m, H, W, C]."""


class _ViewResult(NamedTuple):
    """What became of a `_ViewTask`."""

    labels: Ints
    groups: list[_ViewImages]
    """By view, then in the order in which shapes appear."""


@dataclass(frozen=True)
class _ApplyViews:
    """What workers do: read samples of a batch, in each view."""

    dataset: ImageFileDataset
    batches: Sequence[Ints]
    views: Sequence[View]
    skip_bad: bool

    def __call__(self, task: _ViewTask, note: Note) -> _ViewResult:
        indices = self.batches[task.batch][task.rows].tolist()
        usable = [first_usable(self.dataset, index, self.skip_bad, note, self._views_of) for index in indices]
        labels = self.dataset.labels[[index for _, index, _ in usable]]
        return _ViewResult(labels, list(self._groups([images for images, _, _ in usable], task.rows.start)))

    def _views_of(self, image: EncodedImage) -> list[ImageArray]:
        return apply_views(decode(image), self.views)

    def _groups(self, images: Sequence[Sequence[ImageArray]], first_row: int) -> Iterator[_ViewImages]:
        """Of each view the images of one shape together."""
        for view in range(len(self.views)):
            samples_by_shape: dict[tuple[int, ...], list[int]] = {}
            for sample, views in enumerate(images):
                samples_by_shape.setdefault(views[view].shape, []).append(sample)
            for samples in samples_by_shape.values():
                stacked = np.stack([images[sample][view] for sample in samples])
                yield _ViewImages(view, np.array(samples) + first_row, stacked)


def _view_batch(parts: Sequence[_ViewResult], device: torch.device) -> ViewBatch:
    """A batch of the results of its tasks, copied to the device."""
    labels = np.concatenate([part.labels for part in parts])
    groups: dict[tuple[int, ...], list[_ViewImages]] = {}
    for group in sorted(chain.from_iterable(part.groups for part in parts), key=lambda group: group.view):
        groups.setdefault((group.view, *group.images.shape[1:]), []).append(group)
    return ViewBatch(to_device(labels, device), tuple(_view_group(group, labels, device) for group in groups.values()))


def _view_group(parts: Sequence[_ViewImages], labels: Ints, device: torch.device) -> ViewGroup:
    rows = np.concatenate([part.rows for part in parts])
    # Copied once, into pinned memory for a GPU; torch.cat takes ten times as long for bytes.
    shape = len(rows), *parts[0].images.shape[1:]
    images = torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.concatenate([part.images for part in parts], out=images.numpy())
    images = images.to(device, non_blocking=device.type == "cuda")
    shift = torch.zeros(len(rows), images.shape[3], device=device)
    return ViewGroup(parts[0].view, to_device(rows, device), Batch(images, to_device(labels[rows], device), shift))
