"""Read and write YAML with the scalars of YAML 1.2.

PyYAML implements YAML 1.1, which reads `1e-4` as a string, `no` and `off` as false, and `017` as fifteen. In a
configuration these are a number, two words and seventeen, so the rules that recognise a plain scalar are replaced here.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from resnet_train.errors import BadInput

Tree = dict[str, Any]
"""A mapping of a YAML file: keys to scalars, lists and mappings."""


def read_yaml(path: Path) -> Tree:
    """The mapping in a YAML file. Raises `BadInput`; an error of syntax names line and column."""
    try:
        text = path.read_text()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"cannot read {path}: not a text file") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else type(tree).__name__
        raise BadInput(f"{path}: expected `key: value` lines, found {kind}")
    return tree


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text. `source` names the text in an error message. Raises `BadInput`."""
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
        json.dumps(value, default=str)  # fails for a value that contains itself through an alias
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise BadInput(f"{source}{position}: {problem}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # such as `!!int x`
        raise BadInput(f"{source}: not an experiment: {error}") from None
    return value


def to_yaml(tree: Tree) -> str:
    """The text of a YAML file that `read_yaml` reads back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2. A key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper. It quotes a string that `_Loader` would read as something else."""


# How a plain scalar is recognised: its tag, its form, and the characters that it can begin with.
_SCALARS = (
    ("tag:yaml.org,2002:bool", r"true|false", "tf"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        "-+.0123456789",
    ),
)
# `null` and the merge key `<<` are the same in both versions. A scalar that matches no rule is a string.
_KEPT_TAGS = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")

_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag in _KEPT_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _form, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), list(_first))
# PyYAML's own constructor reads a leading zero as octal.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
