"""The plan and the step, each against an independent calculation."""

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from steps import CPU, IDENTITY, assert_same_parameters, random_batch, step_batches
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_train.config.schema import Run
from resnet_train.data.batch import Batch
from resnet_train.data.sampler import Sampler
from resnet_train.errors import BadInput
from resnet_train.evaluation import evaluator
from resnet_train.models.network import Network, initialise
from resnet_train.runtime.precision import set_precision
from resnet_train.training import step as step_module
from resnet_train.training.schedule import build_schedule
from resnet_train.training.step import TrainState, create_train_state, train_step

# --- plan -------------------------------------------------------------------------------------------------------------

TinyRun = Callable[..., Run]


def rates(run: Run, steps_per_epoch: float = 10.0) -> list[float]:
    plan = build_schedule(run, steps_per_epoch)
    return [plan.lr_at(step) for step in range(plan.total_steps)]


def scheduled(make: Callable[[torch.optim.Optimizer], Any], steps: int, lr: float = 0.1) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, lrs = make(optimizer), []
    for _ in range(steps):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


def test_schedules_are_torchs(tiny_run: TinyRun) -> None:
    milestones = [{"steps": 10}, {"epochs": 2.5}, {"fraction": 0.8}]
    step = tiny_run(train={"steps": 40}, schedule={"kind": "step", "milestones": milestones})
    torchs = scheduled(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 25, 32], gamma=0.1), 40)
    assert rates(step) == pytest.approx(torchs)
    cosine = tiny_run(train={"epochs": 4}, schedule={"kind": "cosine", "min_lr": 0.001})
    torchs = scheduled(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40, eta_min=0.001), 40)
    assert rates(cosine) == pytest.approx(torchs)
    linear = tiny_run(train={"steps": 40}, schedule={"kind": "linear"})
    torchs = scheduled(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=40), 40)
    assert rates(linear) == pytest.approx(torchs)


def test_warm_ups(tiny_run: TinyRun) -> None:
    constant = {"kind": "step", "milestones": [{"steps": 30}], "warmup": {"kind": "constant", "lr": 0.01, "steps": 4}}
    assert rates(tiny_run(train={"steps": 32}, schedule=constant)) == pytest.approx(
        [0.01] * 4 + [0.1] * 26 + [0.01] * 2
    )
    linear = {"kind": "cosine", "warmup": {"lr": 0.02, "epochs": 0.4}}
    lrs = rates(tiny_run(train={"steps": 44}, schedule=linear))
    assert lrs[:5] == pytest.approx([0.04, 0.06, 0.08, 0.1, 0.1])
    assert lrs[4:] == pytest.approx([(1 + math.cos(math.pi * i / 40)) / 20 for i in range(40)])


def test_everything_is_due_at_the_end_and_keeping_only_in_its_turn(tiny_run: TinyRun) -> None:
    run = tiny_run(train={"epochs": 1.1}, checkpoint={"every": {"epochs": 0.5}, "keep_every": {"steps": 10}})
    plan = build_schedule(run, 20.0)
    assert plan.total_steps == 22
    assert [step for step in range(1, 23) if plan.checkpoint.is_due(step)] == [10, 20, 22]
    assert [step for step in range(1, 23) if plan.keep_checkpoint.is_due(step)] == [10, 20]
    assert plan.unreached() == ""
    late = {"kind": "step", "milestones": [{"steps": 5}, {"steps": 22}], "warmup": {"steps": 30}}
    assert build_schedule(tiny_run(train={"epochs": 1.1}, schedule=late), 20.0).unreached() == (
        "the milestone at 22 and the end of the warm-up at 30"
    )
    odd = build_schedule(tiny_run(train={"epochs": 4}, eval={"every": {"epochs": 1}}), 11.234)
    assert [step for step in range(1, 46) if odd.eval.is_due(step)] == [11, 22, 34, 45]  # epochs end, no step drifts
    assert not any(build_schedule(tiny_run(), 20.0).keep_checkpoint.is_due(step) for step in range(1, 9))


# --- step -------------------------------------------------------------------------------------------------------------


