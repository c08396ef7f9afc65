"""How every figure looks: colours by kind and depth, sizes, formats, labels. No torch."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.config.network import AnyNet, canonical_fields
from resnet_train.runtime.tables import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_HUES = {
    "plain": ("#F4AE72", "#D55E00", "#6B2D00"),
    "residual": ("#7FC4F0", "#0072B2", "#00304D"),
    "VGG": ("#B0B0B0", "#6E6E6E", "#1C1C1C"),
}
"""Of each kind of network the lightest, middle and darkest colour. The middle ones are Okabe and Ito's, safe for the
colour-blind."""


def kind_of(network: AnyNet) -> str:
    """plain, residual or VGG."""
    if network.unit == "vgg":
        return "VGG"
    return "plain" if network.plain else "residual"


def hue(kind: str) -> str:
    """The colour of a kind of network where depth plays no part."""
    return _HUES[kind][1]


def shade(kind: str, fraction: float) -> str:
    """The colour of a kind from the shallowest network (0, light) to the deepest (1, dark)."""
    light, middle, dark = _HUES[kind]
    one, other, part = (light, middle, 2 * fraction) if fraction < 0.5 else (middle, dark, 2 * fraction - 1)
    channels = (round(int(one[i : i + 2], 16) * (1 - part) + int(other[i : i + 2], 16) * part) for i in range(1, 7, 2))
    return "#" + "".join(f"{channel:02X}" for channel in channels)


def colours(networks: Sequence[AnyNet]) -> list[str]:
    """A colour for each network. Networks of one depth have the same shade, each of its kind's colour."""
    return [shade(kind_of(net), fraction) for net, fraction in zip(networks, _by_depth(networks), strict=True)]


def _by_depth(networks: Sequence[AnyNet]) -> list[float]:
    """0 for the shallowest networks to 1 for the deepest."""
    depths = sorted({network.depth for network in networks})
    last = len(depths) - 1
    return [depths.index(net.depth) / last if last else 0.5 for net in networks]


def line_shades(networks: Sequence[AnyNet]) -> list[float]:
    """Of each curve of a panel its place from light (0) to dark (1): by depth, or its own where several have one depth.

    Such are networks that differ in their shortcuts or orders alone (He et al. 2016).
    """
    fractions, kinds = _by_depth(networks), [kind_of(network) for network in networks]
    if len(set(zip(kinds, fractions, strict=True))) == len(networks):
        return fractions
    for kind in _HUES:
        members = [i for i in range(len(networks)) if kinds[i] == kind]
        members.sort(key=lambda i: networks[i].depth)
        for rank, i in enumerate(members):
            fractions[i] = rank / (len(members) - 1) if len(members) > 1 else 0.5
    return fractions


def line_colours(networks: Sequence[AnyNet]) -> list[str]:
    """A colour for each curve of a panel: that of its kind, in the shade of `line_shades`."""
    return [shade(kind_of(net), fraction) for net, fraction in zip(networks, line_shades(networks), strict=True)]


def likeness(one: AnyNet, other: AnyNet) -> int:
    """The number of fields in which two networks agree."""
    others = canonical_fields(other)
    return sum(others.get(key) == value for key, value in canonical_fields(one).items())


@dataclass(frozen=True)
class Output:
    """In which formats figures are written, and how wide they are."""

    formats: tuple[str, ...] = ("png",)
    width: float | None = None
    """In inches; None: that of the figure."""

    def columns(self, panels: int, panel_width: float, most: int) -> tuple[int, float]:
        """The number of columns of so many panels, and the width of the figure in inches.

        A given width is shared by as many columns of two thirds of `panel_width` as fit into it.
        """
        columns = min(most, panels)
        if self.width is None:
            return columns, columns * panel_width
        return max(1, min(columns, int(self.width / (panel_width * 2 / 3)))), self.width

    def save(self, figure: "Figure", path: Path, dpi: int = 140) -> list[Path]:
        """Write a figure in each format, beside `path`; the paths. Raises `OSError`."""
        from matplotlib import rc_context

        paths = [path.with_suffix(f".{name}") for name in self.formats]
        path.parent.mkdir(parents=True, exist_ok=True)
        with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "resnet-train"}):  # fonts that publishers accept
            for file in paths:
                dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
                figure.savefig(file, dpi=dpi, metadata=dates.get(file.suffix))
        return paths


def fit_errors(ax: "Axes", lowest: float, highest: float) -> None:
    """An axis of errors in percent that fits them: from 0, unless all lie far above it."""
    margin = max(0.05 * (highest - lowest), 0.02 * highest, 0.05)
    ax.set_ylim(0 if lowest < 0.5 * highest else lowest - margin, highest + margin)


