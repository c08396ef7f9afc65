"""From any JPEG to a restart-tiled one with the same pixels: `jpegtran` keeps every coefficient."""

import shutil
import struct
import subprocess
from dataclasses import dataclass

import numpy as np

from resnet_train.data import decoding
from resnet_train.data.decoding import ImageArray
from resnet_train.data.jpeg_tiles import END, MARK, RESTART, TABLE, TiledJpeg
from resnet_train.errors import BadInput

_MOST = (0xFFFF - 2 - len(MARK) - TABLE.size) // 2
"""Tiles that a segment has room for."""


def jpegtran_available() -> bool:
    """Whether libjpeg-turbo's program `jpegtran` is installed."""
    return shutil.which("jpegtran") is not None


def check_jpegtran() -> None:
    """Raises BadInput if `jpegtran` is not installed."""
    if not jpegtran_available():
        raise BadInput(
            "--tiled needs the program jpegtran, which is not installed: install the package libjpeg-turbo-progs "
            "(Debian, Ubuntu) or libjpeg-turbo (conda, Homebrew), or pack without --tiled"
        )


def tiled(data: bytes, pixels: ImageArray, chances: np.ndarray) -> bytes:
    """A JPEG, its [h, w, 3] pixels and [n, 4] numbers in [0, 1) -> the same image, restart-tiled.

    Its whole is compared with the pixels, and so are n boxes that the numbers choose. Raises `ValueError`, which says
    why, where it cannot be made or is not exact.
    """
    units = interval(frame(data))
    command = ["jpegtran", "-copy", "none", "-optimize", "-restart", f"{units}B"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[0] if said else f"jpegtran ended with {done.returncode}")
    made = with_table(done.stdout)
    height, width = pixels.shape[:2]
    whole = decoding.open_bytes(made, "the tiled image")
    if whole.size != (width, height) or not np.array_equal(whole.region((0, 0, width, height)).pixels, pixels):
        raise ValueError("its pixels are not the same")
    image = TiledJpeg(made, "the tiled image", (width, height))
    for left, top, right, bottom in boxes(chances, width, height):
        found = image.region((left, top, right, bottom))
        x, y = left - found.left, top - found.top
        part = found.pixels[y : y + bottom - top, x : x + right - left]
        if not np.array_equal(part, pixels[top:bottom, left:right]):
            raise ValueError("a part of it is not exact")
    return made


def boxes(chances: np.ndarray, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """[n, 4] numbers in [0, 1) -> n boxes of at least a pixel within an image."""
    x, y = np.sort(chances[:, :2] * width, axis=1).astype(int), np.sort(chances[:, 2:] * height, axis=1).astype(int)
    return [
        (left, top, right + 1, bottom + 1) for left, top, right, bottom in np.stack([x, y], 2).reshape(-1, 4).tolist()
    ]


@dataclass(frozen=True)
class Frame:
    """What a JPEG's header says of how its pixels are coded."""

    place: int
    """Where the height stands."""
    size: tuple[int, int]
    block: tuple[int, int]
    """Width and height in pixels of the smallest unit that is coded (MCU)."""
    interval: int
    """Units from restart to restart; 0: none."""
    scan: int
    """Where the coded pixels begin."""
    baseline: bool

    @property
    def across(self) -> int:
        """Units in a row."""
        return -(-self.size[0] // self.block[0])


def frame(data: bytes) -> Frame:
    """Read a JPEG's header. Raises `ValueError` where it has none, or is cut short."""
    at, place, interval, baseline = 2, 0, 0, False
    try:
        while data[at + 1] != 0xDA:
            if data[at] != 0xFF:
                raise ValueError("no marker where one belongs")
            marker, (length,) = data[at + 1], struct.unpack_from(">H", data, at + 2)
            if marker in (0xC0, 0xC1, 0xC2):
                place, baseline = at + 5, marker != 0xC2
            elif marker == 0xDD:
                (interval,) = struct.unpack_from(">H", data, at + 4)
            at += 2 + length
        height, width, colours = struct.unpack_from(">HHB", data, place)
        scan = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
    except (IndexError, struct.error):
        raise ValueError("the header is cut short") from None
    # Of a single component, a unit is one block whatever its sampling factors say (ITU T.81, A.2.2).
    factors = [data[place + 6 + 3 * colour] for colour in range(colours)] if colours > 1 else [0x11]
    block = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
    return Frame(place, (width, height), block, interval, scan, baseline and place > 0)


def interval(frame: Frame, aim: int = 64, narrowest: int = 40, widest: int = 112) -> int:
    """Units of a tile: the number that divides a row and is nearest to `aim` pixels; a whole row where none is near.

    So no restart straddles rows, and the image need not be padded to whole tiles, which would change its right rim.
    """
    width = frame.block[0]
    fits = [n for n in range(1, frame.across + 1) if frame.across % n == 0 and narrowest <= n * width <= widest]
    return min(fits, key=lambda n: abs(n * width - aim), default=frame.across)


def with_table(data: bytes) -> bytes:
    """A baseline JPEG whose restarts divide its rows, with a table of its tiles. Raises `ValueError`."""
    f = frame(data)
    if not f.baseline or not f.interval or f.across % f.interval:
        raise ValueError("its restarts do not divide its rows")
    coded = np.frombuffer(data, np.uint8, offset=f.scan)
    marks = np.flatnonzero((coded[:-1] == 0xFF) & (coded[1:] >= RESTART) & (coded[1:] <= END))
    wide, high = f.interval * f.block[0], f.block[1]
    count = -(-f.size[0] // wide) * -(-f.size[1] // high)
    lengths = np.diff(marks + 2, prepend=0)
    numbers = np.append(RESTART + np.arange(count - 1) % 8, END)
    if not np.array_equal(coded[marks + 1], numbers) or f.scan + marks[-1] + 2 != len(data):
        raise ValueError("it has not the restarts that its header announces")
    if count > _MOST or lengths.max() > 0xFFFF:
        raise ValueError("its tiles are too many or too large for a table")
    beside, above = (size // 8 if size > 8 else 0 for size in f.block)
    at = 4 + struct.unpack_from(">H", data, 4)[0] if data[3] == 0xE0 else 2  # a JFIF header must be the first
    segment = len(MARK) + TABLE.size + 2 * count + 2
    moved = segment + 2
    table = TABLE.pack(f.scan + moved, f.place + moved, wide, high, beside, above)
    made = [b"\xff\xef", struct.pack(">H", segment), MARK, table, lengths.astype("<u2").tobytes()]
    return b"".join([data[:at], *made, data[at:]])
