"""Make a restart-tiled JPEG with the same pixels of any JPEG. `jpegtran` recodes it and keeps every coefficient.

The format is described in `data/jpeg_tiles.py`.
"""

import errno
import shutil
import struct
import subprocess
from dataclasses import dataclass

import numpy as np

from resnet_train.data import decoding
from resnet_train.data.decoding import Box, ImageArray
from resnet_train.data.jpeg_tiles import END, MARK, RESTART, TABLE, TiledJpeg
from resnet_train.data.rng import Floats
from resnet_train.errors import BadInput

_MAX_TILES = (0xFFFF - 2 - len(MARK) - TABLE.size) // 2
"""The largest table that a segment of 64 KiB can hold."""
_CANNOT_LOAD = 127
"""The exit code of a program whose libraries are missing."""
_START_OF_SCAN, _RESTART_INTERVAL = 0xDA, 0xDD
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_JFIF_SEGMENT, _TABLE_SEGMENT = 0xE0, 0xEF


def jpegtran_available() -> bool:
    """Whether libjpeg-turbo's program `jpegtran` is installed, and can be run."""
    try:
        _jpegtran("-version")
    except OSError:
        return False
    return True


def check_jpegtran() -> None:
    """Raises BadInput if `jpegtran` cannot be run."""
    if not jpegtran_available():
        state = "cannot be run" if shutil.which("jpegtran") else "is not installed"
        raise BadInput(
            f"--tiled needs the program jpegtran, which {state}: install the package libjpeg-turbo-progs "
            "(Debian, Ubuntu) or libjpeg-turbo (conda, Homebrew), or pack without --tiled"
        )


def add_restart_tiles(data: bytes, pixels: ImageArray, random: Floats) -> bytes:
    """Recode a JPEG with restart tiles, and compare the result with the original's pixels.

    pixels: uint8 [h, w, 3], the decoded original. random: float [n, 4] in [0, 1), which choose n boxes to compare in
    addition to the whole image. Raises ValueError with the reason if the JPEG cannot be recoded exactly, OSError if
    `jpegtran` cannot be run.
    """
    interval = choose_interval(read_header(data))
    process = _jpegtran("-copy", "none", "-optimize", "-restart", f"{interval}B", data=data)
    if process.returncode:
        messages = process.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(messages[0] if messages else f"jpegtran ended with exit code {process.returncode}")
    tiled = add_tile_table(process.stdout)
    _check_pixels(tiled, pixels, random)
    return tiled


