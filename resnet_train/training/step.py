"""The state of a training and one step of it."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnet_train.config.schema import Run, TrainConfig
from resnet_train.data import mixup
from resnet_train.data.batch import Batch, StepBatches
from resnet_train.data.normalize import Normalization
from resnet_train.errors import BadInput
from resnet_train.models import batch_norm
from resnet_train.models.network import build_network, initialise
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import autocast
from resnet_train.training import cuda_graph, optim
from resnet_train.training.cuda_graph import Launch, Measured


@dataclass
class TrainState:
    """All that training changes, and so all that a checkpoint must hold."""

    net: nn.Module
    """The bare network: what is saved."""
    forward: nn.Module
    """The same weights, compiled and under DDP: what is called."""
    launch: Launch
    """How the last pass of a step is done: as it is, or as a CUDA graph."""
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    ema: nn.Module | None
    """The moving average of the weights, where the recipe asks for one."""
    sums: Tensor
    """float64 [3]: loss, errors and samples of this rank since the last log line."""
    diverged_at: Tensor
    """int64: the first step whose loss or gradient was not finite, -1 if none. No checkpoint is made after it."""
    now: Tensor
    """int64: the step that is being taken, where the device can read it."""
    step: int = 0
    best: float = math.inf
    """The lowest `val_error_top1` of an evaluation so far."""

    def improves(self, val_error_top1: float) -> bool:
        """Note an evaluation; whether it is the best so far."""
        better = val_error_top1 < self.best
        self.best = min(self.best, val_error_top1)
        return better

    def averaged(self) -> nn.Module:
        """The network to evaluate: the average of the weights if there is one."""
        return self.net if self.ema is None else self.ema


def create_train_state(run: Run, classes: int, channels: int, world: World) -> TrainState:
    """The state before the first step, on the world's device."""
    net: nn.Module = build_network(run.network, classes, channels)
    initialise(net, run.seed)
    # channels_last comes before DDP, whose buckets take the strides that the weights have when it is built.
    net = net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.train.sync_bn:
        net = batch_norm.convert_sync_batchnorm(net, world)
    ema = copy.deepcopy(net).requires_grad_(False) if run.train.ema_decay else None
    forward: nn.Module = net
    if run.train.compile:
        # A ninth form of a function torch would run eagerly. Each network of a process is one, each size of its images,
        # and where synchronised batch norm cuts the graph each kind of unit.
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit
        # Before DDP, which hooks the weights' gradients and is not to be compiled. Shapes are few, so each is compiled.
        forward = torch.compile(net, dynamic=False)  # type: ignore[assignment]
    torch.backends.cudnn.benchmark = True  # training batches are of few shapes, so a search for kernels pays
    return TrainState(
        net=net,
        forward=distributed.parallel(forward, world, accumulates=run.train.grad_accum_steps > 1),
        launch=_launch(run.train, world),
        optimizer=optim.build_optimizer(net, run.optimizer),
        scaler=GradScaler(world.device.type, enabled=run.train.precision == "fp16"),
        ema=ema,
        sums=torch.zeros(3, dtype=torch.float64, device=world.device),
        diverged_at=torch.full((), -1, device=world.device),
        now=torch.zeros((), dtype=torch.int64, device=world.device),
    )


def _launch(cfg: TrainConfig, world: World) -> Launch:
    if not cfg.cuda_graph:
        return cuda_graph.eagerly
    if world.device.type != "cuda":
        raise BadInput("train.cuda_graph has no effect on the CPU: set it to false")
    if world.size > 1:
        raise BadInput(f"train.cuda_graph is for one GPU, and there are {world.size} ranks: set it to false")
    return cuda_graph.on_cuda(world.device)


def train_step(
    state: TrainState, share: StepBatches, normalization: Normalization, lr: float, cfg: TrainConfig
) -> dict[str, Tensor]:
    """One optimizer step over this rank's share of a batch. Waits for nothing on the device.

    Returns the gradient's norm before clipping, as a device tensor that is good until the next step; loss and errors
    are added to `state.sums`.
    """
    optim.set_lr(state.optimizer, lr)
    state.now.fill_(state.step)
    backward = partial(_backward, state, normalization, cfg, len(share.micro_batches))

    *earlier, (last, last_seed) = zip(share.micro_batches, share.seeds, strict=True)

    def finish(*tensors: Tensor) -> Measured:
        backward(last.with_tensors(tensors))
        return {"grad_norm": _update(state, cfg)}

    for batch, seed in earlier:
        torch.manual_seed(seed)  # for dropout, the only thing here that draws
        with _no_sync(state.forward):
            backward(batch)
    torch.manual_seed(last_seed)
    measured = state.launch(finish, last.tensors())
    state.step += 1
    return measured


# What follows may be recorded as a CUDA graph: it reads no number of Python's that changes from step to step.


def _backward(state: TrainState, normalization: Normalization, cfg: TrainConfig, passes: int, batch: Batch) -> None:
    """Add the gradient of one of a step's passes, its loss and its errors."""
    state.forward.train()
    images, own = normalization(batch), None
    if batch.erase_boxes is not None:
        images = mixup.erase(images, batch.erase_boxes)
    if batch.mix_params is not None:
        images, own = mixup.mix(images, batch.mix_params)
    with autocast(cfg.precision, images.device):
        logits = state.forward(images)
    loss = mixup.cross_entropy(logits.float(), batch.labels, own, cfg.label_smoothing)
    state.scaler.scale(loss / passes).backward()
    _count(state, loss.detach(), logits.detach(), mixup.majority(batch.labels, own))


def _update(state: TrainState, cfg: TrainConfig) -> Tensor:
    """Move the weights, and their average; the gradient's norm before clipping."""
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in state.net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if cfg.clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(state.net.parameters(), cfg.clip_grad_norm, norm)
    if not state.scaler.is_enabled():  # which leaves out steps whose gradient overflowed, as it should
        _note_divergence(state, norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.ema is not None and cfg.ema_decay is not None:
        _average(state.ema, state.net, cfg.ema_decay)
    return norm


def _no_sync(forward: nn.Module) -> AbstractContextManager[None]:
    """DDP reduces gradients over ranks in each backward pass; only the last one of a step needs it."""
    return forward.no_sync() if hasattr(forward, "no_sync") else nullcontext()  # type: ignore[operator]


@torch.no_grad()
def _count(state: TrainState, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    n = len(labels)
    wrong = (logits.argmax(1) != labels).sum()
    state.sums += torch.stack([loss.double() * n, wrong.double(), torch.full_like(loss, n, dtype=torch.float64)])
    _note_divergence(state, loss)


def _note_divergence(state: TrainState, value: Tensor) -> None:
    first = (state.diverged_at < 0) & ~torch.isfinite(value)
    state.diverged_at.copy_(torch.where(first, state.now, state.diverged_at))


@torch.no_grad()
def _average(ema: nn.Module, net: nn.Module, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * net, running statistics included."""
    pairs = [(e, n) for e, n in zip(ema.state_dict().values(), net.state_dict().values(), strict=True)]
    moving = [(e, n) for e, n in pairs if e.is_floating_point()]
    get_ema_multi_avg_fn(decay)([e for e, _ in moving], [n for _, n in moving], 0)
