"""The residual unit, its plain twin, and the shortcuts (He et al. 2015, sections 3.2 and 3.3)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["none", "A", "B", "C"]


def conv(w_in: int, w_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, since a batch norm follows: [N, w_out, ceil(H / stride), ceil(W / stride)]."""
    return nn.Conv2d(w_in, w_out, kernel, stride, padding=kernel // 2, bias=False)


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


class Unit(nn.Module):
    """A residual unit y = relu(F(x) + shortcut(x)); without a shortcut its plain twin y = relu(F(x)).

    F is conv1-bn1-relu-conv2-bn2 (basic) or conv1-bn1-relu-conv2-bn2-relu-conv3-bn3 (bottleneck).
    [N, w_in, H, W] -> [N, w_out, ceil(H / stride), ceil(W / stride)]
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    w_out: int

    def __init__(self, w_in: int, w_out: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.w_out = w_out
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(shortcut, w_in, w_out, stride)

    def residual(self, x: Tensor) -> Tensor:
        """F(x): all of the unit but its shortcut and its last ReLU."""
        raise AssertionError("a unit is Basic or Bottleneck")

    def forward(self, x: Tensor) -> Tensor:
        out = self.residual(x)
        if self.downsample is not None:
            out = out + self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class Basic(Unit):
    """Two 3x3 convolutions of `width` channels (He et al. 2015, figure 5 left)."""

    def __init__(self, w_in: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__(w_in, width, stride, shortcut)
        self.conv1 = conv(w_in, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))  # type: ignore[no-any-return]


class Bottleneck(Unit):
    """1x1 down to `width` channels, 3x3, 1x1 up to four times `width` (He et al. 2015, figure 5 right)."""

    expansion = 4

    def __init__(
        self, w_in: int, width: int, stride: int, shortcut: Shortcut, stride_on: Literal["1x1", "3x3"]
    ) -> None:
        super().__init__(w_in, self.expansion * width, stride, shortcut)
        self.conv1 = conv(w_in, width, 1, stride if stride_on == "1x1" else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride if stride_on == "3x3" else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, self.w_out, 1)
        self.bn3 = nn.BatchNorm2d(self.w_out)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))  # type: ignore[no-any-return]


def _shortcut(kind: Shortcut, w_in: int, w_out: int, stride: int) -> nn.Module | None:
    changes = stride != 1 or w_in != w_out
    match kind:
        case "none":
            return None
        case "A":
            return ZeroPad(w_in, w_out, stride) if changes else nn.Identity()
        case "B" if not changes:
            return nn.Identity()
        case _:
            return nn.Sequential(conv(w_in, w_out, 1, stride), nn.BatchNorm2d(w_out))
