"""Parameters, multiply-adds and activations of a network, counted in one forward pass of no image.

The weights are on the meta device. What is computed is not: there most operators import torch's compiler, which takes
longer than torch itself. So layers with weights only give the shape of their output, and the others have nothing to do.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_train.config.network import AnyNet, NetConfig
from resnet_train.errors import BadInput, one_line
from resnet_train.models.blocks import ScalarBias, SkipInit
from resnet_train.models.network import build_network

_STEM = ("conv1", "bn1", "relu", "maxpool")
_HEAD = ("bn_last", "relu_last", "fc", "avgpool", "classifier")


@dataclass(frozen=True)
class Complexity:
    """What a network, or a stage of it, costs for one image."""

    params: int
    """Weights and biases, shortcuts and batch norms included."""
    macs: int
    """Multiply-adds of the convolutions and the head: the "FLOPs" of He et al. 2015, table 1."""
    activations: int
    """Elements of the outputs of all convolutions (Radosavovic et al. 2020, section 3)."""


@dataclass(frozen=True)
class Stage:
    """One row of a network's stage table."""

    name: str
    units: int
    """Units of the stage; 0 for the stem and the head."""
    shape: tuple[int, ...]
    """Of the output for one image: (channels, height, width), or (classes,)."""
    complexity: Complexity


def stage_table(cfg: AnyNet, size: int, classes: int, channels: int = 3) -> list[Stage]:
    """The stem, each stage and the head, for images of `size` x `size` pixels. Raises `BadInput` if it takes none."""
    with torch.device("meta"):
        net = build_network(cfg, classes, channels).eval()
    params, macs, activations = Counter[str](), Counter[str](), Counter[str]()  # by stage
    shapes: dict[str, tuple[int, ...]] = {}

    def count_outputs(stage: str, module: nn.Module, _: object, output: Tensor) -> None:
        shapes[stage] = tuple(output.shape[1:])  # the last module's stays
        elements = math.prod(shapes[stage])
        if isinstance(module, nn.Conv2d):
            macs[stage] += elements * (module.in_channels // module.groups * math.prod(module.kernel_size))
            activations[stage] += elements
        elif isinstance(module, nn.Linear):
            macs[stage] += elements * module.in_features

    for name, module in net.named_modules():
        if name:
            stage = _stage_name(name)
            params[stage] += sum(p.numel() for p in module.parameters(recurse=False))
            module.register_forward_hook(partial(count_outputs, stage))
        if any(True for _ in module.parameters(recurse=False)):
            module.forward = partial(_output_shape, module)
    try:
        with torch.no_grad():
            net(torch.empty(0, channels, size, size))
    except RuntimeError as error:  # too small, or larger than numbers of 64 bits can count
        raise BadInput(f"{cfg.name} does not take images of {size} x {size} pixels: {one_line(str(error))}") from None
    depths = cfg.depths if isinstance(cfg, NetConfig) else ()
    units = {f"layer{i}": depth for i, depth in enumerate(depths, 1)}
    return [
        Stage(name, units.get(name, 0), shapes[name], Complexity(params[name], macs[name], activations[name]))
        for name in params
    ]


def _output_shape(layer: nn.Module, x: Tensor) -> Tensor:
    """A tensor [0, …] of the shape that a layer with weights gives for x [0, …]."""
    if isinstance(layer, nn.Conv2d):
        window = torch.empty(1, 1, *layer.kernel_size)
        channel = F.conv2d(x[:, :1], window, None, layer.stride, layer.padding, layer.dilation)
        return torch.empty(0, layer.out_channels, *channel.shape[2:])
    if isinstance(layer, nn.Linear):
        return torch.empty(0, layer.out_features)
    assert isinstance(layer, nn.BatchNorm2d | SkipInit | ScalarBias), layer
    return x


def _stage_name(module: str) -> str:
    """The stage that a module belongs to, by the module's name in the network."""
    top_level = module.partition(".")[0]
    if top_level in _STEM:
        return "stem"
    return "fc" if top_level in _HEAD else top_level


def default_input(cfg: AnyNet) -> tuple[int, int]:
    """Image size and number of classes of the data set that a network's stem is for: ImageNet or CIFAR-10."""
    return (224, 1000) if cfg.stem == "imagenet" else (32, 10)


def total(stages: list[Stage]) -> Complexity:
    """The sum over a stage table."""
    costs = [stage.complexity for stage in stages]
    return Complexity(sum(c.params for c in costs), sum(c.macs for c in costs), sum(c.activations for c in costs))


def network_complexity(cfg: AnyNet, size: int, classes: int, channels: int = 3) -> Complexity:
    """What a network costs for one image of `size` x `size` pixels."""
    return total(stage_table(cfg, size, classes, channels))


def estimate_training_memory(cost: Complexity, images: int, precision: str, ema: bool, moments: int = 1) -> int:
    """An estimate of the device memory of a training, in bytes, with micro-batches of `images`.

    Weights, gradients, momentum and (with `ema`) the average of the weights in fp32; for each image the output of every
    convolution and every batch norm, which the backward pass reads. Workspaces and the allocator's reserve come on top.
    moments: what the optimizer keeps for each weight: 1, or 2 if it also has a mean of squared gradients.
    """
    parameter_copies = 2 + moments + ema
    bytes_per_activation = 2 if precision in ("bf16", "fp16") else 4
    return cost.params * 4 * parameter_copies + 2 * cost.activations * images * bytes_per_activation
