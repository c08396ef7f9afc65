"""From run folders to the papers' tables and figures: training error across depths, plain beside residual. No torch."""

import csv
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from resnet_train.analysis import figures
from resnet_train.analysis.groups import Group, differs_significantly, errors_of, families, footnotes, protocols, rows
from resnet_train.config.load import dump
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder
from resnet_train.runs.run_folder import Record, RunRecord
from resnet_train.runtime.tables import columns, percent, short

# --- words ------------------------------------------------------------------------------------------------------------


def table(made: Sequence[Group]) -> str:
    """The comparison for a terminal: errors in percent, mean ± deviation over seeds."""
    lines: list[tuple[str, ...]] = []
    for row in rows(made):
        shown = {column: head for column, head in errors_of(row, brief=True).items() if not column.startswith("best")}
        if not lines:
            lines.append(("network", "seeds", *shown.values(), "parameters", "multiply-adds", "images/s", "hours"))
        costs = [short(row[name]) for name in ("params", "macs", "images_per_second")]
        lines.append((row["network"], str(row["seeds"]), *_percents(row, shown), *costs, _hours(row)))
    return "\n".join([columns(lines), *footnotes(made)])


def _percents(row: Record, shown: Iterable[str]) -> list[str]:
    """Cells of errors; one of another row's protocol is empty."""
    return [
        percent(row[column], row[column.replace(" [", "_std [") if "[" in column else f"{column}_std"])
        for column in shown
    ]


def _hours(row: Record) -> str:
    return "–" if row["hours"] is None else f"{row['hours']:.3g}"


def findings(made: Sequence[Group]) -> list[str]:
    """What depth did to the training error, in a sentence for each family; what the shortcuts did, where plain networks
    stand beside residual ones of their depth; then what is both cheaper and better.

    A difference that may be chance is none (`groups.apart`). Networks of different experiments are not set against
    each other: they differ in more than depth. Nor are those of different protocols, which the clean training error
    is taken under as well.
    """
    said, found = [], families(made)
    for family in found:
        shallow, deep = family.members[0], family.members[-1]
        if shallow.depth != deep.depth:
            said += _judged(f"{family.name}: the deeper network's", deep, shallow)
    for family, plain in itertools.product(found, found):
        if family.kind == "residual" and plain.kind == "plain" and _set(family.members[0]) == _set(plain.members[0]):
            partners = {group.depth: group for group in plain.members}
            both = [group for group in family.members if group.depth in partners]
            for group in both[-1:]:  # the deepest, where it matters the most
                said += _judged(f"{group.depth} layers: the {family.name} network's", group, partners[group.depth])
    alike: dict[tuple[str, str], list[Group]] = {}
    for group in made:
        alike.setdefault(_set(group), []).append(group)
    return said + [line for members in alike.values() for line in _cheaper(members)]


def _set(group: Group) -> tuple[str, str]:
    """Groups of one experiment and protocol can be set against each other."""
    return group.experiment, group.protocol


def _judged(whose: str, one: Group, other: Group) -> list[str]:
    """A sentence on the training error of one network, measured by another; none where either has none."""
    kind = "running" if other.row()["clean_train_error"] is None else "clean"
    name = "train_error" if kind == "running" else "clean_train_error"
    b, a = one.row()[name], other.row()[name]
    if a is None or b is None:
        return []
    verdict = (
        "not measurably different" if not differs_significantly(other, one, name) else "higher" if b > a else "lower"
    )
    return [f"{whose} training error is {verdict}: {one.label} {b:.2f} %, {other.label} {a:.2f} % ({kind})"]


def _timed_on(group: Group) -> str | None:
    """The one machine that all its runs were made on from beginning to end; `None` where their hours mean nothing."""
    if not all(run.end is not None and run.end["status"] == "finished" for run in group.runs):
        return None
    machines = {machine for run in group.runs for machine in run.machines or (None,)}
    return machines.pop() if len(machines) == 1 else None


def _cheaper(alike: Sequence[Group]) -> list[str]:
    """A network that outperforms a deeper one in fewer hours on the same machine, by the widest margin of depth.

    The deeper one is residual: that a deep plain net fails is said above.
    """
    measured = [
        (group, row, machine)
        for group in alike
        if (machine := _timed_on(group)) and (row := group.row())["val_error_top1"] is not None
    ]
    found = []
    for (one, a, here), (deep, b, there) in itertools.permutations(measured, 2):
        margin = b["val_error_top1"] - a["val_error_top1"]
        deeper = one.depth < deep.depth and not deep.plain and here == there
        if deeper and margin > 0 and a["hours"] < b["hours"] and differs_significantly(one, deep, "val_error_top1"):
            found.append((deep.depth - one.depth, margin, one, deep, a, b))
    if not found:
        return []
    _, _, one, deep, a, b = max(found, key=lambda pair: pair[:2])
    return [
        f"{one.label} outperforms {deep.label}: validation top-1 {a['val_error_top1']:.2f} % against "
        f"{b['val_error_top1']:.2f} % in {a['hours'] / b['hours']:.2f} of its hours, "
        f"{one.depth} layers against {deep.depth}"
    ]


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
    alike: dict[str, Callable[[RunRecord], list[Any]]] = {
        "training images": lambda run: [run.records[0].get("train_images")],
        "seed": lambda run: [run.run.seed],
        "machine": lambda run: run.machines,
    }
    for what, of_run in alike.items():
        found: dict[str, set[Any]] = {}
        for group in made:  # of one label there are several under several protocols
            found.setdefault(group.label, set()).update(value for run in group.runs for value in of_run(run))
        if len(set(map(frozenset, found.values()))) > 1:
            told = "; ".join(f"{label}: {', '.join(map(str, sorted(values)))}" for label, values in found.items())
            said.append(f"not only the network differs: {what} ({told})")
    if len({run.records[0].get("val_images") for run in runs}) > 1:
        said.append("validation errors are of different numbers of images: do not compare them")
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
    """Both figures, `compare.md` and `compare.csv`. Raises `BadInput` where `out` cannot be written."""
    paths = [out / name for name in ("compare.png", "compare-cost.png", "compare.md", "compare.csv")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures.draw(made, paths[0])
        figures.draw_costs(made, paths[1])
        paths[2].write_text(_markdown(made))
        with paths[3].open("w", newline="") as file:
            told = rows(made)
            writer = csv.DictWriter(file, told[0].keys())
            writer.writeheader()
            writer.writerows(told)
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror}") from None
    return paths


def _markdown(made: Sequence[Group]) -> str:
    told = rows(made)
    shown = errors_of(told[0])
    heads = ["network", "depth", "seeds", *shown.values(), "parameters", "multiply-adds", "images/s", "hours"]
    lines = ["# Error across depths", "", "![error across depths](compare.png)", ""]
    lines += ["![error against cost](compare-cost.png)", ""]
    lines += ["| " + " | ".join(heads) + " |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for row in told:
        costs = [short(row[name]) for name in ("params", "macs", "images_per_second")]
        cells = [row["network"], str(row["depth"]), str(row["seeds"]), *_percents(row, shown), *costs, _hours(row)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Errors in percent, mean ± standard deviation over seeds.", ""]
    lines += [f"Validation protocol: {'; '.join(footnotes(made) or protocols(made))}.", ""]
    lines += [f"- {line}" for line in [*findings(made), *warnings(made)]]
    return "\n".join(lines).rstrip() + "\n"
