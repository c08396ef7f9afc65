"""Tables and numbers for a terminal."""

import shutil
import sys
from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]], width: int | None = None, fixed: int = 1) -> str:
    """Format rows of cells as a table: the first column is aligned to the left, the others to the right.

    width: the most characters in a line. Columns that do not fit follow in further tables, each of which begins with
    the first `fixed` columns; where these leave no room for another one, the cells of the first are cut. `None`: all
    columns are side by side.
    """
    table = [list(row) for row in rows]
    if width is not None:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        widest = max(widths[fixed:], default=0)
        room = max(8, width - 2 - widest - sum(width + 2 for width in widths[1:fixed]))
        table = [[cut(row[0], room), *row[1:]] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    blocks, used = [list(range(fixed))], 0
    for column in range(fixed, len(widths)):
        used += widths[column] + 2
        beside = sum(widths[:fixed]) + 2 * (fixed - 1)
        if width is not None and beside + used > width and len(blocks[-1]) > fixed:
            blocks.append(list(range(fixed)))
            used = widths[column] + 2
        blocks[-1].append(column)
    return "\n\n".join(
        "\n".join("  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in block[1:])]) for row in table)
        for block in blocks
    )


def cut(text: str, room: int) -> str:
    """The text without its middle, if it is longer: names differ at their ends."""
    if len(text) <= room:
        return text
    return f"{text[: (room - 1) // 2]}…{text[-(room // 2) :]}"


def terminal_width() -> int | None:
    """Characters in a line of the terminal; None where standard output is a file or a pipe, whose lines are not cut."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def fit_terminal(text: str) -> str:
    """The text with each line cut to the width of the terminal."""
    width = terminal_width()
    if width is None:
        return text
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in text.splitlines())


def few(names: Iterable[str], most: int = 4) -> str:
    """Names in one line: all of them or, of more than `most`, the first and the number of the others."""
    every = list(names)
    if len(every) <= most:
        return ", ".join(every)
    return f"{', '.join(every[: most - 1])} and {len(every) - most + 1} others"


def percent(mean: float | None, deviation: float | None = None) -> str:
    """Format an error in percent, with its standard deviation over seeds if there is one."""
    if mean is None:
        return "–"
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def short(number: float | None) -> str:
    """Format a number with three significant digits and a suffix: 1.81 G."""
    if number is None:
        return "–"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def duration(seconds: float | None) -> str:
    """Format a time in the unit that suits: 12 s, 12 min, 1.5 h, 2.1 d."""
    if seconds is None:
        return "–"
    for limit, size, unit in ((100, 1, "s"), (100 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.3g} d"


def file_size(size: float) -> str:
    """Format a number of bytes: 1.5 GB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"
