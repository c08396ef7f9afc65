"""Image files as bytes: what is known of them before they are decoded, and as much of them decoded as a crop needs."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from resnet_train.errors import BadInput

ImageArray = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""

_MOST_PIXELS = 178_956_970
"""Pillow's own limit: what claims to be larger is taken for a decompression bomb."""


class Region(NamedTuple):
    """A decoded part of an image."""

    pixels: ImageArray
    """[h, w, 3], writable, as torch wants its arrays."""
    left: int
    top: int
    """Where in the image it begins."""


class EncodedImage(Protocol):
    """An image that is read and not yet decoded."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def region(self, box: Box) -> Region:
        """A part that holds at least the box. Raises `BadInput`."""


@dataclass(frozen=True)
class ImageFile:
    """A file that is decoded as a whole, by simplejpeg where it can, which is the faster, and else by Pillow.

    Both call libjpeg-turbo and give the same pixels. EXIF orientation is ignored, as every ImageNet trainer does.
    """

    data: bytes
    name: str
    size: tuple[int, int]
    is_rgb_jpeg: bool
    """Whether it is a JPEG of grey or RGB pixels; of CMYK, simplejpeg's conversion is not Pillow's."""

    def region(self, box: Box) -> Region:
        """The whole. Raises `BadInput`."""
        if self.is_rgb_jpeg:
            try:
                return Region(simplejpeg.decode_jpeg(self.data), 0, 0)
            except ValueError:  # strict: Pillow decides whether what is odd is broken
                pass
        return Region(np.array(decode_with_pillow(self.data, self.name)), 0, 0)


def open_bytes(data: bytes, name: str) -> ImageFile:
    """An image file by its bytes. Raises `BadInput` where they are none, or claim to be enormous."""
    if not data:
        raise BadInput(f"cannot decode {name}: it is empty")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        with _named(name), Image.open(io.BytesIO(data)) as image:
            size, is_rgb_jpeg = image.size, False
    else:
        size, is_rgb_jpeg = (int(width), int(height)), colours in ("Gray", "YCbCr", "RGB")
    if size[0] * size[1] > _MOST_PIXELS:
        raise BadInput(f"cannot decode {name}: {size[0]} x {size[1]} pixels, over the limit of {_MOST_PIXELS:,}")
    return ImageFile(data, name, size, is_rgb_jpeg)


def open_file(path: Path) -> ImageFile:
    """An image file. Raises `BadInput` where it cannot be read, or is no image."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot decode {path}: {error.strerror}") from None
    return open_bytes(data, str(path))


def decode_with_pillow(data: bytes, name: str, mode: str = "RGB") -> Image.Image:
    """An image file by Pillow; `mode` is Pillow's, RGB or L (grey). Raises `BadInput`."""
    with _named(name), Image.open(io.BytesIO(data)) as image:
        return image.convert(mode)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever Pillow raises at a broken file, in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ImageNet holds corrupt EXIF, which has no bearing on the pixels
            yield
    except UnidentifiedImageError:
        raise BadInput(f"cannot decode {name}: it is not an image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"cannot decode {name}: {getattr(error, 'strerror', None) or error}") from None
