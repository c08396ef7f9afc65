"""The ranks of a run. With one rank every function here is a no-op."""

import logging
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnet_train.errors import BadInput, RankLost, Stop
from resnet_train.runtime import process_exit, rank_environment
from resnet_train.runtime.processes import end_with

DEFAULT_TIMEOUT = 1800.0
"""Seconds that a rank waits for another."""

SignOfLife = Callable[[], None]
"""To be called now and then by what the other ranks wait for."""

_T = TypeVar("_T")
_SECONDS_BETWEEN_SIGNS = 10.0
_GROUP_ERROR = re.compile(r"/gloo/|connection|timed out|timeout", re.IGNORECASE)
_TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
_SOURCE_FILE = re.compile(r"^\[\S+:\d+\] ")
_unreleased: list[BaseException] = []
"""Errors of this rank alone. Their frames hold tensors and graphs whose release could wait for another rank."""


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
        """Whether this is the rank that writes files and messages for all."""
        return self.rank == 0


@contextmanager
def start(device: str, timeout: float = DEFAULT_TIMEOUT) -> Iterator[World]:
    """Join the ranks that the environment names, if it does, until the end of the block.

    `device` is auto, cpu, cuda or mps. No rank waits longer than `timeout` seconds for another. Raises `BadInput` if
    the environment names no place among the ranks, or if the device asked for is absent; `RankLost` in place of the
    error by which the loss of another rank shows. A rank that fails alone cannot leave the group in good order, since
    the others may never answer: its process must end next.
    """
    ranks = rank_environment.read()
    local_device = _local_device(device, ranks.local_rank)
    if local_device.type == "mps" and ranks.size > 1:
        raise BadInput(f"train.device = mps is for one process, and there are {ranks.size} ranks: use train.device=cpu")
    if rank_environment.is_started_by_torchrun():
        _stop_with_parent()
    if ranks.size == 1:
        yield World(local_device)
        return
    world = World(local_device, ranks.rank, ranks.size, ranks.local_size)
    try:
        _join_group(world, timedelta(seconds=timeout))
        yield world
    except BaseException as error:
        if isinstance(error, Stop) and error.on_all_ranks:
            error.reported = not world.is_main
            dist.destroy_process_group()
            raise
        _unreleased.append(error)
        if (reason := _loss_of_rank(error, timeout)) is not None:
            raise RankLost(reason) from None
        raise
    dist.destroy_process_group()


def _loss_of_rank(error: BaseException, timeout: float) -> str | None:
    """The message if an error shows that another rank is lost. The process group's own reason may be one of all ranks.

    Gloo raises a RuntimeError that names its source file; in a backward pass DistributedDataParallel passes it on.
    """
    text = str(error)
    is_groups = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _GROUP_ERROR.search(text))
    if not is_groups:
        return None
    [reason, *_] = text.splitlines() or [type(error).__name__]
    reason = _SOURCE_FILE.sub("", reason).partition(" This is typically caused by")[0].strip().rstrip(".")
    limit = f" (train.timeout = {timeout:g} s)" if _TIMED_OUT.search(text) else ""
    return (
        "another rank has stopped, or its node or network was lost; if no rank has another message, the reason is: "
        f"{reason}{limit}"
    )


@cache
def _stop_with_parent() -> None:
    """Save and stop if torchrun is killed. Otherwise its ranks would train on and hold their run folder."""
    end_with(os.getppid(), signal.SIGTERM)


def _local_device(device: str, local_rank: int) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("train.device = cuda: no CUDA device is visible here; use train.device=cpu or auto")
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise BadInput("train.device = mps: torch sees no Apple GPU here; use train.device=cpu or auto")
        return torch.device("mps")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    devices = torch.cuda.device_count()
    if devices > 1 and local_rank >= devices:
        raise BadInput(f"rank {local_rank} has no GPU: start {devices} processes on this node")
    # Of one visible GPU: a launcher may show each rank its own, as srun does with --gpus-per-task=1.
    local_device = torch.device("cuda", local_rank if devices > 1 else 0)
    torch.cuda.set_device(local_device)
    return local_device


def _join_group(world: World, timeout: timedelta) -> None:
    # Gloo's threads outlive the group. One that frees a tensor while Python ends would abort the process (pytorch pull
    # request 179291).
    process_exit.skip_cleanup()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    except dist.DistNetworkError as error:
        if "failed to listen" not in str(error):
            raise
        raise BadInput(
            f"MASTER_PORT = {os.environ['MASTER_PORT']}: rank 0 cannot listen there; the port is in use: choose another"
        ) from None
    store = _keys_of_this_group(store, world, timeout)
    # gloo beside NCCL carries flags and objects between CPUs without stopping the GPU.
    is_cuda = world.device.type == "cuda"
    if is_cuda:
        _check_own_gpu(store, world)
    backend, device_id = ("cpu:gloo,cuda:nccl", world.device) if is_cuda else ("gloo", None)
    dist.init_process_group(
        backend, store=store, rank=world.rank, world_size=world.size, device_id=device_id, timeout=timeout
    )


