"""Runs of one network under one recipe, their figures (means and deviations over seeds), what of these is more than
chance, their families. No torch."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_train.config.network import AnyNet, NetConfig, canonical_fields
from resnet_train.errors import BadInput
from resnet_train.runs.run_folder import Record, RunRecord

ERRORS = {
    "train_error": ("training error (running)", "train error"),
    "clean_train_error": ("training error (clean)", "clean train"),
    "val_error_top1": ("validation top-1", "val top-1"),
    "val_error_top5": ("validation top-5", "val top-5"),
    "best_val_error_top1": ("best validation top-1", "best top-1"),
}
"""The columns of errors, in percent, and their headings, in full and for a terminal."""

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
    runs: tuple[RunRecord, ...]

    @property
    def network(self) -> AnyNet:
        return self.runs[0].run.network

    @property
    def plain(self) -> bool:
        return self.network.plain

    @property
    def kind(self) -> str:
        """plain, residual or VGG."""
        return "VGG" if self.network.unit == "vgg" else "plain" if self.plain else "residual"

    @property
    def depth(self) -> int:
        return self.network.depth

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
        for name in _FIGURES:
            values = self.values(name)
            row[name] = statistics.mean(values) if values else None
            if name in ERRORS:
                row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        return {column: row[column] for column in COLUMNS}

    def values(self, figure: str) -> list[float]:
        """One of `COLUMNS`' figures of each run that has it."""
        return [value for run in self.runs if (value := _FIGURES[figure](run)) is not None]

    def images(self, error: str) -> int:
        """Of how many images an error is, one of `_IMAGES`; the least of the runs that have it."""
        return min(_IMAGES[error](run) for run in self.runs if _FIGURES[error](run) is not None)


def _last(run: RunRecord, kind: str, key: str) -> float | None:
    return next((record[key] for record in reversed(run.records) if record["kind"] == kind and key in record), None)


def _best(run: RunRecord) -> float | None:
    return min((record["val_error_top1"] for record in run.records if record["kind"] == "eval"), default=None)


def _speed(run: RunRecord) -> float | None:
    speeds = [record["images_per_second"] for record in run.records if record["kind"] == "train"]
    return statistics.median(speeds) if speeds else None


