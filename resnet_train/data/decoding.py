"""Encoded images: their size is known before they are decoded, and no more of them is decoded than a crop needs."""

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
from resnet_train.runtime.regular_file import read_bytes

ImageArray = npt.NDArray[np.uint8]
"""Pixels, [H, W, C] or [n, H, W, C]."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""

MAX_PIXELS = 178_956_970
"""Pillow's own limit: a file with a larger size in its header is taken for a decompression bomb."""
MAX_BYTES = 6 * MAX_PIXELS
"""The largest file: RGB of 16 bits, not compressed, of the most pixels."""
_FORMATS = frozenset({"JPEG", "MPO", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000"})
"""Formats of photographs, whatever the name of the file. Pillow knows others, some of which other programs decode."""


class Region(NamedTuple):
    """A decoded part of an image."""

    pixels: ImageArray
    """[h, w, 3], writable, since torch warns of arrays that are not."""
    left: int
    top: int
    """Its position in the image, in pixels."""


class EncodedImage(Protocol):
    """An image that was read and is not decoded yet."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""

    def region(self, box: Box) -> Region:
        """Decode a part that contains the box. Raises `BadInput`."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, which can only be decoded as a whole.

    simplejpeg decodes JPEG, since it is faster, and Pillow the rest; both call libjpeg-turbo and give the same pixels.
    EXIF orientation is ignored, as in every ImageNet trainer.
    """

    data: bytes
    name: str
    """Names the file in messages."""
    size: tuple[int, int]
    is_rgb_jpeg: bool
    """Whether it is a JPEG of grey or RGB pixels. simplejpeg converts CMYK in another way than Pillow."""

    def region(self, box: Box) -> Region:
        """The whole image. Raises `BadInput`."""
        if self.is_rgb_jpeg:
            try:
                return Region(simplejpeg.decode_jpeg(self.data), 0, 0)
            except ValueError:  # simplejpeg also refuses files that are merely unusual
                pass
        return Region(np.array(decode_with_pillow(self.data, self.name)), 0, 0)


def open_bytes(data: bytes, name: str) -> ImageFile:
    """Read the header of an image file. Raises `BadInput` where it is not an image, or too large."""
    if not data:
        raise BadInput(f"cannot decode {name}: it is empty")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        with _opened(data, name) as image:
            _check_range(image)
            size, is_rgb_jpeg = image.size, False
    else:
        size, is_rgb_jpeg = (int(width), int(height)), colours in ("Gray", "YCbCr", "RGB")
    if size[0] * size[1] > MAX_PIXELS:
        raise BadInput(f"cannot decode {name}: {size[0]} x {size[1]} pixels, over the limit of {MAX_PIXELS:,}")
    return ImageFile(data, name, size, is_rgb_jpeg)


def open_file(path: Path) -> ImageFile:
    """Read an image file and its header. Raises `BadInput` where it cannot be read, or as `open_bytes` does."""
    return open_bytes(read_bytes(path, MAX_BYTES), str(path))


def decode_with_pillow(data: bytes, name: str, mode: str = "RGB") -> Image.Image:
    """The whole of an image file; `mode` is Pillow's: RGB or L (grey). Raises `BadInput`."""
    with _opened(data, name) as image:
        return to_8_bits(image).convert(mode)


def to_8_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel; Pillow's `convert` would make any larger value white.

    Grey of 16 bits becomes its high byte, as Pillow makes of 16-bit colours. Raises `ValueError` where pixels have no
    fixed range.
    """
    if _is_16_bit_grey(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    _check_range(image)
    return image


def _is_16_bit_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _check_range(image: Image.Image) -> None:
    if image.mode in ("I", "F") and not _is_16_bit_grey(image):
        pixels = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(
            f"its pixels are {pixels} (mode {image.mode}), which have no fixed range: save it with 8 or 16 bits"
        )


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image by Pillow, whose errors at a broken file become a `BadInput` of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ImageNet holds corrupt EXIF, which does not affect the pixels
            with Image.open(io.BytesIO(data)) as image:
                if image.format not in _FORMATS:
                    raise UnidentifiedImageError
                yield image
    except UnidentifiedImageError:
        raise BadInput(f"cannot decode {name}: it is not an image") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's readers raise errors of a dozen kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInput(f"cannot decode {name}: {reason}") from None
