"""A step never waits for the device: on tensors without values, anything that reads a value raises.

On a GPU such a read stalls the CPU until all kernels before it are done, in every step.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.data.batch import StepBatches
from resnet_train.data.normalize import Normalization
from resnet_train.runtime.distributed import World
from resnet_train.training.step import TrainState, create_train_state, train_step

CPU = World(torch.device("cpu"))
WAITS = (DataDependentOutputException, DynamicOutputShapeException)


def without_value(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


def take_values(state: TrainState) -> None:
    """Replace all tensors of a state by tensors without values."""
    old = list(state.net.parameters())
    for net in (state.net, state.ema):
        for module in net.modules() if net is not None else ():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = nn.Parameter(without_value(parameter), requires_grad=parameter.requires_grad)
                    module._parameters[name] = fake
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else without_value(buffer)
    new = dict(zip(old, state.net.parameters(), strict=True))
    lr = without_value(state.optimizer.param_groups[0]["lr"])
    for group in state.optimizer.param_groups:
        group["params"], group["lr"] = [new[parameter] for parameter in group["params"]], lr
    moved = {new[p]: {key: without_value(v) for key, v in kept.items()} for p, kept in state.optimizer.state.items()}
    state.optimizer.state.clear()
    state.optimizer.state.update(moved)
    for name in ("sums", "diverged_at", "device_step"):
        setattr(state, name, without_value(getattr(state, name)))
    if state.ema is not None:
        state.averaged = tuple(  # type: ignore[assignment]
            [t for t in net.state_dict(keep_vars=True).values() if t.is_floating_point()]
            for net in (state.ema, state.net)
        )


def first_batches(run: Run) -> StepBatches:
    train_set, _ = datasets.open_data(run.data)
    data = loader.training_data(run, train_set, 0, 0, 1, CPU.device)
    return next(data.from_step(0, 1))


def without_values(batches: StepBatches) -> StepBatches:
    fakes = [batch.with_tensors([without_value(t) for t in batch.tensors()]) for batch in batches.micro_batches]
    return batches._replace(micro_batches=fakes)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw", "lamb"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mix", [False, True], ids=["", "mix"])  # everything that is random at once
def test_a_step_never_waits(tiny_run: Callable[..., Run], optimizer: str, precision: str, mix: bool) -> None:
    options: dict[str, Any] = {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.5} if mix else {}
    train: dict[str, Any] = {"ema_decay": 0.9, "clip_grad_norm": 1.0, "grad_accum_steps": 2} if mix else {}
    random = {"dropout": 0.1, "drop_path_rate": 0.5} if mix else {}
    newer = {"dirac": True, "addition": {"kind": "skip-init"}} if mix else {}
    networks = [{"base": "cifar-resnet-8", "widths": [4, 8, 8], **random, **newer}]
    train["precision"] = precision
    if mix and optimizer == "lamb":
        train |= {"loss": "binary-cross-entropy", "target_threshold": 0.2}
    run = tiny_run(networks=networks, optimizer={"kind": optimizer}, augment=options, train=train)
    state, real_batches = create_train_state(run, 4, 3, CPU), first_batches(run)
    with FakeTensorMode():
        take_values(state)
        batches = without_values(real_batches)
        normalization = Normalization(torch.empty(1, 1, 3), torch.empty(3))
        for _ in range(2):
            train_step(state, batches, normalization, 0.1, run.train)


def test_what_waits_is_seen() -> None:
    with FakeTensorMode():
        values = torch.empty(3)
        for wait in (lambda: values[0].item(), lambda: bool(values[0] > 0), lambda: values[values > 0]):
            with pytest.raises(WAITS):
                wait()
