"""The data sets of groups: their names, and the groups of each. No torch."""

from collections.abc import Sequence
from dataclasses import replace

from resnet_train.analysis.groups import Group
from resnet_train.config.data import DataConfig

_OWN = ("imagefolder", "shards")
"""Kinds of a user's own images."""


def by_data_set(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each data set, in the order of their first members: errors on different data are not compared.

    Folders of as many images are taken for one data set, which is elsewhere on another machine, or packed. Where all
    groups of one are of one experiment, their names do not repeat it.
    """
    sections: dict[str, list[Group]] = {}
    same_size: dict[tuple[int, int], str] = {}
    for group in groups:
        data, start = group.runs[0].run.data, group.runs[0].records[0]
        name = data_name(data)
        if name not in sections and data.kind in _OWN and "train_images" in start and "val_images" in start:
            name = same_size.setdefault((start["train_images"], start["val_images"]), name)
        sections.setdefault(name, []).append(group)
    for members in sections.values():
        if len({group.experiment for group in members}) == 1:
            members[:] = [replace(group, name=group.network.name) for group in members]
    return sections


def data_names(groups: Sequence[Group]) -> list[str]:
    """The data sets of the groups, each once."""
    return list(dict.fromkeys(data_name(group.runs[0].run.data) for group in groups))


def data_name(data: DataConfig) -> str:
    """A name for titles: the kind or, of a user's own images, the name of their folder."""
    path = str(getattr(data, "path", "")).rstrip("/")
    return path.rpartition("/")[2] or data.kind if data.kind in _OWN else data.kind
