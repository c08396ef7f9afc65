"""Layers of a configuration, merged mapping by mapping."""

import copy
from collections.abc import Sequence
from typing import Any

from resnet_train.config.data import shared_keys
from resnet_train.config.optim import Duration
from resnet_train.config.validate import Layer
from resnet_train.config.yaml12 import Tree

_DURATION_UNITS = frozenset(Duration.model_fields)


class _Replacement(dict[str, Any]):
    """A mapping that replaces the one that it is merged into: `null` was before it on the command line."""


def merge(base: Tree, changes: Tree, keep_null: bool = False) -> Tree:
    """`base` with `changes` merged into it, mapping by mapping.

    A section of another `kind` replaces the section of `base`; of data, keys that both kinds have stay. A duration in
    another unit replaces its unit. A mapping from numbers (progressive resizing) replaces the other as a whole. `null`
    resets a key to its default; with `keep_null` it stays, for changes that are merged into something else later.
    """
    merged = copy.deepcopy(base)
    if "kind" in base and changes.get("kind") not in (None, base["kind"]):
        kept = shared_keys(str(base["kind"]), str(changes["kind"]))
        merged = type(base)({key: value for key, value in merged.items() if key in kept})
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


def drop_outdated_exceptions(tree: Tree, layers: Sequence[Layer]) -> None:
    """Remove from `per_network` what an earlier layer says of a network that a later one no longer lists.

    So `networks=[cifar-resnet-1202]` keeps those of a file's exceptions that apply. `tree` is what the layers were
    merged to, with its networks resolved.
    """
    exceptions = tree.get("per_network")
    setting = [i for i, layer in enumerate(layers) if isinstance(layer.tree.get("networks"), list)]
    if not isinstance(exceptions, dict) or len(setting) < 2:
        return
    listed = {name for i in setting[:-1] for entry in layers[i].tree["networks"] for name in _names(entry)}
    present = {name for network in tree["networks"] for name in _names(network)}
    later = [layer.tree.get("per_network") for layer in layers[setting[-1] :]]
    said = {name for mapping in later if isinstance(mapping, dict) for name in mapping}
    for name in (listed - present - said) & exceptions.keys():
        del exceptions[name]


def _names(entry: object) -> tuple[str, ...]:
    """The name of an entry of `networks` and that of its plain twin; none if the entry is invalid."""
    name = (entry.get("name") or entry.get("base")) if isinstance(entry, dict) else entry
    return (name, f"{name}-plain") if isinstance(name, str) else ()
