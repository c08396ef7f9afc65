"""What evaluation sees of an image: one or several views, each a resized and cropped copy of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_train.data.batch import Batch


class View(NamedTuple):
    """One view of an image."""

    short_side: int | None = None
    """What the shorter side is resized to; None leaves the image as it is."""
    crop: int | None = None
    """Height and width of the square that is cut out; None is the whole."""
    place: tuple[float, float] = (0.5, 0.5)
    """Of the square: (0, 0) is left and top, (1, 1) right and bottom."""
    flip: bool = False


def apply_views(image: Image.Image, these: Sequence[View]) -> list[np.ndarray]:
    """One image of any size -> each look at it, [H, W, 3]."""
    resized = {side: _resized(image, side) for side in dict.fromkeys(look.short_side for look in these)}
    return [_cut(resized[look.short_side], look) for look in these]


def _resized(image: Image.Image, short_side: int | None) -> Image.Image:
    if short_side is None:
        return image
    width, height = (short_side * side // min(image.size) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _cut(image: Image.Image, look: View) -> np.ndarray:
    if look.crop is not None:
        left, top = (round((side - look.crop) * place) for side, place in zip(image.size, look.place, strict=True))
        image = image.crop((left, top, left + look.crop, top + look.crop))
    pixels = np.asarray(image)
    return pixels[:, ::-1] if look.flip else pixels


class ViewBatch(NamedTuple):
    """Images of an evaluation, each in every look at it."""

    labels: Tensor
    """int64 [n]."""
    groups: tuple[tuple[int, Tensor, Batch], ...]
    """The number of a look, which of the n images [m], and those; images of one shape together."""

    def to(self, device: torch.device) -> "ViewBatch":
        """The same on a device."""
        moved = [(look, rows.to(device, non_blocking=True), batch.to(device)) for look, rows, batch in self.groups]
        return ViewBatch(self.labels.to(device, non_blocking=True), tuple(moved))
