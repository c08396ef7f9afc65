"""Steps as a graph, with a tape in CUDA's place (`tape.py`): of one rank, and of two with what they send each other."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import figures, same_weights, spawn
from loading import training_data
from steps import CPU, IDENTITY, assert_same_parameters, random_batch, step_batches
from tape import Tape, taped
from torch.utils._pytree import tree_leaves

from resnet_train.config.schema import Run
from resnet_train.data import datasets
from resnet_train.errors import Diverged, Interrupted, RankLost
from resnet_train.runs.checkpoint import CheckpointMeta
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import World, parallel
from resnet_train.training import checkpoint, cuda_graph
from resnet_train.training.cuda_graph import GraphLauncher, Outputs
from resnet_train.training.step import TrainState, create_train_state, train_step

TinyRun = Callable[..., Run]
EVERYTHING = {"clip_grad_norm": 0.5, "ema_decay": 0.9, "label_smoothing": 0.1}


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


CROPS: dict[str, dict[str, Any]] = {
    "pad": {"crop": {"kind": "pad", "padding": 2}, "flip": True},
    "reflect": {"crop": {"kind": "pad", "padding": 2, "mode": "reflect"}, "flip": False, "random_erasing": 0.5},
    "flip": {"crop": None, "flip": True, "mixup": 0.2},
}


@pytest.mark.parametrize("augment", CROPS.values(), ids=list(CROPS))
def test_a_graph_crops_images_that_stay_on_the_device(augment: dict[str, Any], tiny_run: TinyRun) -> None:
    """To the same bits as without one; between its steps nothing is launched for them."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    dataset = datasets.InMemoryDataset(images, np.arange(40) % 4, "abcd")
    runs = [tiny_run(augment=augment, train={"cuda_graph": graph}) for graph in (False, True)]
    eager, graph = states(runs[0])
    before, within = (training_data(run, dataset).from_step(0, 7) for run in runs)
    for step in range(7):
        with (tape := Tape(lambda: {})):
            batches = next(within)
        names = {operator.__name__.split(".")[0] for operator, *_ in tape.calls}
        assert step == 0 or augment != CROPS["pad"] or names <= {"slice", "split", "detach", "alias"}
        [batch], [cropped] = batches.micro_batches, next(before).micro_batches
        assert batch.source is not None
        assert batch.image_size == (8, 8)
        assert torch.equal(batch.cropped().images, cropped.images)
        for state, one in ((eager, cropped), (graph, batch)):
            train_step(state, step_batches(one), IDENTITY, 0.1, runs[0].train)
        assert_same(eager, graph)


def test_other_images_are_cropped_before_the_step(tiny_run: TinyRun, squares: Path) -> None:
    """Those of a step alone, of which a graph would keep the first, and those that Pillow edits."""
    files = {"kind": "imagefolder", "path": str(squares), "workers": 1}
    for data, augment, in_step in (
        (files | {"device_cache_gb": 1}, {}, True),
        (files | {"device_cache_gb": 1}, {"crop": None, "flip": False}, False),
        (files | {"device_cache_gb": 1}, {"auto_augment": {"kind": "trivial-augment"}}, False),
        ({"kind": "synthetic"}, {}, False),
    ):
        run = tiny_run(data=data, augment=augment, train={"cuda_graph": True})
        [batch] = next(training_data(run).from_step(0, 1)).micro_batches
        assert (batch.source is not None, batch.image_size) == (in_step, (8, 8))


# --- several ranks ----------------------------------------------------------------------------------------------------

WITH_A_TAPE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import torch.distributed as dist
from tape import Tape
from resnet_train import cli
from resnet_train.runtime.process_exit import exit_process
from resnet_train.training import step
from resnet_train.training.cuda_graph import GraphLauncher

tapes, launchers, leave = [], [], dist.destroy_process_group

def capture(call):
    tapes.append(Tape(call))
    return tapes[-1].repeat, tapes[-1].answer

def launcher(cfg, world):
    launchers.append(GraphLauncher(capture, ranks=world.size))
    return launchers[-1]

def destroy_process_group():
    assert launchers[0].graph is None, "NCCL would wait for the graph"
    leave()

