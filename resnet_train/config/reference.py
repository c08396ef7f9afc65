"""The schema for editors and for readers: JSON Schema, and the text of docs/config.md."""

from collections.abc import Iterator
from typing import Any

from resnet_train.config import zoo
from resnet_train.config.schema import Experiment
from resnet_train.config.yaml12 import Tree

_BASE = {"type": "string", "description": "Name of the network of the zoo that this one starts from."}
_BASE_FILE = "A file, beside this one, or the name of a shipped experiment, whose keys this file inherits."
_TITLE = """# Configuration

Every key of an experiment file. `resnet-train schema --markdown` generates this page from the schema;
`configs/schema.json` is the same for editors. [Recipes](recipes.md) explains how to write an experiment.

A key without effect is an error. On the command line a nested key is written with dots: `train.epochs=5`. `null` resets
a key to its default.
"""
_DURATIONS = """## Durations

A duration is a mapping with exactly one of these keys, such as `{epochs: 1}`. On the command line:
`eval.every.steps=500`.
"""
_FIGURES = "## Figures"
_SHARED = {"Duration": "duration", "FigureConfig": "figure"}
"""Sections that several keys hold. Each is described once, under the plural of this word."""
_ZOO = """### Names of networks

`networks` lists names, or mappings that change a named network: `{base: resnet-34, name: narrow-34, widths: [32, 64,
128, 256]}`. A mapping without `base` gives every required key.
"""


def json_schema() -> Tree:
    """The JSON Schema of an experiment file.

    It has the keys that `load` resolves before validation: `base` in a file, names and `base` in `networks`.
    """
    schema = Experiment.model_json_schema()
    networks = ("NetConfig", "VGGConfig")
    for definition in (schema["$defs"][name] for name in networks):
        definition["properties"] = {"base": _BASE, **definition["properties"]}
        definition["required"] = []  # `base` can provide any of them
    references = [{"$ref": f"#/$defs/{name}"} for name in networks]
    schema["properties"]["networks"]["items"] = {"anyOf": [{"type": "string"}, *references]}
    schema["properties"]["base"] = {"type": "string", "description": _BASE_FILE}
    schema["required"] = []  # the file of `base` can provide any of them
    return schema


def markdown() -> str:
    """docs/config.md: a table of keys for each section, durations, and the names of networks."""
    schema = Experiment.model_json_schema()
    definitions: Tree = schema["$defs"]
    base = {"description": _BASE_FILE, "type": "string", "default": None}
    top = schema | {"properties": {"base": base, **schema["properties"]}}
    blocks = [_TITLE, "## Top level", _table("", [top], definitions)]
    blocks += [_DURATIONS, _table("", [definitions["Duration"]], definitions)]
    figure = definitions["FigureConfig"]
    blocks += [_FIGURES, figure["description"], _table("", [figure], definitions)]
    for path, variants in _sections("", [schema], definitions):
        blocks += _section(path, variants, definitions)
        if path == "networks":
            _, _, tables = str(zoo.__doc__).partition("\n\n")
            blocks += [_ZOO, tables]
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def _sections(prefix: str, variants: list[Tree], definitions: Tree) -> Iterator[tuple[str, list[Tree]]]:
    """Each nested section: the path of its key, and its variants, one for each of its classes."""
    for key, field in _fields(variants).items():
        nested = [definitions[name] for name in _references(field) if name not in _SHARED]
        if nested:
            yield prefix + key, nested
            yield from _sections(f"{prefix}{key}.", nested, definitions)


def _section(path: str, variants: list[Tree], definitions: Tree) -> list[str]:
    """Heading, description and table of a section.

    A section with variants has a table of the keys that all of them have, then one for each group with the same others.
    """
    level = "##" if "." not in path else "###"
    if len(variants) == 1:
        return [f"{level} {path}", variants[0]["description"], _table(f"{path}.", variants, definitions)]
    kind_key = "unit" if path == "networks" else "kind"
    shared = [key for key in variants[0]["properties"] if all(key in variant["properties"] for variant in variants)]
    blocks = [f"{level} {path}", _table(f"{path}.", variants, definitions, shared, kind_key)]
    groups: dict[str, list[Tree]] = {}
    for variant in variants:
        own_fields = {key: field for key, field in variant["properties"].items() if key not in shared}
        groups.setdefault(repr(own_fields), []).append(variant)
    for group in groups.values():
        kinds = [kind for variant in group for kind in _choices(variant["properties"][kind_key])]
        blocks.append(f"{level}# {path}: {', '.join(kinds)}")
        blocks += [f"{_code(_choices(variant['properties'][kind_key]))}: {variant['description']}" for variant in group]
        keys = [key for key in group[0]["properties"] if key not in shared or _is_kind_with_choices(group, key)]
        if keys:
            blocks.append(_table(f"{path}.", group[:1], definitions, keys))
    return blocks


