"""Weights of other programs: state dicts of torchvision, timm and others, alone or in a checkpoint, and safetensors."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from resnet_train.errors import BadInput
from resnet_train.runs.run_folder import check_checkpoint_exists
from resnet_train.runs.torch_file import read_torch_file

logger = logging.getLogger(__name__)

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""What torch.compile, activation checkpoints and FSDP add to names, at any depth."""
_PREFERRED = tuple(re.compile(rf"(?<![a-z0-9]){word}(?![a-z0-9])", re.I) for word in ("ema", "encoder_q", "teacher"))
"""Of several networks in a file the one whose name holds the first of these, as a whole word: the average of the
weights, MoCo's encoder that is trained, DINO's that is evaluated."""
_DEEPEST = 100
"""Dots in a name."""


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """All tensors of a file by name; None if the file is this program's and so knows its network. Raises `BadInput`.

    Names of nested mappings are joined by dots, as in `state_dict.module.conv1.weight`.
    """
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        return None if "network" in metadata else _flatten(weights)
    content = read_torch_file(path, any_class=True)
    if isinstance(content, dict) and "format" in content and "run" in content:
        return None
    tensors = _flatten(content)
    if not tensors:
        raise BadInput(f"{path} holds no tensors by name: save the state_dict() of the network")
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights and the metadata of a safetensors file. Raises `BadInput`."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise BadInput(f"{path} needs safetensors: pip install 'resnet-train[export]'") from None
    check_checkpoint_exists(path)  # safetensors would wait for a pipe
    try:
        with safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is not a dict
            return weights, file.metadata() or {}
    except Exception as error:  # some types of other programs have no name in torch
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise BadInput(f"{path} is not a safetensors file, or is damaged: {reason}") from None


def find_network(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights of one network among the tensors of a file, with the names of `expected`, its state dict.

    Its names may have any prefix, and its last layer another name. Of a head that is not one linear layer nothing is
    returned. Raises `BadInput`, which begins with `source`, if the other layers are incomplete or have further tensors.
    """
    head = head_name(expected)
    body = [key for key in expected if not key.startswith(f"{head}.") and not key.endswith("num_batches_tracked")]
    prefix = _find_prefix(tensors, body, source)
    own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    modules = {key.partition(".")[0] for key in body}
    for key in sorted(own.keys() - expected.keys()):
        if key.partition(".")[0] in modules:
            raise BadInput(f"{source}: weight {ascii(prefix + key)[1:-1][:100]} has no place in it")
    weights = {key: own[key] for key in expected if key in own}
    if f"{head}.weight" not in weights:
        rest = sorted(own.keys() - expected.keys())
        heads = [key.removesuffix(".weight") for key in rest if key.endswith(".weight") and own[key].dim() == 2]
        if len(heads) == 1 and f"{heads[0]}.bias" in rest:
            logger.info("%s: %s is its last layer", source, heads[0])
            weights |= {f"{head}.{part}": own[f"{heads[0]}.{part}"] for part in ("weight", "bias")}
    return weights


def head_name(expected: Mapping[str, Tensor]) -> str:
    """The name of the last layer of a network with this state dict."""
    return next(reversed([*expected])).rpartition(".")[0]


def _find_prefix(tensors: Mapping[str, Tensor], body: list[str], source: str) -> str:
    """What stands before the names of all layers in `body`."""
    first = body[0]
    prefixes = [key.removesuffix(first) for key in tensors if key == first or key.endswith(f".{first}")]
    complete = [prefix for prefix in prefixes if all(prefix + key in tensors for key in body)]
    if not complete:
        missing = {prefix: [key for key in body if prefix + key not in tensors] for prefix in prefixes or [""]}
        prefix = min(missing, key=lambda prefix: len(missing[prefix]))
        raise BadInput(f"{source}: weight {ascii(prefix)[1:-1][:100]}{missing[prefix][0]} is missing")
    for word in _PREFERRED:
        preferred = [prefix for prefix in complete if word.search(prefix)]
        if len(complete) > 1 and len(preferred) == 1:
            logger.info("%s: %s is read, of %s", source, preferred[0], ", ".join(complete))
            return preferred[0]
    if len(complete) > 1:
        raise BadInput(f"{source}: several networks are in it, {', '.join(complete)[:200]}: save the state dict of one")
    return complete[0]


def _flatten(content: object) -> dict[str, Tensor]:
    """The tensors of nested mappings, each mapping visited once."""
    tensors, visited = dict[str, Tensor](), set[int]()
    pending = [("", content)]
    while pending:
        prefix, mapping = pending.pop()
        is_deep = prefix.count(".") > _DEEPEST
        if not isinstance(mapping, dict) or id(mapping) in visited or is_deep:
            continue
        visited.add(id(mapping))
        for key, value in mapping.items():
            name = ".".join(part for part in f"{prefix}{key}".split(".") if part not in _WRAPPERS)
            if isinstance(value, Tensor):
                tensors[name] = value
            else:
                pending.append((f"{name}.", value))
    return tensors
