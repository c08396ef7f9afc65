"""The pictures of a comparison: error against iterations and hours, and against what a network costs. No torch."""

import math
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.analysis.groups import Group, families, footnotes, protocols
from resnet_train.runtime.tables import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_FAMILY = {
    "plain": (("#D55E00", "#E69F00"), "sDdp"),
    "residual": (("#0072B2", "#009E73", "#CC79A7", "#56B4E9"), "o^vP<>*"),
    "VGG": (("#000000",), "X8"),
}
"""Colours and markers of the families of each kind: Okabe and Ito's, which the colour-blind can tell apart."""

_LINES = ("-", "--", ":", "-.")

_COSTS = {
    "depth": "depth (layers)",
    "params": "parameters",
    "macs": "multiply-adds of an image",
    "hours": "hours of training",
}
_Y = "validation top-1 error (%)"


def draw(made: Sequence[Group], path: Path) -> None:
    """Figures 1, 4 and 6 of He et al. 2015: plain left, residual right, training thin, validation bold.

    Both training errors are drawn: the running one, and with dots the clean one.
    """
    from matplotlib.figure import Figure

    panels = [(title, [g for g in made if g.plain == plain]) for title, plain in (("plain", True), ("residual", False))]
    panels = [(title, family) for title, family in panels if family]
    looks = dict(zip(map(id, made), _looks(made), strict=True))
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    axes: list[Any] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for ax, (title, family) in zip(axes, panels, strict=True):
        for group in family:
            look = looks[id(group)]
            _curve(ax, group, "train", "error", linewidth=0.8, **look)
            _curve(ax, group, "eval", "clean_train_error_top1", linewidth=0.8, marker=".", markersize=4, **look)
            _curve(ax, group, "eval", "val_error_top1", linewidth=2.2, label=_label(group, made), **look)
        ax.set(title=title, xlabel="iteration")
        ax.grid(alpha=0.3)
        ax.legend(title="thin: training (dots: clean), bold: validation", fontsize=8, title_fontsize=8)
    axes[0].set(ylabel="error (%)", ylim=(0, None))
    figure.supxlabel("\n".join(footnotes(made)), fontsize=8)
    figure.savefig(path, dpi=140)


def _looks(made: Sequence[Group]) -> list[dict[str, Any]]:
    """A colour for each depth, within which networks differ in their lines; for each network, if those are too many."""
    from matplotlib import colormaps

    depths = sorted({group.depth for group in made})
    before = [
        sum((one.plain, one.depth) == (group.plain, group.depth) for one in made[:i]) for i, group in enumerate(made)
    ]
    places = [depths.index(group.depth) for group in made]
    if max(before) >= len(_LINES):
        before = places = [sum(one.plain == group.plain for one in made[:i]) for i, group in enumerate(made)]
    span = max(1, max(places) + 0.5)
    return [
        {"color": colormaps["viridis"](place / span), "linestyle": _LINES[n % len(_LINES)]}
        for place, n in zip(places, before, strict=True)
    ]


