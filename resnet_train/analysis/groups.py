"""Groups: runs that differ in nothing but their seeds, with means and deviations over these. No torch."""

import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

from resnet_train.analysis.style import kind_of
from resnet_train.config.expect import ExpectConfig
from resnet_train.config.network import AnyNet
from resnet_train.config.schema import Run
from resnet_train.config.sweep import folder_names, label, value_text
from resnet_train.errors import BadInput
from resnet_train.runs.records import Record
from resnet_train.runs.run_folder import RunRecord
from resnet_train.runtime.memoize import memoized

ERRORS = {
    "train_error": ("training error (running)", "train error"),
    "clean_train_error": ("training error (clean)", "clean train"),
    "val_error_top1": ("validation top-1", "val top-1"),
    "val_error_top5": ("validation top-5", "val top-5"),
    "best_val_error_top1": ("best validation top-1", "best top-1"),
}
"""The columns of errors, in percent, and their headings: long, and short for a terminal."""

_PROTOCOL_COLUMNS = ("clean_train_error", "val_error", "best_val_error")
"""Prefixes of the columns that depend on the evaluation protocol. The running training error does not."""

COLUMNS = (
    "network",
    "depth",
    "seeds",
    "step",
    *(name + suffix for name in ERRORS for suffix in ("", "_std", "_median")),
    "params",
    "macs",
    "images_per_second",
    "hours",
    "evaluation_hours",
    "probe_hours",
)


@dataclass(frozen=True)
class Group:
    """The runs of one network under one experiment and protocol and, of a sweep, one value: one run for each seed.

    Every figure is that of one step, the same for all seeds: the last one at which each of them has it.
    """

    name: str
    """Of its network; with the experiment's before it where there are several."""
    runs: tuple[RunRecord, ...]
    left_out: tuple[RunRecord, ...] = ()
    """Runs without an evaluation, where others have one: they count in no figure."""

    @property
    def label(self) -> str:
        """Its name and, of a sweep, its values: no two groups of one protocol have the same."""
        return f"{self.name} {label(self.sweep)}".rstrip()

    @property
    def sweep(self) -> dict[str, Any]:
        """The values that a sweep gave to keys of the recipe."""
        return self.runs[0].run.sweep

    @property
    def network(self) -> AnyNet:
        return self.runs[0].run.network

    @property
    def plain(self) -> bool:
        return self.network.plain

    @property
    def kind(self) -> str:
        """plain, residual or VGG."""
        return kind_of(self.network)

    @property
    def depth(self) -> int:
        return self.network.depth

    @property
    def experiment(self) -> str:
        return self.runs[0].run.experiment

    @property
    def protocol(self) -> str:
        """How its validation error and its clean training error were measured."""
        return str(self.runs[0].records[0].get("protocol"))

    @property
    def expect(self) -> tuple[ExpectConfig, ...]:
        """What sources report of the network. What one of the runs changed in their recipe is changed."""
        return expected_of([run.run for run in self.runs])

    @memoized
    def steps(self, error: str) -> set[int]:
        """The steps at which every run has measured an error, one of `ERRORS` but the best."""
        return set.intersection(*(set(_measured(run, error)) for run in self.runs))

    @cached_property
    def step(self) -> int | None:
        """The step of its figures: the last evaluation that all runs have or, before the first one, log line."""
        return max(self.steps("val_error_top1") or self.steps("train_error"), default=None)

    @property
    def is_finished(self) -> bool:
        """Whether its figures are those of the end of all its runs."""
        ends = [run.end for run in self.runs]
        return all(end is not None and (end["status"], end["step"]) == ("finished", self.step) for end in ends)

    @property
    def has_diverged(self) -> bool:
        """Whether a run of it has."""
        return any(run.end is not None and run.end["status"] == "diverged" for run in (*self.runs, *self.left_out))

    @memoized
    def at(self, step: int | None) -> "Group":
        """The group as it was at a step."""
        counts = [bisect_right(run.records, step or 0, key=itemgetter("step")) for run in self.runs]
        if all(count == len(run.records) for count, run in zip(counts, self.runs, strict=True)):
            return self  # with all that is memoized
        cut = (replace(run, records=run.records[:count]) for count, run in zip(counts, self.runs, strict=True))
        return replace(self, runs=tuple(cut))

    def row(self) -> Record:
        """The figures of `COLUMNS`. `None` where there is none, such as the deviation over one seed."""
        row: Record = {"network": self.name, "depth": self.depth, "seeds": len(self.runs), "step": self.step}
        then = self.at(self.step)
        for name in (*ERRORS, *_FACTS):
            row[name] = then.mean(name)
            if name in ERRORS:
                values = then.by_seed(name).values()
                row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
                row[f"{name}_median"] = statistics.median(values) if len(values) > 1 else None
        return {column: row[column] for column in COLUMNS}

    def mean(self, figure: str) -> float | None:
        """The mean over seeds of one of the figures of `COLUMNS`."""
        values = self.by_seed(figure).values()
        return statistics.mean(values) if values else None

    @memoized
    def by_seed(self, figure: str) -> dict[int, float]:
        """One of the figures of `COLUMNS` for each seed; of an error that some seed has not, none."""
        if figure in _FACTS:
            values = {run.run.seed: _FACTS[figure](run) for run in self.runs}
            return {seed: value for seed, value in values.items() if value is not None and not math.isnan(value)}
        best = figure == "best_val_error_top1"
        error = "val_error_top1" if best else figure
        if not (steps := self.steps(error)):
            return {}
        measured = {run.run.seed: _measured(run, error) for run in self.runs}
        last = max(steps)
        if best:
            return {seed: min(e for step, e in errors.items() if step <= last) for seed, errors in measured.items()}
        return {seed: errors[last] for seed, errors in measured.items()}

    def images(self, error: str) -> int:
        """The number of images that an error was measured on: the least over the runs."""
        return min(_IMAGES[error](run) for run in self.runs)