code = cli.main([*sys.argv[1:], "output=eager"])
step._create_launcher, dist.destroy_process_group = launcher, destroy_process_group
code = code or cli.main([*sys.argv[1:], "output=graph"])
[tape] = tapes
sent = sum(operator.namespace == "c10d" for operator, *_ in tape.calls)
assert (tape.repeats, sent > 0) == (9, True), (tape.repeats, sent)
exit_process(code)
"""


def test_a_graph_of_two_ranks_takes_the_same_steps(config: Callable[..., Path], tmp_path: Path) -> None:
    """The ranks see different images, so a graph that sent nothing would train two networks."""
    path = config(train={"steps": 20, "sync_bn": True, **EVERYTHING})
    (tmp_path / "with_a_tape.py").write_text(WITH_A_TAPE)
    process = spawn("run", path, ranks=2, program=(tmp_path / "with_a_tape.py", Path(__file__).parents[1]))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    eager, graph = (Path(output) / "tiny/cifar-resnet-8/seed-0" for output in ("eager", "graph"))
    assert figures(eager) == figures(graph)
    assert same_weights(eager / "checkpoints/last.pt", graph / "checkpoints/last.pt")


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_the_warm_up_outlasts_what_ddp_measures() -> None:
    """It reads the times of its first ten iterations, each in the next one, and no capture may read the clock."""
    net = parallel(torch.nn.Linear(2, 2), World(torch.device("cpu"), size=2), accumulates=False)
    read = []
    for _ in range(cuda_graph.warm_up_calls(2) + 1):
        net(torch.ones(1, 2)).sum().backward()
        read.append(net._get_ddp_logging_data().get("iteration"))  # type: ignore[operator]
    assert read[-3:] == [9, 10, 10]


STEP = "resnet_train.training.step"


class Stream:
    """A stream that notes what it waits for."""

    device = torch.device("cuda", 0)

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: "Stream") -> None:
        self.events.append(f"{self.name} waits for {other.name}")


def test_all_but_replays_is_on_the_stream_of_the_capture(monkeypatch: pytest.MonkeyPatch, tiny_run: TinyRun) -> None:
    """DistributedDataParallel, eleven steps, the capture. The graph is replayed on the stream of the loop."""
    events: list[str] = []
    streams = [Stream("main", events)]

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    @contextmanager
    def capturing(_: object, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        events.append(f"capture, {capture_error_mode}")
        with within(stream):
            yield

    def parallel(net: torch.nn.Module, *_: object, accumulates: bool) -> torch.nn.Module:
        events.append(f"DDP on {streams[-1].name}")
        return net

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side", events))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: streams[-1])
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    replay = SimpleNamespace(replay=lambda: events.append(f"replay on {streams[-1].name}"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: replay)
    monkeypatch.setattr(distributed, "parallel", parallel)
    monkeypatch.setattr(f"{STEP}._forward_backward", lambda *_: events.append(f"step on {streams[-1].name}"))
    monkeypatch.setattr(f"{STEP}._update", lambda *_: {})
    # On the CPU, where `train.cuda_graph` is refused.
    launcher = cuda_graph.cuda_graph_launcher(CPU.device, ranks=2)
    monkeypatch.setattr(f"{STEP}._create_launcher", lambda *_: launcher)
    run = tiny_run()
    state = create_train_state(run, 4, 3, World(torch.device("cpu"), size=2))
    for _ in range(13):
        train_step(state, step_batches(random_batch()), IDENTITY, 0.1, run.train)

    def on_side(event: str) -> list[str]:
        return ["side waits for main", event, "main waits for side"]

    warm_up = on_side("step on side") * 11
    repeated = ["capture, thread_local", "step on side", "replay on main", "replay on main"]
    assert events == [*on_side("DDP on side"), *warm_up, *repeated]


@pytest.mark.parametrize(
    ("error", "is_free"),
    [(None, True), (Interrupted(), True), (Diverged(), True), (RankLost(), False), (ValueError(), False)],
    ids=repr,
)
def test_a_graph_is_freed_before_the_ranks_part(error: Exception | None, is_free: bool) -> None:
    """NCCL waits for it. After an error of this rank alone the graph itself may wait for ever."""
    launch = GraphLauncher(lambda call: (lambda: None, call()))
    for _ in range(4):
        launch(lambda: {}, [])
    assert launch.graph is not None
    with (
        pytest.raises(type(error)) if error else nullcontext(),
        cuda_graph.freed_at_end(launch),
    ):
        if error:
            raise error
    assert (launch.graph is None) == is_free
    with cuda_graph.freed_at_end(cuda_graph.launch_eagerly):
        pass
