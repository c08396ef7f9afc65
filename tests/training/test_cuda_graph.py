"""Steps as a graph, with a tape in CUDA's place: what is recorded is repeated without Python's code between."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from steps import CPU, IDENTITY, assert_same_parameters, random_batch, step_batches
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_train.config.schema import Run
from resnet_train.runs.checkpoint import CheckpointMeta
from resnet_train.training import checkpoint
from resnet_train.training.cuda_graph import GraphLauncher, Outputs
from resnet_train.training.step import TrainState, create_train_state, train_step

TinyRun = Callable[..., Run]
EVERYTHING = {"clip_grad_norm": 0.5, "ema_decay": 0.9, "label_smoothing": 0.1}


class Tape(TorchDispatchMode):
    """Keeps each operator with the tensors that it was called on; an answer comes to where it came the first time."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert operator is not torch.ops.aten._local_scalar_dense.default, "the step waits for the device"
        answer = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, answer))
        return answer

    def __init__(self, call: Callable[[], Outputs]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        with self:
            self.answer = call()
        self.repeats = 0

    @torch.no_grad()
    def repeat(self) -> None:
        self.repeats += 1
        for operator, args, kwargs, answer in self.calls if self.repeats > 1 else []:  # a CUDA graph only records
            for old, new in zip(tree_leaves(answer), tree_leaves(operator(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(call: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    tape = Tape(call)
    return tape.repeat, tape.answer


def states(run: Run) -> tuple[TrainState, TrainState]:
    eager, graph = (create_train_state(run, 4, 3, CPU) for _ in range(2))
    graph.launch = GraphLauncher(taped)
    return eager, graph


def assert_same(one: TrainState, other: TrainState) -> None:
    assert_same_parameters(one.net, other.net, rtol=0, atol=0)
    assert_same_parameters(one.eval_net, other.eval_net, rtol=0, atol=0)
    assert one.scaler.state_dict() == other.scaler.state_dict()
    assert (one.step, one.sums.tolist(), one.diverged_at) == (other.step, other.sums.tolist(), other.diverged_at)
    for a, b in zip(*(tree_leaves(state.optimizer.state_dict()) for state in (one, other)), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("changes", "kind"),
    [({}, "sgd"), (EVERYTHING, "sgd"), (EVERYTHING, "lars"), (EVERYTHING, "adamw"), (EVERYTHING, "lamb")],
    ids=["plain", "everything", "lars", "adamw", "lamb"],
)
def test_a_graph_takes_the_same_steps(precision: str, changes: dict[str, Any], kind: str, tiny_run: TinyRun) -> None:
    """Weights, running statistics, momentum, average, sums and loss scale, bit for bit, at a rate that moves."""
    run = tiny_run(train={"precision": precision, **changes}, optimizer={"kind": kind})
    eager, graph = states(run)
    for step in range(9):
        batch, lr = step_batches(random_batch(seed=step)), 0.2 / (1 + step)
        norms = [train_step(state, batch, IDENTITY, lr, run.train)["grad_norm"].item() for state in (eager, graph)]
        assert norms[0] == norms[1]
        assert_same(eager, graph)
        graph.net.eval()  # as an evaluation leaves it
    assert graph.launch.calls == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_a_graph_erases_and_mixes_as_each_batch_says(kind: str, tiny_run: TinyRun) -> None:
    run = tiny_run(optimizer={"kind": kind})
    eager, graph = states(run)
    for step in range(6):
        left = torch.arange(16) % (step + 1)
        erased = torch.stack([left, left, left + 2, left + 3], dim=1)
        blend = torch.tensor([1, step % 3, 1, 6, 7] if step % 2 else [0.1 * step, 0, 0, 0, 0], dtype=torch.float32)
        batch = random_batch(seed=step)._replace(erase_boxes=erased, mix_params=blend)
        for state in (eager, graph):
            train_step(state, step_batches(batch), IDENTITY, 0.2 / (1 + step), run.train)
        assert_same(eager, graph)
    assert graph.launch.calls == 6  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_a_graph_leaves_out_what_the_step_says(mode: str, tiny_run: TinyRun) -> None:
    """Stochastic depth draws on the device, from the seed of each step."""
    network = {"base": "cifar-resnet-8", "widths": [4, 8, 8], "drop_path_rate": 0.5, "drop_path_mode": mode}
    network |= {"dirac": True, "addition": {"kind": "skip-init", "gain": 0.5}}
    run = tiny_run(networks=[network])
    eager, graph = states(run)
    for step in range(8):
        batches = step_batches(random_batch())._replace(seeds=[step])
        for state in (eager, graph):
            train_step(state, batches, IDENTITY, 0.1, run.train)
        assert_same(eager, graph)
    assert graph.launch.calls == 8  # type: ignore[attr-defined]


def test_a_graph_resumes_where_it_was_saved(tiny_run: TinyRun, tmp_path: Any) -> None:
    run = tiny_run(train={"precision": "fp16", **EVERYTHING})
    eager, graph = states(run)
    for step in range(12):
        if step == 6:
            checkpoint.save(graph, CheckpointMeta(run, ("a", "b", "c", "d"), 40, IDENTITY), tmp_path, [], CPU)
            _, graph = states(run)
            rate = graph.optimizer.param_groups[0]["lr"]
            checkpoint.restore(graph, checkpoint.read_checkpoint(tmp_path / "last.pt"), CPU)
            # Not the file's, which is on the CPU: a graph of CUDA's would repeat the rate of its recording.
            assert all(group["lr"] is rate for group in graph.optimizer.param_groups)
        for state in (eager, graph):
            train_step(state, step_batches(random_batch(seed=step)), IDENTITY, 0.2 / (1 + step), run.train)
    assert_same(eager, graph)


def test_the_step_that_diverged_is_that_of_the_graph(tiny_run: TinyRun) -> None:
    """A step number of Python's would be the one of the recording."""
    run = tiny_run()
    _, graph = states(run)
    for step in range(9):
        train_step(graph, step_batches(random_batch()), IDENTITY, 1e30 if step == 6 else 0.1, run.train)
    assert graph.diverged_at.item() == 7


@pytest.mark.parametrize("kind", ["sgd", "lars", "adamw", "lamb"])
def test_a_loss_scale_falls_within_the_graph(kind: str, tiny_run: TinyRun) -> None:
    run = tiny_run(train={"precision": "fp16"}, optimizer={"kind": kind})
    eager, graph = states(run)
    for step in range(8):
        batch = random_batch(seed=step)
        if step in (2, 6):  # before and after the recording
            batch = batch._replace(shift=torch.full_like(batch.shift, math.inf))
        for state in (eager, graph):
            train_step(state, step_batches(batch), IDENTITY, 0.1, run.train)
    assert graph.scaler.get_scale() == 65536 / 4
    assert torch.equal(eager.optimizer.param_groups[0]["lr"], graph.optimizer.param_groups[0]["lr"])
    for one, other in zip(eager.net.parameters(), graph.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_images_of_another_size_begin_a_new_graph(tiny_run: TinyRun) -> None:
    """The old one's memory is free already for the first step of the new size."""
    run = tiny_run()
    eager, graph = states(run)
    outputs: list[weakref.ref[torch.Tensor]] = []

    def record(call: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        repeat, answer = taped(call)
        outputs.append(weakref.ref(answer["grad_norm"]))
        return repeat, answer

    graph.launch = GraphLauncher(record)
    for step in range(12):
        batch = random_batch(seed=step)
        if step >= 6:
            batch = batch._replace(images=batch.images[:, :6, :6].contiguous())
        for state in (eager, graph):
            train_step(state, step_batches(batch), IDENTITY, 0.1, run.train)
        alive = [False, True] if step >= 9 else [step < 6] if step >= 3 else []
        assert [tensor() is not None for tensor in outputs] == alive
    assert_same(eager, graph)


def test_where_a_graph_cannot_be_it_is_refused(config: Any, program: Any) -> None:
    code, _, err = program("run", config(), "train.cuda_graph=true")
    assert (code, "train.cuda_graph has no effect without CUDA" in err) == (2, True)
    code, _, err = program("run", config(), "train.cuda_graph=true", "train.grad_accum_steps=2")
    assert (code, "cuda_graph needs grad_accum_steps 1, and it is 2" in err) == (2, True)
