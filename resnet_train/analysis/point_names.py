"""The names of points in a figure, placed where they cover nothing. No torch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (7, 14, 22, 32, 45, 60)
"""Of a name from its point, in points of type."""
_FAR = 20
"""From this distance on a line joins a name and its point."""
_POINT, _LINE = 5.0, 1.5
"""Half the size of what is drawn, in points of type."""


class Name(NamedTuple):
    """A text for a point of an axes, in data coordinates."""

    text: str
    place: tuple[float, float]
    colour: str


def place_names(ax: "Axes", names: Sequence[Name], fontsize: float, far: bool = True) -> None:
    """Write names beside their points: each at the nearest place that covers the least. The layout must be final.

    far: names may be moved away from their points; without it, one that would cover another name is left out.
    """
    scale = ax.figure.get_dpi() / 72
    drawn = np.array([*_drawn(ax, scale)])
    taken = np.empty((0, 4))
    for name in names:
        style: dict[str, Any] = {"fontsize": fontsize, "color": name.colour, "textcoords": "offset points"}
        text = ax.annotate(name.text, name.place, (0, 0), ha="center", va="center", zorder=5, **style)
        extent = text.get_window_extent()
        half = np.array([extent.width, extent.height]) / 2 + 1
        point = ax.transData.transform(name.place)
        best: tuple[float, Any, Any, int] | None = None
        for distance, direction in itertools.product(_DISTANCES if far else _DISTANCES[:1], _DIRECTIONS):
            offset = np.array(direction) * (half + distance * scale * (0.5 if all(direction) else 1))
            box = np.concatenate([point + offset - half, point + offset + half])
            covered = 100 * _overlapping(taken, box) + 3 * _overlapping(drawn, box) + 1000 * (not _inside(ax, box))
            if distance >= _FAR:  # its line may cross another point or name
                way = [_box(point + offset * part, 1) for part in (0.3, 0.4, 0.5, 0.6, 0.7)]
                covered += sum(20 * _overlapping(taken, one) + _overlapping(drawn, one) for one in way)
            cost = covered + distance / 10
            if best is None or cost < best[0]:
                best = (cost, offset, box, distance)
        assert best is not None
        cost, offset, box, distance = best
        if not far and cost >= 100:
            text.remove()
            continue
        text.set_position(offset / scale)
        taken = np.vstack([taken, box])
        if distance >= _FAR:  # an arrow begins at the edge of its text
            text.remove()
            line: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 3}
            style |= {"ha": "center", "va": "center", "zorder": 5, "arrowprops": line}
            ax.annotate(name.text, name.place, offset / scale, **style)


def _overlapping(boxes: Any, box: Any) -> int:
    """How many boxes, each [left, bottom, right, top], overlap one."""
    if not len(boxes):
        return 0
    return int(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(1).sum())


def _inside(ax: "Axes", box: Any) -> bool:
    return bool(ax.bbox.contains(*box[:2]) and ax.bbox.contains(*box[2:]))


def _drawn(ax: "Axes", scale: float) -> Iterator[Any]:
    """Boxes, in pixels, of the points, error bars and lines of an axes."""
    for line in ax.lines:
        points = ax.transData.transform(np.column_stack(line.get_data()).astype(float))
        points = points[np.isfinite(points).all(1)]
        for point in points:
            yield _box(point, _POINT * scale)
        if line.get_linestyle() not in ("None", "none"):
            for one, other in itertools.pairwise(points):
                yield from _pieces(one, other, scale)
    for bars in ax.collections:
        for ends in getattr(bars, "get_segments", list)():
            if len(ends) == 2:  # none where there is no deviation
                one, other = ax.transData.transform(ends)
                yield from _pieces(one, other, scale)


def _pieces(one: Any, other: Any, scale: float) -> Iterator[Any]:
    if np.isfinite([one, other]).all():
        for point in np.linspace(one, other, max(2, int(np.hypot(*(other - one)) / (4 * scale)))):
            yield _box(point, _LINE * scale)


def _box(point: Any, half: float) -> Any:
    return np.concatenate([point - half, point + half])
