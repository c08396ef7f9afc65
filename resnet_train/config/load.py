"""YAML to an `Experiment`: the `base:` file, then this file, then `key=value` of the command line.

Every complaint is one line that names the file, the key, the value and, for an unknown key, the nearest valid one.
"""

import copy
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from resnet_train.config import zoo
from resnet_train.config.schema import Duration, Experiment, Recipe, Run
from resnet_train.errors import BadInput

Tree = dict[str, Any]
_Model = TypeVar("_Model", bound=BaseModel)
_UNITS = frozenset(Duration.model_fields)
"""Keys of which a later one replaces an earlier: `train.epochs=5` over a file's `train: {steps: 64000}`."""


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file. Raises `BadInput`."""
    layers = [*_files(path), ("command line", _overrides(overrides))]
    tree: Tree = {}
    for _, layer in layers:
        tree = merge(tree, layer)
    if isinstance(tree.get("networks"), list):
        source = next(name for name, layer in reversed(layers) if "networks" in layer)
        try:
            networks = [zoo.resolve(entry) for entry in tree["networks"]]
            tree["networks"] = zoo.with_twins(networks) if tree.get("twins") is True else networks
        except BadInput as error:
            raise BadInput(f"{source}: networks: {error}") from None
    experiment = _validate(Experiment, tree, layers)
    for _ in runs(experiment, layers):  # some of it is only seen to be valid in the run that it makes
        pass
    return experiment


def runs(experiment: Experiment, layers: Sequence[tuple[str, Tree]] = ()) -> Iterator[Run]:
    """The grid: every network with every seed, in the order of the file. `layers` are what it was made of.

    Raises `BadInput`, but not of an experiment that was loaded.
    """
    whole = experiment.model_dump(mode="json", exclude_unset=True)
    recipe = {key: whole[key] for key in Recipe.model_fields if key in whole}
    for network in experiment.networks:
        exception = experiment.per_network.get(network.name, {})
        for key in exception.keys() - Recipe.model_fields.keys():
            raise BadInput(f"per_network.{network.name}.{key}: an exception is to {', '.join(Recipe.model_fields)}")
        members = {"experiment": experiment.name, "network": network.model_dump(mode="json")}
        tree = merge(recipe, exception) | members
        told = [(f"per_network.{network.name}", exception)] if exception else []
        for seed in experiment.seeds:
            yield _validate(Run, {**tree, "seed": seed}, [*layers, *told])


def read_run(tree: Tree, source: str) -> Run:
    """A run as a run folder or a checkpoint holds it. Raises `BadInput`."""
    return _validate(Run, tree, [(source, tree)])


def override_run(run: Run, overrides: Sequence[str]) -> Run:
    """The same run with `key=value` changes. Raises `BadInput`."""
    layer = _overrides(overrides)
    return _validate(Run, merge(dump(run), layer), [("command line", layer)])


def dump(model: BaseModel) -> Tree:
    """A model as plain data, without what is not set."""
    tree: Tree = model.model_dump(mode="json", exclude_none=True)
    return tree


def read_yaml(path: Path) -> Tree:
    """A YAML file that holds a mapping. Raises `BadInput` with line and column."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise BadInput(
            f"{path}: expected `key: value` lines, found {'nothing' if tree is None else type(tree).__name__}"
        )
    return tree


