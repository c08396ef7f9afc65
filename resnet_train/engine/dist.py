"""The ranks of a run: the only reader of RANK and WORLD_SIZE. With one rank every function here is a no-op."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_train.errors import BadInput, Interrupted, RankLost, report

_T = TypeVar("_T")


@dataclass(frozen=True)
class World:
    """This process's place among the ranks, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0


@contextmanager
def start(device: str) -> Iterator[World]:
    """Join the ranks that torchrun started, if it did, until the end of the block.

    `device` is auto, cpu or cuda. Raises `BadInput` where CUDA is asked for and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("train.device = cuda: no CUDA device is visible here; use train.device=cpu or auto")
    cuda = device != "cpu" and torch.cuda.is_available()
    local_rank, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if cuda and local_rank >= torch.cuda.device_count():
        raise BadInput(f"rank {local_rank} has no GPU: start {torch.cuda.device_count()} processes on this node")
    place = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size == 1:
        yield World(place)
        return
    # gloo beside NCCL carries flags and objects between CPUs without stopping the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", device_id=place if cuda else None)
    try:
        yield World(place, dist.get_rank(), size)
    except Interrupted:  # all ranks alike
        dist.destroy_process_group()
        raise
    except BaseException as error:
        # Perhaps this rank's alone: to part in good order would wait for the others, who wait for this one.
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "onnection" in str(error))
        code = report(RankLost("another rank has stopped; what it said is the reason") if lost else error)
        sys.stdout.flush()
        os._exit(code)
    else:
        dist.destroy_process_group()


def sum_over_ranks(world: World, tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on every rank."""
    if world.size > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def decide(world: World, question: Callable[[], _T]) -> _T:
    """The first rank's answer, on every rank; if it raises `BadInput`, so does every rank."""
    if world.size == 1:
        return question()
    answer: list[Any] = [None]
    if world.first:
        try:
            answer = [question()]
        except BadInput as error:
            answer = [error]
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if isinstance(answer[0], BadInput):
        answer[0].told = not world.first
        raise answer[0]
    return answer[0]  # type: ignore[no-any-return]


def first_before_others(world: World, make: Callable[[], _T]) -> _T:
    """What `make` makes, on every rank; the first is done before the others begin, and speaks for all if it fails."""
    made: list[_T] = []
    decide(world, lambda: made.append(make()))
    return made[0] if made else make()


def first_step(world: World, step: Tensor) -> int | None:
    """The smallest step that any rank names; -1 is none. Waits for the device."""
    never = torch.iinfo(torch.int64).max
    found = torch.where(step < 0, never, step)
    if world.size > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return None if (number := int(found.item())) == never else number


class Agreement:
    """Whether any rank raised its hand, known to all ranks at the same step.

    A rank's answer travels while the next step runs and is read after it, so nobody waits for it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.flag = torch.zeros((), dtype=torch.int32)
        self.sent: dist.Work | None = None

    def any(self, raised: bool) -> bool:
        """Call once a step, on every rank. True on all of them alike, one step after the first was raised."""
        if self.world.size == 1:
            return raised
        if self.sent is not None:
            self.sent.wait()
        agreed = bool(self.flag.item())
        self.flag = torch.tensor(int(raised), dtype=torch.int32)
        self.sent = dist.all_reduce(self.flag, op=dist.ReduceOp.MAX, async_op=True)
        return agreed

    def settle(self) -> None:
        """Wait for the answer that is still on its way; the ranks part only after it."""
        if self.sent is not None:
            self.sent.wait()


def parallel(net: nn.Module, world: World, accumulates: bool) -> nn.Module:
    """The network under DistributedDataParallel where there are several ranks. Its buffers stay each rank's own.

    The graph of a step is told to be static but where passes accumulate: torch then reduces no gradient from the
    second step on (pytorch pull request 187732).
    """
    if world.size == 1:
        return net
    ids = [world.device] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True, static_graph=not accumulates)
    wrapped.broadcast_buffers = False  # set here because the argument's name differs between torch releases
    return wrapped


def gather(world: World, tensor: Tensor) -> Tensor:
    """[...] on each rank -> [ranks, ...] on every rank."""
    if world.size == 1:
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(world.size)]
    dist.all_gather(rows, tensor)
    return torch.stack(rows)


def statistics(*nets: nn.Module | None) -> Tensor:
    """Batch norm's running statistics as one vector. They are each rank's own: each sees its share of the data."""
    return torch.cat([buffer.flatten() for buffer in _running(nets)])


@torch.no_grad()
def set_statistics(flat: Tensor, *nets: nn.Module | None) -> None:
    """The inverse of `statistics`."""
    buffers = _running(nets)
    for buffer, values in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))


def _running(nets: Sequence[nn.Module | None]) -> list[Tensor]:
    return [b for net in nets if net is not None for b in net.buffers() if b.is_floating_point()]


@contextmanager
def averaged_statistics(world: World, *nets: nn.Module | None) -> Iterator[None]:
    """Within the block running statistics are their mean over the ranks; then each rank has its own again."""
    if world.size == 1:
        yield
        return
    own = statistics(*nets)
    set_statistics(gather(world, own).mean(0), *nets)
    try:
        yield
    finally:
        set_statistics(own, *nets)


def synchronise_batch_norm(net: nn.Module, world: World) -> nn.Module:
    """The network with batch statistics over all ranks. torch's own module is CUDA's; the CPU has the one below."""
    if world.size == 1:
        return net
    if world.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-any-return]
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncBatchNorm
    return net


def unsynchronised(net: nn.Module) -> nn.Module:
    """The inverse of `synchronise_batch_norm`, for a copy that a rank calls alone: it would wait for the others."""
    for module in net.modules():
        if isinstance(module, (_SyncBatchNorm, nn.SyncBatchNorm)):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return net


class _SyncBatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
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
        return centred * scale[:, None, None] + self.bias[:, None, None]


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
