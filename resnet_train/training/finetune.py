"""Fine-tuning: start from the weights of another training, with a new head if the classes differ."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.config.network import KEYS_OF_TRAINING, NetConfig, VGGConfig, canonical_fields
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput
from resnet_train.evaluation import pretrained
from resnet_train.evaluation.weights import find_network, head_name, read_tensors
from resnet_train.models.network import build_network, find_difference
from resnet_train.runs.run_folder import folder_of
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import World
from resnet_train.training.step import TrainState

logger = logging.getLogger(__name__)

_INITIAL = {key: NetConfig.model_fields[key].default for key in ("init", "zero_init_residual")}
"""Fields of a network that say what its weights are at first, and their defaults."""


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
    """Load the weights of a checkpoint or of another program's file into a new state and its average. For every rank.

    The head stays as initialised if the number of classes differs. Raises `BadInput` if anything else does not fit.
    """
    weights, note = distributed.main_first(world, lambda: _read_fitting_weights(source, network, state.net))
    if note is not None and world.is_main:
        logger.info("%s", note)
    without_effect = [key for key in _INITIAL if getattr(network, key, None) != _INITIAL[key]]
    if isinstance(network, NetConfig) and without_effect and world.is_main:
        logger.warning(
            "%s of %s: no effect, the weights are those of %s", ", ".join(without_effect), network.name, source
        )
    for net in (state.net, state.ema):
        if net is not None:
            net.load_state_dict(weights, strict=False)


def _read_fitting_weights(
    source: str, network: NetConfig | VGGConfig, net: nn.Module
) -> tuple[dict[str, Tensor], str | None]:
    """The weights of a file that fit `net`; and, if the head is left out, a note for the user. Raises `BadInput`."""
    prefix = f"train.init_from={source} does not fit {network.name}"
    expected: dict[str, Tensor] = net.state_dict()
    weights, their_function = _read_weights(source, network, expected, prefix)
    our_function = _trained_function(network)
    for key in our_function | their_function:
        theirs, ours = their_function.get(key), our_function.get(key)
        if theirs != ours:
            raise BadInput(f"{prefix}: {key} is {theirs} there and {ours} here: use the same network")

    note = None
    head = head_name(expected)
    bias, classes = weights.get(f"{head}.bias"), len(expected[f"{head}.bias"])
    if bias is None or bias.shape != (classes,):
        weights, expected = _without(weights, head), _without(expected, head)
        given = "no linear head" if bias is None else f"{bias.numel()} classes, not {classes}"
        note = f"{source} has {given}: the head starts anew"
    difference = find_difference(expected, weights)
    if difference is not None:
        raise BadInput(f"{prefix}: {difference}: use the same network")
    return weights, note


def _without(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{module}.")}


def _read_weights(
    source: str, network: NetConfig | VGGConfig, expected: Mapping[str, Tensor], prefix: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a file with the names of `expected`, and the function of the network that they are of."""
    tensors = read_tensors(Path(source))
    if tensors is None:
        model = pretrained.load(source)
        return dict(model.network.state_dict()), _trained_function(model.run.network)
    # Weights do not tell where a bottleneck has its stride. torchvision's and timm's have it on the 3x3 convolution.
    stride = {"stride_on": "3x3"} if getattr(network, "stride_on", None) else {}
    return find_network(tensors, expected, prefix), _trained_function(network) | stride


def _trained_function(network: NetConfig | VGGConfig) -> dict[str, Any]:
    """The fields of a network that decide what it computes once it is trained."""
    return {key: value for key, value in canonical_fields(network).items() if key not in KEYS_OF_TRAINING}
