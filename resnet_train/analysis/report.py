"""One self-contained web page about run folders: `report.html.jinja`, filled. No torch."""

import base64
import csv
import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from resnet_train.analysis.curves import curve
from resnet_train.analysis.data_sets import by_data_set
from resnet_train.analysis.families import families
from resnet_train.analysis.findings import findings, warnings
from resnet_train.analysis.groups import ERRORS, RECORDED, Group, footnotes, protocols
from resnet_train.analysis.published import Published, published, published_rows, reasons
from resnet_train.analysis.style import hue, kind_of, likeness, line_colours, line_shades, shade, time_unit
from resnet_train.analysis.sweeps import Sweep, at_best, best_note, is_number, sweeps, swept_keys
from resnet_train.analysis.tables import table
from resnet_train.config.expect import FigureConfig
from resnet_train.config.load import dump
from resnet_train.config.sweep import value_text
from resnet_train.config.yaml12 import to_yaml
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder
from resnet_train.runs.records import Record
from resnet_train.runs.run_folder import RunRecord

_COSTS = {"depth": "depth (layers)", "params": "parameters", "macs": "multiply-adds", "hours": "of training"}
_PROBES = {
    "gradients": ("units", "gradient norm at the unit's input"),
    "responses": ("layers", "standard deviation of the response"),
    "lesion": ("dropped", "error without the unit (%)"),
}
"""Of each kind of probe, the quantity that is drawn and its label."""
_LARGEST_PICTURE = 5_000_000
"""Bytes of a picture that the page contains."""


def write_report(groups: Sequence[Group], folders: Sequence[Path], path: Path) -> None:
    """Write the page. folders: those of the command, where `eval` may have left confusions.

    Raises `BadInput` where plotly or jinja2 is missing, or the file cannot be written.
    """
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise BadInput(f"a report needs plotly and jinja2: pip install 'resnet-train[report]' ({error})") from None
    template = Path(__file__).with_suffix(".html.jinja").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(content(groups, folders), plotly=get_plotlyjs())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, "utf-8", "xmlcharrefreplace")
    except OSError as error:
        raise BadInput(f"--out: cannot write {path}: {error.strerror or error}") from None


def content(groups: Sequence[Group], folders: Sequence[Path]) -> dict[str, Any]:
    """What the template is filled with."""
    runs = [run for group in groups for run in (*group.runs, *group.left_out)]
    sections = by_data_set(groups)
    return {
        "title": ", ".join(dict.fromkeys(group.experiment for group in groups)),
        "runs": len(runs),
        "sections": [{"name": name, **_section(members)} for name, members in sections.items()],
        "confusions": list(_confusions(runs, folders)),
        "configuration": to_yaml(dump(runs[0].run)),
        "first": str(runs[0].folder),
        "environment": _environment(runs),
        "data": _embedded([{"name": name, **_drawn(members)} for name, members in sections.items()]),
    }


def _section(groups: Sequence[Group]) -> dict[str, Any]:
    """What is written about the networks of one data set."""
    found = published(groups)
    return {
        "protocols": footnotes(groups) or protocols(groups),
        "findings": findings(groups),
        "warnings": [*warnings(groups), *reasons(found)],
        "notes": best_note(groups),
        "table": table(groups),
        "published": published_rows(found),
        "differing": _differing([run for group in groups for run in (*group.runs, *group.left_out)]),
    }


def _drawn(groups: Sequence[Group]) -> Record:
    """What is drawn of the networks of one data set. Hours are seconds or minutes where these suit better."""
    unit, per_hour = time_unit(max((group.mean("hours") or 0 for group in groups), default=0))
    costs = _COSTS | {"hours": f"{unit} of training"} | {key: key for key in swept_keys(groups)}
    best = at_best(groups)
    return {
        "groups": _curves(best, unit, per_hour),
        "points": _points(best, per_hour),
        "swept": _swept(groups),
        "costs": costs,
        "errors": {error: ERRORS[error][0] for error in ("val_error_top1", "clean_train_error", "train_error")},
        "probes": _probes(best),
        "several_seeds": any(len(group.runs) > 1 for group in groups),
    }


