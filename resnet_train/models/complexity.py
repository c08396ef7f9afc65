"""Parameters, multiply-adds and activations of a network, counted in one forward on the meta device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_train.config.network import AnyNet, NetConfig
from resnet_train.models.network import build_network

_HEAD = ("bn_last", "relu_last", "fc", "avgpool", "classifier")


@dataclass(frozen=True)
class Complexity:
    """What one image costs."""

    params: int
    """Weights and biases, shortcuts and batch norms included."""
    macs: int
    """Multiply-adds of the convolutions and the head: the "FLOPs" of He et al. 2015, table 1."""
    activations: int
    """Elements that the convolutions put out (Radosavovic et al. 2020, section 3)."""


@dataclass(frozen=True)
class Stage:
    """One row of a network's stage table."""

    name: str
    units: int
    """Units of the stage; 0 for the stem and the head."""
    shape: tuple[int, ...]
    """Of the output of one image: (channels, height, width), or (classes,)."""
    complexity: Complexity


def stage_table(cfg: AnyNet, size: int, classes: int, channels: int = 3) -> list[Stage]:
    """The stem, each stage and the head, at `size` x `size` pixels."""
    with torch.device("meta"):
        net = build_network(cfg, classes, channels).eval()
        image = torch.empty(1, channels, size, size)
    counts: dict[str, list[int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def part_of(name: str) -> str:
        top = name.partition(".")[0]
        return "stem" if top in ("conv1", "bn1", "relu", "maxpool") else "fc" if top in _HEAD else top

    def count(part: str) -> object:
        def hook(module: nn.Module, _: object, out: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
                counts[part][1] += out.numel() * per_output
                counts[part][2] += out.numel()
            elif isinstance(module, nn.Linear):
                counts[part][1] += out.numel() * module.in_features
            shapes[part] = tuple(out.shape[1:])

        return hook

    for name, module in net.named_modules():
        if name:
            part = part_of(name)
            counts.setdefault(part, [0, 0, 0])[0] += sum(p.numel() for p in module.parameters(recurse=False))
            module.register_forward_hook(count(part))  # type: ignore[arg-type]
    with torch.no_grad():
        net(image)
    depths = cfg.depths if isinstance(cfg, NetConfig) else ()
    units = {f"layer{i}": depth for i, depth in enumerate(depths, 1)}
    return [Stage(part, units.get(part, 0), shapes[part], Complexity(*counts[part])) for part in counts]


def default_input(cfg: AnyNet) -> tuple[int, int]:
    """Image size and classes of the set that a network's stem is for: ImageNet's or CIFAR-10's."""
    return (224, 1000) if cfg.stem == "imagenet" else (32, 10)


def total(parts: list[Stage]) -> Complexity:
    """The sum over a stage table."""
    each = [part.complexity for part in parts]
    return Complexity(sum(c.params for c in each), sum(c.macs for c in each), sum(c.activations for c in each))


def network_complexity(cfg: AnyNet, size: int, classes: int, channels: int = 3) -> Complexity:
    """What one image of `size` x `size` pixels costs."""
    return total(stage_table(cfg, size, classes, channels))


def estimate_training_memory(cost: Complexity, images: int, precision: str, ema: bool) -> int:
    """An estimate, in bytes, of what training holds on a device that sees `images` at once.

    Weights, gradients and momentum (and their average) in fp32; for each image the output of every convolution and of
    every batch norm, which the backward pass reads. Workspaces and the allocator's reserve come on top.
    """
    width = 2 if precision in ("bf16", "fp16") else 4
    return cost.params * 4 * (4 if ema else 3) + 2 * cost.activations * images * width
