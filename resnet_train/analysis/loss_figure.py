"""The figure of `compare --loss`: training loss and validation error against iterations. No torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_train.analysis.curves import Curve, curve, title
from resnet_train.analysis.figures import label_of
from resnet_train.analysis.groups import Group
from resnet_train.analysis.style import (
    Output,
    add_title,
    fit_errors,
    fit_label,
    legend_below,
    legend_height,
    line_colours,
    scale_log,
    scale_steps,
)


def draw_loss(groups: Sequence[Group], path: Path, output: Output = Output()) -> list[Path]:  # noqa: B008
    """Figures 1, 3 and 6 of He et al. 2016: training loss, dashed and logarithmic, and validation error, bold.

    Plain networks are left, residual ones right; the panels have the same axes. Returns the paths.
    """
    from matplotlib.figure import Figure

    panels = [("plain", [g for g in groups if g.plain]), ("residual", [g for g in groups if not g.plain])]
    panels = [(name, members) for name, members in panels if members]
    columns, width = output.columns(len(panels), 5.0, 2)
    rows = -(-len(panels) // columns)
    key_height = max(legend_height([label_of(g, groups) for g in members], width / columns) for _, members in panels)
    height = 0.62 * width / columns + key_height
    figure = Figure(figsize=(width, rows * height + 1), layout="constrained")
    drawn: list[Curve] = []
    losses: list[float] = []
    left: Any = None
    rights = []
    for i, (name, members) in enumerate(panels, 1):
        left = figure.add_subplot(rows, columns, i, sharey=left)
        right = left.twinx()
        rights.append(right)
        for group, colour in zip(members, line_colours([group.network for group in members]), strict=True):
            loss, error = curve(group, "train_loss"), curve(group, "val_error_top1")
            left.plot(loss.steps, loss.means, color=colour, linewidth=0.9, linestyle="--")
            marker = "." if len(error.steps) == 1 else None
            right.plot(
                error.steps, error.means, color=colour, linewidth=2, marker=marker, label=label_of(group, groups)
            )
            drawn.append(error)
            losses += [value for value in loss.means if value > 0]
        left.set_yscale("log", nonpositive="mask")
        left.set(xlabel="iteration", ylabel="training loss")
        left.set_title(name, fontsize=10)
        right.set_ylabel(fit_label("validation top-1 error (%)", 0.62 * width / columns - 0.6))
        left.grid(alpha=0.3)
        scale_steps(left)
        legend_below(right, width / columns)
        scale_log(left.yaxis, min(losses, default=0), max(losses, default=0))
    if shown := [value for points in drawn for value in points.means[len(points.means) // 4 :]]:
        for right in rights:
            fit_errors(right, float(min(shown)), float(max(shown)))
    heading, notes = title(groups)
    add_title(figure, heading, [*notes, "dashed: training loss (running), left; bold: validation error, right"])
    return output.save(figure, path)