def fit_label(text: str, height: float) -> str:
    """The label of a vertical axis of so many inches, broken where it is longer."""
    return textwrap.fill(text, max(10, int(12 * height)))


def time_unit(hours: float) -> tuple[str, float]:
    """The unit in which so many hours are a number of reasonable size, and how many of it an hour has."""
    if hours * 3600 < 180:
        return "seconds", 3600.0
    return ("minutes", 60.0) if hours < 3 else ("hours", 1.0)


def scale_costs(ax: "Axes", values: Sequence[float], tick_each: bool = False) -> None:
    """An x axis of costs: logarithmic where they span much, with ticks such as 20 M.

    tick_each: a tick at each value, if there is room for them.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    unique = sorted({value for value in values if value > 0})
    if unique and unique[-1] > 8 * unique[0]:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if unique[-1] < 50 * unique[0] else (1, 3), numticks=6))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    if tick_each or len(unique) == 1:
        ax.xaxis.set_major_locator(FixedLocator(_apart(unique, ax.get_xscale() == "log")))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _apart(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Those values whose labels do not overlap on an axis of ordinary size: each at least an eighth of it apart."""
    places = [math.log(value) if logarithmic else value for value in values]
    least = (places[-1] - places[0]) / 8 if places else 0
    kept: list[int] = []
    for i in range(len(values) - 1, -1, -1):  # the largest is always labelled
        if not kept or places[kept[-1]] - places[i] >= least:
            kept.append(i)
    return [values[i] for i in reversed(kept)]


def scale_steps(ax: "Axes") -> None:
    """An x axis of iterations, with ticks such as 20 k."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def scale_log(axis: "Axis", lowest: float, highest: float) -> None:
    """A logarithmic axis with ticks such as 0.05, where it does not span many powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if lowest > 0 and highest < 200 * lowest:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if highest > 6 * lowest else MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _legend_shape(labels: Sequence[str], width: float, fontsize: float) -> tuple[int, int]:
    """The number of columns of a legend of so many inches, and how many letters a label in it may have."""
    letters = int(width * 72 / (0.6 * fontsize))
    longest = max(map(len, labels), default=0)
    return max(1, min(len(labels), letters // (longest + 8))), max(12, letters - 8)


def legend_height(labels: Sequence[str], width: float, fontsize: float = 8) -> float:
    """The height of `legend_below` in inches."""
    columns, letters = _legend_shape(labels, width, fontsize)
    lines = [len(textwrap.wrap(label, letters)) for label in labels]
    return sum(max(lines[i : i + 1] or [1]) for i in range(math.ceil(len(labels) / columns))) * 0.025 * fontsize


def fit_legend(handles: Sequence[Any], width: float, fontsize: float = 8) -> int:
    """Break the labels of a legend that are wider than so many inches; the number of its columns."""
    columns, letters = _legend_shape([handle.get_label() for handle in handles], width, fontsize)
    for handle in handles:
        handle.set_label("\n".join(textwrap.wrap(handle.get_label(), letters)))
    return columns


def legend_below(ax: "Axes", width: float, fontsize: float = 8) -> None:
    """A legend below an axes of so many inches, where it covers no curve."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = ax.figure
    handles = ax.get_legend_handles_labels()[0]
    columns = fit_legend(handles, width, fontsize)
    below = ax.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)  # in inches, below the label of the axis
    key: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    ax.legend(handles=handles, ncols=columns, fontsize=fontsize, frameon=False, **key)


def legend_of_figure(figure: "Figure", title: str | None = None) -> None:
    """A legend of all panels, below them: within one it would cover points."""
    handles = {line.get_label(): line for ax in figure.axes for line in ax.get_legend_handles_labels()[0]}
    columns = fit_legend(list(handles.values()), figure.get_figwidth())
    key: dict[str, Any] = {"fontsize": 8, "frameon": False, "title": title, "title_fontsize": 8}
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=columns, **key)


def add_title(figure: "Figure", title: str, notes: Sequence[str] = ()) -> None:
    """The title of a figure, and smaller lines below it, broken to its width."""
    letters = max(30, int(figure.get_figwidth() * 15))
    lines = [line for note in notes for line in textwrap.wrap(note, letters)]
    wrapped = textwrap.wrap(title, max(20, int(letters * 0.75)))
    text: dict[str, Any] = {"fontsize": 10 if figure.get_figwidth() > 5 else 8, "parse_math": False}
    figure.suptitle("\n".join([*wrapped, *lines]), **text)
