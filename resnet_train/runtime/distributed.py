"""The ranks of a run: the only reader of RANK and WORLD_SIZE. With one rank every function here is a no-op."""

import os
import sys
from collections.abc import Callable, Iterator
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
    local_size: int = 1
    """Ranks on this node."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes and speaks for all."""
        return self.rank == 0


@contextmanager
def start(device: str) -> Iterator[World]:
    """Join the ranks that torchrun started, if it did, until the end of the block, which then ends the process.

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
        yield World(place, dist.get_rank(), size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except Interrupted as error:  # all ranks alike
        code = report(error)
        dist.destroy_process_group()
    except BaseException as error:
        # Perhaps this rank's alone: to part in good order would wait for the others, who wait for this one.
        lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "onnection" in str(error))
        code = report(RankLost("another rank has stopped; what it said is the reason") if lost else error)
    else:
        code = 0
        dist.destroy_process_group()
    # Gloo's threads outlive the group: one that lets go of a tensor while Python ends would abort the process, which
    # has done all that it should (pytorch pull request 179291).
    sys.stdout.flush()
    os._exit(code)


def all_reduce_sum(world: World, tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on every rank."""
    if world.size > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_main(world: World, question: Callable[[], _T]) -> _T:
    """The first rank's answer, on every rank; if it raises `BadInput`, so does every rank."""
    if world.size == 1:
        return question()
    answer: list[Any] = [None]
    if world.is_main:
        try:
            answer = [question()]
        except BadInput as error:
            answer = [error]
    dist.broadcast_object_list(answer, device=torch.device("cpu"))
    if isinstance(answer[0], BadInput):
        answer[0].reported = not world.is_main
        raise answer[0]
    return answer[0]  # type: ignore[no-any-return]


def main_first(world: World, make: Callable[[], _T]) -> _T:
    """What `make` makes, on every rank; the first is done before the others begin, and speaks for all if it fails."""
    made: list[_T] = []
    broadcast_from_main(world, lambda: made.append(make()))
    return made[0] if made else make()


def first_step(world: World, step: Tensor) -> int | None:
    """The smallest step that any rank names; -1 is none. Waits for the device."""
    never = torch.iinfo(torch.int64).max
    found = torch.where(step < 0, never, step)
    if world.size > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return None if (number := int(found.item())) == never else number


class AnyRankFlag:
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

    The graph of a step is told to be static but where passes grad_accum_steps: torch then reduces no gradient from the
    second step on (pytorch pull request 187732).
    """
    if world.size == 1:
        return net
    ids = [world.device] if world.device.type == "cuda" else None
    wrapped = DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True, static_graph=not accumulates)
    wrapped.broadcast_buffers = False  # set here because the argument's name differs between torch releases
    return wrapped


def all_gather(world: World, tensor: Tensor) -> Tensor:
    """[...] on each rank -> [ranks, ...] on every rank."""
    if world.size == 1:
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(world.size)]
    dist.all_gather(rows, tensor)
    return torch.stack(rows)