def expected_of(runs: Iterable[Run]) -> tuple[ExpectConfig, ...]:
    """What sources report of the network of some runs. What one of the runs changed in their recipe is changed."""
    merged: dict[str, ExpectConfig] = {}
    for run in runs:
        for entry in run.expect:
            key, name = entry.model_dump_json(exclude={"differs"}), run.network.name
            merged[key] = merged.get(key, entry).with_differences(name, (entry.differs or {}).get(name, ()))
    return tuple(merged.values())


RECORDED = {
    "train_error": ("train", "error"),
    "clean_train_error": ("eval", "clean_train_error_top1"),
    "val_error_top1": ("eval", "val_error_top1"),
    "val_error_top5": ("eval", "val_error_top5"),
    "train_loss": ("train", "loss"),
}
"""The kind and key of the records that hold an error, or the running loss."""


def _measured(run: RunRecord, error: str) -> dict[int, float]:
    """All measurements of an error, by step."""
    return run.series(*RECORDED[error])


def _median_speed(run: RunRecord) -> float | None:
    speeds = run.series("train", "images_per_second")
    return statistics.median(speeds.values()) if speeds else None


_FACTS: dict[str, Callable[[RunRecord], float | None]] = {
    "params": lambda run: run.records[0].get("params"),
    "macs": lambda run: run.records[0].get("macs"),
    "images_per_second": _median_speed,
    "hours": lambda run: run.time_spent.training / 3600,
    "evaluation_hours": lambda run: run.time_spent.evaluation / 3600,
    "probe_hours": lambda run: run.time_spent.probes / 3600,
}


def _samples_of_last_train_record(run: RunRecord) -> int:
    last, before, *_ = [*reversed(run.series("train", "error")), 0, 0]
    return (last - before) * run.run.train.batch_size


