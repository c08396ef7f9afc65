"""Plan and apply: a plan is plain arrays drawn from (seed, epoch, index); applying it is a separate, exact function.

Boxes are (left, top, right, bottom) in pixels of the image as it is read. Images are uint8, [H, W, C] or [n, H, W, C].
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from resnet_train.config.data import AugmentConfig, PadCropConfig, RandomResizedCropConfig, ScaleCropConfig
from resnet_train.data import auto_augment, mixup
from resnet_train.data.decoding import EncodedImage, ImageArray
from resnet_train.data.rng import Floats

# Each draw has columns of its own, so that switching one augmentation on leaves the others' draws as they were.
_FLIP, _LEFT, _TOP, _SIDE, _COLOR, _TRIES = 0, 1, 2, 3, slice(4, 8), slice(8, 28)
DRAWS = 28
ERASE = slice(DRAWS, DRAWS + mixup.ERASE_DRAWS)
POLICY = slice(ERASE.stop, None)

# Principal components of the RGB values of ImageNet's training images, scaled to [0, 1]: the square roots of the
# covariance's eigenvalues and its eigenvectors (Krizhevsky et al. 2012, section 4.1; figures of fb.resnet.torch).
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Plan(NamedTuple):
    """How each of `n` images is cut, mirrored and shifted."""

    boxes: Floats
    """[n, 4]. For a pad crop they may reach out of the image, by the padding."""
    flip: np.ndarray
    """[n] bool."""
    shift: np.ndarray
    """[n, 3] float32, to add to RGB in [0, 1]."""


def columns(cfg: AugmentConfig) -> int:
    """How many columns a recipe reads."""
    if cfg.auto_augment is not None:
        return ERASE.stop + auto_augment.number_of_draws(cfg.auto_augment)
    return ERASE.stop if cfg.random_erasing else DRAWS


def plan(cfg: AugmentConfig, draws: Floats, sizes: Floats) -> Plan:
    """[n, DRAWS or more] draws and [n, 2] sizes (width, height) -> a plan."""
    match cfg.crop:
        case ScaleCropConfig():
            boxes = _scale_boxes(cfg.crop, draws, sizes)
        case RandomResizedCropConfig():
            boxes = _random_resized_boxes(cfg.crop, draws, sizes)
        case PadCropConfig(padding=p):
            corner = np.floor(draws[:, [_LEFT, _TOP]] * (2 * p + 1)) - p
            boxes = np.concatenate([corner, corner + sizes], axis=1)
        case None:
            boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    shift = np.zeros((len(draws), 3), np.float32)
    if cfg.pca_lighting:
        alpha = 0.1 * _normal(draws[:, _COLOR])[:, :3]
        shift = ((alpha * _EIGENVALUES) @ _EIGENVECTORS.T).astype(np.float32)
    return Plan(boxes, (draws[:, _FLIP] < 0.5) & cfg.flip, shift)


def _scale_boxes(cfg: ScaleCropConfig, draws: Floats, sizes: Floats) -> Floats:
    """A `size` x `size` window on the pixels of the image resized to a shorter side of s, in pixels of the original."""
    low, high = cfg.short_side
    side = low + np.floor(draws[:, [_SIDE]] * (high - low + 1))
    resized = np.floor(side * sizes / sizes.min(axis=1, keepdims=True))
    corner = np.floor(draws[:, [_LEFT, _TOP]] * (resized - cfg.size + 1))
    scale: Floats = np.tile(sizes / resized, 2)
    return np.concatenate([corner, corner + cfg.size], axis=1) * scale


def _random_resized_boxes(cfg: RandomResizedCropConfig, draws: Floats, sizes: Floats) -> Floats:
    """The first of ten draws of area and aspect that fits; failing all, the largest central box of a valid aspect."""
    tries = draws[:, _TRIES].reshape(len(draws), 10, 2)
    (low, high), (narrow, wide) = cfg.scale, np.log(cfg.ratio)
    area = sizes.prod(axis=1, keepdims=True) * (low + (high - low) * tries[:, :, 0])
    aspect = np.exp(narrow + (wide - narrow) * tries[:, :, 1])
    boxes = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=2)))  # [n, 10, 2] widths and heights
    fits = ((boxes > 0) & (boxes <= sizes[:, None])).all(axis=2)
    size = np.take_along_axis(boxes, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]

    aspect = (sizes[:, 0] / sizes[:, 1]).clip(*cfg.ratio)[:, None]
    largest = np.rint(np.minimum(sizes, sizes[:, ::-1] * np.concatenate([aspect, 1 / aspect], axis=1)))
    found = fits.any(axis=1, keepdims=True)
    size = np.where(found, size, largest)
    corner = np.where(found, np.floor(draws[:, [_LEFT, _TOP]] * (sizes - size + 1)), (sizes - size) // 2)
    return np.concatenate([corner, corner + size], axis=1)


def _normal(draws: Floats) -> Floats:
    """[n, 4] uniform -> [n, 4] standard normal (Box and Muller 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-draws[:, :2])), 2 * np.pi * draws[:, 2:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# --- applying ---------------------------------------------------------------------------------------------------------


def resized_crop(
    picture: EncodedImage, box: Floats, flip: bool, cfg: ScaleCropConfig | RandomResizedCropConfig, out: ImageArray
) -> None:
    """One image of any size -> `out`, [size, size, 3], by Pillow's antialiased bilinear filter or its equal.

    The box of a scale crop is a window on the resized whole image, so the filter reads pixels on either side of it;
    only Pillow's can begin between two pixels. That of a random resized crop is cut out first and sees nothing beside
    itself (as in torchvision); torch's filter is the faster and differs from Pillow's by 1 of 255 at most.
    Raises `BadInput`.
    """
    size = len(out)  # of progressive resizing, the step's and not the recipe's
    if isinstance(cfg, ScaleCropConfig):
        reach = max(1.0, (box[2] - box[0]) / size)
        window = np.concatenate([np.floor(box[:2] - reach), np.ceil(box[2:] + reach)]).astype(int)
        left, top, right, bottom = np.clip(window, 0, np.tile(picture.size, 2)).tolist()
        part = picture.region((left, top, right, bottom))
        inside = tuple(box - (part.left, part.top, part.left, part.top))
        image = Image.fromarray(part.pixels).resize((size, size), Image.Resampling.BILINEAR, inside)
        out[:] = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)
    else:
        left, top, right, bottom = box.astype(int).tolist()
        part = picture.region((left, top, right, bottom))
        rows, columns = slice(top - part.top, bottom - part.top), slice(left - part.left, right - part.left)
        # In one piece, and with a first dimension of its own before it is permuted, torch takes it for channels last
        # and resizes it three times as fast.
        cut = torch.from_numpy(np.ascontiguousarray(part.pixels[rows, columns]))[None].permute(0, 3, 1, 2)
        resized = F.interpolate(cut, size, mode="bilinear", antialias=True)
        out[:] = (resized.flip(3) if flip else resized)[0].permute(1, 2, 0).numpy()


def pad_and_crop(images: Tensor, rows: Tensor, corners: Tensor, flip: Tensor, mode: str) -> Tensor:
    """[m, H, W, C], which of them [n], left and top [n, 2] (negative: into the padding), [n] bool -> [n, H, W, C].

    On any device. Padding is arithmetic on the indices, so nothing is copied but the result.
    """
    height, width = images.shape[1:3]
    across = torch.arange(width, device=images.device)
    across = torch.where(flip[:, None], width - 1 - across, across) + corners[:, :1]  # [n, W]
    down = torch.arange(height, device=images.device) + corners[:, 1:]  # [n, H]
    sample = rows[:, None, None]
    if mode == "reflect":
        return images[sample, _mirror(down, height)[:, :, None], _mirror(across, width)[:, None, :]]
    read_down, read_across = down.clamp(0, height - 1), across.clamp(0, width - 1)
    inside = (down == read_down)[:, :, None] & (across == read_across)[:, None, :]
    return images[sample, read_down[:, :, None], read_across[:, None, :]] * inside[..., None]


def _mirror(index: Tensor, length: int) -> Tensor:
    """Indices beyond either end, reflected at it without repeating the border."""
    index = index.abs()
    return torch.where(index < length, index, 2 * (length - 1) - index)