def _embedded(data: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(_finite(data), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """The value with numbers of six digits, and None for those that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _colours(groups: Sequence[Group]) -> dict[int, tuple[str, str]]:
    """Of each group, by its id, the colours on a light and on a dark page."""
    networks = [group.network for group in groups]
    dark = [shade(kind_of(net), 0.5 - 0.5 * part) for net, part in zip(networks, line_shades(networks), strict=True)]
    return dict(zip(map(id, groups), zip(line_colours(networks), dark, strict=True), strict=True))  # deep is bright


def _curves(groups: Sequence[Group], unit: str, per_hour: float) -> list[Record]:
    looks = _colours(groups)
    drawn = []
    for group in groups:
        start = group.runs[0].records[0]
        curves = {}
        for error in ("val_error_top1", "clean_train_error", "train_error"):
            points = curve(group, error)
            epochs = points.steps * group.runs[0].run.train.batch_size / start["train_images"]
            curves[error] = {
                "x": {
                    "iterations": points.steps.tolist(),
                    "epochs": epochs.tolist(),
                    unit: (points.hours * per_hour).tolist(),
                },
                "y": points.means.tolist(),
                "deviations": points.deviations.tolist() if len(group.runs) > 1 else [],
            }
        marks = [one for one in published([group]) if not one.reasons]
        drawn.append(
            {
                "name": group.label,
                "plain": group.plain,
                "colours": looks[id(group)],
                "curves": curves,
                "published": {one.error: _centre(one) for one in marks if one.error in RECORDED},
            }
        )
    return drawn


def _centre(one: Published) -> float:
    figure = one.figure if isinstance(one.figure, FigureConfig) else FigureConfig(mean=one.figure, n=1)
    return float(figure.centre[0])


def _points(groups: Sequence[Group], per_hour: float) -> list[Record]:
    """For each family, its networks with their costs and errors."""
    return [
        {
            "name": family.name,
            "colours": (hue(family.kind), shade(family.kind, 0.25)),
            "members": [
                {
                    "label": group.label,
                    "step": None if group.is_finished else group.step,
                    "x": {cost: (row := group.row())[cost] for cost in _COSTS}
                    | {"hours": None if row["hours"] is None else row["hours"] * per_hour},
                    "errors": {error: (row[error], row[f"{error}_std"]) for error in ERRORS},
                }
                for group in family.members
            ],
        }
        for family in families(groups)
    ]


def _swept(groups: Sequence[Group]) -> dict[str, list[Record]]:
    """For each swept key a line for each network: of several keys, the best error over the values of the others."""
    drawn = {}
    for key in swept_keys(groups):
        found = [sweep for sweep in sweeps(groups) if key in sweep.keys]
        looks = _colours([sweep.groups[0] for sweep in found])
        drawn[key] = [
            {"name": sweep.name, "colours": looks[id(sweep.groups[0])], "members": _values(sweep, key)}
            for sweep in found
        ]
    return drawn


def _values(sweep: Sweep, key: str) -> list[Record]:
    values = sweep.values(key)
    members = []
    for value in values:
        some = Sweep(tuple(group for group in sweep.groups if group.sweep[key] == value))
        best = {error: some.best(error) for error in RECORDED if error != "train_loss"}
        members.append(
            {
                "label": sweep.name + (", diverged" if any(group.has_diverged for group in some.groups) else ""),
                "step": None,
                "x": {key: value if all(map(is_number, values)) else value_text(value)},
                "errors": {error: ((row := group.row())[error], row[f"{error}_std"]) for error, group in best.items()},
            }
        )
    return members


def _probes(groups: Sequence[Group]) -> list[Record]:
    """For each probe that some run recorded, the values of each network's first seed that has it."""
    shown: list[Record] = []
    looks = _colours(groups)
    for kind, (quantity, label) in _PROBES.items():
        networks = []
        for group in groups:
            recorded = ([r for r in run.records if r["kind"] == kind and r.get(quantity)] for run in group.runs)
            records = next(filter(None, recorded), [])
            if records:
                places = list(records[-1][quantity])
                values = [[record[quantity].get(place) for record in records] for place in places]
                steps = [record["step"] for record in records]
                of_group = {"name": group.label, "plain": group.plain, "colours": looks[id(group)]}
                networks.append(of_group | {"places": places, "steps": steps, "values": values})
        if networks:
            shown.append({"kind": kind, "label": label, "networks": networks, "pairs": _pairs(groups, networks)})
    return shown


def _pairs(groups: Sequence[Group], drawn: Sequence[Record]) -> list[list[str]]:
    """Names of the networks that were drawn: each plain one with the residual one of its depth that is most alike."""
    names = {network["name"] for network in drawn}
    members = [group for group in groups if group.label in names]
    residual = [group for group in members if not group.plain]
    pairs = []
    for group in (group for group in members if group.plain):
        same_depth = [other for other in residual if other.depth == group.depth]
        pairs.append([group.label])
        if same_depth:
            partner = max(same_depth, key=lambda other: likeness(other.network, group.network))
            residual.remove(partner)
            pairs[-1].append(partner.label)
    return [*pairs, *([group.label] for group in residual)]


def _confusions(runs: Sequence[RunRecord], folders: Sequence[Path]) -> Iterator[Record]:
    """What `eval` wrote in run folders, and in the folders of the command: the worst classes, and the picture."""
    places = dict.fromkeys([*folders, *(folder for run in runs for folder in (run.folder.parents[1], run.folder))])
    for folder in places:
        for path in sorted((folder / "evaluation").glob("*-classes.csv")):
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                rows = list(csv.reader(file))
            picture = path.with_name(path.name.replace("-classes.csv", "-mistakes.png"))
            image = ""
            if picture.is_file() and picture.stat().st_size < _LARGEST_PICTURE:
                image = base64.b64encode(picture.read_bytes()).decode()
            shown = [[_shortened(cell) for cell in row] for row in rows[:11]]
            yield {"file": str(path), "rows": shown, "image": image}


def _shortened(cell: str) -> str:
    """A cell of a CSV file; a fraction with two digits."""
    return f"{float(cell):.2f}" if re.fullmatch(r"\d+\.\d+", cell) else cell


def _differing(runs: Sequence[RunRecord]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The keys in which runs differ, beside seed and network: each value with its networks."""
    keys = {key: None for run in runs for key, *_ in run_folder.differences(runs[0].run, run.run)}
    found = []
    for key in keys:
        if key.partition(".")[0] in ("network", "seed"):
            continue
        networks: dict[str, dict[str, None]] = {}
        for run in runs:
            value = html.unescape(str(run_folder.defining_keys(run.run).get(key)))
            networks.setdefault(value, {})[run.run.network.name] = None
        found.append((key, [(value, ", ".join(names)) for value, names in networks.items()]))
    return found


def _environment(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Each machine with its versions, and the runs that were trained there."""
    names: dict[str, dict[str, None]] = {}
    for run in runs:
        for session in run_folder.sessions(run.folder):
            keys = ("ranks", "device", "torch", "cuda", "python", "resnet_train", "commit", "platform")
            text = ", ".join(f"{key} {session[key]}" for key in keys if session.get(key) is not None)
            names.setdefault(text, {})[f"{run.run.network.name} seed {run.run.seed}"] = None
    return [(text, ", ".join(of)) for text, of in names.items()]
