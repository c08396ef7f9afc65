"""The state of a training, and one step of it."""

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

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
from resnet_train.runtime.precision import WITHOUT_FLOAT64, autocast
from resnet_train.training import cuda_graph, optim
from resnet_train.training.cuda_graph import Launcher

Metrics = dict[str, Tensor]

MIN_LOSS_SCALE = 2.0**-14
"""With fp16 the loss is scaled, and the scale halved whenever a gradient overflows. A scale below this, fairseq's limit
in round numbers, means that gradients are never finite."""


@dataclass
class TrainState:
    """Everything that training changes, and so everything that a checkpoint must hold."""

    net: nn.Module
    """The bare network: what is saved."""
    forward: nn.Module
    """The same weights, compiled and under DDP: what is called."""
    launch: Launcher
    """Runs the last micro-batch of a step and the update: eagerly, or as a CUDA graph."""
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    ema: nn.Module | None
    """The exponential moving average of the weights, if the recipe asks for one."""
    averaged: tuple[list[Tensor], list[Tensor]]
    """The tensors of `ema` and of `net` that are averaged: listing them in each step would cost as much as a layer."""
    is_random: bool
    """Whether a training pass draws random numbers."""
    sums: Tensor
    """float64 [3], or float32 where the device has no float64: loss, errors and number of this rank's samples since the
    last log line."""
    diverged_at: Tensor
    """int64 []: the first step whose loss or gradient was not finite; -1 if none. No checkpoint is saved after it."""
    device_step: Tensor
    """int64 []: `step`, where kernels can read it."""
    step: int = 0
    """The number of steps that have been taken."""
    unmeasured: tuple[str, ...] = ()
    """What is due after `step` steps and not yet recorded, of "eval" and the kinds of probes, in this order."""
    best_val_error: float = math.inf
    """The lowest `val_error_top1` of an evaluation so far."""

    def update_best(self, val_error_top1: float) -> bool:
        """Take note of an evaluation. Returns whether it is the best so far."""
        is_best = val_error_top1 < self.best_val_error
        self.best_val_error = min(self.best_val_error, val_error_top1)
        return is_best

    @property
    def eval_net(self) -> nn.Module:
        """The network to evaluate: the average of the weights if there is one."""
        return self.net if self.ema is None else self.ema


def create_train_state(run: Run, classes: int, channels: int, world: World) -> TrainState:
    """The state before the first step, on the world's device."""
    net: nn.Module = build_network(run.network, classes, channels)
    initialise(net, run.seed)
    # Before DDP, whose buckets take the strides that the weights have when it is built.
    net = net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.train.sync_bn:
        net = batch_norm.convert_sync_batchnorm(net, world)
    ema = copy.deepcopy(net).requires_grad_(False) if run.train.ema_decay else None
    forward: nn.Module = net
    if run.train.compile:
        # By default torch compiles eight forms of a function and runs further ones eagerly. Here each network of a
        # process is a form, each image size, and with synchronised batch norm each kind of unit.
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit
        # Before DDP, whose hooks on gradients are not to be compiled. Shapes are few, so each one is compiled.
        forward = torch.compile(net, dynamic=False)  # type: ignore[assignment]
    torch.backends.cudnn.benchmark = True  # the batches of a training have few shapes, so the search pays off
    launch = _create_launcher(run.train, world)
    with cuda_graph.stream_of(launch):
        forward = distributed.parallel(forward, world, accumulates=run.train.grad_accum_steps > 1)
    return TrainState(
        net=net,
        forward=forward,
        launch=launch,
        optimizer=optim.build_optimizer(net, run.optimizer),
        scaler=GradScaler(world.device.type, enabled=run.train.precision == "fp16"),
        ema=ema,
        averaged=([], []) if ema is None else (_floats(ema), _floats(net)),
        is_random=run.network.is_random,
        sums=torch.zeros(3, dtype=_dtype_of_sums(world.device), device=world.device),
        diverged_at=torch.full((), -1, device=world.device),
        device_step=torch.zeros((), dtype=torch.int64, device=world.device),
    )