def take_steps(run: Run, batches: list[list[Batch]], lr: float = 0.1) -> TrainState:
    state = create_train_state(run, classes=4, channels=3, world=CPU)
    for step in batches:
        train_step(state, step_batches(*step), IDENTITY, lr, run.train)
    return state


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_sgd_written_out(tiny_run: TinyRun, nesterov: bool) -> None:
    """v = momentum * v + g + decay * w; w = w - lr * v, in the plainest of code and float64."""
    run = tiny_run(
        optimizer={"momentum": 0.7, "nesterov": nesterov, "weight_decay": 0.01, "decay_on": "matrices"},
        train={"label_smoothing": 0.1},
    )
    batches = [[random_batch(seed=seed)] for seed in range(3)]
    state = take_steps(run, batches, lr=0.05)
    net = Network(run.network, 4)
    initialise(net, run.seed)
    net.double()
    speed = [torch.zeros_like(p) for p in net.parameters()]
    for [batch] in batches:
        logits = net(batch.images.double().permute(0, 3, 1, 2) / 255)
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, batch.labels, label_smoothing=0.1), list(net.parameters())
        )
        with torch.no_grad():
            for p, v, g in zip(net.parameters(), speed, gradients, strict=True):
                g = g + (0.01 * p if p.ndim > 1 else 0)
                v.mul_(0.7).add_(g)
                p -= 0.05 * (g + 0.7 * v if nesterov else v)
    assert_same_parameters(state.net.double(), net, rtol=1e-4, atol=1e-6)


