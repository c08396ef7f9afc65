"""From run folders to the papers' tables and figures: training error across depths, plain beside residual. No torch."""

import csv
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train import run_folder
from resnet_train.config.load import dump
from resnet_train.errors import BadInput
from resnet_train.run_folder import Record, Recorded
from resnet_train.tables import columns, percent, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ERRORS = {
    "train_error": "training error (running)",
    "clean_train_error": "training error (clean)",
    "val_error_top1": "validation top-1",
    "val_error_top5": "validation top-5",
    "best_val_error_top1": "best validation top-1",
}
"""The columns of errors, in percent, and their headings."""

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
    """The runs of one network under one experiment: its seeds."""

    label: str
    runs: tuple[Recorded, ...]

    @property
    def plain(self) -> bool:
        return self.runs[0].run.network.plain

    @property
    def depth(self) -> int:
        return self.runs[0].run.network.depth

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


def groups(runs: Iterable[Recorded]) -> list[Group]:
    """The runs by network, plain before residual, shallow before deep. Raises `BadInput` where one is empty."""
    by_name: dict[tuple[str, str], list[Recorded]] = {}
    for recorded in runs:
        if not any(record["kind"] in ("train", "end") for record in recorded.records):
            continue  # not one line of training yet
        by_name.setdefault((recorded.run.experiment, recorded.run.network.name), []).append(recorded)
    if not by_name:
        raise BadInput("none of these runs has a line of training in its metrics.jsonl yet")
    several = len({experiment for experiment, _ in by_name}) > 1
    made = [Group(f"{exp}/{net}" if several else net, tuple(found)) for (exp, net), found in by_name.items()]
    return sorted(made, key=lambda group: (not group.plain, group.depth, group.label))


# --- words ------------------------------------------------------------------------------------------------------------


def table(made: Sequence[Group]) -> str:
    """The comparison for a terminal: errors in percent, mean ± deviation over seeds."""
    heads = ("network", "seeds", "train error", "clean train", "val top-1", "val top-5")
    lines = [(*heads, "parameters", "multiply-adds", "images/s")]
    for row in (group.row() for group in made):
        errors = [percent(row[name], row[f"{name}_std"]) for name in ERRORS if not name.startswith("best")]
        costs = [short(row[name]) for name in ("params", "macs", "images_per_second")]
        lines.append((row["network"], str(row["seeds"]), *errors, *costs))
    return columns(lines)


def findings(made: Sequence[Group]) -> list[str]:
    """What depth did to the training error, in a sentence for the plain and one for the residual networks.

    A difference no larger than the deviation over seeds is none. Networks of different experiments are not set against
    each other: they differ in more than depth.
    """
    said = []
    experiments = dict.fromkeys(group.runs[0].run.experiment for group in made)
    for experiment, (kind, plain) in itertools.product(experiments, (("plain", True), ("residual", False))):
        family = [g for g in made if g.plain == plain and g.runs[0].run.experiment == experiment]
        if len(family) < 2 or family[0].depth == family[-1].depth:
            continue
        shallow, deep = family[0], family[-1]
        name = "clean_train_error" if shallow.row()["clean_train_error"] is not None else "train_error"
        a, b = shallow.row()[name], deep.row()[name]
        if a is None or b is None:
            continue
        spread = max(group.row()[f"{name}_std"] or 0.0 for group in (shallow, deep))
        verdict = "higher" if b - a > spread else "lower" if a - b > spread else "the same"
        said.append(
            f"{kind}: the deeper network's training error is {verdict}: "
            f"{deep.label} {b:.2f} %, {shallow.label} {a:.2f} % ({ERRORS[name].split('(')[1][:-1]})"
        )
    return said


def warnings(made: Sequence[Group]) -> list[str]:
    """What stands in the way of comparing these runs: other settings, other protocols, runs that are not over."""
    runs = [run for group in made for run in group.runs]
    said = []
    differing: dict[str, dict[str, list[str]]] = {}
    for recorded in runs:
        for key, _, _ in run_folder.differences(runs[0].run, recorded.run):
            if key.partition(".")[0] not in ("network", "seed", "experiment"):
                differing[key] = {}
    for key, values in differing.items():
        for group in made:
            for recorded in group.runs:
                value = str(run_folder.flat(dump(recorded.run)).get(key))
                values.setdefault(value, []).append(group.label)
        told = "; ".join(f"{value} ({', '.join(dict.fromkeys(labels))})" for value, labels in values.items())
        said.append(f"not only the network differs: {key} = {told}")
    alike: dict[str, Callable[[Recorded], list[Any]]] = {
        "training images": lambda run: [run.records[0].get("train_images")],
        "seed": lambda run: [run.run.seed],
        "machine": lambda run: run.machines,
    }
    for what, of_run in alike.items():
        found = {g.label: frozenset(value for run in g.runs for value in of_run(run)) for g in made}
        if len(set(found.values())) > 1:
            told = "; ".join(f"{label}: {', '.join(map(str, sorted(values)))}" for label, values in found.items())
            said.append(f"not only the network differs: {what} ({told})")
    if len({(run.records[0].get("protocol"), run.records[0].get("val_images")) for run in runs}) > 1:
        said.append("validation errors were taken under different protocols: do not compare them")
    for recorded in runs:
        name = f"{recorded.run.network.name} seed {recorded.run.seed}"
        first, last, end = recorded.records[0], recorded.records[-1], recorded.end
        if end is None:
            said.append(f"{name} is not finished: step {last['step']} of {first['steps']}")
        elif end["status"] != "finished":
            said.append(f"{name} {end['status']} at step {end['step']}; its figures are the last before that")
    return said


