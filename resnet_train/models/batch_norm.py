"""Batch norm over several ranks: each rank's own running statistics, and batch statistics over all ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as SyncBatchNormFunction
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_train.runtime.distributed import World, all_gather

# --- running statistics -----------------------------------------------------------------------------------------------


def running_stats(*nets: nn.Module | None) -> Tensor:
    """The running statistics of all batch norms of some networks, as one vector. Those of a network that is None: none.

    They differ from rank to rank, since each rank sees other samples. Empty for a VGG without batch norm.
    """
    device = next(parameter.device for net in nets if net is not None for parameter in net.parameters())
    return torch.cat([torch.empty(0, device=device), *(buffer.flatten() for buffer in _running_buffers(nets))])


@torch.no_grad()
def set_running_stats(flat: Tensor, *nets: nn.Module | None) -> None:
    """The inverse of `running_stats`."""
    buffers = _running_buffers(nets)
    for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


@contextmanager
def averaged_running_stats(world: World, *nets: nn.Module | None) -> Iterator[None]:
    """Within the block the running statistics are their mean over the ranks; afterwards each rank has its own again."""
    if world.size == 1:
        yield
        return
    rank_stats = running_stats(*nets)
    set_running_stats(all_gather(world, rank_stats).mean(0), *nets)
    try:
        yield
    finally:
        set_running_stats(rank_stats, *nets)


def _running_buffers(nets: Sequence[nn.Module | None]) -> list[Tensor]:
    return [b for net in nets if net is not None for b in net.buffers() if b.is_floating_point()]


# --- batch statistics over all ranks ----------------------------------------------------------------------------------


def convert_sync_batchnorm(net: nn.Module, world: World) -> nn.Module:
    """Make all batch norms of a network compute their batch statistics over all ranks. With one rank: no change.

    CUDA's kernels for it do not exist on the CPU, where `CPUSyncBatchNorm` takes its place.
    """
    if world.size == 1:
        return net
    return _convert(net, (nn.BatchNorm2d,), CUDASyncBatchNorm if world.device.type == "cuda" else CPUSyncBatchNorm)


def revert_sync_batchnorm(net: nn.Module) -> nn.Module:
    """The inverse of `convert_sync_batchnorm`, for a copy of the network that one rank calls alone.

    Its batch norms would otherwise wait for the other ranks.
    """
    return _convert(net, (CUDASyncBatchNorm, CPUSyncBatchNorm), nn.BatchNorm2d)


def _convert(module: nn.Module, old: tuple[type[_BatchNorm], ...], new: type[_BatchNorm]) -> nn.Module:
    """Replace each batch norm of a class in `old` by a `new` one that has the same parameters and buffers."""
    if isinstance(module, _BatchNorm) and type(module) in old:
        converted = new(module.num_features, module.eps, module.momentum, device="meta")
        converted.weight, converted.bias = module.weight, module.bias
        converted.running_mean, converted.running_var = module.running_mean, module.running_var
        converted.num_batches_tracked = module.num_batches_tracked
        return converted.train(module.training)
    for name, child in module.named_children():
        module.add_module(name, _convert(child, old, new))
    return module


class CUDASyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all ranks, which must have equally many samples: [N, C, H, W] -> [N, C, H, W]. For CUDA.

    As `nn.SyncBatchNorm`, which also lets shares differ or be empty: it looks for empty ones in each layer, and each
    time the CPU waits for the GPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        group = dist.group.WORLD
        assert group is not None
        arguments = self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum, group
        return _EqualShares.apply(input, *arguments, group.size())  # type: ignore[no-any-return, no-untyped-call]


class _EqualShares(SyncBatchNormFunction):
    """torch's function, whose backward pass this shares, for equal shares."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
        process_group: dist.ProcessGroup,
        world_size: int,
    ) -> Tensor:
        if not input.is_contiguous(memory_format=torch.channels_last):
            input = input.contiguous()
        own = torch.cat(torch.batch_norm_stats(input, eps))  # means and reciprocal standard deviations, [2C]
        of_ranks = [torch.empty_like(own) for _ in range(world_size)]
        dist.all_gather(of_ranks, own, process_group)
        means, inverse_stds = torch.stack(of_ranks).chunk(2, 1)
        counts = own.new_full((world_size,), input.numel() // input.shape[1])
        mean, inverse_std = torch.batch_norm_gather_stats_with_counts(
            input, means, inverse_stds, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(input, weight, mean, inverse_std, counts.to(torch.int32))
        ctx.process_group = process_group
        return torch.batch_norm_elemt(input, weight, bias, mean, inverse_std, eps)


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all ranks, which must have equally many samples: [N, C, H, W] -> [N, C, H, W].

    As in batch norm's own kernels, the arithmetic under autocast has the precision of the weights.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.to(self.weight.dtype)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        mean = _sum_over_ranks(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _sum_over_ranks((centred * centred).sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks. Its gradient is the sum of the ranks' gradients."""

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


def _sum_over_ranks(x: Tensor) -> Tensor:
    return _SumOverRanks.apply(x)  # type: ignore[no-any-return, no-untyped-call]
