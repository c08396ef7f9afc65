"""TrivialAugment (Müller and Hutter 2021) and RandAugment (Cubuk et al. 2019), by torchvision's functions or timm's.

As in `augment`, operations are planned as plain arrays first and applied afterwards.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from resnet_train.config.augment import RandAugmentConfig, TimmRandAugmentConfig, TrivialAugmentConfig
from resnet_train.data import timm_augment
from resnet_train.data.decoding import ImageArray
from resnet_train.data.rng import Floats, Ints

AnyAutoAugment = TrivialAugmentConfig | RandAugmentConfig | TimmRandAugmentConfig

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
"""torchvision's names and order, the same for both policies."""

_SIGNED = slice(OPERATIONS.index("ShearX"), OPERATIONS.index("Posterize"))
"""Operations whose magnitude has a random sign."""
_LEVELS = 31


class Edits(NamedTuple):
    """The operations on each of n images, applied one after the other."""

    operations: Ints
    """[n, k], indices into `OPERATIONS`, followed by those of `timm_augment`."""
    magnitudes: Floats
    """[n, k], in the unit of each operation: slopes, pixels, degrees, factors, bits or thresholds."""


def number_of_draws(cfg: AnyAutoAugment) -> int:
    """Random numbers that the plan of an image needs."""
    if isinstance(cfg, TimmRandAugmentConfig):
        return timm_augment.DRAWS * cfg.operations
    return 3 * cfg.operations if isinstance(cfg, RandAugmentConfig) else 3


def plan(cfg: AnyAutoAugment, random: Floats, size: int) -> Edits:
    """[n, number_of_draws(cfg)] random numbers -> the operations on images of `size` x `size` pixels."""
    if isinstance(cfg, TimmRandAugmentConfig):
        operations, is_applied, magnitudes = timm_augment.plan(cfg, random, size)
        return Edits(np.where(is_applied, len(OPERATIONS) + operations, 0), magnitudes)
    operation, level, sign = np.moveaxis(random.reshape(len(random), -1, 3), 2, 0)
    operations = np.floor(operation * len(OPERATIONS)).astype(np.int64)
    if isinstance(cfg, RandAugmentConfig):
        magnitudes = _magnitudes(False, size)[operations, cfg.magnitude]
    else:
        magnitudes = _magnitudes(True, size)[operations, np.floor(level * _LEVELS).astype(np.int64)]
    signed = np.isin(operations, np.arange(len(OPERATIONS))[_SIGNED])
    return Edits(operations, np.where(signed & (sign < 0.5), -magnitudes, magnitudes))


@cache
def _magnitudes(wide: bool, size: int) -> Floats:
    """[operations, levels]: torchvision's magnitudes, of TrivialAugment where `wide`, else of RandAugment.

    In float32, as torchvision computes them: some operations round their magnitude.
    """
    shear, shift, turn, change = (0.99, 32.0, 135.0, 0.99) if wide else (0.3, 150.0 / 331.0 * size, 30.0, 0.9)
    ends = (0.0, shear, shear, shift, shift, turn, change, change, change, change)
    rows = [torch.linspace(0.0, end, _LEVELS) for end in ends]
    rows.append((8 - torch.arange(_LEVELS) / ((_LEVELS - 1) / (6 if wide else 4))).round())  # bits of Posterize
    rows.append(torch.linspace(1.0, 0.0, _LEVELS))  # the threshold of Solarize
    rows += [torch.zeros(_LEVELS)] * 2
    return torch.stack(rows).double().numpy()


def apply(images: ImageArray, edits: Edits) -> None:
    """Edit images [n, H, W, C] of 1 or 3 channels in place. Pixels that were moved away become black.

    By Pillow, which is twice as fast here as torch; bilinear.
    """
    for image, operations, magnitudes in zip(images, *edits, strict=True):
        if operations.any():
            edited: Any = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
            for operation, magnitude in zip(operations.tolist(), magnitudes.tolist(), strict=True):
                edited = _functions()[operation](edited, magnitude)
            image[:] = np.asarray(edited).reshape(image.shape)


@cache
def _functions() -> tuple[Callable[[Any, float], Any], ...]:
    """Functions of an image and a magnitude, in the order of `OPERATIONS`; then timm's."""
    # Imported here since it takes seconds, and most recipes do not need it.
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
        *timm_augment.OPERATIONS.values(),
    )