def _jpegtran(*options: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Raises OSError if it cannot be run, or is killed."""
    try:
        process = subprocess.run(["jpegtran", *options], input=data, capture_output=True, check=False)
    except OSError as error:
        raise OSError(error.errno, f"cannot run jpegtran ({error.strerror or error})") from None
    if process.returncode == _CANNOT_LOAD or process.returncode < 0:
        reason = process.stderr.decode(errors="replace").strip() or f"it ended with code {process.returncode}"
        raise OSError(errno.ENOEXEC, f"cannot run jpegtran ({reason})")
    return process


def _check_pixels(tiled: bytes, pixels: ImageArray, random: Floats) -> None:
    """Raises ValueError if the tiled image, or a random box of it, is not exactly that of `pixels`."""
    height, width = pixels.shape[:2]
    whole = decoding.open_bytes(tiled, "the tiled image")
    if whole.size != (width, height) or not np.array_equal(whole.region((0, 0, width, height)).pixels, pixels):
        raise ValueError("its pixels are not the same")
    image = TiledJpeg(tiled, "the tiled image", (width, height))
    for left, top, right, bottom in random_boxes(random, width, height):
        region = image.region((left, top, right, bottom))
        x, y = left - region.left, top - region.top
        crop = region.pixels[y : y + bottom - top, x : x + right - left]
        if not np.array_equal(crop, pixels[top:bottom, left:right]):
            raise ValueError("a crop of it is not exact")


def random_boxes(random: Floats, width: int, height: int) -> list[Box]:
    """Float [n, 4] in [0, 1) -> n boxes of at least one pixel within an image."""
    x = np.sort(random[:, :2] * width, axis=1).astype(int)
    y = np.sort(random[:, 2:] * height, axis=1).astype(int)
    boxes = np.stack([x, y], 2).reshape(-1, 4).tolist()
    return [(left, top, right + 1, bottom + 1) for left, top, right, bottom in boxes]


@dataclass(frozen=True)
class JpegHeader:
    """What the header of a JPEG says about how its pixels are coded (ITU T.81, annex B)."""

    height_offset: int
    """Where the image's height is stored, in bytes."""
    size: tuple[int, int]
    """Width and height in pixels."""
    mcu_size: tuple[int, int]
    """Width and height in pixels of a minimum coded unit (MCU)."""
    restart_interval: int
    """MCUs from one restart to the next; 0 without restarts."""
    scan_offset: int
    """Where the coded pixels begin, in bytes."""
    is_baseline: bool
    """Whether the coding is sequential, not progressive."""

    @property
    def mcus_per_row(self) -> int:
        """The number of MCUs in a row, the last one perhaps partly outside of the image."""
        return -(-self.size[0] // self.mcu_size[0])


def read_header(data: bytes) -> JpegHeader:
    """Read the segments up to the first scan. Raises ValueError if they are damaged or truncated."""
    at, frame_offset, restart_interval, is_baseline = 2, 0, 0, False
    try:
        while data[at + 1] != _START_OF_SCAN:
            if data[at] != 0xFF:
                raise ValueError("the header has no marker where one belongs")
            marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
            if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
                frame_offset, is_baseline = at + 5, marker != _PROGRESSIVE
            elif marker == _RESTART_INTERVAL:
                (restart_interval,) = struct.unpack_from(">H", data, at + 4)
            at += 2 + length
        height, width, components = struct.unpack_from(">HHB", data, frame_offset)
        scan_offset = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        # With a single component an MCU is one block, whatever its sampling factors are (ITU T.81, A.2.2).
        sampling = [data[frame_offset + 6 + 3 * i] for i in range(components)] if components > 1 else [0x11]
    except (IndexError, struct.error):
        raise ValueError("the header is truncated") from None
    mcu_size = 8 * max(factors >> 4 for factors in sampling), 8 * max(factors & 15 for factors in sampling)
    return JpegHeader(frame_offset, (width, height), mcu_size, restart_interval, scan_offset, is_baseline)


def choose_interval(header: JpegHeader, target: int = 64, narrowest: int = 40, widest: int = 112) -> int:
    """The width of a tile in MCUs: the divisor of a row that is nearest to `target` pixels.

    Without one between `narrowest` and `widest` pixels, a tile is a whole row. A divisor lets no restart straddle rows,
    and the image need not be padded to whole tiles, which would change its right border.
    """
    mcu_width = header.mcu_size[0]
    divisors = [n for n in range(1, header.mcus_per_row + 1) if header.mcus_per_row % n == 0]
    fitting = [n for n in divisors if narrowest <= n * mcu_width <= widest]
    return min(fitting, key=lambda n: abs(n * mcu_width - target), default=header.mcus_per_row)


def add_tile_table(data: bytes) -> bytes:
    """Insert the table of tiles into a baseline JPEG whose restart interval divides its rows.

    Raises ValueError if it is another JPEG, or damaged.
    """
    header = read_header(data)
    if not header.is_baseline or not header.restart_interval or header.mcus_per_row % header.restart_interval:
        raise ValueError("the restart interval does not divide a row")
    mcu_width, mcu_height = header.mcu_size
    tile_width, tile_height = header.restart_interval * mcu_width, mcu_height
    count = -(-header.size[0] // tile_width) * -(-header.size[1] // tile_height)

    scan = np.frombuffer(data, np.uint8, offset=header.scan_offset)
    marker_offsets = np.flatnonzero((scan[:-1] == 0xFF) & (scan[1:] >= RESTART) & (scan[1:] <= END))
    expected_markers = np.append(RESTART + np.arange(count - 1) % 8, END)
    ends_with_marker = header.scan_offset + marker_offsets[-1] + 2 == len(data)
    if not np.array_equal(scan[marker_offsets + 1], expected_markers) or not ends_with_marker:
        raise ValueError("restart markers do not match the header")
    tile_lengths = np.diff(marker_offsets + 2, prepend=0)
    if count > _MAX_TILES or tile_lengths.max() > 0xFFFF:
        raise ValueError("its tiles are too many or too large for a table")

    # A JFIF segment must be the first. All offsets behind the table grow by the bytes that it adds.
    at = 4 + struct.unpack_from(">H", data, 4)[0] if data[3] == _JFIF_SEGMENT else 2
    segment_length = 2 + len(MARK) + TABLE.size + 2 * count
    shift = 2 + segment_length
    context_x, context_y = (size // 8 if size > 8 else 0 for size in header.mcu_size)
    table = TABLE.pack(
        header.scan_offset + shift, header.height_offset + shift, tile_width, tile_height, context_x, context_y
    )
    segment = struct.pack(">BBH", 0xFF, _TABLE_SEGMENT, segment_length)
    return b"".join([data[:at], segment, MARK, table, tile_lengths.astype("<u2").tobytes(), data[at:]])
