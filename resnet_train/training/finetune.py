"""Fine-tuning: start from the weights of another training, with a new head if the classes differ."""

import logging
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

logger = logging.getLogger(__name__)


def check_init_from(runs: Iterable[Run], output: str, fresh: bool) -> None:
    """Raise `BadInput` if a run's `train.init_from` does not fit its network. For all runs before the first trains.

    A run that has begun needs the file no more, unless it is to start `fresh`.
    """
    for run in runs:
        has_begun = not fresh and any(folder_of(output, run).glob("checkpoints/*.pt"))
        if run.train.init_from is not None and not has_begun:
            with torch.device("meta"):
                # The number of classes is not known before the data is opened; a head of another size is no error.
                net = build_network(run.network, classes=2, channels=1 if run.data.grey else 3)
            _read_fitting_weights(run.train.init_from, run.network, net)


def load_initial_weights(source: str, network: NetConfig | VGGConfig, state: TrainState, world: World) -> None:
    """Load the weights of a checkpoint or of a torchvision file into a new state and its average. For every rank.

    The head stays as initialised if the number of classes differs. Raises `BadInput` if anything else does not fit.
    """
    weights, note = distributed.main_first(world, lambda: _read_fitting_weights(source, network, state.net))
    if note is not None and world.is_main:
        logger.info("%s", note)
    for net in (state.net, state.ema):
        if net is not None:
            net.load_state_dict(weights, strict=False)


def _read_fitting_weights(
    source: str, network: NetConfig | VGGConfig, net: nn.Module
) -> tuple[dict[str, Tensor], str | None]:
    """The weights of a file that fit `net`; and, if the head is left out, a note for the user. Raises `BadInput`."""
    prefix = f"train.init_from={source} does not fit {network.name}"
    weights, their_function = _read_weights(source, network)
    our_function = _trained_function(network)
    for key in our_function | their_function:
        theirs, ours = their_function.get(key), our_function.get(key)
        if theirs != ours:
            raise BadInput(f"{prefix}: {key} is {theirs} there and {ours} here: use the same network")

    expected: dict[str, Tensor] = net.state_dict()
    note = None
    head = next(reversed(expected)).removesuffix(".bias")  # the last layer
    classes = [len(tensors[f"{head}.bias"]) for tensors in (weights, expected) if f"{head}.bias" in tensors]
    if len(set(classes)) == 2:
        weights, expected = _without(weights, head), _without(expected, head)
        note = f"{source} has {classes[0]} classes, not {classes[1]}: the head starts anew"
    for key in expected | weights:
        theirs, ours = _describe_shape(weights.get(key)), _describe_shape(expected.get(key))
        is_old_file = key not in weights and key.endswith("num_batches_tracked")
        if theirs != ours and not is_old_file:
            raise BadInput(f"{prefix}: {key} is {theirs} there and {ours} here: use the same network")
    return weights, note


def _without(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{module}.")}


def _describe_shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {list(tensor.shape)}"


def _read_weights(source: str, network: NetConfig | VGGConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file, and the function of the network that they are of."""
    try:
        weights = read_state_dict(Path(source))
    except BadInput:  # not a bare state dict: a checkpoint, or `load` raises
        model = pretrained.load(source)
        return dict(model.network.state_dict()), _trained_function(model.run.network)
    # A state dict does not tell where a bottleneck has its stride. torchvision's have it on the 3x3 convolution.
    stride = {"stride_on": "3x3"} if getattr(network, "stride_on", None) else {}
    return weights, _trained_function(network) | stride


def _trained_function(network: NetConfig | VGGConfig) -> dict[str, Any]:
    """The fields of a network that decide what it computes once it is trained."""
    return {key: value for key, value in canonical_fields(network).items() if key != "dropout"}
