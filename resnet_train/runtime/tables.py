"""Tables and numbers for a terminal."""

import shutil
import sys
from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Format rows of cells as a table: the first column is aligned to the left, the others to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table)


def terminal_width() -> int | None:
    """Characters in a line of the terminal; None where standard output is a file or a pipe, whose lines are not cut."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def fit_terminal(text: str) -> str:
    """The text with each line cut to the width of the terminal."""
    width = terminal_width()
    if width is None:
        return text
    return "\n".join(line if len(line) <= width else f"{line[: width - 1]}…" for line in text.splitlines())


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
