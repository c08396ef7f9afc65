"""What only a GPU can show: each precision, compile and CUDA graphs, on the lines that the CPU tests run too."""

import json
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import figures, spawn
from steps import IDENTITY, random_batch, step_batches
from torch.utils._pytree import tree_leaves

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.runs.checkpoint import CheckpointMeta
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import set_precision
from resnet_train.training import checkpoint, cuda_graph
from resnet_train.training.cuda_graph import GraphLauncher
from resnet_train.training.step import TrainState, create_train_state, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]
GPU = World(torch.device("cuda"))
STEPS = 20


def losses(program: Program, path: Path, name: str, *overrides: str) -> list[float]:
    code, _, err = program("run", path, f"output={name}", "train.device=cuda", *overrides)
    assert code == 0, err
    return [r["loss"] for r in figures(Path(name) / "tiny/cifar-resnet-8/seed-0") if r["kind"] == "train"]


NETWORK: dict[str, Any] = {"base": "cifar-resnet-8", "widths": [16, 16, 32]}


@pytest.fixture
def wide(config: Config) -> Path:
    """Learnable at once, so that a wrong gradient shows."""
    return config(networks=[NETWORK], train={"steps": STEPS, "batch_size": 32}, optimizer={"lr": 0.05})


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_each_precision_follows_the_cpu(precision: str, wide: Path, program: Program) -> None:
    code, _, err = program("run", wide, "output=cpu")
    assert code == 0, err
    wanted = [r["loss"] for r in figures(Path("cpu/tiny/cifar-resnet-8/seed-0")) if r["kind"] == "train"]
    found = losses(program, wide, "gpu", f"train.precision={precision}")
    tolerance = 1e-2 if precision == "fp32" else 0.15
    assert found == pytest.approx(wanted, rel=tolerance)
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("graph", ["false", "true"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_follows_eager(precision: str, graph: str, wide: Path, program: Program) -> None:
    fast = (f"train.compile=true train.cuda_graph={graph}", "train.compile=false")
    compiled, eager = (
        losses(program, wide, f"run-{i}", f"train.precision={precision}", *knobs.split())
        for i, knobs in enumerate(fast)
    )
    assert compiled == pytest.approx(eager, rel=0.02 if precision == "fp32" else 0.15)


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def exact() -> Iterator[None]:
    """Kernels that repeat their last bits: else two eager runs would differ, too."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def pair(run: Run, world: World = GPU) -> tuple[TrainState, TrainState]:
    """An eager state and one with a graph."""
    set_precision(run.train.precision, GPU.device)
    graph = create_train_state(run, 4, 3, world)
    without = run.model_copy(update={"train": run.train.model_copy(update={"cuda_graph": False})})
    eager = create_train_state(without, 4, 3, world)
    torch.backends.cudnn.benchmark = False  # a search may end with other kernels
    assert isinstance(graph.launch, GraphLauncher)
    return eager, graph


def take(states: tuple[TrainState, ...], run: Run, steps: range) -> None:
    """Steps whose batch, seed and rate are functions of their number. Once warm, nothing in them may wait."""
    normalization = IDENTITY.to(GPU.device)
    for step in steps:
        data = step_batches(random_batch(32, seed=step).to(GPU.device))._replace(seeds=[1000 + step])
        for state in states:
            is_warm = state.step >= steps.start + getattr(state.launch, "warm_up_calls", 3) + 2
            torch.cuda.set_sync_debug_mode("error" if is_warm else "default")
            try:
                train_step(state, data, normalization, 0.1 / (1 + step), run.train)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def assert_close(one: TrainState, other: TrainState, precision: str) -> None:
    """Weights, running statistics, average, momentum, sums and loss scale."""
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "fp32" else {"rtol": 2e-2, "atol": 2e-3}
    held = [
        (s.net.state_dict(), s.eval_net.state_dict(), s.optimizer.state_dict(), s.sums, s.diverged_at)
        for s in (one, other)
    ]
    assert one.step == other.step == STEPS
    assert one.scaler.state_dict() == other.scaler.state_dict()
    for a, b in zip(*map(tree_leaves, held), strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, **tolerance)
        else:
            assert a == b


EVERYTHING = {"clip_grad_norm": 0.5, "ema_decay": 0.9, "label_smoothing": 0.1}


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        *(({}, "sgd"), (EVERYTHING, "sgd"), ({"compile": True}, "sgd")),
        *((EVERYTHING, kind) for kind in ("lars", "adamw", "lamb")),
    ],
    ids=["plain", "everything", "compiled", "lars", "adamw", "lamb"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_graph_takes_the_same_steps(
    precision: str, changes: dict[str, Any], kind: str, tiny_run: Callable[..., Run]
) -> None:
    train = {"device": "cuda", "cuda_graph": True, "precision": precision, **changes}
    run = tiny_run(networks=[NETWORK], train=train, optimizer={"kind": kind})
    eager, graph = pair(run)
    take((eager, graph), run, range(STEPS))
    assert_close(eager, graph, precision)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("key", ["dropout", "drop_path_rate"])
def test_dropout_in_a_graph_is_a_function_of_the_step(key: str, tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(networks=[NETWORK | {key: 0.3}], train={"device": "cuda", "cuda_graph": True})
    eager, graph = pair(run)
    take((eager, graph), run, range(STEPS))
    assert_close(eager, graph, "fp32")


@pytest.mark.usefixtures("exact")
def test_a_loss_scale_falls_within_the_graph(tiny_run: Callable[..., Run]) -> None:
    """Also where a step of the graph is left out, which its kernel decides and not Python."""
    run = tiny_run(networks=[NETWORK], train={"device": "cuda", "cuda_graph": True, "precision": "fp16"})
    eager, graph = pair(run)
    for state in (eager, graph):
        state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": 2.0**60})  # overflows for dozens of steps
    take((eager, graph), run, range(STEPS))
    assert graph.scaler.get_scale() == 2.0 ** (60 - STEPS)
    assert_close(eager, graph, "fp16")


@pytest.mark.usefixtures("exact")
def test_a_graph_resumes_where_it_was_saved(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    run = tiny_run(networks=[NETWORK], train={"device": "cuda", "cuda_graph": True, "precision": "fp16", **EVERYTHING})
    eager, graph = pair(run)
    take((eager, graph), run, range(10))
    checkpoint.save(graph, CheckpointMeta(run, ("a", "b", "c", "d"), 40, IDENTITY), tmp_path, [], GPU)
    _, graph = pair(run)
    checkpoint.restore(graph, checkpoint.read_checkpoint(tmp_path / "last.pt"), GPU)
    take((eager,), run, range(10, STEPS))
    take((graph,), run, range(10, STEPS))
    assert_close(eager, graph, "fp16")


def test_the_step_that_diverged_is_that_of_the_graph(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(networks=[NETWORK], train={"device": "cuda", "cuda_graph": True})
    _, graph = pair(run)
    normalization = IDENTITY.to(GPU.device)
    for step in range(9):
        data = step_batches(random_batch(32).to(GPU.device))
        train_step(graph, data, normalization, 1e30 if step == 6 else 0.1, run.train)
    assert graph.diverged_at.item() == 7


@pytest.mark.usefixtures("exact")
def test_a_graph_crops_images_that_stay_on_the_device(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(networks=[NETWORK], train={"device": "cuda", "cuda_graph": True})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    dataset = datasets.InMemoryDataset(pixels, np.arange(40) % 4, "abcd")
    eager, graph = pair(run)
    for batches in loader.training_data(run, dataset, 0, 0, 1, GPU.device).from_step(0, STEPS):
        [batch] = batches.micro_batches
        assert batch.source is not None
        for state, one in ((eager, batch.cropped()), (graph, batch)):
            train_step(state, step_batches(one), IDENTITY.to(GPU.device), 0.1, run.train)
    assert_close(eager, graph, "fp32")


def test_two_networks_at_once_with_graphs(wide: Path, program: Program) -> None:
    networks = json.dumps([NETWORK, NETWORK | {"name": "twin"}])
    options = (f"networks={networks}", "train.device=cuda", "train.cuda_graph=true", "train.precision=bf16")
    found = []
    for count in (1, 2):
        process = spawn("run", wide, f"output=by-{count}", *options, "--jobs", count, kind=subprocess.Popen)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        records = figures(Path(f"by-{count}/tiny/twin/seed-0"))
        found.append([record["loss"] for record in records if record["kind"] == "train"])
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_a_signal_saves_a_run_with_a_graph(wide: Path) -> None:
    options = ("train.device=cuda", "train.cuda_graph=true", "train.steps=10000000")
    process = spawn("run", wide, *options, kind=subprocess.Popen)
    record = Path("runs/tiny/cifar-resnet-8/seed-0/metrics.jsonl")
    while process.poll() is None and not (record.exists() and len(figures(record.parent)) > 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err


def test_a_loader_ends_while_a_step_goes_on(images: Path, tiny_run: Callable[..., Run]) -> None:
    """A step of several ranks may wait for one that is gone, and so for ever."""
    section = {"kind": "imagefolder", "path": str(images), "workers": 1}
    crop = {"kind": "random-resized", "size": 8}
    run = tiny_run(data=section, augment={"crop": crop}, train={"batch_size": 4, "device": "cuda"})
    source, _ = datasets.open_data(run.data)
    shares = loader.training_data(run, source, 0, 0, 1, GPU.device).from_step(0, 4)
    next(shares)
    torch.cuda._sleep(5 * 10**9)  # cycles, so some seconds
    step = torch.cuda.Event()
    step.record()
    shares.close()
    assert not step.query()
    step.synchronize()


# --- several ranks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one() -> Iterator[World]:
    """NCCL with one rank, as a world that takes itself for one of two: all that several ranks do, on one GPU."""
    device = torch.device("cuda", 0)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    yield World(device, 0, 2)
    dist.destroy_process_group()  # would wait for ever for a graph


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [{}, EVERYTHING, {"sync_bn": True}, {"compile": True}],
    ids=["plain", "everything", "sync_bn", "compiled"],
)
def test_a_graph_with_nccl_takes_the_same_steps(
    changes: dict[str, Any], precision: str, tiny_run: Callable[..., Run], group_of_one: World
) -> None:
    train = {"device": "cuda", "cuda_graph": True, "precision": precision, **changes}
    run = tiny_run(networks=[NETWORK], train=train)
    eager, graph = pair(run, group_of_one)
    take((eager,), run, range(STEPS))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The AccumulateGrad node's stream does not match")
            take((graph,), run, range(STEPS))
        assert isinstance(graph.launch, GraphLauncher)
        assert graph.launch.graph is not None
        assert_close(eager, graph, precision)
    finally:
        with cuda_graph.freed_at_end(graph.launch):
            pass


@pytest.mark.parametrize("graph", ["false", "true"])
def test_a_lost_rank_is_noticed(graph: str, wide: Path) -> None:
    """Killed without a word. With a graph NCCL's watchdog does not see what waits for it."""
    ranks = 2
    if torch.cuda.device_count() < ranks:
        pytest.skip("needs two GPUs")
    options = ("train.device=cuda", f"train.cuda_graph={graph}", "train.steps=10000000", "train.timeout=20")
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29417", "LOCAL_WORLD_SIZE": "2"}
    processes = []
    for rank in ("0", "1"):  # without torchrun, which would end the other rank
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (environment | {"RANK": rank, "LOCAL_RANK": rank}).items():
                patch.setenv(name, value)
            processes.append(spawn("run", wide, *options, kind=subprocess.Popen))
    record = Path("runs/tiny/cifar-resnet-8/seed-0/metrics.jsonl")
    while processes[0].poll() is None and not (record.exists() and len(figures(record.parent)) > 50):
        time.sleep(0.01)
    processes[1].kill()
    processes[1].communicate()
    _, err = processes[0].communicate(timeout=120)
    assert processes[0].returncode not in (0, 75), err


@pytest.mark.parametrize("graph", ["false", "true"])
@pytest.mark.parametrize("grad_accum_steps", [1, 2])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_under_torchrun_with_everything_on(grad_accum_steps: int, compiled: str, graph: str, wide: Path) -> None:
    """One rank of NCCL per GPU: average of the weights, accumulation or a static graph, synchronised batch norm."""
    if graph == "true" and grad_accum_steps > 1:
        pytest.skip("a graph holds one pass")
    ranks = 2
    if torch.cuda.device_count() < ranks:
        pytest.skip("needs two GPUs")
    knobs = (
        "train.sync_bn=true",
        "train.ema_decay=0.9",
        f"train.grad_accum_steps={grad_accum_steps}",
        f"train.compile={compiled}",
        f"train.cuda_graph={graph}",
    )
    process = spawn("run", wide, "train.device=cuda", *knobs, ranks=ranks, kind=subprocess.Popen)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
