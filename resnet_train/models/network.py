"""Stem, stages, head and initialisation, from a `NetConfig`. The keys of the state dict are torchvision's."""

import hashlib
import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from resnet_train.config.network import NetConfig
from resnet_train.models.blocks import Basic, Bottleneck, Unit, conv


class Network(nn.Module):
    """A plain or residual network. [N, channels, H, W] -> [N, classes] logits."""

    def __init__(self, cfg: NetConfig, classes: int, channels: int = 3) -> None:
        super().__init__()
        width = cfg.widths[0]
        if cfg.stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv(channels, width, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stages: list[str] = []
        for i, (depth, stage_width) in enumerate(zip(cfg.depths, cfg.widths, strict=True)):
            units = OrderedDict[str, nn.Module]()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                made = unit(cfg, width, stage_width, stride)
                units[str(j)], width = made, made.w_out
            self.stages.append(f"layer{i + 1}")
            self.add_module(self.stages[-1], nn.Sequential(units))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # imagenet: H / 4, W / 4
        for stage in self.stages:
            x = getattr(self, stage)(x)  # each but the first: H / 2, W / 2
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def unit(cfg: NetConfig, w_in: int, width: int, stride: int) -> Unit:
    """The unit that `cfg` stacks, from `w_in` channels to those of a stage of `width`."""
    if cfg.unit == "basic":
        return Basic(w_in, width, stride, cfg.shortcut)
    assert cfg.stride_on is not None
    return Bottleneck(w_in, width, stride, cfg.shortcut, cfg.stride_on)


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """He initialisation, each weight a function of (seed, its name) alone.

    So a plain net and its residual partner start from the same weights wherever they have the same layers.
    Convolutions are normal with variance 2 / (k * k * w_out): He et al. 2015b, section 2.2, in its backward form, which
    fb.resnet.torch and torchvision chose too. Batch norms are the identity; the head is uniform within 1 / sqrt(w_in),
    its bias 0.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            module.weight.normal_(0, math.sqrt(2 / fan_out), generator=_generator(seed, name))
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=_generator(seed, name))
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        else:
            assert not list(module.parameters(recurse=False)), f"{name} has weights that nothing initialises"


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
