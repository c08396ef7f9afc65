"""Restart-tiled JPEG: a crop is cut out of the byte stream, and a stock decoder decodes it alone.

A baseline JPEG may restart its coding every so many blocks. Where that number divides a row of blocks, any rectangle
of such tiles is again a legal JPEG once the size in its header is patched and its restart markers are counted anew. The
tiles' lengths lie in the file itself, in an application segment that other programs pass over.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg

from resnet_train.data.decoding import Box, Region
from resnet_train.errors import BadInput

MARK = b"restart tiles\0"
TABLE = struct.Struct("<IIHHBB")
"""Where the coded pixels begin and where the height stands in the header, a tile's width and height in pixels, and the
pixels of context that an exact decoding needs beside it and above. The tiles' lengths follow, markers included."""
RESTART, END = 0xD0, 0xD9
"""Second bytes of the markers between tiles (the number is counted modulo 8) and after the last one."""


@dataclass(frozen=True)
class Tiled:
    """A restart-tiled file, of which no more tiles are decoded than a box touches."""

    data: bytes
    name: str
    size: tuple[int, int]

    def region(self, box: Box) -> Region:
        """The tiles that the box touches; exact within the box, not everywhere at the region's rim. Raises `BadInput`.

        Where chroma is subsampled the decoder interpolates it, so that a sample beyond the box is needed, too.
        """
        try:
            jpeg, left, top = cut(self.data, self.size, box)
            return Region(simplejpeg.decode_jpeg(jpeg), left, top)
        except (ValueError, IndexError, ZeroDivisionError, struct.error) as error:  # of damaged bytes, any of them
            raise BadInput(f"cannot decode {self.name}: {error}") from None


def cut(data: bytes, size: tuple[int, int], box: Box) -> tuple[bytes | bytearray, int, int]:
    """A JPEG of the tiles that a box touches, and where in the image its left and top are."""
    at = _table(data)
    scan, place, wide, high, beside, above = TABLE.unpack_from(data, at)
    (width, height), (left, top, right, bottom) = size, box
    columns, rows = -(-width // wide), -(-height // high)
    x0, x1 = max(left - beside, 0) // wide, min(-(-(right + beside) // wide), columns)
    y0, y1 = max(top - above, 0) // high, min(-(-(bottom + above) // high), rows)
    if (x1 - x0, y1 - y0) == (columns, rows):
        return data, 0, 0

    table = at + TABLE.size
    lengths = np.frombuffer(data, "<u2", columns * rows, table)
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    starts += scan
    if x1 - x0 == columns:
        spans = [(starts[y0 * columns], starts[y1 * columns])]
    else:
        first, last = (starts[y0 * columns + x : y1 * columns + x : columns].tolist() for x in (x0, x1))
        spans = list(zip(first, last, strict=True))
    w, h = min(x1 * wide, width) - x0 * wide, min(y1 * high, height) - y0 * high
    head = [data[: at - len(MARK) - 4], data[table + 2 * len(lengths) : place], struct.pack(">HH", h, w)]
    head.append(data[place + 4 : scan])
    jpeg = bytearray().join([*head, *(data[begin:end] for begin, end in spans)])

    ends = lengths.reshape(rows, columns)[y0:y1, x0:x1].cumsum(dtype=np.int64)
    ends += len(jpeg) - ends[-1] - 1
    np.frombuffer(jpeg, np.uint8)[ends] = RESTART + np.arange(len(ends)) % 8
    jpeg[-1] = END
    return jpeg, x0 * wide, y0 * high


def is_tiled(data: bytes) -> bool:
    """Whether a file carries a table of its tiles."""
    return data.find(MARK, 0, 64) > 0


def _table(data: bytes) -> int:
    """Where the table begins: its segment is the first, or the second after a JFIF header."""
    found = data.find(MARK, 0, 64)
    if found < 0:
        raise ValueError("it has no table of tiles")
    return found + len(MARK)