def to_yaml(tree: Tree) -> str:
    """The text of a YAML file that `read_yaml` reads back as it is."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def json_schema() -> Tree:
    """The JSON Schema of an experiment file, for editors."""
    schema = Experiment.model_json_schema()
    based = {"base": {"type": "string", "description": "The network of the zoo that this one starts from."}}
    for network in (schema["$defs"][name] for name in ("NetConfig", "VGGConfig")):
        network["properties"] = {**based, **network["properties"]}
        network["required"] = []  # a base gives them
    references = [{"$ref": f"#/$defs/{name}"} for name in ("NetConfig", "VGGConfig")]
    schema["properties"]["networks"]["items"] = {"anyOf": [{"type": "string"}, *references]}
    schema["properties"]["base"] = {"type": "string", "description": "A file, beside this one, to start from."}
    schema["required"] = []
    return schema


def merge(under: Tree, over: Tree, keep_null: bool = False) -> Tree:
    """`over` laid upon `under`, mapping by mapping.

    A section of another `kind` replaces the whole of the old one, a duration of another unit the old unit, a mapping of
    numbers (a schedule) the old one, and null takes a key back to its default (or stays, where `over` is to be laid
    upon something else yet).
    """
    merged = copy.deepcopy(under)
    if "kind" in under and over.get("kind") not in (None, under["kind"]):
        merged = {}
    if _UNITS & over.keys():
        merged = {key: value for key, value in merged.items() if key not in _UNITS}
    for key, value in over.items():
        if value is None and not keep_null:
            merged.pop(key, None)
        else:
            nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
            whole = not nested or any(not isinstance(part, str) for part in value)
            merged[key] = copy.deepcopy(value) if whole else merge(merged[key], value, keep_null)
    return merged


# --- reading ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-4 is a number and `no` is a word, which PyYAML's YAML 1.1 has the other way round."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 017 is seventeen
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _regexp, _first in (
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_regexp})$"), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as a string."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _parse(text: str, source: str) -> Any:
    try:
        tree = yaml.load(text, _Loader)  # a SafeLoader
        json.dumps(tree, default=str)
        return tree
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(f"{source}{where}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # a wrong tag, an alias of itself
        raise BadInput(f"{source}: not an experiment: {error}") from None


def _files(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, Tree]]:
    if path.resolve() in seen:
        raise BadInput(f"{path}: base: leads back to this file")
    tree = read_yaml(path)
    base = tree.pop("base", None)
    if base is None:
        return [(str(path), tree)]
    return [*_files(path.parent / str(base), (*seen, path.resolve())), (str(path), tree)]


def _overrides(overrides: Sequence[str]) -> Tree:
    tree: Tree = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(key.split(".")):
            raise BadInput(f"command line: {text!r} is not of the form key=value, such as train.epochs=5")
        layer: Any = _parse(value, f"command line, {key}")
        for part in reversed(key.split(".")):
            layer = {part: layer}
        tree = merge(tree, layer, keep_null=True)
    return tree


# --- complaining ------------------------------------------------------------------------------------------------------


def _validate(model: type[_Model], tree: Tree, layers: Sequence[tuple[str, Tree]]) -> _Model:
    try:
        # JSON mode is strict about types and still takes a list for a tuple.
        return model.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise BadInput(_complaint(error.errors()[0], model, tree, layers)) from None


def _complaint(error: ErrorDetails, model: type[BaseModel], tree: Tree, layers: Sequence[tuple[str, Tree]]) -> str:
    keys = _keys(error["loc"], tree)
    files = [name for name, _ in layers if name != "command line"] or ["command line"]
    source = next((name for name, layer in reversed(layers) if keys and _holds(layer, keys)), files[-1])
    dotted, value = ".".join(map(str, keys)), error["input"]
    prefix = f"{source}: {dotted}" if dotted else source
    match error["type"]:
        case "extra_forbidden":
            return f"{prefix}: {_unknown(keys, model, tree)}"
        case "missing":
            return f"{prefix} is missing"
        case "union_tag_not_found":
            return f"{prefix}.{_discriminator(error)} is missing: it says what else the section holds"
        case "union_tag_invalid":
            tags = error["ctx"]["expected_tags"]
            return f"{prefix}.{_discriminator(error)}: {error['ctx']['tag']!r} is none of {tags}"
        case "value_error":
            return f"{prefix}: {error['ctx']['error']}"
        case _:
            shown = "" if isinstance(value, (dict, list)) else f" = {json.dumps(value)}"
            return f"{prefix}{shown}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _discriminator(error: ErrorDetails) -> str:
    return str(error["ctx"]["discriminator"]).strip("'")


def _member(tree: Any) -> tuple[str, Any]:
    """What tells the members of a union apart, `kind` of sections and `unit` of networks, and what it is here."""
    return next(
        ((key, tree[key]) for key in ("kind", "unit") if isinstance(tree, dict) and key in tree), ("kind", None)
    )


def _keys(loc: Sequence[int | str], tree: Any) -> list[int | str]:
    """A pydantic location without the names of union members, which are no keys of the file."""
    keys: list[int | str] = []
    for part in loc:
        names_member = isinstance(tree, dict) and _member(tree)[1] == part and part not in tree
        if not names_member and part != "[key]":  # pydantic's, of a key that is wrong itself
            keys.append(part)
            tree = _child(tree, part)
    return keys


def _holds(tree: Any, keys: Sequence[int | str]) -> bool:
    for key in keys:
        tree = _child(tree, key)
    return tree is not _NOTHING


_NOTHING = object()


def _child(tree: Any, key: int | str) -> Any:
    try:
        return tree[key]
    except (KeyError, IndexError, TypeError):
        return _NOTHING


def _unknown(keys: Sequence[int | str], model: type[BaseModel], tree: Tree) -> str:
    """Why a key is refused: it belongs to another kind, or is a slip of the pen, or is nothing we know."""
    sections = [model]
    tag, kind = "kind", None
    for key in keys[:-1]:
        annotations = [
            s.model_fields[key].annotation for s in sections if isinstance(key, str) and key in s.model_fields
        ]
        sections = [s for annotation in annotations for s in _models(annotation)] or sections
        tree = tree[key]  # type: ignore[index]
        tag, kind = _member(tree)
    key = str(keys[-1])
    if kind is not None and any(key in s.model_fields for s in sections):
        return f"has no effect with {tag} {kind}: remove it"
    fits = [s for s in sections if kind is None or kind in get_args(s.model_fields[tag].annotation)]
    valid = [name for s in fits for name in s.model_fields]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; valid ones are {', '.join(valid)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
