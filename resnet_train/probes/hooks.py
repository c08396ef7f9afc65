"""What the probes share: a copy of the network to measure, and hooks that record tensors in its forward pass.

A probe measures a copy, draws no random numbers and takes gradients from autograd alone. So weights, running
statistics, `.grad` and random number generators are bit for bit what they were before.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from resnet_train.errors import BadInput
from resnet_train.models.batch_norm import revert_sync_batchnorm
from resnet_train.models.network import Network

ProbeResult = dict[str, dict[str, float | None]]
"""What is measured -> unit or layer, in order of depth -> value. None: not finite, or not defined at this depth."""


def copy_network(net: nn.Module) -> nn.Module:
    """A copy without gradients, whose batch norm does not wait for other ranks."""
    copied = revert_sync_batchnorm(copy.deepcopy(net))
    for parameter in copied.parameters():
        parameter.grad = None
        parameter.requires_grad_()  # it is off in an average of the weights
    return copied


def copy_with_units(net: nn.Module) -> Network:
    """The same of a plain or residual network. Raises `BadInput` for a VGG, which has no units."""
    copied = copy_network(net)
    if not isinstance(copied, Network):
        raise BadInput("a VGG has no units to probe: give plain and residual networks, or probe its responses")
    return copied


def use_batch_statistics(net: nn.Module) -> None:
    """Evaluation mode (no dropout), except for batch norm: running statistics mean little early in training."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()


@contextmanager
def recorded_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Within the block the first input of each module is recorded, in order of the forward pass.

    Each is a tensor of its own for autograd: its gradient is what comes back through this module alone, even where
    other modules read the same tensor.
    """
    inputs: dict[str, Tensor] = {}

    def record(name: str, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        if name in inputs:  # a unit's ReLU is called more than once; the first call is the one before F
            return args
        inputs[name] = args[0].view_as(args[0])
        return (inputs[name],)

    handles = [module.register_forward_pre_hook(partial(record, name)) for name, module in modules.items()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def finite(value: Tensor) -> float | None:
    """A scalar as a number, None where it is not finite."""
    number = value.item()
    return number if math.isfinite(number) else None
