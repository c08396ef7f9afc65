"""Pictures of probes: plain left, residual right, by depth; and depth by time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_train.probes.measure import Figures
from resnet_train.runs.run_folder import RunRecord
from resnet_train.runs.tensorboard import add_picture


class _Panel(NamedTuple):
    label: str
    lines: Mapping[str, str]
    """What is drawn, each in its style."""
    by_size: bool = False


_PANELS = {
    "gradients": (
        _Panel("gradient norm at a unit's input", {"units": ".-"}),
        _Panel("gradient norm of a convolution's weights", {"weights": ".-"}),
        _Panel("its two parts: the identity's (dashed), F's", {"carried": "--", "through": ".-"}),
    ),
    "responses": (
        _Panel("standard deviation of the response", {"layers": ".-"}),
        _Panel("the same, sorted", {"layers": ".-"}, by_size=True),
    ),
    "lesion": (
        _Panel("error without the unit (%)", {"dropped": ".-"}),
        _Panel("error with neighbours swapped (%)", {"swapped": ".-"}),
    ),
}


def side_by_side(kind: str, found: Mapping[str, Figures], plain: Mapping[str, bool], path: Path) -> None:
    """What a probe found in several networks: a row of panels for each figure, plain left and residual right."""
    from matplotlib.figure import Figure

    rows = [panel for panel in _PANELS[kind] if any(panel.lines.keys() & figures.keys() for figures in found.values())]
    families = [family for family in (True, False) if family in plain.values()]
    figure = Figure(figsize=(5.5 * len(families), 3.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), len(families), squeeze=False, sharey="row")
    colours = {name: f"C{i}" for i, name in enumerate(found)}
    for panel, axes in zip(rows, grid, strict=True):
        for family, ax in zip(families, axes, strict=True):
            for name in (name for name in found if plain[name] == family):
                for line, style in ((line, style) for line, style in panel.lines.items() if line in found[name]):
                    y = np.array([np.nan if value is None else value for value in found[name][line].values()])
                    y = np.sort(y)[::-1] if panel.by_size else y
                    label = name if style == ".-" else None
                    ax.plot(np.linspace(0, 1, len(y)), y, style, color=colours[name], linewidth=1, label=label)
                if kind == "lesion":
                    ax.axhline(found[name]["whole"]["whole"], color=colours[name], linestyle=":", linewidth=1)
            if not ax.lines:
                ax.axis("off")
                continue
            ax.grid(alpha=0.3)
            ax.legend(fontsize=8, title="dotted: unharmed" if kind == "lesion" else None, title_fontsize=8)
            if kind == "gradients":
                ax.set_yscale("log")
            ax.set_xlabel(
                "rank, from the largest (0)" if panel.by_size else "depth, from the image (0) to the head (1)"
            )
        first = next(ax for ax in axes if ax.lines)
        first.set_ylabel(panel.label)
        first.tick_params(labelleft=True)
    for family, ax in zip(families, grid[0], strict=True):
        ax.set_title("plain" if family else "residual")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def heat_maps(runs: Sequence[RunRecord], path: Path, tensorboard: Path | None) -> bool:
    """Gradient norms at units' inputs by depth and time, a panel for each run with one scale; whether there are any."""
    maps: list[tuple[RunRecord, list[int], Any]] = []
    for run in sorted(runs, key=lambda run: (not run.run.network.plain, run.run.network.depth)):
        records = [record for record in run.records if record["kind"] == "gradients"]
        if records:
            norms = [[np.nan if v is None else v for v in record["units"].values()] for record in records]
            maps.append((run, [record["step"] for record in records], np.array(norms, float).T))
    if not maps:
        return False
    from matplotlib.colors import LogNorm  # here: most runs have none, and need not wait for it
    from matplotlib.figure import Figure

    positive = np.concatenate([norms[norms > 0] for _, _, norms in maps])
    scale = LogNorm(positive.min(), positive.max()) if len(positive) else None
    columns = math.ceil(math.sqrt(len(maps)))
    rows = math.ceil(len(maps) / columns)
    figure = Figure(figsize=(1.5 + 4.5 * columns, 3.4 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (run, steps, norms), ax in zip(maps, axes, strict=False):
        edges = [*steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
        mesh = ax.pcolormesh(edges, np.arange(len(norms) + 1), norms, norm=scale, cmap="viridis")
        ax.invert_yaxis()  # the image above, the head below
        ax.set(title=f"{run.run.network.name} seed {run.run.seed}", xlabel="iteration", ylabel="unit")
    for ax in axes:  # what is left of the grid
        ax.axis("off")
    figure.colorbar(mesh, ax=figure.axes, label="gradient norm at the unit's input")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    if tensorboard is not None:
        add_picture(tensorboard, "gradients/by_depth_and_time", path, maps[-1][1][-1])
    return True
