"""Sweeps: the groups of one network over the values that a sweep gave to keys of its recipe. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_train.analysis import groups as groups_module
from resnet_train.analysis.groups import Group
from resnet_train.config.defining import flatten
from resnet_train.config.load import dump
from resnet_train.config.sweep import value_text
from resnet_train.runs.records import Record
from resnet_train.runtime.tables import few

CHOSEN_BY = "val_error_top1"
"""The error whose lowest value tables and figures call the best of a sweep."""


@dataclass(frozen=True)
class Sweep:
    """The groups of one network, experiment and protocol that were swept over the same keys."""

    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        return self.groups[0].name

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(sorted(self.groups[0].sweep))

    def values(self, key: str) -> list[Any]:
        """The values of one key, in the order of the groups, each once."""
        values: list[Any] = []
        for group in self.groups:
            if group.sweep[key] not in values:
                values.append(group.sweep[key])
        return values

    def best(self, error: str) -> Group:
        """The group with the lowest mean of one of `ERRORS`; of equal ones, that with the lowest validation error.

        Finished groups are compared at their ends. While some are trained, all are compared at the last step that all
        have. A network that diverged is the best only if every other has no figure.
        """
        candidates = [group for group in self.groups if not group.has_diverged] or list(self.groups)
        if not all(group.is_finished for group in candidates):
            common = set.intersection(*(group.steps(error) for group in candidates))
            candidates_then = [group.at(max(common)) if common else group for group in candidates]
        else:
            candidates_then = candidates
        figures = [(_figure(group, error), _figure(group, CHOSEN_BY)) for group in candidates_then]
        return candidates[figures.index(min(figures))]


def _figure(group: Group, error: str) -> float:
    mean = group.mean(error)
    return float("inf") if mean is None else mean


def sweeps(groups: Sequence[Group]) -> list[Sweep]:
    """The sweeps among groups, in the order of their first members."""
    members: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        if group.sweep:
            key = (group.name, group.experiment, group.protocol, *sorted(group.sweep))
            members.setdefault(key, []).append(group)
    return [Sweep(tuple(found)) for found in members.values()]


def swept_keys(groups: Sequence[Group]) -> list[str]:
    """Every key that some group was swept over."""
    return sorted({key for group in groups for key in group.sweep})


def at_best(groups: Sequence[Group], error: str = CHOSEN_BY) -> list[Group]:
    """Groups that were not swept and, of each sweep, the one at its best value."""
    best = [sweep.best(error) for sweep in sweeps(groups)]
    return [group for group in groups if not group.sweep or any(group is one for one in best)]


def rows(groups: Sequence[Group]) -> list[Record]:
    """The rows of `groups.rows`; of a sweep with a column for each key, and one that says which value is the best."""
    table, keys = groups_module.rows(groups), swept_keys(groups)
    best, several = at_best(groups), _has_choice(groups)
    for row, group in zip(table, groups, strict=True):
        config = flatten(dump(group.runs[0].run)) if keys else {}
        for key in keys:
            value = group.sweep.get(key, config.get(key))
            row[key] = value if is_number(value) else value_text(value)
        if keys:
            row["best_of_sweep"] = any(group is one for one in best) if group.sweep and several else None
    return table


def best_note(groups: Sequence[Group]) -> list[str]:
    """What tables and figures show of a sweep, in words; empty without one."""
    keys = swept_keys(groups) if _has_choice(groups) else []
    return [f"each network at its best {', '.join(keys)}: the lowest validation top-1 error"] if keys else []


def _has_choice(groups: Sequence[Group]) -> bool:
    """Whether some network has several values to choose from, so that one can be its best."""
    return any(len(sweep.groups) > 1 for sweep in sweeps(groups))


def findings(groups: Sequence[Group]) -> list[str]:
    """Of each sweep, its best value and the others."""
    lines = []
    for sweep in sweeps(groups):
        best = sweep.best(CHOSEN_BY)
        error = best.mean(CHOSEN_BY)
        if error is not None and len(sweep.groups) > 1:
            tried = "; ".join(f"{key} {_texts(sweep.values(key))}" for key in sweep.keys)
            lines.append(f"{best.label} is the best of {tried}: validation top-1 {error:.2f} %")
    return lines


def warnings(groups: Sequence[Group]) -> list[str]:
    """What makes the best value of a sweep doubtful: it is at an end of the values, or networks tried others."""
    all_sweeps = sweeps(groups)
    at_ends: dict[tuple[str, str, str, str], list[str]] = {}
    for sweep in all_sweeps:
        best = sweep.best(CHOSEN_BY)
        for key in sweep.keys:
            values = sweep.values(key)
            if best.mean(CHOSEN_BY) is None or len(values) < 2 or not all(map(is_number, values)):
                continue
            for end, word in ((min(values), "lowest"), (max(values), "highest")):
                if best.sweep[key] == end:
                    beyond = "lower" if word == "lowest" else "higher"
                    at_ends.setdefault((key, value_text(end), word, beyond), []).append(sweep.name)
    lines = [
        f"{few(names)}: {'its' if len(names) == 1 else 'their'} best {key}, {end}, is the {word} that was tried; a "
        f"{beyond} one may be better"
        for (key, end, word, beyond), names in at_ends.items()
    ]
    for key in swept_keys(groups):
        tried: dict[str, list[str]] = {}
        for sweep in all_sweeps:
            if key in sweep.keys:
                tried.setdefault(_texts(sweep.values(key)), []).append(sweep.name)
        if len(tried) > 1:
            texts = "; ".join(f"{values} ({few(dict.fromkeys(names))})" for values, names in tried.items())
            lines.append(f"not every network was swept over the same {key}: {texts}")
    return lines


def is_number(value: Any) -> bool:
    """Whether a value can stand on an axis; a boolean cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _texts(values: Sequence[Any]) -> str:
    return ", ".join(map(value_text, values))
