"""Restart-tiled JPEG: a crop is cut out of the byte stream, and a standard decoder decodes it alone.

A baseline JPEG may restart its entropy coding every n blocks. Where n divides a row of blocks, any rectangle of such
tiles is a valid JPEG again, once the size in its header is changed and its restart markers are renumbered. The lengths
of the tiles are stored in the file itself, in an application segment that other programs skip.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg

from resnet_train.data.decoding import Box, Region
from resnet_train.errors import BadInput

MARK = b"restart tiles\0"
"""Begins the application segment."""
TABLE = struct.Struct("<IIHHBB")
"""Follows MARK: where the coded pixels begin, and where the header has the image's height, in bytes; a tile's width and
height in pixels; the context that an exact decoding needs on the left and right and above and below, in pixels. Then
come the lengths of the tiles in bytes, their markers included."""
RESTART, END = 0xD0, 0xD9
"""Second bytes of the markers between tiles (to which the tile's number modulo 8 is added) and after the last one."""


@dataclass(frozen=True)
class TiledJpeg:
    """A restart-tiled file, of which only the tiles that a box touches are decoded."""

    data: bytes
    name: str
    """Names the file in messages."""
    size: tuple[int, int]

    def region(self, box: Box) -> Region:
        """The tiles that the box touches: exact inside the box, not always at their own border. Raises `BadInput`."""
        try:
            jpeg, left, top = cut(self.data, self.size, box)
            return Region(simplejpeg.decode_jpeg(jpeg), left, top)
        except (ValueError, IndexError, ZeroDivisionError, struct.error) as error:  # damaged bytes cause any of these
            raise BadInput(f"cannot decode {self.name}: {error}") from None


def cut(data: bytes, size: tuple[int, int], box: Box) -> tuple[bytes | bytearray, int, int]:
    """A JPEG of the tiles that a box touches, and its left and top in the image, in pixels.

    Where chroma is subsampled the decoder interpolates it, so the box is first extended by the context in the table.
    """
    at = _table_offset(data)
    scan, height_field, tile_width, tile_height, context_x, context_y = TABLE.unpack_from(data, at)
    (width, height), (left, top, right, bottom) = size, box
    columns, rows = -(-width // tile_width), -(-height // tile_height)
    x0, x1 = max(left - context_x, 0) // tile_width, min(-(-(right + context_x) // tile_width), columns)
    y0, y1 = max(top - context_y, 0) // tile_height, min(-(-(bottom + context_y) // tile_height), rows)
    if (x1 - x0, y1 - y0) == (columns, rows):
        return data, 0, 0

    table = at + TABLE.size
    lengths = np.frombuffer(data, "<u2", columns * rows, table)
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    starts += scan
    if x1 - x0 == columns:  # whole rows of tiles are one span of bytes
        spans = [(starts[y0 * columns], starts[y1 * columns])]
    else:
        first, last = (starts[y0 * columns + x : y1 * columns + x : columns].tolist() for x in (x0, x1))
        spans = list(zip(first, last, strict=True))
    cut_width = min(x1 * tile_width, width) - x0 * tile_width
    cut_height = min(y1 * tile_height, height) - y0 * tile_height
    jpeg = bytearray().join(
        [
            data[: at - len(MARK) - 4],  # without the application segment
            data[table + 2 * len(lengths) : height_field],
            struct.pack(">HH", cut_height, cut_width),
            data[height_field + 4 : scan],
            *(data[begin:end] for begin, end in spans),
        ]
    )

    ends = lengths.reshape(rows, columns)[y0:y1, x0:x1].cumsum(dtype=np.int64)
    ends += len(jpeg) - ends[-1] - 1
    np.frombuffer(jpeg, np.uint8)[ends] = RESTART + np.arange(len(ends)) % 8
    jpeg[-1] = END
    return jpeg, x0 * tile_width, y0 * tile_height


def is_tiled(data: bytes) -> bool:
    """Whether a file has a table of tiles."""
    return data.find(MARK, 0, 64) > 0


def _table_offset(data: bytes) -> int:
    """Where the table begins: its segment is the first, or the second after a JFIF header."""
    mark = data.find(MARK, 0, 64)
    if mark < 0:
        raise ValueError("it has no table of tiles")
    return mark + len(MARK)
