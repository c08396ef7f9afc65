"""TrivialAugment and RandAugment: what is done is planned as plain arrays, and torchvision's functions do it."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from resnet_train.config.data import RandAugmentConfig, TrivialAugmentConfig
from resnet_train.data.decoding import ImageArray
from resnet_train.data.rng import Floats, Ints

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
"""By torchvision's names and in its order, which both policies have."""

_SIGNED = slice(OPERATIONS.index("ShearX"), OPERATIONS.index("Posterize"))
_LEVELS = 31


class Edits(NamedTuple):
    """What is done to each of `n` images, one operation after the other."""

    operations: Ints
    """[n, k], places in `OPERATIONS`."""
    magnitudes: Floats
    """[n, k]; what they mean is the operation's own affair."""


def number_of_draws(cfg: TrivialAugmentConfig | RandAugmentConfig) -> int:
    """How many uniform numbers the plan of an image takes."""
    return 3 * (cfg.operations if isinstance(cfg, RandAugmentConfig) else 1)


def plan(cfg: TrivialAugmentConfig | RandAugmentConfig, draws: Floats, size: int) -> Edits:
    """[n, number_of_draws(cfg)] draws -> what is done to images of `size` x `size` pixels."""
    drawn = draws.reshape(len(draws), -1, 3)
    operations = np.floor(drawn[:, :, 0] * len(OPERATIONS)).astype(np.int64)
    level = cfg.magnitude if isinstance(cfg, RandAugmentConfig) else np.floor(drawn[:, :, 1] * _LEVELS).astype(np.int64)
    sign = np.where(drawn[:, :, 2] < 0.5, -1.0, 1.0)
    signed = np.isin(operations, np.arange(len(OPERATIONS))[_SIGNED])
    return Edits(
        operations,
        _magnitudes(isinstance(cfg, TrivialAugmentConfig), size)[operations, level] * np.where(signed, sign, 1.0),
    )


@cache
def _magnitudes(wide: bool, size: int) -> Floats:
    """[operations, levels]: torchvision's own float32 sums, since some operations round what they are given."""
    shear, shift, turn, change = (0.99, 32.0, 135.0, 0.99) if wide else (0.3, 150.0 / 331.0 * size, 30.0, 0.9)
    ends = (0.0, shear, shear, shift, shift, turn, change, change, change, change)
    rows = [torch.linspace(0.0, end, _LEVELS) for end in ends]
    rows.append((8 - torch.arange(_LEVELS) / ((_LEVELS - 1) / (6 if wide else 4))).round())  # bits that are kept
    rows.append(torch.linspace(1.0, 0.0, _LEVELS))  # the brightness from which colours are inverted
    rows += [torch.zeros(_LEVELS)] * 2
    return torch.stack(rows).double().numpy()


def apply(images: ImageArray, edits: Edits) -> None:
    """Edit images [n, H, W, C] of 1 or 3 channels in place.

    By Pillow, which is twice as fast as torch here, bilinear, and black where the image was moved away.
    """
    for image, operations, magnitudes in zip(images, *edits, strict=True):
        if operations.any():
            edited: Any = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
            for operation, magnitude in zip(operations.tolist(), magnitudes.tolist(), strict=True):
                edited = _functions()[operation](edited, magnitude)
            image[:] = np.asarray(edited).reshape(image.shape)


@cache
def _functions() -> tuple[Callable[[Any, float], Any], ...]:
    """In the order of `OPERATIONS`: image and magnitude -> image."""
    # Here, because it takes seconds, and most recipes need none of it.
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    def affine(image: Any, shift: tuple[int, int], shear: tuple[float, float], center: list[float] | None) -> Any:
        degrees = [math.degrees(math.atan(slope)) for slope in shear]
        bilinear = InterpolationMode.BILINEAR
        return tv.affine(image, 0.0, list(shift), 1.0, degrees, interpolation=bilinear, center=center)

    return (
        lambda image, _: image,
        lambda image, m: affine(image, (0, 0), (m, 0.0), [0, 0]),
        lambda image, m: affine(image, (0, 0), (0.0, m), [0, 0]),
        lambda image, m: affine(image, (int(m), 0), (0.0, 0.0), None),
        lambda image, m: affine(image, (0, int(m)), (0.0, 0.0), None),
        lambda image, m: tv.rotate(image, m, interpolation=InterpolationMode.BILINEAR),
        lambda image, m: tv.adjust_brightness(image, 1.0 + m),
        lambda image, m: tv.adjust_saturation(image, 1.0 + m),
        lambda image, m: tv.adjust_contrast(image, 1.0 + m),
        lambda image, m: tv.adjust_sharpness(image, 1.0 + m),
        lambda image, m: tv.posterize(image, int(m)),
        lambda image, m: tv.solarize(image, 255.0 * m),
        lambda image, _: tv.autocontrast(image),
        lambda image, _: tv.equalize(image),
    )
