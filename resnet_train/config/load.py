"""From YAML to an `Experiment`, and from an experiment to its runs.

Three layers are merged: the file or shipped experiment that `base:` names, then the file itself, then `key=value` of
the command line.
Everything invalid raises `BadInput` with a line for each complaint (see `validate.py`).
"""

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from resnet_train.config import recipes, sweep, zoo
from resnet_train.config.batch import batch_norm_complaints, stem_complaints
from resnet_train.config.expect import recipe_differences
from resnet_train.config.merge import drop_outdated_exceptions, merge
from resnet_train.config.network import ANY_NET, AnyNet, canonical_fields
from resnet_train.config.schema import Experiment, Recipe, Run
from resnet_train.config.validate import COMMAND_LINE, Layer, validate
from resnet_train.config.yaml12 import DEPTH_LIMIT, Tree, parse_yaml, read_yaml
from resnet_train.errors import BadInput, InvalidConfig, shorten

_CHANGES_NOTHING = "changes nothing: mappings are merged; "
_RESETS = "{} resets the key to its default"
_REQUIRED = frozenset({"data", "train"})
"""Sections without a default."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file, or of the shipped one of this name, changed by `key=value`. Raises `BadInput`."""
    files = _file_layers(recipes.find(path))
    experiment = _experiment(files, overrides)
    _check_mappings_change(files, overrides, experiment)
    return experiment


def runs(experiment: Experiment, layers: Sequence[Layer] = ()) -> Iterator[Run]:
    """The grid: every network with every value of the sweep and every seed, in the order of the file.

    Raises `BadInput`, but never for an experiment that `load` returned. `layers` are named in its message.
    """
    for network in experiment.networks:
        for values in sweep.combinations(experiment.sweep):
            for seed in experiment.seeds:
                yield _run(experiment, network, seed, layers, values)


def check_runs(experiment: Experiment, layers: Sequence[Layer] = (), names: Collection[str] = ()) -> None:
    """Raise `InvalidConfig` if a run is invalid, as one can be by an exception in `per_network` or a value of `sweep`.

    names: networks whose stem comes with a name of the zoo; it must suit the images.
    """
    complaints: list[str] = []
    for network in experiment.networks:
        swept: list[tuple[Tree, Tree]] = []
        for values in sweep.combinations(experiment.sweep):
            try:
                run = _run(experiment, network, experiment.seeds[0], layers, values)
            except InvalidConfig as invalid:
                complaints += invalid.args
            else:
                complaints += stem_complaints(run) if network.name in names else ()
                swept.append((values, dump(run)))
        if (complaint := sweep.same_training(swept)) is not None:
            complaints.append(complaint)
    if complaints:
        raise InvalidConfig(*dict.fromkeys(complaints))


def read_run(tree: Tree, source: str) -> Run:
    """The run that a run folder or a checkpoint recorded as `tree`. Raises `BadInput`, which names `source`."""
    try:
        return validate(Run, tree, [Layer(source, tree)])
    except InvalidConfig as invalid:  # nobody wrote it by hand: one complaint says enough
        raise BadInput(invalid.args[0]) from None


def override_run(run: Run, overrides: Sequence[str]) -> Run:
    """The same run with `key=value` overrides. Raises `BadInput`."""
    changes = parse_overrides(overrides)
    changed = validate(Run, merge(dump(run), changes), [Layer(COMMAND_LINE, changes)])
    known = set(batch_norm_complaints(run, [run.network]))  # other networks of its experiment may have batch norm
    if complaints := set(batch_norm_complaints(changed, [run.network])) - known:
        raise InvalidConfig(*(f"{COMMAND_LINE}: {complaint}" for complaint in sorted(complaints)))
    return changed


def dump(model: BaseModel) -> Tree:
    """A model as plain data. Keys that are None are left out, except in `per_network`, where they reset a key."""
    tree: Tree = model.model_dump(mode="json", exclude_none=True)
    return tree


def parse_overrides(overrides: Sequence[str]) -> Tree:
    """`["train.epochs=5"]` as `{"train": {"epochs": 5}}`. A later override wins. Raises `InvalidConfig`."""
    tree: Tree = {}
    complaints: list[str] = []
    for override in overrides:
        try:
            names, value = _parse_override(override)
        except BadInput as error:
            complaints.append(str(error))
            continue
        for name in reversed(names):
            value = {name: value}
        tree = merge(tree, sweep.with_dotted_keys(value), keep_null=True)
    if complaints:
        raise InvalidConfig(*complaints)
    return tree


def _parse_override(override: str) -> tuple[list[str], Any]:
    """The names of the key and the value. Raises `BadInput`."""
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names) or not key.isprintable() or len(names) > DEPTH_LIMIT:
        quoted = shorten(repr(override))
        raise BadInput(f"command line: {quoted} is not of the form key=value, such as train.epochs=5")
    return names, parse_yaml(text, f"{COMMAND_LINE}, {shorten(key)}")


