"""Crops, mirroring and PCA lighting of training images, each planned first and applied afterwards.

A plan is plain arrays, a function of random numbers that depend on (seed, epoch, index) alone; applying it draws
nothing. Boxes are (left, top, right, bottom) in pixels of the image before the crop. Images are uint8.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from resnet_train.config.augment import AugmentConfig, PadCropConfig, RandomResizedCropConfig, ScaleCropConfig
from resnet_train.data import auto_augment, mixup
from resnet_train.data.decoding import EncodedImage, ImageArray
from resnet_train.data.rng import Floats

# Each augmentation reads columns of its own, so switching one on does not change the random numbers of another.
_FLIP, _LEFT, _TOP, _SIDE, _COLOR, _TRIES = 0, 1, 2, 3, slice(4, 8), slice(8, 28)
DRAWS = 28
"""Random numbers of an image for its crop, mirroring and lighting."""
ERASE_COLUMNS = slice(DRAWS, DRAWS + mixup.ERASE_DRAWS)
"""Columns of random erasing."""
AUTO_AUGMENT_COLUMNS = slice(ERASE_COLUMNS.stop, None)
"""Columns of `auto_augment`."""

# Principal components of the RGB values, on a scale of 0 to 1, of ImageNet's training images: the eigenvalues and
# eigenvectors of their covariance (Krizhevsky et al. 2012, section 4.1; values of fb.resnet.torch).
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class Plan(NamedTuple):
    """How each of n images is cropped, mirrored and shifted."""

    boxes: Floats
    """[n, 4]. The box of a pad crop may extend beyond the image, by the padding."""
    flip: npt.NDArray[np.bool_]
    """[n]."""
    shift: npt.NDArray[np.float32]
    """[n, 3]: PCA lighting, to be added to RGB on a scale of 0 to 1."""


def columns(cfg: AugmentConfig) -> int:
    """Random numbers that a recipe needs for each image."""
    if cfg.auto_augment is not None:
        return ERASE_COLUMNS.stop + auto_augment.number_of_draws(cfg.auto_augment)
    return ERASE_COLUMNS.stop if cfg.random_erasing else DRAWS


def resized_crop_of(cfg: AugmentConfig) -> ScaleCropConfig | RandomResizedCropConfig:
    """The crop of image files of any size; the configuration is refused where they have no such crop."""
    assert isinstance(cfg.crop, ScaleCropConfig | RandomResizedCropConfig)
    return cfg.crop


# --- planning ---------------------------------------------------------------------------------------------------------


def plan(cfg: AugmentConfig, random: Floats, sizes: Floats) -> Plan:
    """[n, DRAWS or more] random numbers and [n, 2] image sizes (width, height) -> a plan."""
    match cfg.crop:
        case ScaleCropConfig():
            boxes = _scale_boxes(cfg.crop, random, sizes)
        case RandomResizedCropConfig():
            boxes = _random_resized_boxes(cfg.crop, random, sizes)
        case PadCropConfig(padding=p):
            corner = np.floor(random[:, [_LEFT, _TOP]] * (2 * p + 1)) - p
            boxes = np.concatenate([corner, corner + sizes], axis=1)
        case None:
            boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    shift = np.zeros((len(random), 3), np.float32)
    if cfg.pca_lighting:
        alpha = 0.1 * _normal(random[:, _COLOR])[:, :3]
        shift = ((alpha * _EIGENVALUES) @ _EIGENVECTORS.T).astype(np.float32)
    return Plan(boxes, (random[:, _FLIP] < 0.5) & cfg.flip, shift)


def _scale_boxes(cfg: ScaleCropConfig, random: Floats, sizes: Floats) -> Floats:
    """A `size` x `size` window of the image resized to a random shorter side, in pixels of the original."""
    low, high = cfg.short_side
    side = low + np.floor(random[:, [_SIDE]] * (high - low + 1))
    resized = np.floor(side * sizes / sizes.min(axis=1, keepdims=True))
    corner = np.floor(random[:, [_LEFT, _TOP]] * (resized - cfg.size + 1))
    scale: Floats = np.tile(sizes / resized, 2)
    return np.concatenate([corner, corner + cfg.size], axis=1) * scale


def _random_resized_boxes(cfg: RandomResizedCropConfig, random: Floats, sizes: Floats) -> Floats:
    """The first of ten random areas and aspect ratios that fits, else the largest central box of a valid ratio.

    This is torchvision's rule.
    """
    tries = random[:, _TRIES].reshape(len(random), 10, 2)
    (low, high), (narrow, wide) = cfg.scale, np.log(cfg.ratio)
    area = sizes.prod(axis=1, keepdims=True) * (low + (high - low) * tries[:, :, 0])
    aspect = np.exp(narrow + (wide - narrow) * tries[:, :, 1])
    boxes = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=2)))  # [n, 10, 2] widths and heights
    fits = ((boxes > 0) & (boxes <= sizes[:, None])).all(axis=2)
    size = np.take_along_axis(boxes, fits.argmax(axis=1)[:, None, None], axis=1)[:, 0]

    aspect = (sizes[:, 0] / sizes[:, 1]).clip(*cfg.ratio)[:, None]
    largest = np.rint(np.minimum(sizes, sizes[:, ::-1] * np.concatenate([aspect, 1 / aspect], axis=1)))
    any_fits = fits.any(axis=1, keepdims=True)
    size = np.where(any_fits, size, largest)
    corner = np.where(any_fits, np.floor(random[:, [_LEFT, _TOP]] * (sizes - size + 1)), (sizes - size) // 2)
    return np.concatenate([corner, corner + size], axis=1)


def _normal(uniform: Floats) -> Floats:
    """[n, 4] uniform -> [n, 4] standard normal (Box and Muller 1958)."""
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, :2])), 2 * np.pi * uniform[:, 2:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# --- applying ---------------------------------------------------------------------------------------------------------


def resized_crop(
    image: EncodedImage, box: Floats, flip: bool, cfg: ScaleCropConfig | RandomResizedCropConfig, out: ImageArray
) -> None:
    """Decode the part of `image` that `box` covers, resize it by an antialiased bilinear filter, and write it to `out`.

    out: uint8 [size, size, 3], overwritten; its size is that of the step, which progressive resizing may make smaller
    than the crop's. Raises `BadInput` where the image cannot be decoded.
    """
    if isinstance(cfg, ScaleCropConfig):
        _window_of_resized(image, box, flip, out)
    else:
        _resized_part(image, box, flip, out)


def _window_of_resized(image: EncodedImage, box: Floats, flip: bool, out: ImageArray) -> None:
    """A window of the resized whole: the filter reads pixels on either side of the box, as resizing the whole would.

    Only Pillow's filter accepts a box that begins between two pixels.
    """
    margin = max(1.0, (box[2] - box[0]) / len(out))
    window = np.concatenate([np.floor(box[:2] - margin), np.ceil(box[2:] + margin)]).astype(int)
    left, top, right, bottom = np.clip(window, 0, np.tile(image.size, 2)).tolist()
    region = image.region((left, top, right, bottom))
    box_in_region = tuple(box - (region.left, region.top, region.left, region.top))
    resized = Image.fromarray(region.pixels).resize((len(out), len(out)), Image.Resampling.BILINEAR, box_in_region)
    out[:] = np.asarray(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized)


def _resized_part(image: EncodedImage, box: Floats, flip: bool, out: ImageArray) -> None:
    """The box is cut out before it is resized, as in torchvision's RandomResizedCrop.

    torch's filter is faster than Pillow's, and differs from it by at most 1 of 255.
    """
    left, top, right, bottom = box.astype(int).tolist()
    region = image.region((left, top, right, bottom))
    rows, columns = slice(top - region.top, bottom - region.top), slice(left - region.left, right - region.left)
    # torch resizes three times as fast where it takes the tensor for channels last: it must be contiguous, and have a
    # batch dimension before it is permuted.
    part = torch.from_numpy(np.ascontiguousarray(region.pixels[rows, columns]))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(part, len(out), mode="bilinear", antialias=True)
    out[:] = (resized.flip(3) if flip else resized)[0].permute(1, 2, 0).numpy()


def pad_and_crop(images: Tensor, rows: Tensor, corners: Tensor, flip: Tensor, padding: str) -> Tensor:
    """Images [m, H, W, C] -> their crops [n, H, W, C], padded at the border and mirrored where `flip` is set.

    rows: int64 [n], the image of each crop. corners: int64 [n, 2], left and top; negative inside the padding. flip:
    bool [n]. padding: "zero" or "reflect". The padding is computed on the indices, so only the result is allocated.
    """
    height, width = images.shape[1:3]
    x = torch.arange(width, device=images.device)
    x = torch.where(flip[:, None], width - 1 - x, x) + corners[:, :1]  # [n, W]
    y = torch.arange(height, device=images.device) + corners[:, 1:]  # [n, H]
    sample = rows[:, None, None]
    if padding == "reflect":
        return images[sample, _reflect(y, height)[:, :, None], _reflect(x, width)[:, None, :]]
    inner_x, inner_y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    inside = (y == inner_y)[:, :, None] & (x == inner_x)[:, None, :]
    return images[sample, inner_y[:, :, None], inner_x[:, None, :]] * inside[..., None]


def _reflect(index: Tensor, length: int) -> Tensor:
    """Indices beyond either end, mirrored at the end without repeating it."""
    index = index.abs()
    return torch.where(index < length, index, 2 * (length - 1) - index)
