"""The figures of a comparison: error against iterations and hours, and against what a network costs. No torch."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_train.analysis.families import families
from resnet_train.analysis.groups import Group, footnotes, protocols
from resnet_train.analysis.published import published
from resnet_train.analysis.sweeps import best_note
from resnet_train.config.expect import FigureConfig
from resnet_train.runs.records import Record
from resnet_train.runtime.tables import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAMILY_STYLES = {
    "plain": (("#D55E00", "#E69F00"), "sDdp"),
    "residual": (("#0072B2", "#009E73", "#CC79A7", "#56B4E9"), "o^vP<>*"),
    "VGG": (("#000000",), "X8"),
}
"""Colours and markers of the families of each kind, in Okabe and Ito's colours, safe for the colour-blind."""

_LINE_STYLES = ("-", "--", ":", "-.")

_COSTS = {
    "depth": "depth (layers)",
    "params": "parameters",
    "macs": "multiply-adds of an image",
    "hours": "hours of training",
}
_VALIDATION = "validation top-1 error (%)"


def draw_curves(groups: Sequence[Group], path: Path) -> None:
    """Figures 1, 4 and 6 of He et al. 2015: plain left, residual right; training thin, validation bold.

    The running training error is a thin line, the clean one a thin line with dots.
    """
    from matplotlib.figure import Figure

    panels = [("plain", [g for g in groups if g.plain]), ("residual", [g for g in groups if not g.plain])]
    panels = [(title, members) for title, members in panels if members]
    styles = dict(zip(map(id, groups), _curve_styles(groups), strict=True))
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    axes: list[Any] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for ax, (title, members) in zip(axes, panels, strict=True):
        for group in members:
            style = styles[id(group)]
            _curve(ax, group, "train", "error", linewidth=0.8, **style)
            _curve(ax, group, "eval", "clean_train_error_top1", linewidth=0.8, marker=".", markersize=4, **style)
            _curve(ax, group, "eval", "val_error_top1", linewidth=2.2, label=_label(group, groups), **style)
            _mark_published(ax, group, "val_error_top1", group.step, style["color"])
            _mark_published(ax, group, "clean_train_error", group.step, style["color"], markersize=6)
        ax.set(title=title, xlabel="iteration")
        ax.grid(alpha=0.3)
        title = f"thin: training (dots: clean), bold: validation{', star: published' if _has_marks(groups) else ''}"
        ax.legend(title=title, fontsize=8, title_fontsize=8)
    axes[0].set(ylabel="error (%)", ylim=(0, None))
    figure.supxlabel("\n".join([*footnotes(groups), *best_note(groups)]), fontsize=8)
    figure.savefig(path, dpi=140)


