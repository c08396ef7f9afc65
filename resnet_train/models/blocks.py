"""The residual unit, its plain twin, the shortcuts (He et al. 2015, 3.2 and 3.3) and their orders (He et al. 2016)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_train.config.network import (
    AdditionConfig,
    ConstantScalingConfig,
    GatingConfig,
    NetConfig,
    ShortcutDropoutConfig,
)


def conv(w_in: int, w_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, since a batch norm follows: [N, w_out, ceil(H / stride), ceil(W / stride)]."""
    return nn.Conv2d(w_in, w_out, kernel, stride, padding=kernel // 2, bias=False)


class Order(NamedTuple):
    """Where batch norm and ReLU stand, beside those between a unit's convolutions, which are bn-relu in every order."""

    before: tuple[str, ...] = ()
    """Before the first convolution."""
    end: tuple[str, ...] = ()
    """After the last one, before the addition."""
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
    """Shortcut A: drop pixels, then append channels of zeros. It has no parameters (He et al. 2015, section 3.3).

    [N, w_in, H, W] -> [N, w_out, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, w_in: int, w_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (0, 0, 0, 0, 0, w_out - w_in)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class Gate(nn.Conv2d):
    """g(x) = sigmoid(W x + b), a 1x1 convolution whose b starts at `start` (He et al. 2016, section 3.1)."""

    def __init__(self, w_in: int, w_out: int, stride: int, start: float) -> None:
        super().__init__(w_in, w_out, 1, stride)
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class Unit(nn.Module):
    """A residual unit, in the original order y = relu(F(x) + shortcut(x)); its plain twin is y = relu(F(x)).

    F is conv1-bn1-relu-conv2-bn2 (basic) or conv1-bn1-relu-conv2-bn2-relu-conv3-bn3 (bottleneck); `ORDERS` has the
    others. With pre-activation, bn1 and bn2 stand before conv1 and conv2. Where the shape changes, the shortcut then
    starts from the activated input as F does; `first` says that the network's stem has activated it already.

    [N, w_in, H, W] -> [N, w_out, ceil(H / stride), ceil(W / stride)]
    """

    def __init__(self, cfg: NetConfig, w_in: int, width: int, w_out: int, stride: int, first: bool = False) -> None:
        super().__init__()
        self.w_out = w_out
        self.dropped = False
        """Whether F is left out, as a lesion does."""
        order = ORDERS[cfg.order]
        if cfg.unit == "basic":
            convs = [conv(w_in, width, 3, stride), conv(width, w_out, 3)]
        else:
            on_first = cfg.stride_on == "1x1"
            middle = conv(width, width, 3, 1 if on_first else stride)
            convs = [conv(w_in, width, 1, stride if on_first else 1), middle, conv(width, w_out, 1)]
        pre_activated = "bn" in order.before
        for i, made in enumerate(convs, 1):
            self.add_module(f"conv{i}", made)
            if not (pre_activated and first and i == 1):
                self.add_module(f"bn{i}", nn.BatchNorm2d(made.in_channels if pre_activated else made.out_channels))
        # In place, but where it would overwrite what the shortcut still needs.
        self.relu = nn.ReLU(inplace=order.before != ("relu",))
        self.dropout = nn.Dropout(cfg.dropout)

        last = len(convs)
        inner = [(f"bn{i + pre_activated}", "relu", f"conv{i + 1}") for i in range(1, last)]
        self.before = () if first else _numbered(order.before, 1)
        self.residual = ("conv1", *(name for layer in inner for name in layer), *_numbered(order.end, last))
        if cfg.dropout:
            at = self.residual.index(f"conv{last}")
            self.residual = (*self.residual[:at], "dropout", *self.residual[at:])
        self.after = _numbered(order.after, last)

        self.changes = stride != 1 or w_in != w_out
        self.downsample = _shortcut(cfg, w_in, w_out, stride)
        self.addition = cfg.addition
        self.gate = Gate(w_in, w_out, stride, cfg.addition.bias) if isinstance(cfg.addition, GatingConfig) else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self._through(self.before, x)
        if self.changes:
            x = activated
        out = None if self.dropped else self._through(self.residual, activated)
        if self.downsample is not None:
            gate = None if self.gate is None else self.gate(x)
            out = add(self.downsample(x), out, self.addition, gate, self.training)
        return self._through(self.after, x if out is None else out)

    def _through(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x


def add(
    shortcut: Tensor, residual: Tensor | None, how: AdditionConfig | None, gate: Tensor | None, training: bool
) -> Tensor:
    """What a unit adds up; a `residual` of None is a unit without its F."""
    match how:
        case ConstantScalingConfig():
            shortcut = shortcut * how.shortcut
            residual = None if residual is None else residual * how.residual
        case GatingConfig():
            assert gate is not None
            shortcut = shortcut * (1 - gate)
            residual = residual if residual is None or how.kind == "shortcut-gating" else residual * gate
        case ShortcutDropoutConfig():
            shortcut = F.dropout(shortcut, how.rate, training)
        case None:
            pass
    return shortcut if residual is None else residual + shortcut


def _numbered(names: Sequence[str], layer: int) -> tuple[str, ...]:
    return tuple(f"bn{layer}" if name == "bn" else name for name in names)


def _shortcut(cfg: NetConfig, w_in: int, w_out: int, stride: int) -> nn.Module | None:
    changes = stride != 1 or w_in != w_out
    match cfg.shortcut:
        case "none":
            return None
        case "A":
            return ZeroPad(w_in, w_out, stride) if changes else nn.Identity()
        case "B" if not changes:
            return nn.Identity()
        case _ if cfg.order == "pre-activation":  # what it reads is normalised already
            return nn.Sequential(conv(w_in, w_out, 1, stride))
        case _:
            return nn.Sequential(conv(w_in, w_out, 1, stride), nn.BatchNorm2d(w_out))
