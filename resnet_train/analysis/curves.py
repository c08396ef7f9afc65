"""Curves of a group: an error by iteration and hours, with means and deviations over seeds. No torch."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from resnet_train.analysis.data_sets import data_names
from resnet_train.analysis.groups import RECORDED, Group
from resnet_train.runtime.memoize import memoized

_MOST_POINTS = 1000
"""Of a curve. More than a figure has pixels make it slow, and no more precise."""


class Curve(NamedTuple):
    """Arrays of equal length, empty where nothing is measured."""

    steps: Any
    hours: Any
    """Of training, the mean over seeds; NaN where it is not known."""
    means: Any
    """In percent, but for the loss."""
    deviations: Any
    """Sample standard deviations over seeds; NaN where there is one seed."""


@memoized
def curve(group: Group, error: str) -> Curve:
    """One of the errors of a group, or `train_loss`, at the steps that all its seeds have measured.

    Of more than 1,000 points neighbours are averaged.
    """
    kind, key = RECORDED[error]
    runs = []
    for run in group.runs:
        measured = run.series(kind, key)
        seconds = [
            seconds
            for record, seconds in zip(run.records, run.training_seconds, strict=True)
            if record["kind"] == kind and record.get(key) is not None
        ]
        points = np.array([[*measured], [*measured.values()], seconds], float).T
        runs.append(points / (1, 1, 3600))
    steps = reduce(np.intersect1d, [run[:, 0] for run in runs])
    values = np.stack([run[np.searchsorted(run[:, 0], steps)] for run in runs])  # [seeds, steps, 3]
    deviations = np.full(len(steps), np.nan) if len(runs) == 1 else values[:, :, 1].std(0, ddof=1)
    columns = (steps, values[:, :, 2].mean(0), values[:, :, 1].mean(0), deviations)
    return Curve(*map(_thin, columns))


def _thin(values: Any) -> Any:
    if len(values) <= _MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _MOST_POINTS)])


def title(groups: Sequence[Group]) -> tuple[str, list[str]]:
    """Data sets and number of seeds, and the protocols, numbered where there are several."""
    from resnet_train.analysis.groups import footnotes, protocols

    seeds = sorted({len(group.runs) for group in groups})
    of_seeds = f"{seeds[0]} seed{'s' * (seeds[0] > 1)}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    if seeds[-1] > 1:
        of_seeds += ": mean and standard deviation"
    notes = footnotes(groups) or [protocol for protocol in protocols(groups) if protocol != "None"]
    return f"{', '.join(data_names(groups))}; {of_seeds}", notes
