"""The pictures of a comparison: error against iterations and hours, and against what a network costs. No torch."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.groups import Group, protocols
from resnet_train.run_folder import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAMILY = {True: ("plain", "C1", "s"), False: ("residual", "C0", "o")}
"""Name, colour and marker."""


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
            _curve(ax, group, "eval", "val_error_top1", linewidth=2.2, label=_label(group, made), **look)
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


def _label(group: Group, made: Sequence[Group]) -> str:
    """Its name, with the number of its protocol where there are several."""
    ways = protocols(made)
    return group.label if len(ways) < 2 else f"{group.label} [{ways.index(group.protocol) + 1}]"


def draw_costs(made: Sequence[Group], path: Path) -> None:
    """Final errors against depth, parameters, multiply-adds and hours, and validation error over the hours of training.

    Lines join networks of one family, experiment and protocol.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.4), layout="constrained")
    grid = figure.subplots(2, 3)
    told = [(group, group.row()) for group in made]
    panels = {
        ("depth", "val_error_top1"): ("depth (layers)", "validation top-1 error (%)"),
        ("depth", "clean_train_error"): ("depth (layers)", "training error (clean, %)"),
        ("params", "val_error_top1"): ("parameters", "validation top-1 error (%)"),
        ("macs", "val_error_top1"): ("multiply-adds of an image", "validation top-1 error (%)"),
        ("hours", "val_error_top1"): ("hours of training", "validation top-1 error (%)"),
    }
    for ax, ((x, y), (xlabel, ylabel)) in zip(grid.flat, panels.items(), strict=False):
        every = [row[x] for _, row in told if row[x]]
        series: dict[tuple[bool, str, str], list[tuple[Group, Record]]] = {}
        for group, row in told:
            if row[x] is not None and row[y] is not None:
                protocol = group.protocol if y.startswith("val") else ""
                series.setdefault((group.plain, group.runs[0].run.experiment, protocol), []).append((group, row))
        for (plain, _, _), points in series.items():
            name, colour, marker = _FAMILY[plain]
            points.sort(key=lambda point: point[1][x])
            xs, ys = [row[x] for _, row in points], [row[y] for _, row in points]
            spread = [row[f"{y}_std"] or 0.0 for _, row in points]
            known = {text.get_label() for text in ax.containers}
            label = name if name not in known else None
            ax.errorbar(xs, ys, spread, color=colour, marker=marker, linewidth=1, capsize=3, label=label)
            for (group, _), at in zip(points, zip(xs, ys, strict=True), strict=True):
                text = _label(group, made) if y.startswith("val") else group.label
                right = {"xytext": (-5, 5), "ha": "right"} if at[0] == max(every) else {"xytext": (4, 5)}
                ax.annotate(text, at, textcoords="offset points", fontsize=7, **right)
        if every and max(every) / min(every) > 8:
            ax.set_xscale("log")
        ax.margins(0.14, 0.12)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.3)
        if series:
            ax.legend(fontsize=8)
    ax = grid.flat[5]
    for i, (group, _) in enumerate(told):
        run = group.runs[0]
        points = [
            (r["seconds"] / 3600, r["val_error_top1"]) for r in run.records if r["kind"] == "eval" and "seconds" in r
        ]
        style = "--" if group.plain else "-"
        ax.plot(
            *zip(*points, strict=True) if points else ((), ()),
            style,
            marker=".",
            color=f"C{i}",
            label=_label(group, made),
        )
    ax.set(xlabel="hours of training (first seed)", ylabel="validation top-1 error (%)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, title="dashed: plain", title_fontsize=7)
    figure.savefig(path, dpi=120)
