"""The residual unit, its plain twin and its shortcuts (He et al. 2015, 3.2, 3.3); orders of layers (He et al. 2016)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_train.config.network import (
    BASIC_KERNELS,
    AdditionConfig,
    ConstantScalingConfig,
    GatingConfig,
    NetConfig,
    ShortcutDropoutConfig,
    SkipInitConfig,
)


class DiracConv2d(nn.Conv2d):
    """A convolution with the weights a * delta + b * V, where delta is the identity and each filter of V has norm 1.

    a and b are learnt for each output channel (Zagoruyko and Komodakis 2017, section 3). Where it halves the image,
    delta takes every second pixel; where it widens, the further channels have no delta.
    """

    delta: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = nn.Parameter(torch.ones(self.out_channels))
        self.beta = nn.Parameter(torch.full((self.out_channels,), 0.1))
        # bool, since buffers of floating point are running statistics.
        delta = nn.init.dirac_(torch.empty_like(self.weight)).bool()
        self.register_buffer("delta", delta, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        unit_filters = F.normalize(self.weight.flatten(1)).view_as(self.weight)
        weight = self.alpha.view(-1, 1, 1, 1) * self.delta + self.beta.view(-1, 1, 1, 1) * unit_filters
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def conv(
    cfg: NetConfig, w_in: int, w_out: int, kernel: int, stride: int = 1, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Conv2d:
    """A convolution, whose bias would have no effect before a batch norm: [N, w_out, ceil(H / stride), …]."""
    return kind(w_in, w_out, kernel, stride, padding=kernel // 2, bias=cfg.norm == "none")


def norm(cfg: NetConfig, channels: int) -> nn.Module:
    """A batch norm; with `norm: none` nothing, with `fixup` a bias."""
    if cfg.fixup:
        return ScalarBias()
    return nn.BatchNorm2d(channels) if cfg.batch_norm else nn.Identity()


class ScalarBias(nn.Module):
    """Adds one learnt number, at first 0: [N, C, H, W] -> [N, C, H, W] (Zhang et al. 2019, section 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Order(NamedTuple):
    """Where the batch norms and ReLUs of a unit are. Between its convolutions it is bn-relu in every order."""

    before: tuple[str, ...] = ()
    """Before the first convolution."""
    end: tuple[str, ...] = ()
    """After the last convolution, before the addition."""
    after: tuple[str, ...] = ()
    """After the addition."""


ORDERS = {
    "original": Order(end=("bn",), after=("relu",)),
    "bn-after-addition": Order(after=("bn", "relu")),
    "relu-before-addition": Order(end=("bn", "relu")),
    "relu-only-pre-activation": Order(before=("relu",), end=("bn",)),
    "pre-activation": Order(before=("bn", "relu")),
}
"""Figure 4 of He et al. 2016, (a) to (e)."""


class ZeroPad(nn.Module):
    """Shortcut A: take every `stride`-th pixel, then append channels of zeros (He et al. 2015, section 3.3).

    It has no parameters.

    [N, w_in, H, W] -> [N, w_out, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, w_in: int, w_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (0, 0, 0, 0, 0, w_out - w_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class Gate(nn.Conv2d):
    """g(x) = sigmoid(W x + b), a 1x1 convolution; b starts at `initial_bias` (He et al. 2016, section 3.1).

    [N, w_in, H, W] -> [N, w_out, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, w_in: int, w_out: int, stride: int, initial_bias: float) -> None:
        super().__init__(w_in, w_out, 1, stride)
        self.initial_bias = initial_bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class SkipInit(nn.Module):
    """A learnt factor, at first `initial_gain`: [N, C, H, W] -> [N, C, H, W] (De and Smith 2020, section 4)."""

    def __init__(self, initial_gain: float) -> None:
        super().__init__()
        self.initial_gain = initial_gain
        self.gain = nn.Parameter(torch.tensor(initial_gain))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class StochasticDepth(nn.Module):
    """Leaves out F at random in training, and else scales it by 1 / (1 - rate) (Huang et al. 2016).

    As in torchvision and timm this factor keeps the mean of F; the paper scales F by 1 - rate in testing.
    mode: `row` draws for each image, `batch` once for all. [N, C, H, W] -> [N, C, H, W]
    """

    def __init__(self, rate: float, mode: str) -> None:
        super().__init__()
        self.rate = rate
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty(len(x) if self.mode == "row" else 1, 1, 1, 1).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class Unit(nn.Module):
    """A residual unit, in the original order y = relu(F(x) + shortcut(x)); its plain twin is y = relu(F(x)).

    F is conv1-bn1-relu-conv2-bn2 (basic, unless `kernels` says otherwise) or conv1-bn1-relu-conv2-bn2-relu-conv3-bn3
    (bottleneck); `ORDERS` has the other orders. With pre-activation, bn1 is before conv1, bn2 before conv2, and so on.
    If such a unit changes the shape, its shortcut reads the activated input, as F does. `number`: of the unit in the
    network, from 0. Number 0 reads the stem's output, which is already activated.

    [N, w_in, H, W] -> [N, w_out, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, cfg: NetConfig, w_in: int, width: int, w_out: int, stride: int, number: int) -> None:
        super().__init__()
        self.w_out = w_out
        self.dropped = False
        """Whether F is left out: a lesion."""
        order = ORDERS[cfg.order]
        unit_conv = partial(conv, cfg, kind=DiracConv2d if cfg.dirac else nn.Conv2d)
        if cfg.unit == "basic":
            kernels = cfg.kernels or BASIC_KERNELS
            convs = [unit_conv(width if i else w_in, width, k, 1 if i else stride) for i, k in enumerate(kernels)]
        else:
            first_stride, middle_stride = (stride, 1) if cfg.stride_on == "1x1" else (1, stride)
            convs = [
                unit_conv(w_in, width, 1, first_stride),
                unit_conv(width, width, 3, middle_stride),
                unit_conv(width, w_out, 1),
            ]
        first, pre_activated = number == 0, "bn" in order.before
        for i, layer in enumerate(convs, 1):
            self.add_module(f"conv{i}", layer)
            if not (pre_activated and first and i == 1):
                self.add_module(f"bn{i}", norm(cfg, layer.in_channels if pre_activated else layer.out_channels))
        # Not in place if the ReLU is the unit's first layer: it would overwrite the shortcut's input.
        self.relu = nn.ReLU(inplace=cfg.batch_norm and order.before != ("relu",))

        last = len(convs)
        self.before = () if first else _layer_names(order.before, 1)
        """Names of the layers before F, in the order of the forward pass."""
        inner: list[str] = []
        for i in range(1, last):
            inner += [f"bn{i + 1}" if pre_activated else f"bn{i}", "relu", f"conv{i + 1}"]
        self.residual = ("conv1", *inner, *_layer_names(order.end, last))
        """Names of the layers of F."""
        if cfg.fixup:
            self._add_fixup(last)
        if cfg.dropout:
            self.dropout = nn.Dropout(cfg.dropout)
            position = self.residual.index(f"conv{last}")
            self.residual = (*self.residual[:position], "dropout", *self.residual[position:])
        if isinstance(cfg.addition, SkipInitConfig):
            self.skip_init = SkipInit(cfg.addition.gain)
            self.residual = (*self.residual, "skip_init")
        if drop_path_rate := cfg.drop_path_rate * number / max(1, sum(cfg.depths) - 1):
            self.drop_path = StochasticDepth(drop_path_rate, cfg.drop_path_mode)
            self.residual = (*self.residual, "drop_path")
        last_layer = f"bn{last}" if cfg.ends_in_norm else f"conv{last}"
        self.zero_init = last_layer if cfg.zero_init_residual or cfg.fixup else None
        """The layer of F whose weight is 0 at first."""
        # 1 but with Fixup: then one step changes F of all units together as much as it would change one of them.
        self.initial_scale = sum(cfg.depths) ** (-1 / (2 * last - 2)) if cfg.fixup else 1.0
        """Factor of the other weights of F at first."""
        self.after = _layer_names(order.after, last)
        """Names of the layers after the addition."""

        self.changes_shape = stride != 1 or w_in != w_out
        self.downsample = _shortcut(cfg, w_in, w_out, stride)
        # The factor of skip-init is a layer of F, so the sum itself is as it was.
        self.addition = None if isinstance(cfg.addition, SkipInitConfig) else cfg.addition
        self.gate = Gate(w_in, w_out, stride, cfg.addition.bias) if isinstance(cfg.addition, GatingConfig) else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self._through(self.before, x)
        if self.changes_shape:
            x = activated
        out = None if self.dropped else self._through(self.residual, activated)
        if self.downsample is not None:
            gate = None if self.gate is None else self.gate(x)
            out = add(self.downsample(x), out, self.addition, gate, self.training)
        return self._through(self.after, x if out is None else out)

    def _add_fixup(self, last: int) -> None:
        """A bias before each convolution and, before the bias at the end of F, a factor. The shortcut reads the input
        with the first bias where the shape changes."""
        self.before = ("bias1",)
        for i in range(1, last + 1):
            self.add_module(f"bias{i}", ScalarBias())
            if i > 1:
                position = self.residual.index(f"conv{i}")
                self.residual = (*self.residual[:position], f"bias{i}", *self.residual[position:])
        self.scale = SkipInit(1.0)
        self.residual = (*self.residual[:-1], "scale", self.residual[-1])

    def convolutions(self) -> list[nn.Conv2d]:
        """The convolutions of F, in the order of the forward pass."""
        layers = [self.get_submodule(name) for name in self.residual]
        return [layer for layer in layers if isinstance(layer, nn.Conv2d)]

    def _through(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x


def add(
    shortcut: Tensor, residual: Tensor | None, addition: AdditionConfig | None, gate: Tensor | None, training: bool
) -> Tensor:
    """The sum of a unit's shortcut and residual branch, scaled or gated as `addition` says (He et al. 2016, section 3).

    All tensors are [N, C, H, W]. A `residual` of None: F is left out.
    """
    match addition:
        case ConstantScalingConfig():
            shortcut = shortcut * addition.shortcut
            residual = None if residual is None else residual * addition.residual
        case GatingConfig():
            assert gate is not None
            shortcut = shortcut * (1 - gate)
            if residual is not None and addition.kind == "exclusive-gating":
                residual = residual * gate
        case ShortcutDropoutConfig():
            shortcut = F.dropout(shortcut, addition.rate, training)
        case _:
            pass
    return shortcut if residual is None else residual + shortcut


def _layer_names(kinds: Sequence[str], number: int) -> tuple[str, ...]:
    """Names of a unit's modules: its batch norms are numbered, its ReLU is shared."""
    return tuple(f"bn{number}" if kind == "bn" else kind for kind in kinds)


def _shortcut(cfg: NetConfig, w_in: int, w_out: int, stride: int) -> nn.Module | None:
    changes_shape = stride != 1 or w_in != w_out
    match cfg.shortcut:
        case "none":
            return None
        case "A":
            return ZeroPad(w_in, w_out, stride) if changes_shape else nn.Identity()
        case "B" if not changes_shape:
            return nn.Identity()
    layers: list[nn.Module] = []
    if cfg.avg_down:  # with a layer in its place where no image is halved: the names are timm's
        layers.append(nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity())
    layers.append(conv(cfg, w_in, w_out, 1, 1 if cfg.avg_down else stride))
    if cfg.order != "pre-activation" and not cfg.fixup:  # its input is normalised already, or has a bias
        layers.append(norm(cfg, w_out))
    return nn.Sequential(*layers)
