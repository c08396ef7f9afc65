"""`resnet-train status`: how far each run is."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.commands import add_json
from resnet_train.errors import BadInput

if TYPE_CHECKING:
    from resnet_train.runs.status import RunStatus

EXAMPLE = """resnet-train status runs/quickstart --watch

The time left is that of a run at its mean speed. A run is running if a process of this machine holds its lock; on
another machine, if its record has grown in the last minutes."""

_SECONDS = 2.0
"""Between two looks of --watch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="a run folder, or a folder above some (default: %(default)s)",
    )
    parser.add_argument("--watch", action="store_true", help="show it again every two seconds, while a run is active")
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Print a line for each run."""
    from resnet_train.runs.status import run_statuses

    if args.watch and args.json:
        raise BadInput("--watch shows a table: leave out --json, or call the command again and again")
    statuses = run_statuses(args.folder)
    if args.json:
        print(json.dumps([dataclasses.asdict(status) for status in statuses], indent=2))
        return
    if args.watch:
        with suppress(KeyboardInterrupt):  # which is how one leaves it
            _watch(args.folder, statuses)
    else:
        print(table(statuses))


def _watch(folder: Path, statuses: Sequence["RunStatus"]) -> None:
    """Print the table, and again over it, until no run is active."""
    from resnet_train.runs.status import run_statuses

    while True:
        text = table(statuses)
        print(text, flush=True)
        if not any(status.is_active for status in statuses):
            return
        time.sleep(_SECONDS)
        statuses = run_statuses(folder)
        if sys.stdout.isatty():
            print(f"\x1b[{len(text.splitlines())}F\x1b[J", end="")  # up to its first line, and clear from there


_DISPENSABLE = ("process", "last line", "img/s", "left")
"""Columns that a narrow terminal has no room for, in the order in which they are left out."""


def table(statuses: Sequence["RunStatus"]) -> str:
    """A line for each run, and a last one that counts the states; no wider than the terminal."""
    from resnet_train.runs.status import summarise
    from resnet_train.runtime.tables import columns, cut, duration, fit_terminal, percent, short, terminal_width

    several = len({status.experiment for status in statuses}) > 1
    rows: list[tuple[str, ...]] = [
        ("run", "seed", "state", "step", "train %", "val %", "img/s", "left", "last line", "process")
    ]
    for s in statuses:
        of = "" if s.total_steps is None else f"/{s.total_steps}"
        train = s.train_error if s.clean_train_error is None else s.clean_train_error
        rows.append(
            (
                f"{s.experiment}/{s.network}" if several else s.network,
                str(s.seed),
                s.state,
                "–" if s.state == "waiting" else f"{s.step}{of}",
                percent(train),
                percent(s.val_error_top1),
                short(s.images_per_second),
                duration(s.seconds_left),
                duration(s.last_line_seconds),
                f"{s.host}:{s.pid}" if s.state == "running" and s.pid is not None else "",
            )
        )
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    width = terminal_width()
    for name in _DISPENSABLE:
        if width is not None and name in rows[0] and len(columns(rows).partition("\n")[0]) > width:
            place = rows[0].index(name)
            rows = [(*row[:place], *row[place + 1 :]) for row in rows]
    if width is not None:
        room = max(map(len, (row[0] for row in rows))) + width - len(columns(rows).partition("\n")[0])
        rows = [(cut(row[0], max(8, room)), *row[1:]) for row in rows]
    return "\n".join([fit_terminal(columns(rows)), summarise(statuses)])
