"""From YAML to an `Experiment`, and from an experiment to its runs.

Three layers are merged: the file that `base:` names, then the file itself, then `key=value` of the command line.
Everything invalid raises `BadInput` with one line (see `validate.py`).
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from resnet_train.config import zoo
from resnet_train.config.optim import Duration
from resnet_train.config.schema import Experiment, Recipe, Run
from resnet_train.config.validate import COMMAND_LINE, Layer, validate
from resnet_train.config.yaml12 import Tree, parse_yaml, read_yaml
from resnet_train.errors import BadInput

_DURATION_UNITS = frozenset(Duration.model_fields)


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file, changed by `key=value` overrides. Raises `BadInput`."""
    layers = [*_file_layers(path), Layer(COMMAND_LINE, parse_overrides(overrides))]
    tree: Tree = {}
    for layer in layers:
        tree = merge(tree, layer.tree)
    if isinstance(tree.get("networks"), list):
        tree["networks"] = _resolve_networks(tree, layers)
    experiment = validate(Experiment, tree, layers)
    check_runs(experiment, layers)
    return experiment


def runs(experiment: Experiment, layers: Sequence[Layer] = ()) -> Iterator[Run]:
    """The grid: every network with every seed, in the order of the file.

    Raises `BadInput`, but never for an experiment that `load` returned. `layers` are named in its message.
    """
    tree = experiment.model_dump(mode="json", exclude_unset=True)
    recipe = {key: tree[key] for key in Recipe.model_fields if key in tree}
    for network in experiment.networks:
        changes = experiment.per_network.get(network.name, {})
        for key in changes.keys() - Recipe.model_fields.keys():
            raise BadInput(
                f"per_network.{network.name}.{key}: only keys of the recipe can be set for one network: "
                f"{', '.join(Recipe.model_fields)}"
            )
        run_layers = [*layers, Layer(f"per_network.{network.name}", changes)] if changes else layers
        run = merge(recipe, changes)
        run |= {"experiment": experiment.name, "network": network.model_dump(mode="json")}
        for seed in experiment.seeds:
            yield validate(Run, {**run, "seed": seed}, run_layers)


def check_runs(experiment: Experiment, layers: Sequence[Layer] = ()) -> None:
    """Raise `BadInput` if a run is invalid, as one can be by an exception in `per_network`."""
    for _ in runs(experiment, layers):
        pass


def read_run(tree: Tree, source: str) -> Run:
    """The run that a run folder or a checkpoint recorded as `tree`. Raises `BadInput`, which names `source`."""
    return validate(Run, tree, [Layer(source, tree)])


def override_run(run: Run, overrides: Sequence[str]) -> Run:
    """The same run with `key=value` overrides. Raises `BadInput`."""
    changes = parse_overrides(overrides)
    return validate(Run, merge(dump(run), changes), [Layer(COMMAND_LINE, changes)])


def dump(model: BaseModel) -> Tree:
    """A model as plain data. Keys that are None are left out."""
    tree: Tree = model.model_dump(mode="json", exclude_none=True)
    return tree


def merge(base: Tree, changes: Tree, keep_null: bool = False) -> Tree:
    """`base` with `changes` merged into it, mapping by mapping.

    A section of another `kind` replaces the section of `base`, and a duration in another unit replaces its unit. A
    mapping from numbers (progressive resizing) replaces the other as a whole. `null` resets a key to its default;
    with `keep_null` it stays, for changes that are merged into something else later.
    """
    merged = copy.deepcopy(base)
    if "kind" in base and changes.get("kind") not in (None, base["kind"]):
        merged = {}
    if _DURATION_UNITS & changes.keys():
        merged = {key: value for key, value in merged.items() if key not in _DURATION_UNITS}
    for key, value in changes.items():
        old = merged.get(key)
        if value is None and not keep_null:
            merged.pop(key, None)
        elif isinstance(old, dict) and isinstance(value, dict) and all(isinstance(name, str) for name in value):
            merged[key] = merge(old, value, keep_null)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def parse_overrides(overrides: Sequence[str]) -> Tree:
    """`["train.epochs=5"]` as `{"train": {"epochs": 5}}`. A later override wins. Raises `BadInput`."""
    tree: Tree = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.split(".")
        if not equals or not all(names):
            raise BadInput(f"command line: {override!r} is not of the form key=value, such as train.epochs=5")
        value: Any = parse_yaml(text, f"{COMMAND_LINE}, {key}")
        for name in reversed(names):
            value = {name: value}
        tree = merge(tree, value, keep_null=True)
    return tree


def _file_layers(path: Path, derived: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of a file and of the files that it is based on. `derived` are the files that led to this one."""
    if path.resolve() in derived:
        raise BadInput(f"{path}: base: leads back to this file")
    tree = read_yaml(path)
    base = tree.pop("base", None)
    layer = Layer(str(path), tree)
    if base is None:
        return [layer]
    return [*_file_layers(path.parent / str(base), (*derived, path.resolve())), layer]


def _resolve_networks(tree: Tree, layers: Sequence[Layer]) -> list[object]:
    """The fields of each network, for the names that `networks` lists; with their plain twins if `twins` is set."""
    try:
        networks = [zoo.resolve(entry) for entry in tree["networks"]]
    except BadInput as error:
        source = next(layer.name for layer in reversed(layers) if "networks" in layer.tree)
        raise BadInput(f"{source}: networks: {error}") from None
    return zoo.with_twins(networks) if tree.get("twins") is True else networks
