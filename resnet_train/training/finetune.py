"""Where fine-tuning begins: the weights of another training, with a head for other classes."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.config.network import NetConfig, VGGConfig, canonical_fields
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput
from resnet_train.evaluation import pretrained
from resnet_train.evaluation.weights import read_state_dict
from resnet_train.models.network import build_network
from resnet_train.runs.run_folder import folder_of
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import World
from resnet_train.training.step import TrainState


def check_init_from(runs: Iterable[Run], output: str, fresh: bool) -> None:
    """Raise `BadInput` where a run that is yet to begin could not: before hours are spent on those before it."""
    for run in runs:
        begun = not fresh and any(folder_of(output, run).glob("checkpoints/*.pt"))
        if run.train.init_from is not None and not begun:
            with torch.device("meta"):
                net = build_network(
                    run.network, classes=2, channels=1 if run.data.grey else 3
                )  # the head may be another
            _fitting(run.train.init_from, run.network, net, speaks=False)


def load_initial_weights(source: str, network: NetConfig | VGGConfig, state: TrainState, world: World) -> None:
    """Put the weights of a checkpoint, or of torchvision's file, into a new state and its average. For every rank.

    The head stays new where the number of classes differs. Raises `BadInput` where anything else does not fit.
    """
    weights = distributed.main_first(world, lambda: _fitting(source, network, state.net, world.is_main))
    for net in (state.net, state.ema):
        if net is not None:
            net.load_state_dict(weights, strict=False)


def _fitting(source: str, network: NetConfig | VGGConfig, net: nn.Module, speaks: bool) -> dict[str, Tensor]:
    weights, theirs = _read(source, network)
    prefix, ours = f"train.init_from={source} does not fit {network.name}", _function(network)
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise BadInput(f"{prefix}: {key} is {theirs.get(key)} there and {ours.get(key)} here: use the same network")
    wanted = net.state_dict()
    head = next(reversed(wanted)).removesuffix(".bias")  # the last layer
    classes = [len(tensors[f"{head}.bias"]) for tensors in (weights, wanted) if f"{head}.bias" in tensors]
    if len(set(classes)) == 2:
        weights = {key: value for key, value in weights.items() if not key.startswith(f"{head}.")}
        wanted = {key: value for key, value in wanted.items() if not key.startswith(f"{head}.")}
        if speaks:
            print(f"note: {source} has {classes[0]} classes, not {classes[1]}: the head starts anew", file=sys.stderr)
    for key in wanted | weights:
        there, here = (list(tensors[key].shape) if key in tensors else None for tensors in (weights, wanted))
        if there != here and not (there is None and key.endswith("num_batches_tracked")):  # old files have none
            told = (f"of shape {shape}" if shape is not None else "missing" for shape in (there, here))
            raise BadInput(f"{prefix}: {key} is {' there and '.join(told)} here: use the same network")
    return weights


def _read(source: str, network: NetConfig | VGGConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, and what the network that they are of computes."""
    try:
        weights = read_state_dict(Path(source))
    except BadInput:  # a checkpoint, or `load` says what it is
        member = pretrained.load(source)
        return dict(member.network.state_dict()), _function(member.run.network)
    halves = {"stride_on": "3x3"} if getattr(network, "stride_on", None) else {}
    return weights, _function(network) | halves


def _function(network: NetConfig | VGGConfig) -> dict[str, Any]:
    """What a network computes once it is trained."""
    return {key: value for key, value in canonical_fields(network).items() if key != "dropout"}
