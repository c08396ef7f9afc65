"""Batch norm over ranks: running statistics, which are each rank's own, and batch statistics over all of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_train.runtime.distributed import World, all_gather


def running_stats(*nets: nn.Module | None) -> Tensor:
    """Batch norm's running statistics as one vector. They are each rank's own: each sees its share of the data."""
    return torch.cat([buffer.flatten() for buffer in _running(nets)])


@torch.no_grad()
def set_running_stats(flat: Tensor, *nets: nn.Module | None) -> None:
    """The inverse of `running_stats`."""
    buffers = _running(nets)
    for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def _running(nets: Sequence[nn.Module | None]) -> list[Tensor]:
    return [b for net in nets if net is not None for b in net.buffers() if b.is_floating_point()]


@contextmanager
def averaged_running_stats(world: World, *nets: nn.Module | None) -> Iterator[None]:
    """Within the block running statistics are their mean over the ranks; then each rank has its own again."""
    if world.size == 1:
        yield
        return
    own = running_stats(*nets)
    set_running_stats(all_gather(world, own).mean(0), *nets)
    try:
        yield
    finally:
        set_running_stats(own, *nets)


def convert_sync_batchnorm(net: nn.Module, world: World) -> nn.Module:
    """The network with batch statistics over all ranks. torch's own module is CUDA's; the CPU has the one below."""
    if world.size == 1:
        return net
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-any-return]
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncBatchNorm
    return net


def revert_sync_batchnorm(net: nn.Module) -> nn.Module:
    """The inverse of `convert_sync_batchnorm`, for a copy that a rank calls alone: it would wait for the others."""
    for module in net.modules():
        if isinstance(module, (_SyncBatchNorm, nn.SyncBatchNorm)):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return net


class _SyncBatchNorm(nn.BatchNorm2d):
    """In the precision of its weights, also of an input under autocast, as batch norm's own kernels do it."""

    def forward(self, given: Tensor) -> Tensor:
        if not self.training:
            return super().forward(given)
        x = given.to(self.weight.dtype)
        count = x.numel() / x.shape[1] * dist.get_world_size()  # shares of a batch are equal
        mean = _sum(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _sum((centred * centred).sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(given.dtype)


class _Sum(torch.autograd.Function):
    """A sum over ranks whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone()
        dist.all_reduce(grad)
        return grad


def _sum(x: Tensor) -> Tensor:
    return _Sum.apply(x)  # type: ignore[no-any-return, no-untyped-call]
