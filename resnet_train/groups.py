"""Runs of one network under one recipe, and their figures: means and deviations over seeds. No torch."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from resnet_train.errors import BadInput
from resnet_train.run_folder import Record, Recorded

ERRORS = {
    "train_error": "training error (running)",
    "clean_train_error": "training error (clean)",
    "val_error_top1": "validation top-1",
    "val_error_top5": "validation top-5",
    "best_val_error_top1": "best validation top-1",
}
"""The columns of errors, in percent, and their headings."""

_UNDER_PROTOCOL = ("clean_train_error", "val_error", "best_val_error")
"""How columns begin that depend on what is seen of an image; the running training error is over augmented batches."""

COLUMNS = (
    "network",
    "depth",
    "seeds",
    *(name + part for name in ERRORS for part in ("", "_std")),
    "params",
    "macs",
    "images_per_second",
    "hours",
)


@dataclass(frozen=True)
class Group:
    """The runs of one network under one experiment and protocol: its seeds."""

    label: str
    runs: tuple[Recorded, ...]

    @property
    def plain(self) -> bool:
        return self.runs[0].run.network.plain

    @property
    def depth(self) -> int:
        return self.runs[0].run.network.depth

    @property
    def experiment(self) -> str:
        return self.runs[0].run.experiment

    @property
    def protocol(self) -> str:
        """How its validation errors were taken, and its clean training error."""
        return str(self.runs[0].records[0].get("protocol"))

    def row(self) -> Record:
        """The figures of `COLUMNS`; `None` where there is none, such as the deviation over one seed."""
        row: Record = {"network": self.label, "depth": self.depth, "seeds": len(self.runs)}
        for name, of_run in _FIGURES.items():
            values = [value for run in self.runs if (value := of_run(run)) is not None]
            row[name] = statistics.mean(values) if values else None
            if name in ERRORS:
                row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        return {column: row[column] for column in COLUMNS}


def _last(run: Recorded, kind: str, key: str) -> float | None:
    return next((record[key] for record in reversed(run.records) if record["kind"] == kind and key in record), None)


def _best(run: Recorded) -> float | None:
    return min((record["val_error_top1"] for record in run.records if record["kind"] == "eval"), default=None)


def _speed(run: Recorded) -> float | None:
    speeds = [record["images_per_second"] for record in run.records if record["kind"] == "train"]
    return statistics.median(speeds) if speeds else None


_FIGURES: dict[str, Callable[[Recorded], float | None]] = {
    "train_error": lambda run: _last(run, "train", "error"),
    "clean_train_error": lambda run: _last(run, "eval", "clean_train_error_top1"),
    "val_error_top1": lambda run: _last(run, "eval", "val_error_top1"),
    "val_error_top5": lambda run: _last(run, "eval", "val_error_top5"),
    "best_val_error_top1": _best,
    "params": lambda run: _last(run, "start", "params"),
    "macs": lambda run: _last(run, "start", "macs"),
    "images_per_second": _speed,
    "hours": lambda run: run.records[-1]["seconds"] / 3600 if run.records else None,
}


def groups_of(runs: Iterable[Recorded]) -> list[Group]:
    """The runs by network, plain before residual, shallow before deep. Raises `BadInput` where one is empty."""
    by_name: dict[tuple[str, str, str], list[Recorded]] = {}
    for recorded in runs:
        if not any(record["kind"] in ("train", "end") for record in recorded.records):
            continue  # not one line of training yet
        key = (recorded.run.experiment, recorded.run.network.name, str(recorded.records[0].get("protocol")))
        by_name.setdefault(key, []).append(recorded)
    if not by_name:
        raise BadInput("none of these runs has a line of training in its metrics.jsonl yet")
    several = len({experiment for experiment, _, _ in by_name}) > 1
    made = [Group(f"{exp}/{net}" if several else net, tuple(found)) for (exp, net, _), found in by_name.items()]
    return sorted(made, key=lambda group: (not group.plain, group.depth, group.label))


def protocols(made: Sequence[Group]) -> list[str]:
    """How validation errors were taken, each way once, in the order of the groups."""
    return list(dict.fromkeys(group.protocol for group in made))


def footnotes(made: Sequence[Group]) -> list[str]:
    """What [1], [2] and so on mean; none where there is one protocol."""
    ways = protocols(made)
    return [f"[{i}] {way}" for i, way in enumerate(ways, 1)] if len(ways) > 1 else []


def rows(made: Sequence[Group]) -> list[Record]:
    """A row for each group; each column holds one protocol's figures: with several, `val_error_top1 [1]` and so on.

    The numbers are places in `protocols`; each row then says its own in words.
    """
    ways = protocols(made)
    if len(ways) < 2:
        return [group.row() for group in made]
    told = []
    for group in made:
        row: Record = {}
        for column, value in group.row().items():
            if not column.startswith(_UNDER_PROTOCOL):
                row[column] = value
                continue
            for i, way in enumerate(ways, 1):
                row[f"{column} [{i}]"] = value if way == group.protocol else None
        told.append({**row, "protocol": group.protocol})
    return told


def errors_of(row: Record) -> dict[str, str]:
    """The columns of errors in a row, and their headings."""
    return {
        column: ERRORS[name] + column.removeprefix(name)
        for column in row
        for name in ERRORS
        if column == name or column.startswith(f"{name} [")
    }
