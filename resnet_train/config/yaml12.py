"""Read and write YAML with the scalars of YAML 1.2.

PyYAML implements YAML 1.1, which reads `1e-4` as a string, `no` and `off` as false, and `017` as fifteen. In a
configuration these are a number, two words and seventeen, so the rules that recognise a plain scalar are replaced here.
"""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from resnet_train.errors import BadInput, shorten
from resnet_train.runtime.regular_file import read_text

Tree = dict[str, Any]
"""A mapping of a YAML file: keys to scalars, lists and mappings."""


_FILE_LIMIT = 1 << 18
"""Bytes of the largest file that is read."""
_VALUE_LIMIT = 100_000
"""Values of the largest text, where an alias counts as all that it stands for."""
DEPTH_LIMIT = 32
"""Mappings and lists within each other."""


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file. Raises `BadInput`; an error of syntax names line and column."""
    tree = parse_yaml(read_text(path, _FILE_LIMIT), str(path))
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else type(tree).__name__
        raise BadInput(f"{path}: expected `key: value` lines, found {kind}")
    return tree


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text: what JSON can hold. `source` names the text in an error message. Raises `BadInput`."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        raise BadInput(f"{source}{position}: {shorten(problem)}") from None
    except RecursionError:
        raise BadInput(f"{source}: {_TOO_DEEP}") from None


def to_yaml(tree: Tree) -> str:
    """The text of a YAML file that `read_yaml` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


_TOO_DEEP = f"more than {DEPTH_LIMIT} mappings and lists within each other"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2. A key that is given twice is an error, and so is a text of
    endless or excessive size."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _check_size(node, 0, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key is a word or a number", key)
            if key.value in keys:
                raise _error(f"key {shorten(key.value)!r} is given twice", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _check_size(node: yaml.Node, depth: int, sizes: dict[yaml.Node, int | None]) -> int:
    """The number of values that a node stands for. Raises an error of YAML if it holds itself or is too large.

    sizes: of the nodes so far; None while a node is looked into.
    """
    size = sizes.setdefault(node, None)
    if size is None:
        if depth > DEPTH_LIMIT:
            raise _error(_TOO_DEEP, node)
        children = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else ()
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        if any(part in sizes and sizes[part] is None for part in parts):
            raise _error("an alias stands for a value that it is in", node)
        size = 1 + sum(_check_size(part, depth + 1, sizes) for part in parts)
        if size > _VALUE_LIMIT:
            raise _error(f"more than {_VALUE_LIMIT:,} values, those of aliases included", node)
        sizes[node] = size
    return size


def _error(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper. It quotes a string that `_Loader` would read as something else."""


def _bool(text: str) -> bool:
    return text == "true"


def _text(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):  # control characters, surrogates
        raise ValueError
    return text


# Of each type its tag, the form of a plain scalar that has it, the characters that it can begin with, and its value.
_SCALARS: tuple[tuple[str, str, str, Callable[[str], Any]], ...] = (
    ("bool", r"true|false", "tf", _bool),
    ("int", r"[-+]?[0-9]{1,4000}", "-+0123456789", int),  # PyYAML's own reads a leading zero as octal
    (
        "float",
        r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
    ("str", r"(?s:.*)", "", _text),  # a plain scalar that has no other form
)
# `null` and the merge key `<<` are the same in both versions.
_KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


def _constructor(name: str, form: str, value_of: Callable[[str], Any]) -> Callable[[_Loader, yaml.Node], Any]:
    """What makes the value of a scalar. With a tag of the user's, such as `!!bool x`, it need not have the form."""

    def construct(_: _Loader, node: yaml.Node) -> Any:
        try:
            if not isinstance(node, yaml.ScalarNode) or not re.fullmatch(form, node.value):
                raise ValueError
            return value_of(node.value)
        except ValueError:
            raise _error(f"{shorten(repr(node.value))} is not valid as {name}", node) from None

    return construct


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag in _KEPT_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Other tags, such as `!!binary` and `!!set`, have no constructor.
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (None, *(f"tag:yaml.org,2002:{name}" for name in ("null", "seq", "map")))
}
for _name, _form, _first, _value_of in _SCALARS:
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _constructor(_name, _form, _value_of))
    if _first:
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_form})$"), list(_first))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
