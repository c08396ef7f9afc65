"""Restart-tiled JPEG: every crop, cut out of the byte stream, equals that of the whole image bit for bit."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from conftest import needs_jpegtran, photo
from PIL import Image

from resnet_train.data import decoding, jpeg_tiles
from resnet_train.data.decoding import ImageArray
from resnet_train.data.jpeg_tiles import TiledJpeg
from resnet_train.errors import BadInput
from resnet_train.packing import jpeg_restart

SIZES = [(500, 375), (375, 500), (333, 217), (129, 65), (64, 64), (16, 300), (7, 5), (1, 1)]
"""375 is 47 blocks of 8 pixels, a prime: tiles are whole rows there. 7 and 1 are less than a block."""


def jpeg(pixels: ImageArray, mode: str, restart: int = 0) -> bytes:
    """A file by Pillow; `mode` is the subsampling of chroma, or grey."""
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    how = {} if mode == "grey" else {"subsampling": mode}
    image = image.convert("L") if mode == "grey" else image
    image.save(file, "JPEG", quality=88, restart_marker_blocks=restart, **how)
    return file.getvalue()


def assert_every_crop_is_exact(data: bytes, whole: ImageArray, crops: int = 60) -> float:
    """Compare crops, random and in the corners, with the whole image. Returns the mean fraction that was decoded."""
    height, width = whole.shape[:2]
    image = TiledJpeg(data, "it", (width, height))
    boxes = jpeg_restart.random_boxes(np.random.default_rng(1).random((crops, 4)), width, height)
    boxes += [(0, 0, 1, 1), (width - 1, height - 1, width, height), (0, 0, width, height)]
    decoded = []
    for left, top, right, bottom in boxes:
        region = image.region((left, top, right, bottom))
        crop = region.pixels[top - region.top : bottom - region.top, left - region.left : right - region.left]
        assert np.array_equal(crop, whole[top:bottom, left:right]), (left, top, right, bottom)
        assert region.pixels.flags.writeable
        decoded.append(region.pixels.size / whole.size)
    return float(np.mean(decoded[:crops]))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["4:4:4", "4:2:2", "4:2:0", "grey"])
def test_every_crop_equals_that_of_the_whole_image(mode: str, size: tuple[int, int]) -> None:
    plain = jpeg(photo(*size), mode)
    restarting = jpeg(photo(*size), mode, jpeg_restart.choose_interval(jpeg_restart.read_header(plain)))
    tiled = jpeg_restart.add_tile_table(restarting)
    assert jpeg_tiles.is_tiled(tiled)
    assert not jpeg_tiles.is_tiled(restarting)
    whole = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(tiled)).convert("RGB")), whole)  # for other programs, too
    decoded = assert_every_crop_is_exact(tiled, whole)
    if size == (500, 375):
        assert decoded < 0.45  # the boxes cover 0.16 of the image on average


@needs_jpegtran
@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_jpegtran_makes_tiles_of_any_subsampling(subsampling: str) -> None:
    pixels = photo(501, 227)
    grey = subsampling == "Gray"
    plain = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels[..., :1]) if grey else pixels, 90, "GRAY" if grey else "RGB", subsampling
    )
    whole = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    tiled = jpeg_restart.add_restart_tiles(plain, whole, np.random.default_rng(2).random((4, 4)))
    assert len(tiled) < 1.06 * len(plain)
    assert_every_crop_is_exact(tiled, whole)


@needs_jpegtran
def test_a_progressive_file_becomes_tiles_of_the_same_pixels() -> None:
    file = io.BytesIO()
    Image.fromarray(photo(300, 200)).save(file, "JPEG", progressive=True)
    whole = np.asarray(Image.open(file).convert("RGB"))
    assert not jpeg_restart.read_header(file.getvalue()).is_baseline
    assert_every_crop_is_exact(jpeg_restart.add_restart_tiles(file.getvalue(), whole, np.zeros((0, 4))), whole)


@needs_jpegtran
def test_other_pixels_and_broken_files_are_refused() -> None:
    pixels = photo(100, 100)
    data = jpeg(pixels, "4:4:4")
    whole = np.asarray(Image.open(io.BytesIO(data)))
    with pytest.raises(ValueError, match="its pixels are not the same"):
        jpeg_restart.add_restart_tiles(data, whole ^ np.uint8(1), np.zeros((0, 4)))
    for broken, why in ((data[:300], "truncated"), (b"\xff\xd8 no marker", "marker"), (data[:-700], "premature end")):
        with pytest.raises(ValueError, match=f"(?i){why}"):
            jpeg_restart.add_restart_tiles(broken, whole, np.zeros((0, 4)))


def test_restarts_that_do_not_divide_the_rows_are_refused() -> None:
    pixels = photo(100, 100)  # 13 units in a row
    for restart, why in ((0, "does not divide"), (5, "does not divide")):
        with pytest.raises(ValueError, match=why):
            jpeg_restart.add_tile_table(jpeg(pixels, "4:4:4", restart))
    with pytest.raises(ValueError, match="restart markers do not match the header"):
        jpeg_restart.add_tile_table(jpeg(pixels, "4:4:4", 13) + b"trailing")


def test_the_width_of_a_tile_divides_the_row() -> None:
    for width in range(1, 700):
        for block in (8, 16, 32):
            header = jpeg_restart.JpegHeader(0, (width, 10), (block, 8), 0, 0, True)
            units = jpeg_restart.choose_interval(header)
            assert header.mcus_per_row % units == 0
            assert units == header.mcus_per_row or 40 <= units * block <= 112
    assert jpeg_restart.choose_interval(jpeg_restart.JpegHeader(0, (500, 375), (8, 8), 0, 0, True)) == 7


def test_a_damaged_tile_is_named() -> None:
    data = bytearray(
        jpeg_restart.add_tile_table(
            jpeg(
                photo(200, 200),
                "4:2:0",
                jpeg_restart.choose_interval(jpeg_restart.read_header(jpeg(photo(200, 200), "4:2:0"))),
            )
        )
    )
    table = data.index(jpeg_tiles.MARK) + len(jpeg_tiles.MARK)
    for begin, length, byte in (
        (len(data) - 4000, 4000, 0),
        (table + jpeg_tiles.TABLE.size, 200, 255),
        (table + 8, 4, 0),
    ):
        damaged = data[:begin] + bytes([byte]) * length + data[begin + length :]
        with pytest.raises(BadInput, match="cannot decode it: "):
            TiledJpeg(bytes(damaged), "it", (200, 200)).region((150, 150, 200, 200))


@needs_jpegtran
def test_real_photos_are_exact_and_no_larger(real_images: Path) -> None:
    before = after = 0
    for path in sorted((real_images / "imagenet-natural-c100" / "val").rglob("*.*"))[::10]:
        image = decoding.open_file(path)
        whole = image.region((0, 0, *image.size)).pixels
        tiled = jpeg_restart.add_restart_tiles(image.data, whole, np.zeros((0, 4)))
        assert_every_crop_is_exact(tiled, whole, crops=20)
        before, after = before + len(image.data), after + len(tiled)
    assert after < 1.01 * before