def _file_layers(path: Path, derived: tuple[str, ...] = ()) -> list[Layer]:
    """The layers of a file and of the files that it is based on. `derived` are the files that led to this one."""
    real_path = os.path.realpath(path)
    if real_path in derived:
        raise BadInput(f"{path}: base: leads back to this file")
    if len(derived) > DEPTH_LIMIT:
        raise BadInput(f"{path}: base: more than {DEPTH_LIMIT} files, each based on the next")
    tree = sweep.with_dotted_keys(read_yaml(path))
    base = tree.pop("base", None)
    layer = Layer(str(path), tree)
    if base is None:
        return [layer]
    if not isinstance(base, str) or len(base) > 1000:
        raise BadInput(
            f"{path}: base = {shorten(json.dumps(base))}: it is a file, or the name of a shipped experiment, such as "
            "cifar10-depth"
        )
    return [*_file_layers(recipes.find(base, path.parent), (*derived, real_path)), layer]


def _experiment(files: Sequence[Layer], overrides: Sequence[str]) -> Experiment:
    """The experiment of merged files, changed by overrides. Raises `InvalidConfig` with all complaints."""
    layers = [*files, Layer(COMMAND_LINE, parse_overrides(overrides))]
    complaints: list[str] = []
    tree: Tree = {}
    for layer in files:
        complaints += [f"{layer.name}: {complaint}" for complaint in _complaints_of_empty(tree, layer.tree)]
        tree = merge(tree, layer.tree)
    tree = merge(tree, layers[-1].tree)
    names: set[str] = set()
    if isinstance(tree.get("networks"), list):
        try:
            names = _resolve_networks(tree, layers)
            drop_outdated_exceptions(tree, layers)
        except InvalidConfig as invalid:
            complaints += invalid.args
            # To see what else is wrong.
            tree |= {"networks": [zoo.network_fields("resnet-18")], "per_network": {}, "twins": False}
    try:
        experiment = validate(Experiment, tree, layers)
    except InvalidConfig as invalid:
        complaints += invalid.args
    if complaints:
        raise InvalidConfig(*complaints)
    check_runs(experiment, layers, names)
    return _with_differences(experiment, layers)


def _with_differences(experiment: Experiment, layers: Sequence[Layer]) -> Experiment:
    """The experiment with what changes, after the layer that states `expect`, the recipe that its figures are about.

    Raises `InvalidConfig` if a figure is of a network that neither that layer lists nor the zoo has.
    """
    if not experiment.expect:
        return experiment
    last = max(i for i, layer in enumerate(layers) if "expect" in layer.tree)
    tree: Tree = {}
    for layer in layers[: last + 1]:
        tree = merge(tree, layer.tree)
    listed = {network.name: network for network in _networks_of(tree, layers)}
    complaints, expect = [], []
    for i, entry in enumerate(experiment.expect):
        for name in entry.networks:
            try:
                listed[name] = listed.get(name) or zoo.network_config(name)
            except BadInput as error:
                complaints.append(f"{layers[last].name}: expect.{i}: {error}; this file lists {', '.join(listed)}")
        for network in experiment.networks:
            if not complaints and network.name in entry.networks:
                texts = _differences(experiment, network, tree, listed[network.name], layers[last].name)
                entry = entry.with_differences(network.name, texts)
        expect.append(entry)
    if complaints:
        raise InvalidConfig(*complaints)
    return experiment.model_copy(update={"expect": tuple(expect)})


def _networks_of(tree: Tree, layers: Sequence[Layer]) -> list[AnyNet]:
    """The networks that a layer lists with those under it; none if they are invalid there and replaced above."""
    if not isinstance(tree.get("networks"), list):
        return []
    try:
        _resolve_networks(tree, layers)
        return [ANY_NET.validate_json(json.dumps(network)) for network in tree["networks"]]
    except (BadInput, ValidationError):
        return []


def _differences(experiment: Experiment, network: AnyNet, tree: Tree, listed: AnyNet, source: str) -> list[str]:
    """What distinguishes the runs of a network from those that the figures in `source`, merged to `tree`, are about."""
    texts = []
    if canonical_fields(network) != canonical_fields(listed):
        texts.append(f"{network.name} is not that of {source}")
    recipe = {key: value for key, value in tree.items() if key in Recipe.model_fields}
    exceptions = tree.get("per_network")
    if isinstance(exceptions, dict) and isinstance(exceptions.get(network.name), dict):
        recipe = merge(recipe, exceptions[network.name])
    try:
        stated = dump(validate(Recipe, recipe, []))
    except InvalidConfig:
        return [*texts, f"{source} does not state the whole recipe"]
    run = dump(_run(experiment, network, experiment.seeds[0], []))
    return texts + recipe_differences(stated, {key: run[key] for key in run if key in Recipe.model_fields})