def _is_kind_with_choices(group: list[Tree], key: str) -> bool:
    """Whether this key is the kind of a single variant with several kinds, which the key's description explains."""
    return key in ("kind", "unit") and len(group) == 1 and len(_choices(group[0]["properties"][key])) > 1


def _table(
    prefix: str, variants: list[Tree], definitions: Tree, keys: list[str] | None = None, kind_key: str = ""
) -> str:
    rows = ["| key | type | default | description |", "| --- | --- | --- | --- |"]
    fields = _fields(variants)
    for key in fields if keys is None else keys:
        field, required = fields[key], key in variants[0].get("required", ())
        if key == kind_key:
            choices = [kind for variant in variants for kind in _choices(variant["properties"][key])]
            field = {"enum": choices, "description": "Decides which other keys the section has."}
        default = "required" if required else _default(field)
        description = " ".join(field["description"].split())
        rows.append(f"| `{key}` | {_type(f'{prefix}{key}', field, definitions)} | {default} | {description} |")
    return "\n".join(rows)


def _fields(variants: list[Tree]) -> Tree:
    """The keys of all variants."""
    return {key: field for variant in variants for key, field in variant["properties"].items()}


def _references(field: Any) -> list[str]:
    """The definitions that a field refers to, in order, each once."""
    if isinstance(field, dict):
        if "$ref" in field:
            return [field["$ref"].rpartition("/")[2]]
        parts = [part for key, part in field.items() if key != "discriminator"]
    else:
        parts = field if isinstance(field, list) else []
    return list(dict.fromkeys(name for part in parts for name in _references(part)))


def _type(path: str, field: Tree, definitions: Tree) -> str:
    references = _references(field)
    if len(references) == 1 and references[0] in _SHARED:
        word = _SHARED[references[0]]
        if field.get("type") == "array":
            return f"list of [{word}s](#{word}s)"
        return f"[{word}](#{word}s)" if word == "duration" else f"mapping to [{word}s](#{word}s)"
    if references:
        return f"list of [{path}](#{path})" if field.get("type") == "array" else f"[{path}](#{path.replace('.', '')})"
    choices = _choices(field)
    if choices:
        return _code(choices)
    if "anyOf" in field:  # a type or null
        return _type(path, next(part for part in field["anyOf"] if part != {"type": "null"}), definitions)
    match field["type"]:
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case "array" if "prefixItems" in field:
            return f"list of {len(field['prefixItems'])} {_number(field['prefixItems'][0], 's')}"
        case "array":
            return f"list of {_number(field['items'], 's')}"
        case "object":
            return "mapping"
        case _:
            return _number(field, "")


def _number(field: Tree, plural: str) -> str:
    """Such as `integer ≥ 1`."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[key]:g}" for key, sign in signs.items() if field.get(key, 2**53) < 2**53]
    return " ".join([f"{field['type']}{plural}", ", ".join(bounds)]).strip()


def _choices(field: Tree) -> list[Any]:
    return [field["const"]] if "const" in field else list(field.get("enum", ()))


def _code(values: list[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _default(field: Tree) -> str:
    """The default as YAML; nothing for a key that is not set, or for a section, whose keys have their own defaults."""
    default = field.get("default")
    if isinstance(default, dict):
        default = {key: value for key, value in default.items() if value is not None}
        if not default or set(default) - {"epochs", "steps", "fraction"}:
            return ""
    return "" if default is None or default == [] else f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case list():
            return f"[{', '.join(map(_yaml, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_yaml(part)}' for key, part in value.items())}}}"
        case _:
            return str(value)
