"""The figures of a comparison: error against iterations and hours, and against what a network costs. No torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_train.analysis.curves import Curve, curve, title
from resnet_train.analysis.families import families
from resnet_train.analysis.groups import Group, protocols
from resnet_train.analysis.point_names import Name, place_names
from resnet_train.analysis.published import published
from resnet_train.analysis.style import (
    Output,
    add_title,
    colours,
    fit_errors,
    fit_legend,
    hue,
    legend_below,
    legend_height,
    line_colours,
    scale_costs,
    scale_steps,
    time_unit,
)
from resnet_train.analysis.sweeps import best_note
from resnet_train.config.expect import FigureConfig
from resnet_train.runs.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = {"plain": "sDdp", "residual": "o^vP<>h", "VGG": "X8"}
"""A marker for each family of a kind. A star is a published error."""

_LINES: dict[str, dict[str, Any]] = {
    "train_error": {"linewidth": 0.8, "linestyle": ":"},
    "clean_train_error": {"linewidth": 1.1, "linestyle": "--"},
    "val_error_top1": {"linewidth": 2.0, "linestyle": "-"},
}
"""How each error is drawn in curves."""

_COSTS = {
    "depth": "depth (layers)",
    "params": "parameters",
    "macs": "multiply-adds of an image",
    "hours": "of training",
}
_VALIDATION = "validation top-1 error (%)"
_MOST_NAMES, _LONGEST_NAME = 8, 32
"""With more networks, or longer names, points have their depths in place of their names."""


def draw_curves(groups: Sequence[Group], path: Path, output: Output = Output()) -> list[Path]:  # noqa: B008
    """Figures 1, 4 and 6 of He et al. 2015: plain left, residual right; training thin, validation bold.

    The axis fits the errors from a quarter of the training on; what is before may lie above it. Returns the paths.
    """
    from matplotlib.figure import Figure

    panels = [("plain", [g for g in groups if g.plain]), ("residual", [g for g in groups if not g.plain])]
    panels = [(title, members) for title, members in panels if members]
    markers, of_all = _markers(groups), _shades(groups)
    columns, width = output.columns(len(panels), 4.5, 2)
    rows = math.ceil(len(panels) / columns)
    key_height = max(legend_height([label_of(g, groups) for g in members], width / columns) for _, members in panels)
    figure = Figure(figsize=(width, rows * (0.62 * width / columns + key_height) + 1), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    drawn: list[Curve] = []
    for ax, (name, members) in zip(axes, panels, strict=True):
        shades = [of_all[id(group)] for group in members]
        if len(set(shades)) < len(shades):  # of several networks of one depth
            shades = line_colours([group.network for group in members])
        several_families = len({markers[id(group)] for group in members}) > 1
        for i, (group, colour) in enumerate(zip(members, shades, strict=True)):
            for error, line in _LINES.items():
                points = curve(group, error)
                drawn.append(points)
                style = dict(line)
                if error == "val_error_top1" and several_families:
                    every = max(1, len(points.steps) // 6)
                    style |= {"marker": markers[id(group)], "markersize": 4, "markevery": (i % every, every)}
                _draw_line(ax, points.steps, points, colour, has_band=error != "train_error", **style)
            _mark_published(ax, group, "val_error_top1", group.step, colour)
            _mark_published(ax, group, "clean_train_error", group.step, colour, markersize=6)
            _mark_end(ax, curve(group, "val_error_top1"), colour, markers[id(group)], label_of(group, groups))
        ax.set(title=name, xlabel="iteration")
        ax.title.set_fontsize(10)
        ax.grid(alpha=0.3)
        scale_steps(ax)
        legend_below(ax, width / columns)
    for ax in axes[::columns]:
        ax.set_ylabel("error (%)")
    if shown := [points.means[len(points.means) // 4 :] for points in drawn if len(points.means)]:
        marks = [line.get_ydata() for ax in axes for line in ax.lines if line.get_marker() == "*"]
        values = np.concatenate([*shown, *map(np.asarray, marks)])
        fit_errors(axes[0], float(values.min()), float(values.max()))
    heading, notes = title(groups)
    lines = "bold: validation; dashed: training (clean); dotted: training (running)"
    if _has_marks(groups):
        lines += "; star: published"
    add_title(figure, heading, [*notes, *best_note(groups), lines])
    return output.save(figure, path)


def _shades(groups: Sequence[Group]) -> dict[int, str]:
    """The colour of each group, by its id."""
    return dict(zip(map(id, groups), colours([group.network for group in groups]), strict=True))


def _markers(groups: Sequence[Group]) -> dict[int, str]:
    """The marker of each group's family, by the group's id. A family has one of its own in each experiment."""
    names: dict[str, list[tuple[str, str]]] = {}
    for family in sorted(families(groups), key=lambda family: len(family.name)):  # the shortest name comes first
        of_kind = names.setdefault(family.kind, [])
        if (family.name, family.members[0].experiment) not in of_kind:
            of_kind.append((family.name, family.members[0].experiment))
    markers: dict[int, str] = {}
    for family in families(groups):
        symbols, i = _MARKERS[family.kind], names[family.kind].index((family.name, family.members[0].experiment))
        markers |= {id(group): symbols[i % len(symbols)] for group in family.members}
    return markers


def _draw_line(ax: "Axes", xs: Any, points: Curve, colour: str, has_band: bool = True, **style: Any) -> None:
    """A curve with a band of one standard deviation. One point alone is drawn as such."""
    if len(xs) == 1:
        style = {"marker": "."} | style
    ax.plot(xs, points.means, color=colour, **style)
    if has_band and not np.isnan(points.deviations).all():
        low, high = points.means - points.deviations, points.means + points.deviations
        ax.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def _mark_end(ax: "Axes", points: Curve, colour: str, marker: str, label: str) -> None:
    """The marker of a family at the end of a curve, and an entry of the legend."""
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 2, "clip_on": False}
    ax.plot(points.steps[-1:], points.means[-1:], label=label, **style)


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


def label_of(group: Group, groups: Sequence[Group], with_step: bool = False) -> str:
    """Its name, with the number of its protocol where there are several, and whether a run of it has diverged.

    with_step: also the step of its errors, where those of others are of another one.
    """
    texts = protocols(groups)
    name = group.label if len(texts) < 2 else f"{group.label} [{texts.index(group.protocol) + 1}]"
    if with_step and group.step is not None and len({other.step for other in groups}) > 1:
        name += f" at step {group.step:,}"
    return f"{name}, diverged" if group.has_diverged else name


def draw_costs(groups: Sequence[Group], path: Path, output: Output = Output()) -> list[Path]:  # noqa: B008
    """Last errors against depth, parameters, multiply-adds and hours, and validation error over the hours of training.

    Lines join the members of a family whose errors are of one step, or of the end of their runs. Where the errors of
    the networks are of different steps, names give theirs. The depth panel also shows the clean training error: a
    deeper plain network has the higher one. A cost that no run has recorded has no panel. Returns the paths.
    """
    from matplotlib.figure import Figure

    rows = {id(group): group.row() for group in groups}
    costs = [
        cost
        for cost in _COSTS
        if any(row[cost] is not None and row["val_error_top1"] is not None for row in rows.values())
    ]
    panels = len(costs) + ("hours" in costs) + 1
    columns, width = output.columns(panels, 4.0, 2 if panels == 4 else 3)
    lines = math.ceil(panels / columns)
    networks, many = _network_handles(groups), len(groups) > _MOST_NAMES
    below = legend_height([str(handle.get_label()) for handle in networks], width, 7) if many else 0
    figure = Figure(figsize=(width, lines * 0.8 * width / columns + 0.6 + below), layout="constrained")
    *axes, key = list(figure.subplots(lines, columns, squeeze=False).flat)[:panels]
    for unused in figure.axes[panels:]:
        unused.remove()
    unit, per_hour = time_unit(max((rows[id(group)]["hours"] or 0 for group in groups), default=0))
    for ax, cost in zip(axes, costs, strict=False):
        factor = per_hour if cost == "hours" else 1.0
        if cost == "depth":
            _draw_points(ax, groups, rows, cost, "clean_train_error", factor, fillstyle="none", linestyle=":")
        _draw_points(ax, groups, rows, cost, "val_error_top1", factor)
        for group in groups:
            x = rows[id(group)][cost]
            _mark_published(ax, group, "val_error_top1", None if x is None else x * factor, hue(group.kind))
        values = [factor * row[cost] for row in rows.values() if row[cost]]
        scale_costs(ax, values, tick_each=cost == "depth")
        label = f"{unit} {_COSTS[cost]}" if cost == "hours" else _COSTS[cost]
        ax.set(xlabel=label, ylabel="top-1 error (%)" if cost == "depth" else _VALIDATION)
        ax.margins(0.12, 0.12)
    if "hours" in costs:
        _draw_over_hours(axes[-1], groups, unit, per_hour)
    for ax in axes:
        ax.grid(alpha=0.3)
    heading, notes = title(groups)
    add_title(figure, heading, [*notes, *best_note(groups)])
    key.axis("off")
    if many:  # the panel of the key has no room for them
        legend: dict[str, Any] = {"ncols": fit_legend(networks, width, 7), "fontsize": 7, "frameon": False}
        figure.legend(handles=networks, loc="outside lower center", **legend)
    figure.draw_without_rendering()  # lays the panels out; names are placed in their final size
    figure.set_layout_engine("none")
    for ax, cost in zip(axes, costs, strict=False):
        _draw_names(ax, groups, rows, cost, per_hour if cost == "hours" else 1.0)
    _draw_key(key, groups, "depth" in costs)
    return output.save(figure, path, dpi=120)


def _draw_over_hours(ax: "Axes", groups: Sequence[Group], unit: str, per_hour: float) -> None:
    shades, markers, drawn = _shades(groups), _markers(groups), list[Any]()
    for group in groups:
        points = curve(group, "val_error_top1")
        style: dict[str, Any] = {
            "marker": markers[id(group)],
            "markersize": 3,
            "linewidth": 1.2,
            "label": label_of(group, groups),
        }
        _draw_line(ax, points.hours * per_hour, points, shades[id(group)], **style)
        drawn.append(points.means[len(points.means) // 4 :])
    ax.set(xlabel=f"{unit} of training", ylabel=_VALIDATION)
    ends = np.concatenate(drawn)
    fit_errors(ax, float(ends.min()), float(ends.max()))


def _draw_points(
    ax: "Axes", groups: Sequence[Group], rows: dict[int, Record], x: str, y: str, factor: float, **style: Any
) -> None:
    """A point for each network, with its deviation over seeds, and lines that join the members of a family."""
    markers, shades = _markers(groups), _shades(groups)
    for family in families(groups):
        by_step: dict[int | None, list[Group]] = {}
        for group in family.members:
            row = rows[id(group)]
            if row[x] is not None and row[y] is not None:
                by_step.setdefault(None if group.is_finished else group.step, []).append(group)
        for members in by_step.values():
            members.sort(key=lambda group: float(rows[id(group)][x]))
            found = [rows[id(group)] for group in members]
            deviations = [math.nan if row[f"{y}_std"] is None else row[f"{y}_std"] for row in found]  # NaN: no bar
            xs, ys = [factor * row[x] for row in found], [row[y] for row in found]
            line: dict[str, Any] = {"color": hue(family.kind), "linewidth": 1.2, "capsize": 3} | style
            ax.errorbar(xs, ys, deviations, marker=markers[id(members[0])], **line)
            if style.get("fillstyle") != "none":
                fills = [shades[id(group)] for group in members]
                ax.scatter(xs, ys, c=fills, marker=markers[id(members[0])], s=40, zorder=3)


def _draw_names(ax: "Axes", groups: Sequence[Group], rows: dict[int, Record], x: str, factor: float) -> None:
    """The name of each point; of many, or of long ones, the depth, where it is not on the axis."""
    named = [group for group in groups if None not in (rows[id(group)][x], rows[id(group)]["val_error_top1"])]
    places = [(factor * rows[id(group)][x], rows[id(group)]["val_error_top1"]) for group in named]
    if _have_names(groups):
        names = [
            Name(label_of(group, groups, with_step=True), place, hue(group.kind))
            for group, place in zip(named, places, strict=True)
        ]
        place_names(ax, names, 8)
    elif x != "depth":
        depths: dict[tuple[str, int], tuple[float, float]] = {}  # of one kind the uppermost point
        for group, place in zip(named, places, strict=True):
            key = (group.kind, group.depth)
            depths[key] = max(depths.get(key, place), place, key=lambda place: place[1])
        place_names(ax, [Name(str(depth), place, hue(kind)) for (kind, depth), place in depths.items()], 7, far=False)


def _have_names(groups: Sequence[Group]) -> bool:
    """Whether points have their names, which the key repeats."""
    return len(groups) <= _MOST_NAMES and max(len(label_of(g, groups, with_step=True)) for g in groups) <= _LONGEST_NAME


def _draw_key(ax: "Axes", groups: Sequence[Group], several_errors: bool) -> None:
    """The meaning of colours and markers, in a panel of its own, where it covers no point."""
    from matplotlib.lines import Line2D

    markers, several = _markers(groups), len({group.experiment for group in groups}) > 1
    named = {
        family.name: (hue(family.kind), "" if several else markers[id(family.members[0])])  # else below, by network
        for family in families(groups)
        if len(family.members) > 1
    }
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in named.items()]
    if several_errors:
        handles.append(Line2D([], [], color="0.3", marker="o", label="validation"))
        hollow: dict[str, Any] = {"fillstyle": "none", "linestyle": ":"}
        handles.append(Line2D([], [], color="0.3", marker="o", label="training (clean), by depth", **hollow))
    if _has_marks(groups):
        handles.append(Line2D([], [], color="0.3", marker="*", linestyle="none", markersize=10, label="published"))
    key: dict[str, Any] = {"loc": "upper left", "frameon": False, "alignment": "left", "borderaxespad": 0}
    what = "darker: deeper" if _have_names(groups) else "numbers: depths; darker: deeper"
    many = len(groups) > _MOST_NAMES
    small, width = 7 if many else 9, ax.get_window_extent().width / ax.figure.get_dpi()
    fit_legend(handles, width, small)
    top = ax.legend(handles=handles, title=f"points: mean over seeds\n{what}", fontsize=small, title_fontsize=9, **key)
    if not many:
        ax.add_artist(top)
        below = ax.transAxes.inverted().transform(top.get_window_extent().min)[1] - 0.02
        networks = _network_handles(groups)
        fit_legend(networks, width, small)
        ax.legend(handles=networks, bbox_to_anchor=(0, below), fontsize=small, **key)


def _network_handles(groups: Sequence[Group]) -> list[Any]:
    """Entries of a legend: each network with its shade and marker."""
    from matplotlib.lines import Line2D

    markers, shades = _markers(groups), _shades(groups)
    labels = [label_of(group, groups, with_step=True) for group in groups]
    looks: list[dict[str, Any]] = [
        {"color": shades[id(group)], "marker": markers[id(group)], "markersize": 4} for group in groups
    ]
    return [Line2D([], [], label=label, **look) for label, look in zip(labels, looks, strict=True)]