def test_accumulation_is_one_larger_batch_but_for_batch_norm(tiny_run: TinyRun) -> None:
    """Batches of one image twice over have the statistics of the image, so the passes must add up to the whole."""
    run, half = tiny_run(), random_batch(8)
    full = Batch(*(torch.cat([tensor, tensor]) for tensor in half[:3]))
    states = [take_steps(run, [batches]) for batches in ([full], [half, half])]
    for one, other in zip(states[0].net.parameters(), states[1].net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert states[0].sums.tolist()[1:] == states[1].sums.tolist()[1:]
    assert states[0].sums[0].item() == pytest.approx(states[1].sums[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dropout", 0.5), ("drop_path_rate", 0.5), ("addition", {"kind": "shortcut-dropout", "rate": 0.5})],
)
def test_dropout_is_a_function_of_the_step_and_the_share(key: str, value: Any, tiny_run: TinyRun) -> None:
    """Not of what was drawn before: two passes on one rank drop what two ranks drop, and a repeated step repeats."""
    assert Sampler(7, 40, 16, grad_accum_steps=2).seeds(5) == [
        Sampler(7, 40, 16, rank=r, ranks=2).seeds(5)[0] for r in (0, 1)
    ]
    assert len({seed for step in range(9) for seed in Sampler(7, 40, 16, grad_accum_steps=2).seeds(step)}) == 18
    run = tiny_run(networks=[{"base": "cifar-resnet-8", "widths": [4, 8, 8], key: value}])
    nets = []
    for before in (0, 3):
        state = create_train_state(run, 4, 3, CPU)
        torch.rand(before)
        train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
        nets.append(state.net)
    assert_same_parameters(*nets, rtol=0, atol=0)
    other = create_train_state(run, 4, 3, CPU)
    train_step(other, step_batches(random_batch())._replace(seeds=[1]), IDENTITY, 0.1, run.train)
    assert not torch.equal(other.net.conv1.weight, nets[0].conv1.weight)


def test_a_step_without_dropout_seeds_nothing(tiny_run: TinyRun) -> None:
    """Which takes as long as some layers."""
    torch.manual_seed(123)
    run = tiny_run()
    train_step(create_train_state(run, 4, 3, CPU), step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert torch.initial_seed() == 123


def test_the_mode_of_modules_is_set_only_after_an_evaluation(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting it visits each module, which takes as long as some layers, too."""
    run = tiny_run()
    state, modes = create_train_state(run, 4, 3, CPU), list[bool]()
    train = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Conv2d, "train", lambda self, mode=True: modes.append(mode) or train(self, mode))
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in state.net.modules())
    for expected in (0, 0, convolutions):
        if expected:
            state.net.eval()
        modes.clear()
        train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
        assert modes == [True] * expected


def test_mixed_and_erased_batches_are_learnt_as_torchvisions(tiny_run: TinyRun) -> None:
    """Loss against soft labels; errors against the label that an image has most of."""
    run, batch = tiny_run(train={"label_smoothing": 0.1}), random_batch(seed=3)
    erased = torch.tensor([[1, 2, 5, 4]] * 8 + [[0, 0, 0, 0]] * 8)
    for blend in ([0.7, 0, 0, 0, 0], [0.2, 0, 0, 0, 0], [1, 2, 0, 8, 4]):
        state = create_train_state(run, 4, 3, CPU)
        net = copy.deepcopy(state.net)
        mixed = batch._replace(erase_boxes=erased, mix_params=torch.tensor(blend, dtype=torch.float32))
        train_step(state, step_batches(mixed), IDENTITY, 0.1, run.train)
        images = batch.images.permute(0, 3, 1, 2) / 255
        images[:8, :, 2:4, 1:5] = 0
        rolled, own = images.roll(1, 0), blend[0] if blend[0] < 1 else 1 - 24 / 64
        if blend[0] < 1:
            images = own * images + (1 - own) * rolled
        else:
            images[:, :, 0:4, 2:8] = rolled[:, :, 0:4, 2:8]
        one_hot = F.one_hot(batch.labels, 4).float()
        soft = own * one_hot + (1 - own) * one_hot.roll(1, 0)
        logits = net.train()(images)
        loss = F.cross_entropy(logits, soft, label_smoothing=0.1)
        assert state.sums[0].item() == pytest.approx(16 * loss.item(), rel=1e-5)
        assert state.sums[1].item() == (wrong := (logits.argmax(1) != soft.argmax(1)).sum())
        assert own > 0.5 or wrong != (logits.argmax(1) != batch.labels).sum()
        loss.backward()
        moved = torch.cat(
            [(p.detach() - q.detach()).flatten() for p, q in zip(net.parameters(), state.net.parameters(), strict=True)]
        )
        wanted = torch.cat([0.1 * (p.grad + 1e-4 * p.detach()).flatten() for p in net.parameters()])
        torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=1e-6)


def test_clipping_shortens_the_gradient_and_reports_it_whole(tiny_run: TinyRun) -> None:
    batch, plain, clipped = step_batches(random_batch()), tiny_run(), tiny_run(train={"clip_grad_norm": 0.01})
    norms = []
    for run in (plain, clipped):
        state = create_train_state(run, 4, 3, CPU)
        before = [p.detach().clone() for p in state.net.parameters()]
        norms.append(train_step(state, batch, IDENTITY, 1.0, run.train.model_copy())["grad_norm"].item())
        moved = torch.stack(
            [(p - b + 1e-4 * b).norm() for p, b in zip(state.net.parameters(), before, strict=True)]
        ).norm()
        assert moved.item() == pytest.approx(0.01 if run is clipped else norms[0], rel=1e-3)
    assert norms[0] == norms[1] > 0.01


def test_average_of_the_weights(tiny_run: TinyRun) -> None:
    run = tiny_run(train={"ema_decay": 0.9})
    state = create_train_state(run, 4, 3, CPU)
    assert state.eval_net is state.ema
    wanted = {key: value.double() for key, value in state.net.state_dict().items()}
    for seed in range(3):
        train_step(state, step_batches(random_batch(seed=seed)), IDENTITY, 0.1, run.train)
        wanted = {key: 0.9 * wanted[key] + 0.1 * value for key, value in state.net.state_dict().items()}
    for key, value in state.eval_net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), wanted[key], rtol=1e-4, atol=1e-6)


def test_the_first_loss_that_is_not_finite_is_noted(tiny_run: TinyRun) -> None:
    run = tiny_run()
    state = create_train_state(run, 4, 3, CPU)
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert state.diverged_at.item() == -1
    train_step(state, step_batches(random_batch()), IDENTITY, 1e30, run.train)
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert state.diverged_at.item() == 2
    state = create_train_state(run, 4, 3, CPU)
    state.net.conv1.weight.register_hook(lambda gradient: gradient * math.inf)  # of a loss that is finite
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert state.diverged_at.item() == 0
    assert math.isfinite(state.sums[0].item())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_follows_fp32(tiny_run: TinyRun, precision: str) -> None:
    batches = [[random_batch(seed=seed)] for seed in range(2)]
    full, half = (take_steps(tiny_run(train={"precision": p}), batches) for p in ("fp32", precision))
    assert half.scaler.is_enabled() == (precision == "fp16")
    one, other = (
        train_step(s, step_batches(random_batch()), IDENTITY, 0.1, tiny_run().train)["grad_norm"] for s in (full, half)
    )
    assert other.item() == pytest.approx(one.item(), rel=0.1)  # without the scale of the loss
    assert_same_parameters(full.net, half.net, rtol=0.1, atol=0.03)
    assert not torch.equal(full.net.conv1.weight, half.net.conv1.weight)
    assert next(half.net.parameters()).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw", "lamb"])
def test_a_first_step_that_overflows_leaves_no_trace(tiny_run: TinyRun, optimizer: str) -> None:
    """The loss scaler skips it; the next one must start from zero momentum, not from unwritten memory."""
    run = tiny_run(train={"precision": "fp16"}, optimizer={"kind": optimizer})
    state, other = (create_train_state(run, 4, 3, CPU) for _ in range(2))
    before = {key: value.clone() for key, value in state.net.state_dict().items() if "running" not in key}
    hook = state.net.conv1.weight.register_hook(lambda gradient: gradient * math.inf)
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    hook.remove()
    assert all(torch.equal(state.net.state_dict()[key], w) for key, w in before.items() if "num_batches" not in key)
    assert state.diverged_at.item() == -1
    assert state.scaler.get_scale() == 32768
    other.scaler.load_state_dict(state.scaler.state_dict())
    for one in (state, other):
        metrics = train_step(one, step_batches(random_batch(seed=1)), IDENTITY, 0.1, run.train)
        assert metrics["loss_scale"].item() == 32768
    for one, two in zip(state.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw", "lamb"])
def test_a_later_step_that_overflows_changes_nothing(tiny_run: TinyRun, optimizer: str) -> None:
    """Not the weights, which still have momentum, and not the momentum."""
    run = tiny_run(train={"precision": "fp16"}, optimizer={"kind": optimizer})
    state = take_steps(run, [[random_batch()]])

    def kept() -> list[torch.Tensor]:
        return [p.detach().clone() for p in state.net.parameters()] + [
            tensor.clone() for p in state.net.parameters() for tensor in state.optimizer.state[p].values()
        ]

    before = kept()
    hook = state.net.conv1.weight.register_hook(lambda gradient: gradient * math.nan)
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert all(torch.equal(one, other) for one, other in zip(before, kept(), strict=True))
    hook.remove()
    train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert not any(torch.equal(one, other) for one, other in zip(before, kept(), strict=True))


def test_gradients_that_overflow_at_any_loss_scale_are_a_divergence(tiny_run: TinyRun) -> None:
    """Every step would be skipped, and the loss stay finite for ever."""
    run = tiny_run(train={"precision": "fp16"})
    state = create_train_state(run, 4, 3, CPU)
    state.net.conv1.weight.register_hook(lambda gradient: gradient * math.inf)
    for _ in range(32):  # from 2^16 to 2^-14 is 30 halvings
        train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert state.diverged_at.item() == 30


CALLS = {
    "sgd": ({}, 200),
    "average": ({"train": {"ema_decay": 0.9}}, 201),
    "fp16": ({"train": {"precision": "fp16"}}, 230),
    "lars": ({"optimizer": {"kind": "lars"}}, 230),
    "lars, fp16": ({"optimizer": {"kind": "lars"}, "train": {"precision": "fp16"}}, 290),
    "adamw": ({"optimizer": {"kind": "adamw"}}, 200),
    "lamb": ({"optimizer": {"kind": "lamb"}}, 270),
    "binary": ({"train": {"loss": "binary-cross-entropy"}}, 200),
}
"""Changes to the tiny experiment, and how many of torch's operations a step may call."""


@pytest.mark.parametrize("recipe", CALLS)
def test_a_step_calls_few_operations(tiny_run: TinyRun, recipe: str) -> None:
    """The CPU launches each one; on a GPU that is what limits small networks. 182 of these are the network's own."""

    class Counter(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return function(*args, **(kwargs or {}))

    changes, most = CALLS[recipe]
    run = tiny_run(**changes)
    state = take_steps(run, [[random_batch()]])
    with Counter() as counter:
        train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert 150 < counter.calls <= most


def test_a_step_computes_nothing_in_float64_where_the_device_cannot(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an Apple GPU."""

    class WithoutFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            assert getattr(result, "dtype", None) != torch.float64, function
            return result

    monkeypatch.setattr(step_module, "WITHOUT_FLOAT64", ("cpu",))
    run = tiny_run(train={"clip_grad_norm": 1.0, "ema_decay": 0.9, "label_smoothing": 0.1})
    state = take_steps(run, [[random_batch()]])
    with WithoutFloat64():
        train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)
    assert state.sums[2] == 2 * len(random_batch().labels)


def test_a_run_goes_on_where_the_device_has_no_float64(
    config: Callable[..., Path], program: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints are those of other devices."""
    monkeypatch.setattr(step_module, "WITHOUT_FLOAT64", ("cpu",))
    monkeypatch.setattr(evaluator, "WITHOUT_FLOAT64", ("cpu",))
    assert program("run", config(), "train.steps=3")[0] == 0
    assert program("run", config(), "train.steps=8")[0] == 0
    code, _, err = program("eval", "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt")
    assert code == 0, err


def test_fp32_is_fp32_and_tf32_is_asked_for() -> None:
    for precision, tf32 in (("tf32", True), ("bf16", False), ("fp32", False)):
        set_precision(precision, torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32 == tf32
        assert torch.backends.cudnn.allow_tf32 == tf32
    with pytest.raises(BadInput, match="tf32 has no effect without CUDA"):
        set_precision("tf32", torch.device("cpu"))


def test_each_size_of_images_is_compiled(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond the eighth, where torch by itself would go on eagerly."""
    compiled = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(inputs)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    run = tiny_run(train={"compile": True})
    state = create_train_state(run, 4, 3, CPU)
    sizes = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    for size in sizes * 2:
        images = torch.zeros(16, size, size, 3, dtype=torch.uint8)
        train_step(state, step_batches(random_batch()._replace(images=images)), IDENTITY, 0.1, run.train)
    assert len(compiled) == len(sizes)


def test_a_machine_without_a_compiler_is_one_line(config: Any, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch reports it: within an error of its own, several lines long."""

    def no_compiler(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nin any place")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    for command in ("run", "bench"):
        code, _, err = program(command, config(train={"compile": True}))
        reason = (
            "train.compile: torch cannot compile the network: No working C++ compiler found: install a C++ compiler"
        )
        assert (code, reason in err.splitlines()[-1]) == (2, True), err
        assert "Traceback" not in err


def test_kernels_are_searched_for_the_shapes_of_training_alone(
    config: Any, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a probe before it: cuDNN keeps what it has once chosen for a shape, in any way."""
    searched: dict[int, list[bool]] = {}
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    forward = Network.forward

    def spied(self: Network, x: torch.Tensor) -> torch.Tensor:
        if len(x):  # 0 where multiply-adds are counted
            searched.setdefault(len(x), []).append(torch.backends.cudnn.benchmark)
        return forward(self, x)

    monkeypatch.setattr(Network, "forward", spied)
    probes = {"gradients": {"images": 16}}
    code, _, err = program("run", config(train={"steps": 6}, eval={"every": {"steps": 2}}, probes=probes))
    assert code == 0, err
    assert set(searched.pop(16)) == {True}  # a batch of training
    assert {search for searches in searched.values() for search in searches} == {False}
