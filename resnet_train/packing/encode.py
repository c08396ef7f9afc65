"""From an image file to what is kept of it: the same bytes, restart tiles, a smaller image or bare pixels."""

import io
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
from resnet_train.data.shards import ENCODED, RAW, TILED
from resnet_train.errors import BadInput
from resnet_train.packing import jpeg_restart

QUALITY = 90
"""Of the JPEG that a smaller image becomes."""
_CHECKED = 4
"""Random boxes of a tiled image that are compared with the original's pixels, beside the whole."""
_ORIENTATION = 0x0112
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PPM": "ppm", "TIFF": "tif"}
_CLAIMS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
"""What a file's name says that it is."""


@dataclass(frozen=True)
class Options:
    """How images are stored."""

    tiled: bool = False
    short_side: int | None = None
    """Longer shorter sides are reduced to this, in pixels."""
    square: int | None = None
    """Every image becomes so many pixels wide and high, whatever its shape was, and is stored bare: averages of areas,
    as in downsampled ImageNet (Chrabaszcz et al. 2017)."""
    raw_fraction: float = 0.0
    """The share of a shard's images that become bare pixels: the largest files, whose decoding takes the longest."""


class Kept(NamedTuple):
    """What is stored of an image."""

    data: bytes
    suffix: str
    form: int
    width: int
    height: int
    odd: tuple[str, ...]
    """What is to be told of it."""


def keep(data: bytes, name: str, where: str, options: Options, raw: bool) -> Kept:
    """What to store of an image file; `raw`: bare pixels. Raises `BadInput`, which says `where`, if it is none."""
    image = decoding.open_bytes(data, where)
    pixels = image.region((0, 0, *image.size)).pixels  # decoded whatever is stored: a broken file is told now
    kind = _format(data)
    odd = list(_odd(image, kind, Path(name).suffix.lower()))
    if options.short_side is not None and min(image.size) > options.short_side:
        data, pixels, kind = *_smaller(pixels, options.short_side, where), "JPEG"
        image = decoding.open_bytes(data, where)
    width, height = image.size
    if options.square is not None:
        width = height = options.square
        pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
        raw = True
    header = f"P6\n{width} {height}\n255\n".encode()
    if raw:
        return Kept(header + pixels.tobytes(), "ppm", RAW, width, height, tuple(odd))
    if data.startswith(header) and len(data) == len(header) + pixels.size:
        return Kept(data, "ppm", RAW, width, height, tuple(odd))
    if options.tiled and image.is_rgb_jpeg:
        number = np.array([zlib.crc32(name.encode("utf-8", "replace"))])
        try:
            data = jpeg_restart.tiled(
                data, pixels, rng.uniform(0, 0 * number, number, 4 * _CHECKED).reshape(_CHECKED, 4)
            )
        except ValueError as error:
            odd.append(f"not tiled: {error}")
    form = TILED if image.is_rgb_jpeg and jpeg_tiles.is_tiled(data) else ENCODED
    return Kept(data, _SUFFIXES.get(kind, kind.lower()), form, width, height, tuple(odd))


def _smaller(pixels: ImageArray, short_side: int, where: str) -> tuple[bytes, ImageArray]:
    image = Image.fromarray(pixels)
    width, height = (round(short_side * side / min(image.size)) for side in image.size)
    file = io.BytesIO()
    try:
        image.resize((width, height), Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
    except OSError as error:  # JPEG has a limit to width and height
        raise BadInput(f"cannot encode {where}, {width} x {height} pixels: {error}") from None
    return file.getvalue(), simplejpeg.decode_jpeg(file.getvalue())


def _format(data: bytes) -> str:
    if data.startswith(b"\xff\xd8"):
        return "JPEG"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data)).format or "bin"


def _odd(image: ImageFile, kind: str, suffix: str) -> Iterator[str]:
    if kind == "JPEG":
        try:
            colours = simplejpeg.decode_jpeg_header(image.data)[2]
        except ValueError:
            colours = "unknown"
        if colours in ("CMYK", "YCCK"):
            yield "CMYK"
        elif colours == "Gray":
            yield "grey"
        if image.data.find(b"Exif\0", 0, 4096) > 0 and (orientation := _orientation(image.data)) > 1:
            yield f"EXIF orientation {orientation}, which is ignored"
    if _CLAIMS.get(suffix, kind) != kind:
        yield f"{kind} named {suffix}"


def _orientation(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION, 1))
        except Exception:  # whatever Pillow meets in a corrupt one
            return 1
