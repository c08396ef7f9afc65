"""Layers of a configuration, merged mapping by mapping."""

import copy
from typing import Any

from resnet_train.config.optim import Duration
from resnet_train.config.yaml12 import Tree

_DURATION_UNITS = frozenset(Duration.model_fields)


class _Replacement(dict[str, Any]):
    """A mapping that replaces the one that it is merged into: `null` was before it on the command line."""


def merge(base: Tree, changes: Tree, keep_null: bool = False) -> Tree:
    """`base` with `changes` merged into it, mapping by mapping.

    A section of another `kind` replaces the section of `base`, and a duration in another unit replaces its unit. A
    mapping from numbers (progressive resizing) replaces the other as a whole. `null` resets a key to its default;
    with `keep_null` it stays, for changes that are merged into something else later.
    """
    merged = copy.deepcopy(base)
    if "kind" in base and changes.get("kind") not in (None, base["kind"]):
        merged = type(base)()
    if _DURATION_UNITS & changes.keys():
        merged = type(base)({key: value for key, value in merged.items() if key not in _DURATION_UNITS})
    for key, value in changes.items():
        old = merged.get(key)
        if value is None and not keep_null:
            merged.pop(key, None)
        elif isinstance(old, dict) and _is_merged(value):
            merged[key] = merge(old, value, keep_null)
        elif isinstance(value, dict) and keep_null and key in merged and old is None:
            merged[key] = _Replacement(copy.deepcopy(value))
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _is_merged(value: object) -> bool:
    is_section = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    return is_section and not isinstance(value, _Replacement)