_FIGURES: dict[str, Callable[[RunRecord], float | None]] = {
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


def _since_last_line(run: RunRecord) -> int:
    """The samples of the last line of training."""
    steps: list[int] = [0, *(record["step"] for record in run.records if record["kind"] == "train")]
    return (steps[-1] - steps[-2]) * run.run.train.batch_size


_IMAGES: dict[str, Callable[[RunRecord], int]] = {
    "train_error": lambda run: min(_since_last_line(run), run.records[0]["train_images"]),
    "clean_train_error": lambda run: min(run.run.eval.clean_train_images, run.records[0]["train_images"]),
    "val_error_top1": lambda run: run.records[0]["val_images"],
}


_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""How many standard errors a difference of means exceeds by chance in 1 of 20 cases, by degrees of freedom from 1 on
(Student's t); beyond nine the last, which is a little strict."""


def differs_significantly(one: Group, other: Group, error: str) -> bool:
    """Whether two groups differ in an error, one of `_IMAGES`, by more than chance would make them in 1 of 20 cases.

    Over seeds that is Student's t-test, whose deviation is of both; where one of them has a single seed, the difference
    must also be more than other images would make.
    """
    values = [group.values(error) for group in (one, other)]
    means = [statistics.mean(found) for found in values]
    if freedom := sum(len(found) - 1 for found in values):
        variance = sum(statistics.variance(found) * (len(found) - 1) for found in values if len(found) > 1) / freedom
        standard_error = math.sqrt(variance * sum(1 / len(found) for found in values))
        if abs(means[0] - means[1]) <= _STUDENT[min(freedom, len(_STUDENT)) - 1] * standard_error:
            return False
    return all(len(found) > 1 for found in values) or _beyond_sampling(
        means, [group.images(error) for group in (one, other)]
    )


def _beyond_sampling(errors: Sequence[float], images: Sequence[int]) -> bool:
    """Whether two errors, in percent, are more than two standard errors of their difference apart.

    One image more is counted as wrong and one as right in each (Agresti and Caffo 2000): else none wrong would leave no
    doubt, and 4 against none be a difference. Networks tend to get the same images wrong, so that the true standard
    error, where both saw the same ones, is rather smaller.
    """
    wrong = [(error / 100 * n + 1) / (n + 2) for error, n in zip(errors, images, strict=True)]
    variance = sum(p * (1 - p) / (n + 2) for p, n in zip(wrong, images, strict=True))
    return (wrong[0] - wrong[1]) ** 2 > 4 * variance


def groups_of(runs: Iterable[RunRecord]) -> list[Group]:
    """The runs by network, plain before residual, shallow before deep.

    Raises `BadInput` where all are empty, or two are of one network and seed, which would be counted twice.
    """
    by_name: dict[tuple[str, str, str], list[RunRecord]] = {}
    for recorded in runs:
        if not any(record["kind"] in ("train", "end") for record in recorded.records):
            continue  # not one line of training yet
        key = (recorded.run.experiment, recorded.run.network.name, str(recorded.records[0].get("protocol")))
        by_name.setdefault(key, []).append(recorded)
    for found in by_name.values():
        folders = {recorded.run.seed: recorded.folder for recorded in found}
        for recorded in found:
            if (other := folders[recorded.run.seed]) != recorded.folder:
                raise BadInput(f"{recorded.folder} and {other} are runs of one network and seed: leave one out")
    if not by_name:
        raise BadInput("none of these runs has a line of training in its metrics.jsonl yet")
    several = len({experiment for experiment, _, _ in by_name}) > 1
    made = [Group(f"{exp}/{net}" if several else net, tuple(found)) for (exp, net, _), found in by_name.items()]
    return sorted(made, key=lambda group: (not group.plain, group.depth, group.label))


# --- families ---------------------------------------------------------------------------------------------------------

_TELLING = (
    "order",
    "addition",
    "widths",
    "unit",
    "shortcut",
    "dropout",
    "expansion",
    "stride_on",
    "stem",
    "stem_width",
    "batch_norm",
)
"""What tells families apart, in the order in which it is said."""


@dataclass(frozen=True)
class Family:
    """Networks that differ in nothing but depth, of one experiment and under one protocol."""

    kind: str
    name: str
    """Its kind and, where there are several of that, what tells it apart: residual (pre-activation)."""
    members: tuple[Group, ...]
    """Shallow before deep."""


def families(made: Sequence[Group]) -> list[Family]:
    """The groups by family, in the order of their first members. A name is the same in every experiment."""
    forms = [_form(group.network) for group in made]
    # Basic units have no stride_on, so they belong to the bottlenecks of either kind, the first where there are both.
    whole = [max((other for other in forms if form.items() <= other.items()), key=len) for form in forms]
    found: dict[tuple[str, str, str, str], list[Group]] = {}
    for group, form in zip(made, whole, strict=True):
        told = _told(form, [other for one, other in zip(made, whole, strict=True) if one.kind == group.kind])
        name = f"{group.kind} ({told})" if told else group.kind
        found.setdefault((group.kind, name, group.experiment, group.protocol), []).append(group)
    return [
        Family(kind, name, tuple(sorted(members, key=lambda group: group.depth)))
        for (kind, name, _, _), members in found.items()
    ]


def _form(network: AnyNet) -> dict[str, Any]:
    """What networks have in common that differ in nothing but depth."""
    form = {key: value for key, value in canonical_fields(network).items() if key not in ("depths", "depth")}
    if form.get("stem") == "imagenet" and form["expansion"] in (None, 4):
        del form["unit"], form["expansion"]  # from 50 layers on they are bottlenecks (He et al. 2015, table 1)
    if form.get("stride_on", ...) is None:
        del form["stride_on"]
    return form


def _told(form: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """The words that tell a form from others of its kind; of what is so by default none."""
    said: list[str] = []
    for key in _TELLING:
        if any(other.get(key) != form.get(key) for other in others):
            said.append(key)
            others = [other for other in others if other.get(key) == form.get(key)]
    default = {key: field.default for key, field in NetConfig.model_fields.items()} | {"batch_norm": False}
    return ", ".join(_words(key, form[key]) for key in said if form.get(key, default[key]) != default[key])


def _words(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return " ".join([value["kind"], *(f"{k} {v:g}" for k, v in value.items() if k != "kind")])
    if isinstance(value, list):
        value = "/".join(map(str, value))
    if key in ("order", "unit"):
        return str(value)
    return key.replace("_", " ") + (f" {value}" if value is not True else "")


# --- tables -----------------------------------------------------------------------------------------------------------


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


def errors_of(row: Record, brief: bool = False) -> dict[str, str]:
    """The columns of errors in a row, and their headings."""
    return {
        column: ERRORS[name][brief] + column.removeprefix(name)
        for column in row
        for name in ERRORS
        if column == name or column.startswith(f"{name} [")
    }
