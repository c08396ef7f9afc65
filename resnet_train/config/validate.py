"""Turn a mapping into a model of the schema, or explain why it is not valid, in a line for each complaint.

A line names the file that set the key, the key, its value and, for an unknown key, the nearest valid one.
"""

import difflib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from resnet_train.config.expect import FIGURE_TAGS
from resnet_train.config.yaml12 import Tree
from resnet_train.errors import InvalidConfig, shorten

COMMAND_LINE = "command line"
"""The name of the layer of `key=value` arguments in an error message."""

_Model = TypeVar("_Model", bound=BaseModel)
_Key = int | str
_MISSING = object()


class Layer(NamedTuple):
    """One of the mappings that a configuration is merged from."""

    name: str
    """The file, or `command line`."""
    tree: Tree


def validate(model: type[_Model], tree: Tree, layers: Sequence[Layer]) -> _Model:
    """A `model` of the mapping `tree`. `layers` are what it was merged from, first to last.

    Raises `InvalidConfig` with all complaints.
    """
    try:
        # Strict JSON validation rejects "3" for a number, and accepts a list for a tuple.
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        errors = error.errors()
        parents = {one["loc"][:length] for one in errors for length in range(len(one["loc"]))}
        complaints = [
            text
            for one in errors
            if one["type"] != "too_short" or one["loc"] not in parents  # an item that is refused is not counted
            for text in _messages(one, model, tree, layers)
        ]
        raise InvalidConfig(*dict.fromkeys(complaints)) from None


def _messages(error: ErrorDetails, model: type[BaseModel], tree: Tree, layers: Sequence[Layer]) -> list[str]:
    keys = _keys_of_file(error["loc"], tree)
    name = ".".join(shorten(str(key)) for key in keys)
    prefix = ": ".join(part for part in (_source(keys, layers), name) if part)
    match error["type"]:
        case "extra_forbidden":
            return [f"{prefix}: {_explain_extra(keys, model, tree)}"]
        case "missing":
            return [f"{prefix} is missing"]
        case "union_tag_not_found":
            return [f"{prefix}.{_discriminator(error)} is missing: it decides which other keys the section has"]
        case "union_tag_invalid":
            context = error["ctx"]
            tag = shorten(repr(context["tag"]))
            return [f"{prefix}.{_discriminator(error)}: {tag} is none of {context['expected_tags']}"]
        case "value_error":
            return [f"{prefix}: {complaint}" for complaint in error["ctx"]["error"].args]
        case _:
            value, reason = error["input"], _reason(error, keys, model)
            if isinstance(value, (dict, list)):
                return [f"{prefix}: {reason}"]
            return [f"{prefix} = {shorten(json.dumps(value))}: {reason}"]


def _reason(error: ErrorDetails, keys: Sequence[_Key], model: type[BaseModel]) -> str:
    """What is wrong with a value; pydantic's words, but for those of JSON Schema."""
    match error["type"]:
        case "list_type" | "tuple_type":
            return "expected a list in brackets, such as [A, B]"
        case "model_type" | "model_attributes_type" | "dict_type":
            sections = _sections(keys, model)
            if sections == _sections(keys[:-1], model):
                sections = []  # a mapping whose keys are free
            names = dict.fromkeys(name for section in sections for name in section.model_fields)
            first = "kind" if "kind" in names else next(iter(names), "KEY")
            return f"expected a section, such as {'.'.join(shorten(str(key)) for key in (*keys, first))}=…"
        case _:
            return error["msg"][0].lower() + error["msg"][1:]


def _source(keys: Sequence[_Key], layers: Sequence[Layer]) -> str:
    """The last layer that sets a key; the last file if none does."""
    for layer in reversed(layers):
        if keys and _has(layer.tree, keys):
            return layer.name
    files = [layer.name for layer in layers if layer.name != COMMAND_LINE]
    return files[-1] if files else COMMAND_LINE


def _discriminator(error: ErrorDetails) -> str:
    return str(error["ctx"]["discriminator"]).strip("'")


def _keys_of_file(location: Sequence[_Key], tree: Any) -> list[_Key]:
    """The keys that lead to an error. pydantic's location also has the names of union members and `[key]`."""
    keys: list[_Key] = []
    for part in location:
        is_union_member = (isinstance(tree, dict) and part not in tree and _kind(tree)[1] == part) or (
            part in FIGURE_TAGS and not (isinstance(tree, dict) and part in tree)
        )
        if not is_union_member and part != "[key]":  # [key]: the key itself is invalid, not its value
            keys.append(part)
            tree = _child(tree, part)
    return keys


def _kind(tree: Any) -> tuple[str, Any]:
    """The key that selects the member of a union, `kind` in sections and `unit` in networks, and its value."""
    if isinstance(tree, dict):
        for key in ("kind", "unit"):
            if key in tree:
                return key, tree[key]
    return "kind", None


def _child(tree: Any, key: _Key) -> Any:
    if isinstance(tree, dict) and key not in tree:  # in the JSON that was validated, every key is text
        key = next((name for name in tree if not isinstance(name, str) and json.dumps(name) == key), key)
    try:
        return tree[key]
    except (KeyError, IndexError, TypeError):
        return _MISSING


def _has(tree: Any, keys: Sequence[_Key]) -> bool:
    for key in keys:
        tree = _child(tree, key)
    return tree is not _MISSING


def _explain_extra(keys: Sequence[_Key], model: type[BaseModel], tree: Any) -> str:
    """Why an extra key is refused: it belongs to another kind of the section, or it is unknown."""
    sections = _sections(keys[:-1], model)
    for key in keys[:-1]:
        tree = tree[key]
    extra, (discriminator, kind) = str(keys[-1]), _kind(tree)
    kind = shorten(kind) if isinstance(kind, str) else kind
    if kind is None:
        candidates = sections
    elif any(extra in section.model_fields for section in sections):
        return f"has no effect with {discriminator} {kind}: remove it"
    else:
        candidates = [section for section in sections if _is_of_kind(section, discriminator, kind)]
    valid = [name for section in candidates for name in section.model_fields]
    nearest = difflib.get_close_matches(extra, valid, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key; did you mean {nearest[0]}?"
    return f"unknown key; valid keys are {', '.join(valid)}"


def _sections(keys: Sequence[_Key], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that may stand at these keys."""
    sections = [model]
    for key in keys:
        fields = [section.model_fields.get(str(key)) for section in sections]
        nested = [model for field in fields if field is not None for model in models_in(field.annotation)]
        sections = nested or sections  # an index into a list stays in the sections of its items
    return sections


def _is_of_kind(section: type[BaseModel], discriminator: str, kind: Any) -> bool:
    field = section.model_fields.get(discriminator)
    return field is None or kind in get_args(field.annotation)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a type annotation names, such as the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
