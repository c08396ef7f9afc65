"""Responses by depth: how much each layer changes its signal (He et al. 2015, section 4.2, figure 7)."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from resnet_train.models.network import Network
from resnet_train.probes.hooks import ProbeResult, copy_network, finite, use_batch_statistics


def response_deviations(net: nn.Module, images: Tensor) -> ProbeResult:
    """Standard deviation of the response of each 3x3 convolution (`layers`).

    The response is taken after batch norm, before ReLU and addition; of the convolution itself where no batch norm
    follows it. Batch statistics, no dropout. images: normalised, [n, C, H, W]. It works for a VGG too.
    """
    copied = copy_network(net)
    use_batch_statistics(copied)
    deviations: dict[str, Tensor] = {}

    def record(name: str, _: nn.Module, __: tuple[Tensor], output: Tensor) -> None:
        deviations[name] = output.float().std()  # at once: the ReLU that follows may overwrite the output

    for name, module in _responding_modules(copied):
        module.register_forward_hook(partial(record, name))
    with torch.no_grad():
        copied(images)
    return {"layers": {name: finite(deviation) for name, deviation in deviations.items()}}


def _responding_modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The name of each 3x3 convolution, and the module whose output is its response."""
    for sequence in _layer_sequences(net):
        for (name, module), (_, following) in itertools.pairwise([*sequence, ("", None)]):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                yield name, following if isinstance(following, nn.BatchNorm2d) else module


def _layer_sequences(net: nn.Module) -> list[list[tuple[str, nn.Module]]]:
    """Names and modules in the order in which they are called: of the stem and of each unit's F; of a VGG, of all."""
    if not isinstance(net, Network):
        return [[(f"features.{name}", module) for name, module in net.get_submodule("features").named_children()]]
    stem = [(f"conv1.{name}", module) for name, module in net.conv1.named_children()] or [("conv1", net.conv1)]
    sequences: list[list[tuple[str, nn.Module]]] = [[*stem, ("bn1", net.bn1)]]
    for name, unit in net.units().items():
        sequences.append([(f"{name}.{layer}", unit.get_submodule(layer)) for layer in unit.residual])
    return sequences
