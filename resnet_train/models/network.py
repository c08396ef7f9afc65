"""Networks from their configuration: stem, stages, head and initialisation. State dict keys are torchvision's."""

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_train.config.network import NetConfig, VGGConfig
from resnet_train.models.blocks import ORDERS, DiracConv2d, Gate, ScalarBias, SkipInit, Unit, conv, norm


class Network(nn.Module):
    """A plain or residual network. [N, channels, H, W] -> [N, classes] logits."""

    def __init__(self, cfg: NetConfig, classes: int, channels: int = 3) -> None:
        super().__init__()
        width, *outputs = cfg.output_channels
        self.conv1 = _stem(cfg, channels, width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if cfg.stem == "imagenet" else nn.Identity()
        self.bn1 = norm(cfg, width)
        self.relu = nn.ReLU(inplace=True)
        self.init, self.zero_head = cfg.init, cfg.fixup
        self.stages: list[str] = []
        numbers = itertools.count()
        for i, (depth, inner, w_out) in enumerate(zip(cfg.depths, cfg.widths, outputs, strict=True)):
            units = OrderedDict[str, nn.Module]()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                units[str(j)], width = Unit(cfg, width, inner, w_out, stride, next(numbers)), w_out
            self.stages.append(f"layer{i + 1}")
            self.add_module(self.stages[-1], nn.Sequential(units))
        # The sum of a pre-activated unit is activated by the next unit. The stem activates for the first unit, and
        # these layers stand in for the unit that would follow the last one (He et al. 2016, section 4.1).
        before = ORDERS[cfg.order].before
        self.bn_last = norm(cfg, width) if "bn" in before or cfg.fixup else nn.Identity()
        self.relu_last = nn.ReLU(inplace=cfg.batch_norm and "bn" in before) if "relu" in before else nn.Identity()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last_map(x).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    def last_map(self, x: Tensor) -> Tensor:
        """The output of the last stage, which is pooled for the head: [N, width, h, w]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # imagenet: H / 4, W / 4
        for stage in self.stages:
            x = getattr(self, stage)(x)  # each but the first: H / 2, W / 2
        return self.relu_last(self.bn_last(x))  # type: ignore[no-any-return]

    def units(self) -> dict[str, Unit]:
        """The units by name, such as `layer1.0`, in the order of the forward pass."""
        return {f"{stage}.{i}": unit for stage in self.stages for i, unit in getattr(self, stage).named_children()}


class FullyConvolutional(nn.Module):
    """A network whose pooling of `window` x `window` pixels slides over its last map (He et al. 2015, section 3.4).

    The scores of all places are averaged. The head is linear, so that is the score of the average over all places:
    pixels at the border count less than in the network itself, which pools the map at once. Weights are shared.

    [N, channels, H, W] -> [N, classes] logits
    """

    def __init__(self, net: Network, window: int) -> None:
        super().__init__()
        self.net, self.window = net, window

    def forward(self, x: Tensor) -> Tensor:
        last = self.net.last_map(x)
        window = [min(self.window, side) for side in last.shape[2:]]
        return self.net.fc(F.avg_pool2d(last, window, stride=1).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _stem(cfg: NetConfig, channels: int, width: int) -> nn.Module:
    """[N, channels, H, W] -> [N, width, H, W], with stem `imagenet` [N, width, ceil(H / 2), ceil(W / 2)]."""
    if cfg.stem == "cifar":
        return conv(cfg, channels, width, 3)
    if cfg.stem_type is None:
        return conv(cfg, channels, width, 7, stride=2)
    half = max(1, width // 2)
    first, second = conv(cfg, channels, half, 3, stride=2), conv(cfg, half, half, 3)
    rest = nn.ReLU(inplace=True), second, norm(cfg, half), nn.ReLU(inplace=True), conv(cfg, half, width, 3)
    return nn.Sequential(first, norm(cfg, half), *rest)


def build_network(cfg: NetConfig | VGGConfig, classes: int, channels: int = 3) -> nn.Module:
    """The network of a configuration, not yet initialised. [N, channels, H, W] -> [N, classes] logits."""
    if isinstance(cfg, NetConfig):
        return Network(cfg, classes, channels)
    from torchvision.models import vgg

    create = getattr(vgg, f"vgg{cfg.depth}_bn" if cfg.batch_norm else f"vgg{cfg.depth}")
    net: nn.Module = create(num_classes=classes, init_weights=False)
    if channels != 3:
        net.features[0] = nn.Conv2d(channels, 64, 3, padding=1)  # type: ignore[index,operator,assignment]
    return net


def find_misfit(cfg: NetConfig | VGGConfig, classes: int, channels: int, weights: Mapping[str, Tensor]) -> str | None:
    """How some weights differ from those of a network in names, shapes or types, in words; None if they can be loaded.

    Nothing of the size of the network is allocated, since the configuration may be a damaged file's.
    """
    if isinstance(cfg, NetConfig) and sum(cfg.depths) > len(weights):
        return f"it has {len(weights)} tensors, and the network {sum(cfg.depths)} units"
    with torch.device("meta"):
        return find_difference(build_network(cfg, classes, channels).state_dict(), weights)


def find_difference(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """The first name, shape or type in which weights differ from a state dict, in words; None if they can be loaded."""
    for key in {**expected, **weights}:
        theirs, ours = weights.get(key), expected.get(key)
        name = ascii(key)[1:-1][:100]
        if theirs is None and key.endswith("num_batches_tracked"):  # files of torch before 0.4.1 have none
            continue
        if theirs is not None and not _is_stored(theirs):
            return f"{name} is not stored value by value"
        if _describe(theirs) != _describe(ours):
            return f"{name} is {_describe(theirs)} there and {_describe(ours)} here"
    return None


def _is_stored(tensor: Tensor) -> bool:
    """False for a sparse tensor, for one without values, and for one that repeats a few values."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"of shape {list(tensor.shape)}" + ("" if tensor.is_floating_point() else f" and type {tensor.dtype}")


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """He initialisation. Each weight is a function of (seed, name of its module) alone.

    So a plain network and its residual twin start from the same weights in all layers that both have.

    Convolutions: normal with variance 2 / (k * k * w_out), the backward form of He et al. 2015b, section 2.2, as in
    fb.resnet.torch and torchvision, unless `init` says otherwise; their biases 0, except a gate's
    (`Gate.initial_bias`). Batch norms: weight 1, bias 0. Linear layers: uniform in +-1 / sqrt(w_in), biases 0. With
    `zero_init_residual` the last of these weights in each F is 0. With `norm: fixup` the last convolutions of F and the
    head are 0, and F's others smaller by L^(-1 / (2 m - 2)), for L units of m convolutions (Zhang et al. 2019).
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            _initialise_filters(module.weight, _generator(seed, name), net.init if isinstance(net, Network) else "he")
            if isinstance(module, DiracConv2d):
                nn.init.ones_(module.alpha)
                nn.init.constant_(module.beta, 0.1)
            if module.bias is not None:
                nn.init.constant_(module.bias, module.initial_bias if isinstance(module, Gate) else 0)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=_generator(seed, name))
            if isinstance(net, Network) and net.zero_head:
                nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ScalarBias):
            nn.init.zeros_(module.bias)
        elif isinstance(module, SkipInit):
            nn.init.constant_(module.gain, module.initial_gain)
        else:
            assert not list(module.parameters(recurse=False)), f"{name} has parameters that are not initialised"
    for unit in net.modules():
        if isinstance(unit, Unit):
            for layer in unit.convolutions() if unit.initial_scale != 1 else ():
                layer.weight.mul_(unit.initial_scale)
            if unit.zero_init is not None:
                nn.init.zeros_(unit.get_parameter(f"{unit.zero_init}.weight"))


def _initialise_filters(weight: Tensor, random: torch.Generator, kind: str) -> None:
    """Fill the weights of a convolution, [w_out, w_in, k, k]. The gain of orthogonal ones is that of ReLUs, sqrt(2)."""
    centre = weight[:, :, weight.shape[2] // 2, weight.shape[3] // 2]
    match kind:
        case "orthogonal":
            nn.init.orthogonal_(weight, math.sqrt(2), generator=random)
        case "delta-orthogonal":
            nn.init.zeros_(weight)
            centre.copy_(nn.init.orthogonal_(torch.empty_like(centre), math.sqrt(2), generator=random))
        case _:
            weight.normal_(0, math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel())), generator=random)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