def _curve_styles(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A colour for each depth, and line styles within a depth; a colour for each network if those run out."""
    from matplotlib import colormaps

    depths = sorted({group.depth for group in groups})
    colours = [depths.index(group.depth) for group in groups]
    lines = [_count_before(i, groups, lambda group: (group.plain, group.depth)) for i in range(len(groups))]
    if max(lines) >= len(_LINE_STYLES):
        colours = lines = [_count_before(i, groups, lambda group: group.plain) for i in range(len(groups))]
    span = max(1, max(colours) + 0.5)
    return [
        {"color": colormaps["viridis"](colour / span), "linestyle": _LINE_STYLES[line % len(_LINE_STYLES)]}
        for colour, line in zip(colours, lines, strict=True)
    ]


def _count_before(i: int, groups: Sequence[Group], key: Any) -> int:
    """The number of groups before the i-th that have the same key."""
    return sum(key(other) == key(groups[i]) for other in groups[:i])


def _family_styles(groups: Sequence[Group]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each network's family, by the network's label."""
    names: dict[str, list[str]] = {}
    for family in sorted(families(groups), key=lambda family: len(family.name)):  # the shortest name comes first
        of_kind = names.setdefault(family.kind, [])
        if family.name not in of_kind:
            of_kind.append(family.name)
    styles: dict[str, tuple[str, str]] = {}
    for family in families(groups):
        (colours, markers), i = _FAMILY_STYLES[family.kind], names[family.kind].index(family.name)
        styles |= {group.label: (colours[i % len(colours)], markers[i % len(markers)]) for group in family.members}
    return styles


def _curve(ax: "Axes", group: Group, kind: str, key: str, over_hours: bool = False, **style: Any) -> None:
    """The mean over seeds, with a band of one standard deviation, at the steps that all seeds have reached.

    over_hours: a step is drawn at the mean of the hours of training that the seeds took to reach it.
    """
    series = [
        {
            record["step"]: (spent.training / 3600 if over_hours else record["step"], record[key])
            for record, spent in zip(run.records, run.time_spent(), strict=True)
            if record["kind"] == kind and record.get(key) is not None
        }
        for run in group.runs
    ]
    steps = sorted(set.intersection(*map(set, series)))
    xs = [statistics.mean(points[step][0] for points in series) for step in steps]
    means = [statistics.mean(points[step][1] for points in series) for step in steps]
    if len(steps) == 1:
        style = {"marker": "o"} | style  # a line of one point shows nothing
    ax.plot(xs, means, **style)
    if len(series) > 1:
        deviations = [statistics.stdev(points[step][1] for points in series) for step in steps]
        low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        ax.fill_between(xs, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _mark_published(ax: "Axes", group: Group, error: str, x: float | None, colour: Any, markersize: float = 10) -> None:
    """A star at the published error, with its deviation or range, if it is of the group's protocol."""
    for one in published([group]):
        if one.error == error and not one.reasons and x is not None:
            figure = one.figure if isinstance(one.figure, FigureConfig) else FigureConfig(mean=one.figure, n=1)
            value, spread = figure.centre
            style: dict[str, Any] = {"marker": "*", "markersize": markersize, "markeredgecolor": "black", "zorder": 4}
            ax.errorbar([x], [value], [spread], color=colour, linestyle="none", capsize=2, **style)


def _has_marks(groups: Sequence[Group]) -> bool:
    return any(one.error in ("val_error_top1", "clean_train_error") and not one.reasons for one in published(groups))


def _label(group: Group, groups: Sequence[Group]) -> str:
    """Its name, with the number of its protocol where there are several."""
    texts = protocols(groups)
    return group.label if len(texts) < 2 else f"{group.label} [{texts.index(group.protocol) + 1}]"


def draw_costs(groups: Sequence[Group], path: Path) -> None:
    """Last errors against depth, parameters, multiply-adds and hours, and validation error over the hours of training.

    Lines join the members of a family whose errors are of one step, or of the end of their runs. Where the errors of
    the networks are of different steps, names give theirs. The depth panel also shows the clean training error: a
    deeper plain network has the higher one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    *panels, curves, key = figure.subplots(2, 3).flat
    styles = _family_styles(groups)
    for ax, (cost, xlabel) in zip(panels, _COSTS.items(), strict=True):
        if cost == "depth":
            _draw_points(ax, groups, cost, "clean_train_error", fillstyle="none", linestyle=":")
        _draw_points(ax, groups, cost, "val_error_top1")
        for group in groups:
            _mark_published(ax, group, "val_error_top1", group.row()[cost], styles[group.label][0])
        _scale(ax, [x for group in groups if (x := group.row()[cost])], tick_each=cost == "depth")
        ax.set(xlabel=xlabel, ylabel="top-1 error (%)" if cost == "depth" else _VALIDATION)
        ax.margins(0.12, 0.12)
    for group, style in zip(groups, _curve_styles(groups), strict=True):
        marker = {"marker": styles[group.label][1], "markersize": 4}
        _curve(curves, group, "eval", "val_error_top1", over_hours=True, label=_label(group, groups), **style, **marker)
    curves.set(xlabel="hours of training", ylabel=_VALIDATION)
    for ax in (*panels, curves):
        ax.grid(alpha=0.3)
    _draw_key(key, groups, curves)
    figure.draw_without_rendering()  # lays the panels out; names are placed in their final size
    figure.set_layout_engine("none")
    for ax, cost in zip(panels, _COSTS, strict=True):
        _draw_names(ax, groups, cost)
    figure.savefig(path, dpi=120)


def _draw_points(ax: "Axes", groups: Sequence[Group], x: str, y: str, **style: Any) -> None:
    """A point for each network, with its deviation over seeds, and lines that join the members of a family."""
    styles = _family_styles(groups)
    for family in families(groups):
        colour, marker = styles[family.members[0].label]
        by_step: dict[int | None, list[Record]] = {}
        for group in family.members:
            row = group.row()
            if row[x] is not None and row[y] is not None:
                by_step.setdefault(None if group.is_finished else group.step, []).append(row)
        for rows in by_step.values():
            rows.sort(key=lambda row: float(row[x]))
            deviations = [math.nan if row[f"{y}_std"] is None else row[f"{y}_std"] for row in rows]  # NaN draws no bar
            xs, ys = [row[x] for row in rows], [row[y] for row in rows]
            ax.errorbar(xs, ys, deviations, color=colour, marker=marker, linewidth=1.2, capsize=3, **style)


def _draw_names(ax: "Axes", groups: Sequence[Group], x: str, y: str = "val_error_top1") -> None:
    """The name of each point, where it covers no other name and no point."""
    from adjustText import adjust_text

    if not ax.lines:  # no run has recorded it
        return
    styles = _family_styles(groups)
    several_steps = len({group.step for group in groups}) > 1
    named = [(group, row) for group in groups if (row := group.row())[x] is not None and row[y] is not None]
    if not named:
        return
    names = [
        ax.text(
            row[x],
            row[y],
            _label(group, groups) + (f" at step {group.step:,}" if several_steps else ""),
            fontsize=8,
            color=styles[group.label][0],
        )
        for group, row in named
    ]
    points = np.concatenate([np.column_stack(line.get_data()) for line in ax.lines]).astype(float)
    points = points[np.isfinite(points[:, 1])]
    adjust_text(
        names,
        points[:, 0],
        points[:, 1],
        ax=ax,
        iter_lim=200,  # not a time limit: a figure is the same on any machine
        arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5"},
    )


def _scale(ax: "Axes", values: Sequence[float], tick_each: bool) -> None:
    """Logarithmic where the values span much. Ticks such as 20 M; `tick_each`: at each value, if they are few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if values and max(values) > 8 * min(values):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 50 * min(values) else (1, 3)))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    if tick_each and len(set(values)) < 8:
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _draw_key(ax: "Axes", groups: Sequence[Group], curves: "Axes") -> None:
    """The meaning of colours, markers and numbers, in a panel of its own, where it covers no point."""
    from matplotlib.lines import Line2D

    styles = _family_styles(groups)
    joined = {family.name: styles[family.members[0].label] for family in families(groups) if len(family.members) > 1}
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in joined.items()]
    handles += [
        Line2D([], [], color="0.3", marker="o", label="validation"),
        Line2D([], [], color="0.3", marker="o", fillstyle="none", linestyle=":", label="training (clean), by depth"),
    ]
    if _has_marks(groups):
        handles.append(Line2D([], [], color="0.3", marker="*", linestyle="none", markersize=10, label="published"))
    ax.axis("off")
    notes = "\n".join([*footnotes(groups), *best_note(groups)])
    ax.text(0.01, 0.0, notes, transform=ax.transAxes, fontsize=8, wrap=True)
    top = ax.legend(handles=handles, loc="upper left", title="points: mean over seeds, bars: deviation", fontsize=9)
    ax.add_artist(top)
    ax.legend(
        handles=curves.get_lines(),
        ncols=2 if len(groups) > 6 else 1,
        loc="lower left",
        bbox_to_anchor=(0, 0.05 * len(notes.splitlines())),
        title="curves over hours",
        fontsize=9,
    )
