"""What evaluation sees of an image: one or several views, each resized, cropped or mirrored in its own way."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from resnet_train.data.batch import Batch
from resnet_train.data.decoding import ImageArray


class View(NamedTuple):
    """One view of an image. Lengths are in pixels."""

    short_side: int | None = None
    """The length that the shorter side is resized to; None: no resizing."""
    crop: int | None = None
    """Height and width of the square crop; None: the whole image."""
    place: tuple[float, float] = (0.5, 0.5)
    """Where the crop is: (0, 0) is left and top, (1, 1) is right and bottom."""
    flip: bool = False
    """Mirror left and right."""


class ViewGroup(NamedTuple):
    """Images of one view that have one shape."""

    view: int
    """The number of the view."""
    rows: Tensor
    """int64 [m]: which samples of the batch these images are of."""
    batch: Batch


class ViewBatch(NamedTuple):
    """Samples in each of their views."""

    labels: Tensor
    """int64 [n]."""
    groups: tuple[ViewGroup, ...]


def apply_views(image: Image.Image, views: Sequence[View]) -> list[ImageArray]:
    """One image of any size -> each view of it, uint8 [H, W, 3], or [H, W] of a grey image."""
    resized = {side: _resize(image, side) for side in dict.fromkeys(view.short_side for view in views)}
    return [_crop(resized[view.short_side], view) for view in views]


def _resize(image: Image.Image, short_side: int | None) -> Image.Image:
    if short_side is None:
        return image
    width, height = (short_side * side // min(image.size) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _crop(image: Image.Image, view: View) -> ImageArray:
    if view.crop is not None:
        left, top = (round((side - view.crop) * place) for side, place in zip(image.size, view.place, strict=True))
        image = image.crop((left, top, left + view.crop, top + view.crop))
    pixels = np.asarray(image)
    return pixels[:, ::-1] if view.flip else pixels