# --- files ------------------------------------------------------------------------------------------------------------


def write(made: Sequence[Group], out: Path) -> list[Path]:
    """`compare.png`, `compare.md` and `compare.csv`. Raises `BadInput` where `out` cannot be written."""
    paths = [out / f"compare.{suffix}" for suffix in ("png", "md", "csv")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw(made, paths[0])
        paths[1].write_text(_markdown(made))
        with paths[2].open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(group.row() for group in made)
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror}") from None
    return paths


def _markdown(made: Sequence[Group]) -> str:
    heads = ["network", "depth", "seeds", *ERRORS.values(), "parameters", "multiply-adds", "images/s", "hours"]
    lines = ["# Error across depths", "", "![error across depths](compare.png)", ""]
    lines += ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for row in (group.row() for group in made):
        errors = [percent(row[name], row[f"{name}_std"]) for name in ERRORS]
        costs = [short(row[name]) for name in ("params", "macs", "images_per_second")]
        hours = "–" if row["hours"] is None else f"{row['hours']:.3g}"
        cells = [row["network"], str(row["depth"]), str(row["seeds"]), *errors, *costs, hours]
        lines.append("| " + " | ".join(cells) + " |")
    protocols = dict.fromkeys(str(run.records[0].get("protocol")) for group in made for run in group.runs)
    lines += ["", "Errors in percent, mean ± standard deviation over seeds.", ""]
    lines += [f"Validation protocol: {'; '.join(protocols)}.", ""]
    lines += [f"- {line}" for line in [*findings(made), *warnings(made)]]
    return "\n".join(lines).rstrip() + "\n"


def draw(made: Sequence[Group], path: Path) -> None:
    """Figures 1, 4 and 6 of He et al. 2015: plain left, residual right, training thin, validation bold.

    Both training errors are drawn: the running one, and with dots the clean one.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels = [(title, [g for g in made if g.plain == plain]) for title, plain in (("plain", True), ("residual", False))]
    panels = [(title, family) for title, family in panels if family]
    depths = sorted({group.depth for group in made})
    colours = {depth: colormaps["viridis"](i / max(1, len(depths) - 0.5)) for i, depth in enumerate(depths)}
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    axes: list[Any] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for ax, (title, family) in zip(axes, panels, strict=True):
        for group in family:
            same_depth = [other for other in family if other.depth == group.depth]
            look = {"color": colours[group.depth], "linestyle": ("-", "--", ":", "-.")[same_depth.index(group) % 4]}
            _curve(ax, group, "train", "error", linewidth=0.8, **look)
            _curve(ax, group, "eval", "clean_train_error_top1", linewidth=0.8, marker=".", markersize=4, **look)
            _curve(ax, group, "eval", "val_error_top1", linewidth=2.2, label=group.label, **look)
        ax.set(title=title, xlabel="iteration")
        ax.grid(alpha=0.3)
        ax.legend(title="thin: training (dots: clean), bold: validation", fontsize=8, title_fontsize=8)
    axes[0].set(ylabel="error (%)", ylim=(0, None))
    figure.savefig(path, dpi=140)


def _curve(ax: "Axes", group: Group, kind: str, key: str, **look: Any) -> None:
    """The mean over seeds, with a band of one standard deviation, at the steps that all seeds have reached."""
    series = [
        {r["step"]: r[key] for r in run.records if r["kind"] == kind and r.get(key) is not None} for run in group.runs
    ]
    steps = sorted(set.intersection(*map(set, series)))
    means = [statistics.mean(one[step] for one in series) for step in steps]
    if len(steps) == 1:
        look["marker"] = "o"
    ax.plot(steps, means, **look)
    if len(series) > 1:
        spread = [statistics.stdev(one[step] for one in series) for step in steps]
        low = [mean - s for mean, s in zip(means, spread, strict=True)]
        high = [mean + s for mean, s in zip(means, spread, strict=True)]
        ax.fill_between(steps, low, high, color=look["color"], alpha=0.2, linewidth=0)
