"""Parameters, multiply-adds and activations of a network, counted in one forward pass on the meta device."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from resnet_train.config.network import AnyNet, NetConfig
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
    """The stem, each stage and the head, for images of `size` x `size` pixels."""
    with torch.device("meta"):
        net = build_network(cfg, classes, channels).eval()
        image = torch.empty(1, channels, size, size)
    params, macs, activations = Counter[str](), Counter[str](), Counter[str]()  # by stage
    shapes: dict[str, tuple[int, ...]] = {}

    def count_outputs(stage: str, module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            kernel = module.in_channels // module.groups * math.prod(module.kernel_size)
            macs[stage] += output.numel() * kernel
            activations[stage] += output.numel()
        elif isinstance(module, nn.Linear):
            macs[stage] += output.numel() * module.in_features
        shapes[stage] = tuple(output.shape[1:])  # the last module's stays

    for name, module in net.named_modules():
        if name:
            stage = _stage_name(name)
            params[stage] += sum(p.numel() for p in module.parameters(recurse=False))
            module.register_forward_hook(partial(count_outputs, stage))
    with torch.no_grad():
        net(image)
    depths = cfg.depths if isinstance(cfg, NetConfig) else ()
    units = {f"layer{i}": depth for i, depth in enumerate(depths, 1)}
    return [
        Stage(name, units.get(name, 0), shapes[name], Complexity(params[name], macs[name], activations[name]))
        for name in params
    ]


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
