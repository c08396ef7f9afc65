"""Families: networks that differ in nothing but depth. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_train.analysis.groups import Group
from resnet_train.config.network import AnyNet, NetConfig, canonical_fields

_NAMING_FIELDS = (
    "order",
    "norm",
    "dirac",
    "init",
    "addition",
    "widths",
    "unit",
    "kernels",
    "shortcut",
    "dropout",
    "drop_path_rate",
    "drop_path_mode",
    "zero_init_residual",
    "expansion",
    "stride_on",
    "stem",
    "stem_type",
    "stem_width",
    "avg_down",
    "batch_norm",
)
"""The fields of a network that a family can be named after, in the order in which they are tried."""


@dataclass(frozen=True)
class Family:
    """Networks that differ in nothing but depth, of one experiment and protocol."""

    kind: str
    name: str
    """Its kind and, where there are several families of that kind, what distinguishes it: residual (pre-activation)."""
    members: tuple[Group, ...]
    """Shallow before deep."""


def families(groups: Sequence[Group]) -> list[Family]:
    """The groups by family, in the order of their first members. A name is the same in every experiment."""
    forms = [_form(group.network) for group in groups]
    # Basic units have no stride_on. So their form is a part of a bottleneck's, whose family they join; of two such
    # families, the first.
    full_forms = [max((other for other in forms if form.items() <= other.items()), key=len) for form in forms]
    members: dict[tuple[str, str, str, str], list[Group]] = {}
    for group, form in zip(groups, full_forms, strict=True):
        same_kind = [other for one, other in zip(groups, full_forms, strict=True) if one.kind == group.kind]
        distinction = _distinction(form, same_kind)
        name = f"{group.kind} ({distinction})" if distinction else group.kind
        members.setdefault((group.kind, name, group.experiment, group.protocol), []).append(group)
    return [
        Family(kind, name, tuple(sorted(groups, key=lambda group: group.depth)))
        for (kind, name, _, _), groups in members.items()
    ]


def _form(network: AnyNet) -> dict[str, Any]:
    """The fields that networks of one family share."""
    form = {key: value for key, value in canonical_fields(network).items() if key not in ("depths", "depth")}
    if form.get("stem") == "imagenet" and form["expansion"] in (None, 4):
        del form["unit"], form["expansion"]  # from 50 layers on units are bottlenecks (He et al. 2015, table 1)
    if form.get("stride_on", ...) is None:
        del form["stride_on"]
    return form


def _distinction(form: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """The fewest fields that distinguish a form from others, in words. Fields at their default are not mentioned."""
    keys: list[str] = []
    for key in _NAMING_FIELDS:
        if any(other.get(key) != form.get(key) for other in others):
            keys.append(key)
            others = [other for other in others if other.get(key) == form.get(key)]
    default = {key: field.default for key, field in NetConfig.model_fields.items()} | {"batch_norm": False}
    return ", ".join(_words(key, form[key]) for key in keys if form.get(key, default[key]) != default[key])


def _words(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return " ".join([value["kind"], *(f"{k} {v:g}" for k, v in value.items() if k != "kind")])
    if isinstance(value, list):
        value = "/".join(map(str, value))
    if key in ("order", "unit"):
        return str(value)
    words = key.replace("_", " ")
    return words if value is True else f"{words} {value}"
