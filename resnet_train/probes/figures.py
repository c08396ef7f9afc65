"""Figures of probes: plain beside residual networks by depth, and one network's gradients by depth and time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_train.probes.hooks import ProbeResult
from resnet_train.runs.run_folder import RunRecord
from resnet_train.runs.tensorboard import add_image


class _Panel(NamedTuple):
    label: str
    """Of the y axis."""
    lines: Mapping[str, str]
    """Keys of a `ProbeResult`, each with its line style; the lines with points are named in the legend."""
    sort: bool = False
    """Whether values are drawn from the largest to the smallest, in place of by depth."""
    log: bool = False
    reference: bool = False
    """Whether the error of the whole network is drawn, as a dotted line."""


_PANELS = {
    "gradients": (
        _Panel("gradient norm at a unit's input", {"units": ".-"}, log=True),
        _Panel("gradient norm of a convolution's weights", {"weights": ".-"}, log=True),
        _Panel("its two parts: identity (dashed) and F", {"carried": "--", "through": ".-"}, log=True),
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


def draw_side_by_side(kind: str, results: Mapping[str, ProbeResult], plain: Mapping[str, bool], path: Path) -> None:
    """Draw a probe of several networks: plain left, residual right, one row of panels for each quantity.

    kind: `gradients`, `responses` or `lesion`. results and plain (whether it has no shortcuts) are by network.
    Raises `OSError` where `path` cannot be written.
    """
    from matplotlib.figure import Figure

    measured = {key for result in results.values() for key in result}
    panels = [panel for panel in _PANELS[kind] if panel.lines.keys() & measured]
    families = [family for family in (True, False) if family in plain.values()]
    figure = Figure(figsize=(5.5 * len(families), 3.3 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(families), squeeze=False, sharey="row")
    colours = {name: f"C{i}" for i, name in enumerate(results)}
    for panel, row in zip(panels, grid, strict=True):
        for family, ax in zip(families, row, strict=True):
            _draw_panel(ax, panel, {name: result for name, result in results.items() if plain[name] == family}, colours)
        labelled = next(ax for ax in row if ax.lines)
        labelled.set_ylabel(panel.label)
        labelled.tick_params(labelleft=True)
    for family, ax in zip(families, grid[0], strict=True):
        ax.set_title("plain" if family else "residual")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_panel(ax: Any, panel: _Panel, results: Mapping[str, ProbeResult], colours: Mapping[str, str]) -> None:
    for name, result in results.items():
        for key, style in panel.lines.items():
            if key not in result:
                continue
            values = _with_nan(result[key].values())
            if panel.sort:
                values = np.sort(values)[::-1]
            label = name if "." in style else None
            ax.plot(np.linspace(0, 1, len(values)), values, style, color=colours[name], linewidth=1, label=label)
        if panel.reference:
            ax.axhline(result["whole"]["whole"], color=colours[name], linestyle=":", linewidth=1)
    if not ax.lines:
        ax.axis("off")
        return
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, title="dotted: the whole network" if panel.reference else None, title_fontsize=8)
    ax.set_yscale("log" if panel.log else "linear")
    ax.set_xlabel("rank, from the largest (0)" if panel.sort else "depth, from the image (0) to the head (1)")


def draw_heat_maps(runs: Sequence[RunRecord], path: Path, tensorboard: Path | None) -> bool:
    """Draw gradient norms at the units' inputs by depth and time: a panel for each run, all with one colour scale.

    tensorboard: a log folder that receives the picture too. Returns whether any run has recorded gradients; where none
    has, nothing is written. Raises `OSError` where `path` cannot be written.
    """
    maps = [_heat_map(run) for run in sorted(runs, key=lambda run: (not run.run.network.plain, run.run.network.depth))]
    maps = [heat_map for heat_map in maps if heat_map.steps]
    if not maps:
        return False
    from matplotlib.colors import LogNorm  # imported here: most runs record no gradients
    from matplotlib.figure import Figure

    positive = np.concatenate([heat_map.norms[heat_map.norms > 0] for heat_map in maps])
    scale = LogNorm(positive.min(), positive.max()) if len(positive) else None
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(1.5 + 4.5 * columns, 3.4 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for (title, steps, norms), ax in zip(maps, axes, strict=False):
        last_width = steps[-1] - steps[-2] if len(steps) > 1 else 1
        edges = [*steps, steps[-1] + last_width]
        mesh = ax.pcolormesh(edges, np.arange(len(norms) + 1), norms, norm=scale, cmap="viridis")
        ax.invert_yaxis()  # the image above, the head below
        ax.set(title=title, xlabel="iteration", ylabel="unit")
    for unused in axes[len(maps) :]:
        unused.axis("off")
    figure.colorbar(mesh, ax=figure.axes, label="gradient norm at the unit's input")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    if tensorboard is not None:
        add_image(tensorboard, "gradients/by_depth_and_time", path, maps[-1].steps[-1])
    return True


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
