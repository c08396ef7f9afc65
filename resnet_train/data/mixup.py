"""Random erasing, mixup and cutmix: planned as plain numbers, applied on the device to a normalised batch.

Boxes are (left, top, right, bottom) in pixels of the images that the network sees. Image i is mixed with image i - 1.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_train.config.augment import AugmentConfig
from resnet_train.data import rng
from resnet_train.data.rng import Floats, Ints

ERASE_DRAWS = 23
"""Random numbers of an image for `erase_boxes`."""
_ERASE_AREA, _ERASE_ASPECT = (0.02, 0.33), (0.3, 3.3)
"""Ranges of a box's share of the image and of its height over its width: Zhong et al. 2017, and torchvision's."""


def erase_boxes(probability: float, random: Floats, height: int, width: int) -> Ints:
    """[n, ERASE_DRAWS] random numbers -> int64 [n, 4], the box to erase of each image; all zeros: none.

    As in torchvision, the first of ten random areas and aspect ratios that is smaller than the image, else none.
    """
    tries = random[:, 3:].reshape(len(random), 10, 2)
    area = height * width * (_ERASE_AREA[0] + (_ERASE_AREA[1] - _ERASE_AREA[0]) * tries[:, :, 0])
    low, high = np.log(_ERASE_ASPECT)
    aspect = np.exp(low + (high - low) * tries[:, :, 1])
    sizes = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=2)))  # [n, 10, 2] widths and heights
    limits = np.array([width, height])
    fits = (sizes < limits).all(axis=2)
    size = np.take_along_axis(sizes, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]
    corner = np.floor(random[:, 1:3] * (limits - size + 1))
    erased = fits.any(axis=1) & (random[:, 0] < probability)
    boxes = np.concatenate([corner, corner + size], axis=1)
    return np.where(erased[:, None], boxes, 0).astype(np.int64)


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """Set the box of each image to 0, which is the mean of normalised images: [n, C, H, W] and [n, 4] -> [n, C, H, W].

    Keeps the strides.
    """
    left, top, right, bottom = boxes.unbind(1)
    rows, columns = _between(top, bottom, images.shape[2]), _between(left, right, images.shape[3])
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, images)


def plan(cfg: AugmentConfig, seed: int, height: int, width: int) -> npt.NDArray[np.float32]:
    """How a micro-batch is mixed -> [5]: lambda and a box.

    An image keeps the fraction lambda of its pixels outside the box, and none of those inside. With mixup (Zhang et al.
    2017) the box is empty; with cutmix (Yun et al. 2019) lambda is 1. With both in the recipe, one of them is drawn.
    """
    [[choice, u, v, x, y]] = rng.uniform(seed, np.zeros(1, np.int64), np.zeros(1, np.int64), 5)
    if cfg.cutmix is None or (cfg.mixup is not None and choice < 0.5):
        assert cfg.mixup is not None
        return np.array([symmetric_beta(cfg.mixup, u, v), 0.0, 0.0, 0.0, 0.0], np.float32)
    half = 0.5 * math.sqrt(1.0 - symmetric_beta(cfg.cutmix, u, v))
    x, y, dx, dy = int(x * width), int(y * height), int(half * width), int(half * height)
    return np.array([1.0, max(x - dx, 0), max(y - dy, 0), min(x + dx, width), min(y + dy, height)], np.float32)


def mix(images: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it, by what `plan` drew.

    Returns images [n, C, H, W] and the weight of an image's own label, float32 []: the mean of lambda over its pixels.
    """
    lam, left, top, right, bottom = params.unbind()
    rows = _between(top[None], bottom[None], images.shape[2])
    columns = _between(left[None], right[None], images.shape[3])
    weight = torch.where(rows[0, :, None] & columns[0], 0.0, lam)  # [H, W]
    return torch.lerp(neighbours(images), images, weight), weight.mean()


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None, smoothing: float) -> Tensor:
    """The loss of mixed images, float32 []: `weight` of that to their own labels, the rest of that to the neighbours'.

    weight: as returned by `mix`; None: the images are not mixed.
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if weight is None:
        return loss
    return torch.lerp(F.cross_entropy(logits, neighbours(labels), label_smoothing=smoothing), loss, weight)


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None, smoothing: float, threshold: float | None
) -> Tensor:
    """The loss of mixed images by class, float32 []: the mean over images and classes, as timm's BinaryCrossEntropy.

    The target of a class is its share of the image, smoothed; with a threshold it is 1 above that, else 0. weight: as
    returned by `mix`; None: the images are not mixed.
    """
    targets = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
    if weight is not None:
        targets = torch.lerp(neighbours(targets), targets, weight)
    if threshold is not None:
        targets = (targets > threshold).to(logits.dtype)
    elif smoothing:
        targets = targets * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets)


def majority(labels: Tensor, weight: Tensor | None) -> Tensor:
    """The label with the larger weight in each mixed image, int64 [n]."""
    return labels if weight is None else torch.where(weight < 0.5, neighbours(labels), labels)


def neighbours(batch: Tensor) -> Tensor:
    """[n, …] rotated by one: row i is the former row i - 1. Keeps the strides, which torch.roll does not."""
    return torch.cat([batch[-1:], batch[:-1]])


def symmetric_beta(alpha: float, u: float, v: float) -> float:
    """Beta(alpha, alpha) from two uniform numbers, exactly and without rejection.

    Student's t with 2 alpha degrees of freedom, by the polar method of Bailey 1994; the beta variable is a function of
    it: (1 + t / sqrt(2 alpha + t^2)) / 2.
    """
    w, cosine = (1.0 - u) ** (1.0 / alpha), math.cos(2.0 * math.pi * v)
    square = (1.0 - w) * cosine * cosine
    return (1.0 + math.copysign(math.sqrt(square / (square + w)), cosine)) / 2.0 if square else 0.5


def _between(first: Tensor, end: Tensor, length: int) -> Tensor:
    """[n] and [n] -> bool [n, length]: the positions in [first, end)."""
    positions = torch.arange(length, device=first.device)
    return (positions >= first[:, None]) & (positions < end[:, None])
