"""Image files against Pillow's and torchvision's own readers."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import default_loader

from resnet_train.data import decoding
from resnet_train.data.decoding import ImageArray
from resnet_train.errors import BadInput

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 30 * 20).astype(np.uint16).reshape(30, 20)


def decoded(path: Path) -> ImageArray:
    file = decoding.open_file(path)
    return file.region((0, 0, *file.size)).pixels


def save(image: Image.Image, name: str, **options: Any) -> Path:
    image.save(name, **options)
    return Path(name)


def png(pixels: np.ndarray, bits: int, colour_type: int, size: tuple[int, int] = (20, 30)) -> Path:
    """A PNG of a kind that Pillow does not write. Rows of samples, [H, bytes]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    path = Path("by-hand.png")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_what_is_no_file_is_refused_and_never_waited_for() -> None:
    os.mkfifo("pipe.jpg")
    Path("zero.jpg").symlink_to("/dev/zero")
    for name, kind in (("pipe.jpg", "a pipe"), ("zero.jpg", "a device")):
        with pytest.raises(BadInput, match=f"^cannot read {name}: it is {kind}, not a file$"):
            decoding.open_file(Path(name))


def test_every_mode_of_8_bits_is_converted_as_torchvision_does() -> None:
    image = Image.fromarray(PIXELS)
    rgba = Image.fromarray(np.dstack([PIXELS, PIXELS[:, :, 0]]))
    palette = image.quantize(16)
    files = [save(image.convert(mode), f"{mode}.tif") for mode in ("1", "L", "RGB", "CMYK", "YCbCr", "LAB")]
    files += [save(image.convert(mode), f"{mode}.png") for mode in ("1", "L", "LA")]
    files += [save(rgba, "alpha.png"), save(rgba, "alpha.webp", lossless=True), save(palette.convert("PA"), "PA.tif")]
    files += [save(palette, "palette.png"), save(palette, "transparent.png", transparency=3), save(palette, "P.gif")]
    files += [save(image.convert("L"), "key.png", transparency=7), save(image.convert("CMYK"), "cmyk.jpg")]
    files += [png(np.tile(np.arange(10, dtype=np.uint8) * 23, (30, 1)), bits=4, colour_type=0)]
    for path in files:
        assert np.array_equal(decoded(path), np.asarray(default_loader(str(path)))), path


def test_a_palette_with_many_transparent_colours_is_decoded_without_a_warning() -> None:
    path = save(Image.fromarray(PIXELS).quantize(16), "palette.png", transparency=bytes(range(16)))
    with Image.open(path) as image:
        assert np.array_equal(decoded(path), np.asarray(image.convert("RGBA").convert("RGB")))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "big-endian.tif", "grey.pgm", "text.pgm"])
def test_grey_of_16_bits_becomes_its_high_byte(name: str) -> None:
    """Pillow and torchvision make nearly all of it white."""
    path = Path(name)
    if name == "big-endian.tif":
        Image.frombytes("I;16B", (20, 30), RAMP.astype(">u2").tobytes()).save(path)
    elif name == "text.pgm":
        path.write_text(f"P2\n20 30\n65535\n{' '.join(map(str, RAMP.ravel()))}\n")
    else:
        Image.fromarray(RAMP).save(path)
    expected = np.repeat((RAMP >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(decoded(path), expected)
    grey = decoding.decode_with_pillow(path.read_bytes(), name, "L")
    assert np.array_equal(np.asarray(grey), expected[:, :, 0])


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_become_their_high_bytes(colour_type: int, channels: int) -> None:
    path = png(np.repeat(RAMP[:, :, None], channels, axis=2).astype(">u2"), 16, colour_type)
    assert np.array_equal(decoded(path)[:, :, 0], (RAMP >> 8).astype(np.uint8))


@pytest.mark.parametrize(("dtype", "pixel"), [(np.int32, "32-bit integers (mode I)"), (np.float32, "floats (mode F)")])
def test_pixels_of_an_unknown_range_are_refused_by_name(dtype: type, pixel: str) -> None:
    path = save(Image.fromarray((RAMP / 65535).astype(dtype)), "depth.tif")
    with pytest.raises(BadInput) as caught:
        decoding.open_file(path)
    assert str(caught.value) == (
        f"cannot decode depth.tif: its pixels are {pixel}, which have no fixed range: save it with 8 or 16 bits"
    )


def test_no_other_program_decodes_an_image() -> None:
    """Pillow gives a PostScript file to Ghostscript, whatever its name is."""
    path = save(Image.fromarray(PIXELS), "photo.jpg", format="EPS")
    with pytest.raises(BadInput, match=r"^cannot decode photo.jpg: it is not an image"):
        decoding.open_file(path)


def test_an_image_of_too_many_pixels_is_refused_by_its_header() -> None:
    path = png(np.zeros((1, 1), np.uint8), bits=8, colour_type=2, size=(30_000, 30_000))
    with pytest.raises(BadInput, match=r"^cannot decode by-hand.png: .*pixels.*limit"):
        decoding.open_file(path)


def test_any_error_of_a_reader_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVIF's reader raises RuntimeError, that of TIFF TypeError, where a file is damaged."""
    path = save(Image.fromarray(PIXELS), "a.tif")
    for error, message in ((RuntimeError("no plane"), "no plane"), (TypeError(), "TypeError"), (KeyError(3), "3")):
        with monkeypatch.context() as patch:

            def fail(*_: object, error: Exception = error) -> None:
                raise error

            patch.setattr(Image.Image, "convert", fail)
            with pytest.raises(BadInput, match=f"^cannot decode a.tif: {message}$"):
                decoded(path)