def _family_looks(made: Sequence[Group]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each network, by its label, which are those of its family."""
    found = families(made)
    names: dict[str, list[str]] = {}
    for family in sorted(found, key=lambda family: len(family.name)):  # the plainest name has the first look
        of_kind = names.setdefault(family.kind, [])
        of_kind += [family.name] * (family.name not in of_kind)
    looks: dict[str, tuple[str, str]] = {}
    for family in found:
        (colours, markers), i = _FAMILY[family.kind], names[family.kind].index(family.name)
        looks |= {group.label: (colours[i % len(colours)], markers[i % len(markers)]) for group in family.members}
    return looks


def _curve(ax: "Axes", group: Group, kind: str, key: str, over: str = "step", **look: Any) -> None:
    """The mean over seeds, with a band of one standard deviation, at the steps that all seeds have reached.

    Over "seconds", each step is at the mean of the hours that the seeds took for it.
    """
    series = [
        {r["step"]: (r[over], r[key]) for r in run.records if r["kind"] == kind and r.get(key) is not None}
        for run in group.runs
    ]
    steps = sorted(set.intersection(*map(set, series)))
    unit = 3600 if over == "seconds" else 1
    xs = [statistics.mean(one[step][0] for one in series) / unit for step in steps]
    means = [statistics.mean(one[step][1] for one in series) for step in steps]
    ax.plot(xs, means, **({"marker": "o"} if len(steps) == 1 else {}) | look)
    if len(series) > 1:
        spread = [statistics.stdev(one[step][1] for one in series) for step in steps]
        low = [mean - s for mean, s in zip(means, spread, strict=True)]
        high = [mean + s for mean, s in zip(means, spread, strict=True)]
        ax.fill_between(xs, low, high, color=look["color"], alpha=0.2, linewidth=0)


def _label(group: Group, made: Sequence[Group]) -> str:
    """Its name, with the number of its protocol where there are several."""
    ways = protocols(made)
    return group.label if len(ways) < 2 else f"{group.label} [{ways.index(group.protocol) + 1}]"


def draw_costs(made: Sequence[Group], path: Path) -> None:
    """Final errors against depth, parameters, multiply-adds and hours, and validation error over the hours of training.

    Lines join the members of a family. The depth panel has the clean training error as well: a
    deeper plain network is worse where it learns.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    *panels, curves, key = figure.subplots(2, 3).flat
    named: list[Annotation] = []
    for ax, (cost, xlabel) in zip(panels, _COSTS.items(), strict=True):
        if cost == "depth":
            _points(ax, made, cost, "clean_train_error", fillstyle="none", linestyle=":")
        _points(ax, made, cost, "val_error_top1")
        named += _names(ax, made, cost, "val_error_top1")
        _scale(ax, [x for group in made if (x := group.row()[cost])], each=cost == "depth")
        ax.set(xlabel=xlabel, ylabel=_Y if cost != "depth" else "top-1 error (%)")
        ax.margins(0.12, 0.12)
    family_looks = _family_looks(made)
    for group, look in zip(made, _looks(made), strict=True):
        marker = {"marker": family_looks[group.label][1], "markersize": 4}
        _curve(curves, group, "eval", "val_error_top1", "seconds", label=_label(group, made), **look, **marker)
    curves.set(xlabel="hours of training", ylabel=_Y)
    for ax in (*panels, curves):
        ax.grid(alpha=0.3)
    _explain(key, made, curves)
    _separate(figure, named)
    figure.savefig(path, dpi=120)


def _points(ax: "Axes", made: Sequence[Group], x: str, y: str, **look: Any) -> None:
    """A point for each network, with its deviation over seeds, and the lines that join what may be joined."""
    looks = _family_looks(made)
    for family in families(made):
        rows = [row for group in family.members if (row := group.row())[x] is not None and row[y] is not None]
        if not rows:
            continue
        colour, marker = looks[family.members[0].label]
        found = sorted(rows, key=lambda row: float(row[x]))
        spread = [math.nan if row[f"{y}_std"] is None else row[f"{y}_std"] for row in found]  # NaN: no bar
        xs, ys = [row[x] for row in found], [row[y] for row in found]
        ax.errorbar(xs, ys, spread, color=colour, marker=marker, linewidth=1.2, capsize=3, **look)


def _names(ax: "Axes", made: Sequence[Group], x: str, y: str) -> "list[Annotation]":
    """The network of each point, still on top of it, with a line that leads to it from wherever it goes."""
    named, looks = [], _family_looks(made)
    for group in made:
        row, colour = group.row(), looks[group.label][0]
        if row[x] is not None and row[y] is not None:
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": colour, "shrinkA": 0, "shrinkB": 0}
            text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": colour, "arrowprops": line}
            named.append(ax.annotate(_label(group, made), (row[x], row[y]), (0, 0), **text))
    return named


def _scale(ax: "Axes", values: Sequence[float], each: bool) -> None:
    """Logarithmic where the values span much; ticks such as 20 M, or at `each` of the values if they are few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if values and max(values) > 8 * min(values):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 50 * min(values) else (1, 3)))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    if each and len(set(values)) < 8:
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _explain(ax: "Axes", made: Sequence[Group], curves: "Axes") -> None:
    """What colours, markers and numbers mean, in a panel of its own, so that it covers no point."""
    from matplotlib.lines import Line2D

    looks = _family_looks(made)
    joined = {family.name: looks[family.members[0].label] for family in families(made) if len(family.members) > 1}
    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in joined.items()]
    handles += [
        Line2D([], [], color="0.3", marker="o", label="validation"),
        Line2D([], [], color="0.3", marker="o", fillstyle="none", linestyle=":", label="training (clean), by depth"),
    ]
    ax.axis("off")
    ax.text(0.01, 0.0, notes := "\n".join(footnotes(made)), transform=ax.transAxes, fontsize=8, wrap=True)
    top = ax.legend(handles=handles, loc="upper left", title="points: mean over seeds, bars: deviation", fontsize=9)
    ax.add_artist(top)
    ax.legend(
        handles=curves.get_lines(),
        ncols=2 if len(made) > 6 else 1,
        loc="lower left",
        bbox_to_anchor=(0, 0.05 * len(notes.splitlines())),
        title="curves over hours",
        fontsize=9,
    )


_PLACES = tuple(
    (r * math.cos(a), r * math.sin(a))
    for r in (7, 16, 28, 42, 60, 80)
    for a in (0.7, 2.4, -0.7, -2.4, 0, 3.14, 1.57, -1.57)
)
"""Where a name may stand around its point, in points of print; the nearest first."""


def _separate(figure: "Figure", named: "Sequence[Annotation]") -> None:
    """Put each name near its point, nearer than to others', where it covers no other name and little of lines."""
    from matplotlib.text import Text

    figure.draw_without_rendering()  # which lays the panels out
    figure.set_layout_engine("none")
    lines: dict[Any, list[Any]] = {
        ax: [line.get_transform().transform_path(line.get_path()).interpolated(20).vertices for line in ax.lines]
        for ax in figure.axes
    }
    points: dict[Any, list[Any]] = {ax: [] for ax in figure.axes}
    for name in named:
        points[name.axes].append(_point(name))
    taken: list[Bbox] = []

    def put(name: "Annotation", place: tuple[float, float]) -> "Bbox":
        x, y = place
        name.set_position(place)
        name.set(
            ha="left" if x > 1 else "right" if x < -1 else "center",
            va="bottom" if y > 1 else "top" if y < -1 else "center",
        )
        return Text.get_window_extent(name)  # without the line that leads to it

    def covered(name: "Annotation", place: tuple[float, float]) -> float:
        box, ax = put(name, place), name.axes
        assert ax is not None
        outside = not (ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max))
        far, hidden = math.hypot(*place) / 6, sum(box.padded(2).count_contains(at) for at in lines[ax])
        own = _distance(box, _point(name))
        astray = any(_distance(box, point) < own for point in points[ax])
        return far + hidden + 8 * astray + 20 * box.count_overlaps(taken) + 50 * outside

    for name in named:
        taken.append(put(name, min(_PLACES, key=partial(covered, name))))


def _point(name: "Annotation") -> tuple[float, float]:
    """Where the point is that it names, in pixels."""
    assert name.axes is not None
    x, y = name.axes.transData.transform(name.xy)
    return x, y


def _distance(box: "Bbox", point: tuple[float, float]) -> float:
    x, y = point
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))