def _dtype_of_sums(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def _create_launcher(cfg: TrainConfig, world: World) -> Launcher:
    if not cfg.cuda_graph:
        return cuda_graph.launch_eagerly
    if world.device.type != "cuda":
        raise BadInput("train.cuda_graph has no effect without CUDA: set it to false")
    return cuda_graph.cuda_graph_launcher(world.device, world.size)


def train_step(
    state: TrainState, batches: StepBatches, normalization: Normalization, lr: float, cfg: TrainConfig
) -> Metrics:
    """Take one optimizer step on this rank's micro-batches. Never waits for the device.

    Returns device tensors that are valid until the next step: `grad_norm`, the norm of the gradient before clipping,
    and with fp16 `loss_scale`. Loss and errors are added to `state.sums`.
    """
    optim.set_lr(state.optimizer, lr)
    state.device_step.fill_(state.step)
    passes = len(batches.micro_batches)
    *others, (last_batch, last_seed) = zip(batches.micro_batches, batches.seeds, strict=True)
    if not state.net.training:  # after an evaluation
        state.forward.train()

    def last_pass_and_update(*tensors: Tensor) -> Metrics:
        _forward_backward(state, last_batch.with_tensors(tensors), normalization, cfg, passes)
        return _update(state, cfg)

    with _compile_errors(cfg):
        for batch, seed in others:
            _seed(state, seed)
            with _no_sync(state.forward):
                _forward_backward(state, batch, normalization, cfg, passes)
        _seed(state, last_seed)
        metrics = state.launch(last_pass_and_update, last_batch.tensors())
    state.step += 1
    return metrics


@contextmanager
def _compile_errors(cfg: TrainConfig) -> Iterator[None]:
    """Raise `BadInput` where torch.compile fails: it builds kernels with compilers that may not be installed."""
    try:
        yield
    except RuntimeError as error:
        reason = getattr(error, "inner_exception", None)  # of torch._dynamo.exc.BackendCompilerFailed
        if not cfg.compile or reason is None:
            raise
        first_line = str(reason).partition("\n")[0]
        raise BadInput(
            f"train.compile: torch cannot compile the network: {first_line}: install a C++ compiler (g++ on Debian, "
            "Ubuntu; for a GPU python3-dev, too), or set train.compile=false"
        ) from None


def _seed(state: TrainState, seed: int) -> None:
    """Seed dropout and stochastic depth, the only random operations of a step."""
    if state.is_random:
        torch.manual_seed(seed)


# The functions below may be captured as a CUDA graph: they read no Python number that changes from step to step.


def _forward_backward(
    state: TrainState, batch: Batch, normalization: Normalization, cfg: TrainConfig, passes: int
) -> None:
    """Add one micro-batch's gradient to the weights' gradients, its loss and errors to `state.sums`."""
    images, own_weight = normalization(batch.cropped()), None  # float32 [n, C, H, W]
    if batch.erase_boxes is not None:
        images = mixup.erase(images, batch.erase_boxes)
    if batch.mix_params is not None:
        images, own_weight = mixup.mix(images, batch.mix_params)
    with autocast(cfg.precision, images.device):
        logits = state.forward(images)  # [n, classes]
    loss = _loss(logits.float(), batch.labels, own_weight, cfg)
    state.scaler.scale(loss / passes).backward()
    _add_to_sums(state, loss.detach(), logits.detach(), mixup.majority(batch.labels, own_weight))


def _loss(logits: Tensor, labels: Tensor, own_weight: Tensor | None, cfg: TrainConfig) -> Tensor:
    if cfg.loss == "cross-entropy":
        return mixup.cross_entropy(logits, labels, own_weight, cfg.label_smoothing)
    return mixup.binary_cross_entropy(logits, labels, own_weight, cfg.label_smoothing, cfg.target_threshold)


def _update(state: TrainState, cfg: TrainConfig) -> Metrics:
    """Update the weights and their average."""
    state.scaler.unscale_(state.optimizer)
    gradients = [p.grad for p in state.net.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    metrics = {"grad_norm": norm}
    if cfg.clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(state.net.parameters(), cfg.clip_grad_norm, norm)
    if not state.scaler.is_enabled():  # the scaler skips steps whose gradient overflows: that is no divergence
        _note_divergence(state, ~torch.isfinite(norm))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.is_enabled():
        scale = state.scaler._scale
        assert scale is not None
        _note_divergence(state, scale < MIN_LOSS_SCALE)
        metrics["loss_scale"] = scale
    state.optimizer.zero_grad()
    if cfg.ema_decay is not None:
        _update_ema(*state.averaged, cfg.ema_decay)
    return metrics


def _no_sync(forward: nn.Module) -> AbstractContextManager[None]:
    """DDP reduces gradients over ranks in each backward pass; only the last one of a step needs it."""
    return forward.no_sync() if hasattr(forward, "no_sync") else nullcontext()  # type: ignore[operator]


@torch.no_grad()
def _add_to_sums(state: TrainState, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    n = len(labels)
    errors = (logits.argmax(1) != labels).sum()
    wide = state.sums.dtype
    state.sums += torch.stack([loss.to(wide) * n, errors.to(wide), torch.full_like(loss, n, dtype=wide)])
    _note_divergence(state, ~torch.isfinite(loss))


def _note_divergence(state: TrainState, has_diverged: Tensor) -> None:
    """Note the step in `state.diverged_at` if it is the first that has diverged: bool []. The host reads it later."""
    is_first = (state.diverged_at < 0) & has_diverged
    state.diverged_at.copy_(torch.where(is_first, state.device_step, state.diverged_at))


def _floats(module: nn.Module) -> list[Tensor]:
    """Weights and running statistics."""
    return [tensor for tensor in module.state_dict(keep_vars=True).values() if tensor.is_floating_point()]


@torch.no_grad()
def _update_ema(ema: list[Tensor], net: list[Tensor], decay: float) -> None:
    """ema = decay * ema + (1 - decay) * net, tensor by tensor."""
    get_ema_multi_avg_fn(decay)(ema, net, 0)