_IMAGES: dict[str, Callable[[RunRecord], int]] = {
    "train_error": lambda run: min(_samples_of_last_train_record(run), run.records[0]["train_images"]),
    "clean_train_error": lambda run: min(run.run.eval.clean_train_images, run.records[0]["train_images"]),
    "val_error_top1": lambda run: run.records[0]["val_images"],
    "val_error_top5": lambda run: run.records[0]["val_images"],
}


def group_runs(runs: Iterable[RunRecord]) -> list[Group]:
    """The runs by experiment, network, protocol and value of a sweep: plain before residual, shallow before deep.

    Runs without a line of training are left out. Raises `BadInput` where none is left, or where two runs are of one
    network and seed: they would be counted twice.
    """
    by_key: dict[tuple[str, str, str, str], list[RunRecord]] = {}
    for run in runs:
        if any(record["kind"] in ("train", "end") for record in run.records):
            values = "/".join(folder_names(run.run.sweep))  # 1 and 1.0 share a folder, so they are one value
            key = (run.run.experiment, run.run.network.name, str(run.records[0].get("protocol")), values)
            by_key.setdefault(key, []).append(run)
    for members in by_key.values():
        _check_seeds_differ(members)
    if not by_key:
        raise BadInput("none of these runs has a line of training in its metrics.jsonl yet")
    several_experiments = len({experiment for experiment, *_ in by_key}) > 1
    groups = [
        _group(f"{experiment}/{network}" if several_experiments else network, members)
        for (experiment, network, *_), members in by_key.items()
    ]
    return sorted(groups, key=lambda group: (not group.plain, group.depth, group.name, _order_of_values(group.sweep)))


def _order_of_values(values: dict[str, Any]) -> list[tuple[str, bool, float, str]]:
    """Sorts numbers by size, and before other values."""
    return [
        (key, False, value, "") if isinstance(value, int | float) else (key, True, 0.0, value_text(value))
        for key, value in sorted(values.items())
    ]


def _group(name: str, runs: Sequence[RunRecord]) -> Group:
    evaluated = tuple(run for run in runs if _measured(run, "val_error_top1"))
    if not evaluated:
        return Group(name, tuple(runs))
    return Group(name, evaluated, tuple(run for run in runs if run not in evaluated))


def _check_seeds_differ(runs: Sequence[RunRecord]) -> None:
    folders = {run.run.seed: run.folder for run in runs}
    for run in runs:
        if (other := folders[run.run.seed]) != run.folder:
            raise BadInput(f"{run.folder} and {other} are runs of one network and seed: leave one out")


def protocols(groups: Sequence[Group]) -> list[str]:
    """The evaluation protocols of the groups, each once, in the order of the groups."""
    return list(dict.fromkeys(group.protocol for group in groups))


def footnotes(groups: Sequence[Group]) -> list[str]:
    """What [1], [2] and so on mean. Empty where there is one protocol."""
    texts = protocols(groups)
    return [f"[{i}] {text}" for i, text in enumerate(texts, 1)] if len(texts) > 1 else []


def rows(groups: Sequence[Group]) -> list[Record]:
    """A row for each group. A column holds the figures of one protocol only.

    With several protocols there are columns `val_error_top1 [1]`, `val_error_top1 [2]` and so on, numbered as
    `protocols` lists them, and a column `protocol`.
    """
    texts = protocols(groups)
    if len(texts) < 2:
        return [group.row() for group in groups]
    table = []
    for group in groups:
        row: Record = {}
        for column, value in group.row().items():
            if not column.startswith(_PROTOCOL_COLUMNS):
                row[column] = value
                continue
            for i, text in enumerate(texts, 1):
                row[f"{column} [{i}]"] = value if text == group.protocol else None
        table.append({**row, "protocol": group.protocol})
    return table


def error_columns(row: Record, short: bool = False) -> dict[str, str]:
    """The columns of errors in a row, and their headings."""
    return {
        column: ERRORS[name][short] + column.removeprefix(name)
        for column in row
        for name in ERRORS
        if column == name or column.startswith(f"{name} [")
    }
