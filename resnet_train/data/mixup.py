"""Random erasing, mixup and cutmix: planned as plain numbers, applied on the device to a whole normalised batch.

Boxes are (left, top, right, bottom) in pixels of the images as the network sees them.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_train.config.data import AugmentConfig
from resnet_train.data import rng
from resnet_train.data.rng import Floats, Ints

ERASE_DRAWS = 23

_AREA, _RATIO = (0.02, 0.33), (0.3, 3.3)  # of Zhong et al. 2017, and torchvision's


def erase_boxes(probability: float, draws: Floats, height: int, width: int) -> Ints:
    """[n, ERASE_DRAWS] draws -> [n, 4]: what is erased of each image; an empty box is nothing.

    The first of ten draws of area and aspect that is smaller than the image, else nothing, as in torchvision.
    """
    tries = draws[:, 3:].reshape(len(draws), 10, 2)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * tries[:, :, 0])
    low, high = np.log(_RATIO)
    aspect = np.exp(low + (high - low) * tries[:, :, 1])
    sizes = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=2)))  # [n, 10, 2] widths and heights
    limits = np.array([width, height])
    fits = (sizes < limits).all(axis=2)
    size = np.take_along_axis(sizes, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    corner = np.floor(draws[:, 1:3] * (limits - size + 1))
    chosen = fits.any(axis=1) & (draws[:, 0] < probability)
    boxes: Floats = np.concatenate([corner, corner + size], axis=1) * chosen[:, None]
    return boxes.astype(np.int64)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """[n, C, H, W] and [n, 4] -> the same with each image's box set to 0, which after normalisation is the mean."""
    left, top, right, bottom = boxes.unbind(1)
    rows, columns = _within(top, bottom, images.shape[2]), _within(left, right, images.shape[3])
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, images)  # keeps the strides


def plan(cfg: AugmentConfig, seed: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """How the images of a share go into each other -> [5]: `own`, and a box.

    Each image keeps the part `own` of its pixels outside the box and none within. With mixup the box is empty, with
    cutmix `own` is 1; with both in the recipe, one of them is drawn.
    """
    [[which, u, v, x, y]] = rng.uniform(seed, np.zeros(1, np.int64), np.zeros(1, np.int64), 5)
    if cfg.cutmix is None or (cfg.mixup is not None and which < 0.5):
        assert cfg.mixup is not None
        return np.array([symmetric_beta(cfg.mixup, u, v), 0.0, 0.0, 0.0, 0.0], np.float32)
    half = 0.5 * math.sqrt(1.0 - symmetric_beta(cfg.cutmix, u, v))
    x, y, dx, dy = int(x * width), int(y * height), int(half * width), int(half * height)
    return np.array([1.0, max(x - dx, 0), max(y - dy, 0), min(x + dx, width), min(y + dy, height)], np.float32)


def mix(images: Tensor, blend: Tensor) -> tuple[Tensor, Tensor]:
    """[n, C, H, W] and what `plan` drew -> images mixed with their `neighbours`, and the part of each that is its own.

    The part, float32 [], is the weight of an image's own label.
    """
    own, left, top, right, bottom = blend.unbind()
    rows, columns = _within(top[None], bottom[None], images.shape[2]), _within(left[None], right[None], images.shape[3])
    weight = torch.where(rows[0, :, None] & columns[0], 0.0, own)  # [H, W]
    return torch.lerp(neighbours(images), images, weight), weight.mean()


def cross_entropy(logits: Tensor, labels: Tensor, own: Tensor | None, smoothing: float) -> Tensor:
    """Against the labels of mixed images: of each its own and its neighbour's, by their parts. `own` None: unmixed."""
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if own is None:
        return loss
    return torch.lerp(F.cross_entropy(logits, neighbours(labels), label_smoothing=smoothing), loss, own)


def majority(labels: Tensor, own: Tensor | None) -> Tensor:
    """The label that each mixed image has most of."""
    return labels if own is None else torch.where(own < 0.5, neighbours(labels), labels)


def neighbours(batch: Tensor) -> Tensor:
    """[n, …] -> at each place what was at the one before it. Keeps the strides, which torch.roll does not."""
    return torch.cat([batch[-1:], batch[:-1]])


def symmetric_beta(alpha: float, u: float, v: float) -> float:
    """Beta(alpha, alpha) from two uniform numbers, exactly and without rejection.

    Student's t with 2 alpha degrees of freedom by the polar method of Bailey 1994, and from it the beta of which it is
    a function: (1 + t / sqrt(2 alpha + t^2)) / 2.
    """
    w, cosine = (1.0 - u) ** (1.0 / alpha), math.cos(2.0 * math.pi * v)
    square = (1.0 - w) * cosine * cosine
    return (1.0 + math.copysign(math.sqrt(square / (square + w)), cosine)) / 2.0 if square else 0.5


def _within(first: Tensor, end: Tensor, length: int) -> Tensor:
    """[n] and [n] -> bool [n, length]: the places from first to end, without the end."""
    places = torch.arange(length, device=first.device)
    return (places >= first[:, None]) & (places < end[:, None])
