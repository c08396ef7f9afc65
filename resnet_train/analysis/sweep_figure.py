"""The figure of a sweep: errors of each network against the values of each key. No torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.analysis.curves import title
from resnet_train.analysis.groups import ERRORS, Group, protocols
from resnet_train.analysis.style import Output, add_title, fit_label, legend_of_figure, line_colours
from resnet_train.analysis.sweeps import CHOSEN_BY, Sweep, is_number, sweeps, swept_keys
from resnet_train.config.sweep import value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEGEND = "larger: its best; cross: diverged"


def draw_sweeps(groups: Sequence[Group], path: Path, output: Output = Output()) -> list[Path]:  # noqa: B008
    """The clean training error and the validation error against each swept key: a line for each network.

    Where several keys are swept, a point is the best over the values of the others. A larger point is the best of its
    line, a cross a value at which a run diverged.
    """
    from matplotlib.figure import Figure

    keys, errors = swept_keys(groups), ["clean_train_error", CHOSEN_BY]
    if not any(group.steps("clean_train_error") for group in groups):
        errors[0] = "train_error"
    columns, width = output.columns(len(errors), 4.5, 2)
    rows = len(keys) * len(errors) // columns
    figure = Figure(figsize=(width, rows * 0.76 * width / columns + 0.5), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False).reshape(len(keys), len(errors))
    for row, key in zip(grid, keys, strict=True):
        swept = [sweep for sweep in sweeps(groups) if key in sweep.keys]
        places = _places([value for sweep in swept for value in sweep.values(key)])
        for ax, error in zip(row, errors, strict=True):
            shades = line_colours([sweep.groups[0].network for sweep in swept])
            for i, (sweep, shade) in enumerate(zip(swept, shades, strict=True)):
                _draw_line(ax, sweep, key, error, places, _label(sweep, groups), shade, 0.97 - 0.03 * (i % 4))
            _scale(ax, places, width / columns)
            ax.set(xlabel=key, ylabel=fit_label(f"{ERRORS[error][0]}, %", 0.76 * width / columns - 0.6))
            ax.set_ylim(0, 1.15 * ax.get_ylim()[1])  # crosses are above the points
            ax.grid(alpha=0.3)
    legend_of_figure(figure, _LEGEND)
    add_title(figure, *title(groups))
    return output.save(figure, path, dpi=130)


def _label(sweep: Sweep, groups: Sequence[Group]) -> str:
    """Its name, with the number of its protocol where there are several."""
    texts = protocols(groups)
    return sweep.name if len(texts) < 2 else f"{sweep.name} [{texts.index(sweep.groups[0].protocol) + 1}]"


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Where each value lies on the axis, by its text: numbers where they are, others in their order."""
    texts = dict.fromkeys(map(value_text, values))
    if all(map(is_number, values)):
        return {value_text(value): float(value) for value in sorted(values)}
    return {text: float(i) for i, text in enumerate(texts)}


def _draw_line(
    ax: "Axes", sweep: Sweep, key: str, error: str, places: dict[str, float], label: str, colour: str, top: float
) -> None:
    style: dict[str, Any] = {"color": colour, "linestyle": "--" if sweep.groups[0].plain else "-"}
    points: list[tuple[float, float, float]] = []
    for value in sweep.values(key):
        x, members = places[value_text(value)], tuple(group for group in sweep.groups if group.sweep[key] == value)
        row = Sweep(members).best(error).row()
        if row[error] is not None:
            points.append((x, row[error], row[f"{error}_std"] or math.nan))  # NaN draws no bar
        if any(group.has_diverged for group in members):
            ax.plot([x], [top], marker="x", markersize=5, color=colour, transform=ax.get_xaxis_transform())
    points.sort()
    xs, ys, deviations = zip(*points, strict=True) if points else ((), (), ())
    ax.errorbar(xs, ys, deviations, marker="o", markersize=4, capsize=3, label=label, **style)
    best = places[value_text(sweep.best(error).sweep[key])]  # of equal errors the one that the sentences name
    for x, y, _ in points:
        if x == best:
            ax.plot([x], [y], marker="o", markersize=9, color=colour, clip_on=False)


def _scale(ax: "Axes", places: dict[str, float], width: float) -> None:
    """A tick at each value; logarithmic where numbers span much. width: of the panel in inches."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low, high = min(places.values()), max(places.values())
    if low > 0 and high > 4 * low:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(list(places.values())))
    ax.xaxis.set_major_formatter(FixedFormatter(list(places)))
    ax.xaxis.set_minor_locator(NullLocator())
    if sum(map(len, places)) + len(places) > 10 * width:
        ax.tick_params("x", rotation=30, labelsize=8)