def _check_mappings_change(files: Sequence[Layer], overrides: Sequence[str], experiment: Experiment) -> None:
    """Raise `InvalidConfig` if an override is a bare mapping that changes nothing, such as `probes={}` over probes.

    Who writes `{}` or `{kind: KIND}` expects the default values of all other keys. One that says values, or again all
    that is set, is no misunderstanding: a sweep passes its base value.
    """
    complaints: list[str] = []
    for i, override in enumerate(overrides):
        names, value = _parse_override(override)
        if not isinstance(value, dict) or not _is_bare(value):
            continue
        others = [*overrides[:i], *overrides[i + 1 :]]
        tree: Any = {}
        for layer in (*files, Layer(COMMAND_LINE, parse_overrides(others))):
            tree = merge(tree, layer.tree)
        for name in names:
            tree = tree.get(name) if isinstance(tree, dict) else None
        try:
            is_same = _experiment(files, others) == experiment
        except BadInput:
            continue
        if is_same and tree != value:
            key = ".".join(names)
            if "kind" in value:
                advice = f"{key}=null {shorten(repr(override))} replaces it"
            else:
                advice = "remove it" if key in _REQUIRED else _RESETS.format(f"{key}=null")
            complaints.append(f"{COMMAND_LINE}: {shorten(override)} {_CHANGES_NOTHING}{advice}")
    if complaints:
        raise InvalidConfig(*complaints)


def _is_bare(mapping: Tree) -> bool:
    """Whether a mapping sets nothing but kinds of sections."""
    return all(key == "kind" or (isinstance(value, dict) and _is_bare(value)) for key, value in mapping.items())


def _complaints_of_empty(base: Tree, changes: Tree, prefix: str = "") -> Iterator[str]:
    """Empty mappings in `changes` whose key `base` sets to more."""
    if changes.get("kind") not in (None, base.get("kind")):
        return  # it replaces all of `base`
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and old and isinstance(value, dict):
            name = f"{prefix}{shorten(str(key))}"
            if value:
                yield from _complaints_of_empty(old, value, f"{name}.")
            else:
                advice = "remove it" if name in _REQUIRED else _RESETS.format(f"{name}: null")
                yield f"{name}: {{}} {_CHANGES_NOTHING}{advice}"


def _run(
    experiment: Experiment, network: AnyNet, seed: int, layers: Sequence[Layer], values: Tree | None = None
) -> Run:
    """One cell of the grid: with `values` of the sweep or, without, the recipe as it is. Raises `InvalidConfig`."""
    recipe = experiment.model_dump(mode="json", exclude_unset=True, include=set(Recipe.model_fields))
    swept = sweep.as_tree(values or {})
    if values:
        named = f"sweep, {sweep.label(values)}"
        if empty := [f"{named}: {complaint}" for complaint in _complaints_of_empty(recipe, swept)]:
            raise InvalidConfig(*empty)
        recipe, layers = merge(recipe, swept), [*layers, Layer(named, swept)]
    changes = experiment.per_network.get(network.name, {})
    source = f"per_network.{network.name}"
    complaints = [
        f"{source}.{shorten(key)}: only keys of the recipe can be set for one network: {', '.join(Recipe.model_fields)}"
        for key in changes
        if key not in Recipe.model_fields
    ]
    complaints += [f"{source}.{complaint}" for complaint in _complaints_of_empty(recipe, changes)]
    if complaints:
        raise InvalidConfig(*complaints)
    tree = merge(recipe, changes)
    if lost := sweep.changed_keys(swept, recipe, tree):
        raise InvalidConfig(*(f"{source}.{key}: the sweep sets it, too: remove one of them" for key in lost))
    tree |= {"experiment": experiment.name, "network": network.model_dump(mode="json"), "seed": seed}
    tree["sweep"] = values or {}
    tree["expect"] = [part for entry in experiment.expect if (part := entry.of(network.name))]
    run = validate(Run, tree, [*layers, Layer(source, changes)] if changes else layers)
    if values and run.expect:
        unswept = _run(experiment, network, seed, [])
        texts = recipe_differences(*({key: dump(one)[key] for key in Recipe.model_fields} for one in (unswept, run)))
        run = run.model_copy(
            update={"expect": tuple(entry.with_differences(network.name, texts) for entry in run.expect)}
        )
    return run


def _resolve_networks(tree: Tree, layers: Sequence[Layer]) -> set[str]:
    """Put the fields of each network in place of its name in `networks`, and add plain twins if `twins` is set.

    A twin is trained under the recipe of its partner, exceptions in `per_network` included. Returns the names of the
    networks whose stem is not in the file. Raises `InvalidConfig`.
    """
    networks: list[Any] = []
    complaints: list[str] = []
    for entry in tree["networks"]:
        try:
            networks.append(zoo.resolve(entry))
        except BadInput as error:
            source = next(layer.name for layer in reversed(layers) if "networks" in layer.tree)
            complaints.append(f"{source}: networks: {error}")
    if complaints:
        raise InvalidConfig(*complaints)
    names = {
        str(network["name"])
        for entry, network in zip(tree["networks"], networks, strict=True)
        if isinstance(network, dict) and "name" in network and (isinstance(entry, str) or "stem" not in entry)
    }
    tree["networks"] = networks
    if tree.get("twins") is True:
        tree["networks"], partners = zoo.with_twins(networks)
        per_network = tree.get("per_network")
        if isinstance(per_network, dict):
            for twin, partner in partners.items():
                changes, own = per_network.get(partner), per_network.get(twin, {})
                if isinstance(changes, dict) and isinstance(own, dict):
                    per_network[twin] = merge(changes, own, keep_null=True)
    return names
