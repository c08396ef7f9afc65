"""timm's RandAugment with operations that get stronger with the magnitude (`inc1`), by Pillow's functions.

Pixels that come from beyond the border have the mean colour of ImageNet; resampling is bicubic.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from resnet_train.config.augment import TimmRandAugmentConfig
from resnet_train.data.rng import Floats, Ints

DRAWS = 5
"""Random numbers of an operation: which, whether, two for the magnitude, and its sign."""
_LARGEST = 10.0
"""The largest magnitude."""
_FILL = {"RGB": (124, 116, 104), "L": 116}


def plan(cfg: TimmRandAugmentConfig, random: Floats, size: int) -> tuple[Ints, npt.NDArray[np.bool_], Floats]:
    """[n, DRAWS * k] random numbers -> indices into `OPERATIONS`, whether each is applied, and its argument; [n, k].

    size: height and width of the images in pixels. Arguments are slopes, pixels, degrees, factors, bits or thresholds.
    """
    which, whether, u, v, sign = np.moveaxis(random.reshape(len(random), -1, DRAWS), 2, 0)
    operations = np.floor(which * len(OPERATIONS)).astype(np.int64)
    normal = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)  # Box and Muller 1958
    level = (cfg.magnitude + cfg.magnitude_std * normal).clip(0, _LARGEST) / _LARGEST
    signed = np.where(sign < 0.5, -level, level)
    zero = np.zeros_like(level)
    enhanced = np.maximum(0.1, 1 + 0.9 * signed)
    arguments = {
        "Rotate": 30 * signed,
        "PosterizeIncreasing": np.maximum(4 - np.floor(4 * level), 1),  # Pillow refuses to keep no bit
        "SolarizeIncreasing": 256 - np.floor(256 * level),
        "SolarizeAdd": np.floor(110 * level),
        **dict.fromkeys(("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing"), enhanced),
        "SharpnessIncreasing": enhanced,
        "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed,
        "TranslateXRel": 0.45 * size * signed,
        "TranslateYRel": 0.45 * size * signed,
    }
    table = np.stack([arguments.get(name, zero) for name in OPERATIONS])  # [operations, n, k]
    return operations, whether >= 0.5, np.take_along_axis(table, operations[None], 0)[0]


def _transformed(image: Any, matrix: tuple[float, ...]) -> Any:
    """Pixel (x, y) of the result comes from (a x + b y + c, d x + e y + f)."""
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, affine, matrix, resample=bicubic, fillcolor=_FILL[image.mode])


def _solarized_sum(image: Any, add: float) -> Any:
    """Adds to values below 128."""
    table = [min(255, value + int(add)) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


OPERATIONS: dict[str, Callable[[Any, float], Any]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Rotate": lambda image, a: image.rotate(a, Image.Resampling.BICUBIC, fillcolor=_FILL[image.mode]),
    "PosterizeIncreasing": lambda image, a: ImageOps.posterize(image, int(a)),
    "SolarizeIncreasing": lambda image, a: ImageOps.solarize(image, int(a)),
    "SolarizeAdd": _solarized_sum,
    "ColorIncreasing": lambda image, a: ImageEnhance.Color(image).enhance(a),
    "ContrastIncreasing": lambda image, a: ImageEnhance.Contrast(image).enhance(a),
    "BrightnessIncreasing": lambda image, a: ImageEnhance.Brightness(image).enhance(a),
    "SharpnessIncreasing": lambda image, a: ImageEnhance.Sharpness(image).enhance(a),
    "ShearX": lambda image, a: _transformed(image, (1, a, 0, 0, 1, 0)),
    "ShearY": lambda image, a: _transformed(image, (1, 0, 0, a, 1, 0)),
    "TranslateXRel": lambda image, a: _transformed(image, (1, 0, a, 0, 1, 0)),
    "TranslateYRel": lambda image, a: _transformed(image, (1, 0, 0, 0, 1, a)),
}
"""timm's names and order: functions of an image, RGB or grey, and the argument."""
