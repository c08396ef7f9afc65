"""What is stored of an image file: the same bytes, a restart-tiled JPEG, a smaller image, or raw pixels."""

import io
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from resnet_train.data import decoding, jpeg_tiles, rng
from resnet_train.data.decoding import ImageArray, ImageFile
from resnet_train.data.shard_index import ENCODED, RAW, TILED
from resnet_train.errors import BadInput
from resnet_train.packing.jpeg_restart import add_restart_tiles

QUALITY = 90
"""JPEG quality of reduced images."""
_CHECKED_BOXES = 4
"""Random boxes of a tiled image that are compared with the original, in addition to the whole."""
_ORIENTATION_TAG, _BITS_TAG = 0x0112, 0x0102
_SUFFIX_OF_FORMAT = {"JPEG": "jpg", "MPO": "jpg", "PPM": "ppm", "TIFF": "tif"}
_FORMAT_OF_SUFFIX = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


@dataclass(frozen=True)
class PackOptions:
    """How images are stored. By default each file is copied unchanged."""

    tiled: bool = False
    """Recode JPEGs with restart tiles, where their pixels stay the same."""
    short_side: int | None = None
    """Reduce longer shorter sides to this, in pixels."""
    square: int | None = None
    """Resize every image to this width and height in pixels, by averages of areas, and store raw pixels.

    As in downsampled ImageNet (Chrabaszcz et al. 2017).
    """
    raw_fraction: float = 0.0
    """The fraction of the images of a shard that are stored as raw pixels: the largest files, the slowest to decode."""


class StoredImage(NamedTuple):
    """What a shard stores of an image."""

    data: bytes
    suffix: str
    """Of the tar member, without a dot."""
    form: int
    """ENCODED, TILED or RAW."""
    width: int
    height: int
    odd: tuple[str, ...]
    """What is unusual about the file, for odd.csv."""


def encode_image(data: bytes, name: str, location: str, options: PackOptions, raw: bool) -> StoredImage:
    """Encode an image file as `options` say, or as raw pixels if `raw`.

    name: CLASS/FILE. location: names the file in messages. Raises BadInput if the file cannot be decoded.
    """
    image = decoding.open_bytes(data, location)
    pixels = _decode(image)  # needed in any case: a damaged file must be found now
    image_format = _image_format(data)
    odd = list(_find_odd(image, image_format, Path(name).suffix.lower()))

    if options.short_side is not None and min(image.size) > options.short_side:
        data, image_format = _reduce(pixels, options.short_side, location), "JPEG"
        image = decoding.open_bytes(data, location)
        pixels = _decode(image)
    width, height = image.size
    if options.square is not None:
        width = height = options.square
        pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        raw = True

    ppm_header = f"P6\n{width} {height}\n255\n".encode()
    if raw:
        return StoredImage(ppm_header + pixels.tobytes(), "ppm", RAW, width, height, tuple(odd))
    if data.startswith(ppm_header) and len(data) == len(ppm_header) + pixels.size:
        return StoredImage(data, "ppm", RAW, width, height, tuple(odd))
    if options.tiled and image.is_rgb_jpeg:
        try:
            data = add_restart_tiles(data, pixels, _random_boxes(name))
        except ValueError as error:
            odd.append(f"not tiled: {error}")
    form = TILED if image.is_rgb_jpeg and jpeg_tiles.is_tiled(data) else ENCODED
    suffix = _SUFFIX_OF_FORMAT.get(image_format, image_format.lower())
    return StoredImage(data, suffix, form, width, height, tuple(odd))


def _decode(image: ImageFile) -> ImageArray:
    return image.region((0, 0, *image.size)).pixels


def _reduce(pixels: ImageArray, short_side: int, location: str) -> bytes:
    """A JPEG of the image, reduced so that its shorter side is `short_side` pixels."""
    image = Image.fromarray(pixels)
    width, height = (round(short_side * side / min(image.size)) for side in image.size)
    file = io.BytesIO()
    try:
        image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
    except OSError as error:  # JPEG limits width and height
        raise BadInput(f"cannot encode {location}, {width} x {height} pixels: {error}") from None
    return file.getvalue()


def _random_boxes(name: str) -> rng.Floats:
    """Float [n, 4] in [0, 1), a function of the name: packing again compares the same boxes."""
    checksum = np.array([zlib.crc32(name.encode("utf-8", "replace"))])
    return rng.uniform(0, np.zeros_like(checksum), checksum, 4 * _CHECKED_BOXES).reshape(_CHECKED_BOXES, 4)


def _image_format(data: bytes) -> str:
    """Pillow's name of the format."""
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data)).format or "bin"


def _find_odd(image: ImageFile, image_format: str, suffix: str) -> Iterator[str]:
    """What is unusual about an image file."""
    if image_format == "JPEG":
        try:
            colour_space = simplejpeg.decode_jpeg_header(image.data)[2]
        except ValueError:
            colour_space = "unknown"
        if colour_space in ("CMYK", "YCCK"):
            yield "CMYK"
        elif colour_space == "Gray":
            yield "grey"
        if image.data.find(b"Exif\0", 0, 4096) > 0 and (orientation := _exif_orientation(image.data)) > 1:
            yield f"EXIF orientation {orientation}, which is ignored"
    elif _has_16_bits(image.data, image_format):
        yield "16 bits a channel, of which the higher 8 are used"
    if _FORMAT_OF_SUFFIX.get(suffix, image_format) != image_format:
        yield f"{image_format} named {suffix}"


def _has_16_bits(data: bytes, image_format: str) -> bool:
    """Whether an image that can be decoded has more than 8 bits a channel."""
    if image_format == "PNG":
        return data[24] == 16
    if image_format == "TIFF":
        with Image.open(io.BytesIO(data)) as image:
            return bool(max(image.tag_v2.get(_BITS_TAG, (1,))) > 8)  # type: ignore[attr-defined]
    if image_format == "PPM":
        kind, *numbers = re.sub(rb"#[^\r\n]*", b"", data[:1024]).split(maxsplit=4)
        return kind in (b"P2", b"P3", b"P5", b"P6") and int(numbers[2]) > 255
    return False


def _exif_orientation(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION_TAG, 1))
        except Exception:  # damaged EXIF data make Pillow raise errors of many kinds
            return 1
