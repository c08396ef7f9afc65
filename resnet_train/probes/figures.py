"""Figures of probes: plain beside residual networks by depth, and one network's gradients by depth and time."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_train.analysis.data_sets import data_name
from resnet_train.analysis.style import (
    Output,
    add_title,
    colours,
    fit_errors,
    fit_label,
    legend_height,
    legend_of_figure,
    likeness,
    scale_log,
    scale_steps,
)
from resnet_train.config.network import AnyNet
from resnet_train.probes.hooks import ProbeResult
from resnet_train.runs.run_folder import RunRecord
from resnet_train.runs.tensorboard import attach, picture


class _Panel(NamedTuple):
    label: str
    """Of the y axis."""
    lines: Mapping[str, str]
    """Keys of a `ProbeResult`, each with its line style; lines with points are those of the legend."""
    sort: bool = False
    """Whether values are drawn from the largest to the smallest, in place of by depth."""
    log: bool = False
    reference: bool = False
    """Whether the error of the whole network is drawn, as a dotted line."""


_PANELS = {
    "gradients": (
        _Panel("gradient norm at a unit's input", {"units": ".-"}, log=True),
        _Panel("gradient norm of a convolution's weights", {"weights": ".-"}, log=True),
        _Panel("gradient through identity (dashed) and F", {"carried": "--", "through": ".-"}, log=True),
    ),
    "responses": (
        _Panel("standard deviation of the response", {"layers": ".-"}),
        _Panel("the same, sorted", {"layers": ".-"}, sort=True),
    ),
    "lesion": (
        _Panel("error without the unit (%)", {"dropped": ".-"}, reference=True),
        _Panel("error with neighbours swapped (%)", {"swapped": ".-"}, reference=True),
    ),
}


def draw_side_by_side(
    kind: str,
    results: Mapping[str, ProbeResult],
    networks: Mapping[str, AnyNet],
    path: Path,
    title: str = "",
    output: Output = Output(),  # noqa: B008
) -> list[Path]:
    """Draw a probe of several networks: plain left, residual right, one row of panels for each quantity.

    kind: `gradients`, `responses` or `lesion`. results and networks are by label. Returns the paths.
    Raises `OSError` where one cannot be written.
    """
    from matplotlib.figure import Figure

    measured = {
        key
        for result in results.values()
        for key, values in result.items()
        if any(value is not None for value in values.values())
    }
    panels = [panel for panel in _PANELS[kind] if panel.lines.keys() & measured]
    panels = panels or [_PANELS[kind][0]]  # of networks that have diverged nothing is finite
    families = [family for family in (True, False) if family in {net.plain for net in networks.values()}]
    columns, width = output.columns(len(families), 4.5, 2)
    cells = [(panel, family) for panel in panels for family in families]  # one below the other where there is no room
    if columns == 1:
        keys = {
            family: {key for name in networks if networks[name].plain == family for key in results[name]}
            for family in families
        }
        cells = [(panel, family) for panel, family in cells if panel.lines.keys() & keys[family]]
    rows, panel_height = len(cells) // columns, max(2.2, 0.6 * width / columns)
    height = rows * panel_height + 0.5 + legend_height(list(networks), width)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    shades = dict(zip(networks, colours(list(networks.values())), strict=True))
    styles = {  # networks of one kind and depth differ in their markers
        name: {"color": shades[name], "marker": ".^sDvx*"[list(shades.values())[:i].count(shades[name]) % 7]}
        for i, name in enumerate(shades)
    }
    for ax, (panel, family) in zip(axes, cells, strict=True):
        members = {name: result for name, result in results.items() if networks[name].plain == family}
        _draw_panel(ax, panel, members, styles)
        if panel == panels[0] and ax.lines:
            ax.set_title("plain" if family else "residual", fontsize=10)
    for panel in panels:  # one scale for both families
        same = [ax for ax, (other, _) in zip(axes, cells, strict=True) if other == panel and ax.lines]
        for ax in same[1:]:
            ax.sharey(same[0])
        if not panel.log:
            drawn = [value for ax in same for line in ax.lines for value in line.get_ydata() if np.isfinite(value)]
            fit_errors(same[0], min(drawn, default=0.0), max(drawn, default=1.0))
            same[0].ticklabel_format(axis="y", useOffset=False)
        else:
            same[0].autoscale(axis="y")
            scale_log(same[0].yaxis, *same[0].get_ylim())
        for ax in same if columns == 1 else same[:1]:
            ax.set_ylabel(fit_label(panel.label, panel_height - 0.6))
    legend_of_figure(figure)
    if title:
        add_title(figure, title, ["dotted: the whole network"] if panels[0].reference else [])
    return output.save(figure, path, dpi=130)


def _draw_panel(ax: Any, panel: _Panel, results: Mapping[str, ProbeResult], styles: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator

    drawn = [result[key] for result in results.values() for key in panel.lines if result.get(key)]
    places = list(drawn[0]) if drawn and all(values.keys() == drawn[0].keys() for values in drawn) else None
    for name, result in results.items():
        for key, style in panel.lines.items():
            if not result.get(key):
                continue
            values = _with_nan(result[key].values())
            if panel.sort:
                values = np.sort(values)[::-1]
            label = name if "." in style else None
            xs = np.linspace(0, 1, len(values)) if places is None else np.arange(1, len(values) + 1)
            look = styles[name] if "." in style else {"color": styles[name]["color"]}
            line = style.replace(".", "")
            ax.plot(xs, values, linestyle=line, linewidth=1, markersize=3.5, label=label, **look)
        if panel.reference and any(result.get(key) for key in panel.lines):
            ax.axhline(result["whole"]["whole"], color=styles[name]["color"], linestyle=":", linewidth=1)
    if not ax.lines:
        ax.axis("off")
        return
    ax.grid(alpha=0.3)
    ax.set_yscale("log" if panel.log else "linear")
    if places is None:
        ax.set_xlabel("rank, from the largest (0)" if panel.sort else "depth, from the image (0) to the head (1)")
        return
    ax.set_xlabel("rank, from the largest" if panel.sort else "from the image to the head")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if not panel.sort and len(places) <= 8:
        ax.xaxis.set_major_locator(FixedLocator(list(range(1, len(places) + 1))))
        crowded = sum(map(len, places)) > 48
        ax.set_xticklabels(places, **({"rotation": 25, "ha": "right", "fontsize": 8} if crowded else {}))


def draw_heat_maps(
    runs: Sequence[RunRecord],
    path: Path,
    log: Path | None,
    output: Output = Output(),  # noqa: B008
) -> list[Path]:
    """Draw gradient norms at the units' inputs by depth and time: a panel for each run, all with one colour scale.

    A plain network is left of its residual partner: the one of its depth and seed. log: a run folder whose
    TensorBoard log receives the picture too. Returns the paths: none where no run has recorded gradients. Raises
    `OSError` where one cannot be written.
    """
    cells = _in_pairs([run for run in runs if any(record["kind"] == "gradients" for record in run.records)])
    if not cells:
        return []
    from matplotlib.colors import LogNorm  # imported here: most runs record no gradients
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    maps = [None if run is None else _heat_map(run) for run in cells]
    norms = [heat_map.norms for heat_map in maps if heat_map is not None]
    positive = np.concatenate([values[values > 0] for values in norms])
    scale = LogNorm(positive.min(), positive.max()) if len(positive) else None
    in_pairs = len(cells) > 1
    most = 2 * math.ceil(math.sqrt(len(cells) / 4)) if in_pairs else 1
    columns, width = output.columns(len(cells), 4.5, most)
    if in_pairs and columns > 1:
        columns -= columns % 2
    rows = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(width, rows * 0.62 * width / columns + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, heat_map in itertools.zip_longest(axes, maps):
        if heat_map is None:
            ax.axis("off")
            continue
        steps, units = heat_map.steps, len(heat_map.norms)
        edges = [*steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
        mesh = ax.pcolormesh(edges, np.arange(units + 1) + 0.5, heat_map.norms, norm=scale, cmap="viridis")
        ax.invert_yaxis()  # the image above, the head below
        ax.yaxis.set_major_locator(MaxNLocator(min(units, 6), integer=True))
        scale_steps(ax)
        ax.set_title(textwrap.fill(heat_map.title, int(10 * width / columns)), fontsize=10)
        ax.set(xlabel="iteration", ylabel="unit")
    figure.colorbar(mesh, ax=figure.axes, label="gradient norm at the unit's input", fraction=0.04, pad=0.01)
    data = ", ".join(dict.fromkeys(data_name(run.run.data) for run in runs))
    probes = [run.run.probes.gradients for run in cells if run is not None]
    images = sorted({probe.images for probe in probes if probe is not None})
    add_title(figure, f"{data}; gradients of {', '.join(map(str, images))} training images" if images else data)
    paths = output.save(figure, path, dpi=130 if len(cells) < 20 else 80)
    if log is not None:
        last = [heat_map for heat_map in maps if heat_map is not None][-1]
        attach(log, "gradients", picture("gradients/by_depth_and_time", path), last.steps[-1])
    return paths


def _in_pairs(runs: Sequence[RunRecord]) -> list[RunRecord | None]:
    """The runs, each plain network before its residual partner. None is an empty place.

    Shallow before deep. Those without a partner follow the pairs.
    """
    ordered = sorted(runs, key=lambda run: (run.run.network.depth, run.run.network.name, run.run.seed))
    residual = [run for run in ordered if not run.run.network.plain]
    pairs: list[RunRecord | None] = []
    alone: list[RunRecord | None] = []
    for run in (run for run in ordered if run.run.network.plain):
        partners = [other for other in residual if _size(other) == _size(run)]
        if not partners:
            alone.append(run)
        else:
            partner = max(partners, key=lambda other: likeness(other.run.network, run.run.network))
            residual.remove(partner)
            pairs += [run, partner]
    return [*pairs, *alone, *residual]


def _size(run: RunRecord) -> tuple[int, int]:
    return run.run.network.depth, run.run.seed


class _HeatMap(NamedTuple):
    title: str
    steps: list[int]
    norms: Any
    """float [units, steps]."""


def _heat_map(run: RunRecord) -> _HeatMap:
    records = [record for record in run.records if record["kind"] == "gradients"]
    units = records[0]["units"] if records else {}
    norms = np.array([_with_nan(record["units"].get(unit) for unit in units) for record in records]).T
    return _HeatMap(run.run.title, [record["step"] for record in records], norms)


def _with_nan(values: Any) -> Any:
    return np.array([np.nan if value is None else value for value in values], float)