def _keys_of_this_group(store: Any, world: World, timeout: timedelta) -> Any:
    """The store under a name that no earlier group had, which the ranks agree on.

    An earlier group may have left its addresses in the store: another one of these processes, or that of the ranks
    before a restart. As of torch 2.14 torchrun keeps its store then, and its nodes may count their restarts differently
    (pytorch issue 135712). So rank 0 draws a name, the others answer it, and all go on once rank 0 has named every
    answer: what is left of earlier groups answers no new name, and names no new answer.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    if world.is_main:
        store.set("group", own)
        keys = [f"{own}/answer of rank {rank}" for rank in range(1, world.size)]
        store.wait(keys, timeout)
        store.set(f"{own}/answers", ",".join(store.get(key).decode() for key in keys))
        return dist.PrefixStore(own, store)  # type: ignore[attr-defined]
    while time.monotonic() < end:
        name = store.get("group").decode()
        store.set(f"{name}/answer of rank {world.rank}", own)
        with suppress(dist.DistStoreError):  # rank 0 waits for another rank, or the name is of an earlier group
            store.wait([f"{name}/answers"], timedelta(seconds=1))
            if own in store.get(f"{name}/answers").decode().split(","):
                return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
        time.sleep(0.1)
    raise dist.DistStoreError("timed out waiting for rank 0 to begin the group")


def _check_own_gpu(store: Any, world: World) -> None:
    """Refuse a GPU that is another rank's: with one visible GPU, a rank cannot know by its number."""
    gpu = torch.cuda.get_device_properties(world.device).uuid
    if store.add(f"GPU {gpu}", 1) > 1:
        raise BadInput(
            f"rank {world.rank} has the same GPU as another rank: start one process for each GPU of this node"
        )


def all_reduce_sum(world: World, tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, on every rank."""
    if world.size > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def broadcast_from_main(world: World, function: Callable[[], _T]) -> _T:
    """Call `function` on the first rank; its result, or the `BadInput` that it raises, on every rank.

    It may take no longer than a rank waits for another.
    """
    return broadcast_long_work(world, lambda _: function())


def broadcast_long_work(world: World, function: Callable[[SignOfLife], _T]) -> _T:
    """`broadcast_from_main` for work of any length, which calls its argument between its parts: the others wait on."""
    if world.size == 1:
        return function(lambda: None)
    if not world.is_main:
        while isinstance(result := _from_main(None), _StillWorking):
            pass
    else:
        last = time.monotonic()

        def sign_of_life() -> None:
            nonlocal last
            if time.monotonic() - last >= _SECONDS_BETWEEN_SIGNS:
                _from_main(_StillWorking())
                last = time.monotonic()

        try:
            result = _from_main(function(sign_of_life))
        except BadInput as error:
            error.on_all_ranks = True
            result = _from_main(error)
    if isinstance(result, BadInput):
        raise result
    return result  # type: ignore[no-any-return]


class _StillWorking:
    """What the first rank sends before its result."""


def _from_main(value: object) -> Any:
    """The first rank's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def main_first(world: World, function: Callable[[], _T]) -> _T:
    """Call `function` on every rank, on the first before the others begin: it may download, and fail for all.

    Its notes and warnings are those of the first rank.
    """
    results: list[_T] = []
    broadcast_from_main(world, lambda: results.append(function()))
    if results:
        return results[0]
    logger = logging.getLogger("resnet_train")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return function()
    finally:
        logger.setLevel(level)


def first_step(world: World, step: Tensor) -> int | None:
    """The smallest step of all ranks, where -1 means none. Waits for the device."""
    none = torch.iinfo(torch.int64).max
    smallest = torch.where(step < 0, none, step)
    if world.size > 1:
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return None if (number := int(smallest.item())) == none else number


class AnyRankFlag:
    """Whether any rank has raised a flag, known to all ranks at the same step.

    The flags of a step travel while the next step runs and are read after it, so that no rank waits for another.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.flag = torch.zeros((), dtype=torch.int32)
        self.pending: dist.Work | None = None

    def any(self, raised: bool) -> bool:
        """Call once a step, on every rank. True on all of them alike, one step after the first flag was raised."""
        if self.world.size == 1:
            return raised
        self.settle()
        any_raised = bool(self.flag.item())
        self.flag = torch.tensor(int(raised), dtype=torch.int32)
        self.pending = dist.all_reduce(self.flag, op=dist.ReduceOp.MAX, async_op=True)
        return any_raised

    def settle(self) -> None:
        """Wait for the flags that are on their way; call before the ranks leave the group."""
        if self.pending is not None:
            self.pending.wait()


def parallel(net: nn.Module, world: World, accumulates: bool) -> nn.Module:
    """The network under DistributedDataParallel if there are several ranks. Each rank keeps its own buffers.

    The graph is declared static unless gradients are accumulated: torch then reduces no gradient from the second step
    on (pytorch pull request 187732).
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
