"""A sweep: values of keys of the recipe, as a third dimension of the grid beside networks and seeds.

Each combination of values has its folders in a run's path, such as `optimizer.lr=0.05`.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from resnet_train.config.defining import flatten, is_defining
from resnet_train.config.yaml12 import Tree
from resnet_train.errors import shorten

_SAFE = re.compile(r"-?[A-Za-z0-9][A-Za-z0-9._+-]{0,59}")
"""A value that is the name of a folder as it is."""


def with_dotted_keys(tree: Tree) -> Tree:
    """A configuration whose `sweep` has dotted keys: `sweep.optimizer.lr=[0.1]` on the command line nests them."""
    sweep = tree.get("sweep")
    return tree | {"sweep": dict(_dotted(sweep))} if isinstance(sweep, dict) else tree


def _dotted(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def combinations(sweep: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of one value for each key, in the order of the file; `{}` alone without a sweep."""
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))


def as_tree(values: Mapping[str, Any]) -> Tree:
    """Values by dotted key as nested mappings, such as `{"optimizer": {"lr": 0.05}}`."""
    tree: Tree = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return tree


def value_text(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace('"', "")


def label(values: Mapping[str, Any]) -> str:
    """Values for tables and messages, such as `optimizer.lr=0.05 train.batch_size=64`; nothing without a sweep."""
    return " ".join(f"{key}={shorten(value_text(values[key]), 60)}" for key in sorted(values))


def folder_names(values: Mapping[str, Any]) -> list[str]:
    """A folder for each key, in the order of the alphabet: adding a value or reordering the keys moves no run."""
    return [f"{key}={safe_text(values[key])}" for key in sorted(values)]


def safe_text(value: Any) -> str:
    """A value as a part of a file's name. Two values have two names: where characters are lost, a hash is added."""
    text = value_text(value)
    if _SAFE.fullmatch(text) and not (isinstance(value, str) and _is_json(text)):
        return text
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', text).strip('-')[:40]}-{digest}".lstrip("-")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def complaints(sweep: Mapping[str, Sequence[Any]], sections: Collection[str]) -> Iterator[str]:
    """What is wrong with the keys of a sweep, and values that it lists twice. `sections` are those of a recipe."""
    for key, values in sweep.items():
        first = key.partition(".")[0]
        if first not in sections:
            yield f"sweep.{shorten(key)}: only keys of the recipe can be swept: {', '.join(sections)}"
        for other in sweep:
            if other.startswith(f"{key}."):
                yield f"sweep.{shorten(other)} is a part of sweep.{shorten(key)}: sweep one of them"
        names = [safe_text(value) for value in values]
        for i, name in enumerate(names):
            if name in names[:i]:
                yield f"sweep.{shorten(key)}: {shorten(value_text(values[i]))} is listed twice"


def changed_keys(swept: Tree, before: Tree, after: Tree) -> list[str]:
    """The swept keys that have another value after an exception for one network: their runs would be misnamed."""
    was, now = flatten(before), flatten(after)
    return [key for key in flatten(swept) if was.get(key) != now.get(key)]


def same_training(runs: Sequence[tuple[Mapping[str, Any], Tree]]) -> str | None:
    """Why a sweep is without effect: two combinations that train the same; None if all differ.

    runs: the values of each combination, and the run with these values as plain data.
    """
    seen: dict[str, Mapping[str, Any]] = {}
    for values, run in runs:
        identity = json.dumps({key: value for key, value in flatten(run).items() if is_defining(key)})
        other = seen.setdefault(identity, values)
        if other is not values:
            differing = [key for key in values if value_text(values[key]) != value_text(other[key])]
            one, two = (label({key: part[key] for key in differing}) for part in (other, values))
            return f"sweep: {one} and {two} train the same: remove one of them"
    return None
