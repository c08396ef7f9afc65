"""Several ranks, as processes over gloo: the same training and evaluation as one rank, and one way to stop."""

import itertools
import json
import logging
import re
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import figures, same_weights, spawn

from resnet_train.errors import BadInput
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runtime import distributed, process_exit, rank_environment
from resnet_train.runtime.distributed import World
from resnet_train.runtime.rank_environment import RankEnvironment
from resnet_train.training import probing

Config = Callable[..., Path]
FOLDER = Path("cifar-resnet-8/seed-0")


def trained(path: Path, output: str, ranks: int, *overrides: str) -> Path:
    process = spawn("run", path, f"output={output}", *overrides, ranks=ranks)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Path(output) / "tiny" / FOLDER


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state_dict: dict[str, torch.Tensor] = read_checkpoint(folder / "checkpoints/last.pt").payload["net"]
    return state_dict


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    """Each tensor within a relative distance of the other."""
    for (key, a), b in zip(one.items(), other.values(), strict=True):
        assert (a - b).double().norm() <= tolerance * a.double().norm(), key


def test_two_ranks_train_as_one(config: Config) -> None:
    """With synchronised batch norm (fp32, 1e-5). Each sample is evaluated once, also if their number is odd."""
    path = config(train={"sync_bn": True, "steps": 4}, optimizer={"lr": 0.02}, data={"val_images": 15})
    one, two = trained(path, "one", 1), trained(path, "two", 2)
    assert_close(weights(one), weights(two), 1e-5)
    for a, b in zip(figures(one), figures(two), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (pytest.approx(b[key], rel=1e-5) if isinstance(a[key], float) else b[key]), key


def test_two_ranks_train_as_two_passes_of_one(config: Config) -> None:
    """Without it each rank normalises its own samples, as each pass of the accumulation does.

    Running statistics differ: two ranks average theirs, one rank moves them twice.
    """
    path = config(train={"steps": 2}, optimizer={"lr": 0.02})
    one, two = trained(path, "one", 1, "train.grad_accum_steps=2"), trained(path, "two", 2)
    parameters = [{k: w for k, w in weights(f).items() if "running" not in k and "num" not in k} for f in (one, two)]
    assert_close(*parameters, 1e-5)


def test_images_cached_on_another_rank_reach_the_rank_that_needs_them(config: Config, squares: Path) -> None:
    """Two ranks that cache one half each train as one rank that caches all, pass by pass."""
    path = config(
        train={"steps": 3},
        optimizer={"lr": 0.02},
        data={"kind": "imagefolder", "path": str(squares), "workers": 1, "device_cache_gb": 4e-6},  # of 7.1e-6
    )
    one = trained(path, "one", 1, "train.grad_accum_steps=2", "data.device_cache_gb=1")
    parameters = [
        {k: w for k, w in weights(f).items() if "running" not in k and "num" not in k}
        for f in (one, trained(path, "two", 2))
    ]
    assert_close(*parameters, 1e-5)


def test_running_statistics_are_averaged_over_ranks(config: Config) -> None:
    """After one step from the same start, the mean of two ranks' running means is the running mean of one rank."""
    path = config(train={"steps": 1})
    one, two = weights(trained(path, "one", 1)), weights(trained(path, "two", 2))
    assert_close({"mean": one["bn1.running_mean"]}, {"mean": two["bn1.running_mean"]}, 1e-6)


SIGNAL_AT_STEP_9 = """
import os, signal, sys
from resnet_train import cli
from resnet_train.runtime.process_exit import exit_process
from resnet_train.training.log import Log

note_loading, steps = Log.note_loading, []

def signal_one(self, batches):
    note_loading(self, batches)
    steps.append(batches)
    if len(steps) == 9 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

Log.note_loading = signal_one
exit_process(cli.main(sys.argv[1:]))
"""


def test_a_signal_to_one_rank_stops_all_and_they_resume(config: Config, tmp_path: Path) -> None:
    path = config(train={"steps": 20, "ema_decay": 0.9})
    uninterrupted = trained(path, "uninterrupted", 2)
    (tmp_path / "signal_one.py").write_text(SIGNAL_AT_STEP_9)
    process = spawn("run", path, "output=resumed", ranks=2, program=[tmp_path / "signal_one.py"])
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("saved; run again to continue") == 1
    resumed = Path("resumed/tiny") / FOLDER
    assert 9 <= read_checkpoint(resumed / "checkpoints/last.pt").step < 20
    trained(path, "resumed", 2)
    assert figures(resumed) == figures(uninterrupted)
    assert same_weights(resumed / "checkpoints/last.pt", uninterrupted / "checkpoints/last.pt")


def test_bad_input_ends_all_ranks(config: Config) -> None:
    process = spawn("run", config(train={"batch_size": 15}), ranks=2)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "train.batch_size = 15 (global) is not divisible by 2 ranks" in err
    assert 'resnet_train/cli.py", line' not in err  # torchrun's own traceback is not ours to mend
    assert not Path("runs").exists()


def test_an_error_of_one_rank_is_reported_once_and_ends_the_other(config: Config, tmp_path: Path) -> None:
    """Only the second rank reads the broken validation image."""
    from PIL import Image

    for part, name in itertools.product(("train", "val"), "ab"):
        (tmp_path / "images" / part / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (12, 12)).save(tmp_path / "images" / part / name / f"{i}.png")
    (tmp_path / "images/val/a/1.png").write_bytes(b"broken")
    data = {"kind": "imagefolder", "path": str(tmp_path / "images"), "workers": 1}
    sizes = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    process = spawn("run", config(data=data, **sizes), ranks=2)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("resnet-train: cannot decode") == 1
    assert 'resnet_train/cli.py", line' not in err


def test_two_ranks_evaluate_as_one(config: Config) -> None:
    folder = trained(config(data={"val_images": 15}), "one", 1)
    results = []
    for ranks in (1, 2):
        process = spawn("eval", folder / "checkpoints/last.pt", "--json", ranks=ranks)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        results.append(json.loads(out[out.index("[") :]))
    [[one], [two]] = results
    assert one.pop("loss") == pytest.approx(two.pop("loss"), rel=1e-9)
    assert one == two


def test_a_node_has_fewer_ranks_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _, timeout: iter([(store, 3, 16)]))
    monkeypatch.setattr(distributed, "_keys_of_this_group", lambda *_: store)
    joined: dict[str, Any] = {}
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _, **options: joined.update(options))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(process_exit, "skip_cleanup", lambda: None)
    with distributed.start("cpu", timeout=90) as world:
        pass
    assert (joined["rank"], joined["world_size"], joined["timeout"]) == (3, 16, timedelta(seconds=90))
    assert (world.rank, world.size, world.local_size) == (3, 16, 8)


def test_one_rank_probes_and_recomputes_alone(config: Callable[..., Path]) -> None:
    """Synchronised batch norm would wait for the other ranks, which do not probe."""
    probes = {"gradients": {"every": {"steps": 2}, "images": 8}, "responses": {"images": 8}, "lesion": {"images": 8}}
    path = config(probes=probes, train={"sync_bn": True, "steps": 4}, eval={"recompute_bn": 8})
    process = spawn("run", path, ranks=2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    kinds = [record["kind"] for record in figures(Path("runs/tiny/cifar-resnet-8/seed-0"))]
    assert (kinds.count("gradients"), kinds.count("lesion")) == (3, 1)


TWICE = """
import os, sys
from resnet_train import cli
from resnet_train.runtime.process_exit import exit_process

codes = [cli.main(["run", *sys.argv[1:], f"train.batch_size={size}"]) for size in (16, 15, 16)]
os.write(1, f"exit codes {codes}\\n".encode())  # in one piece: both ranks write to one pipe
exit_process(0)
"""


def test_what_follows_a_command_runs_on_every_rank(config: Config, tmp_path: Path) -> None:
    """As in a notebook. A command leaves its group, also if it fails on all ranks alike."""
    (tmp_path / "twice.py").write_text(TWICE)
    process = spawn(config(train={"steps": 2}), ranks=2, program=[tmp_path / "twice.py"])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("exit codes [0, 2, 0]") == 2, (out, err)


# --- groups after another ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [{}, {"group": "old"}, {"group": "old", "old/answers": "a,b"}], ids=len)
def test_no_group_reads_the_keys_of_an_earlier_one(left: dict[str, str]) -> None:
    """Also of one that was ended amid its start, as ranks are that torchrun restarts: it keeps their store."""
    store = torch.distributed.HashStore()
    for key, value in left.items():
        store.set(key, value)

    def join(group: int, rank: int, size: int) -> list[str]:
        world = World(torch.device("cpu"), rank, size)
        own = distributed._keys_of_this_group(store, world, timedelta(seconds=60))
        own.set(f"rank {rank}", f"{rank} of group {group}")
        return [own.get(f"rank {other}").decode() for other in range(size)]

    for group, size in enumerate((3, 3, 2)):
        with ThreadPoolExecutor(size) as threads:
            seen = threads.map(join, [group] * size, reversed(range(size)), [size] * size)  # rank 0 begins last
            assert list(seen) == [[f"{rank} of group {group}" for rank in range(size)]] * size


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_does_not_take_an_earlier_group_for_its_own(rank: int) -> None:
    store = torch.distributed.HashStore()
    for key, value in {"group": "old", "old/answers": "a", "old/answer of rank 1": "a"}.items():
        store.set(key, value)
    with pytest.raises(torch.distributed.DistStoreError) as error:
        distributed._keys_of_this_group(store, World(torch.device("cpu"), rank, 2), timedelta(seconds=0.3))
    assert str(distributed._loss_of_rank(error.value, 0.3)).endswith("(train.timeout = 0.3 s)")


KILLED_AT_STEP_9 = """
import os, signal, sys
from resnet_train import cli
from resnet_train.runtime.process_exit import exit_process
from resnet_train.training.log import Log

note_loading, steps = Log.note_loading, []

def kill_one(self, batches):
    note_loading(self, batches)
    steps.append(batches)
    if len(steps) == 9 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)

Log.note_loading = kill_one
exit_process(cli.main(sys.argv[1:]))
"""


def test_ranks_that_torchrun_restarts_continue(config: Config, tmp_path: Path) -> None:
    """They meet in the store of the ranks before them, which torchrun keeps."""
    path = config(train={"steps": 12}, checkpoint={"every": {"steps": 4}})
    uninterrupted = trained(path, "uninterrupted", 2)
    (tmp_path / "kill_one.py").write_text(KILLED_AT_STEP_9)
    process = spawn("run", path, "output=resumed", ranks=2, program=["--max-restarts=1", tmp_path / "kill_one.py"])
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.count(" failed (exitcode: ")) == (0, 1), err
    resumed = Path("resumed/tiny") / FOLDER
    assert figures(resumed) == figures(uninterrupted)
    assert same_weights(resumed / "checkpoints/last.pt", uninterrupted / "checkpoints/last.pt")


def test_a_long_probe_of_one_rank_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank gives signs of life, at most one in ten seconds. An error in its course is every rank's."""
    clock, sent = [0.0], list[Any]()
    monkeypatch.setattr(distributed.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda values, device: sent.append(values[0]))

    def work(sign_of_life: distributed.SignOfLife) -> str:
        for seconds in (6, 6, 6, 6, 6):
            clock[0] += seconds
            sign_of_life()
        if clock[0] > 50:
            raise BadInput("too late")
        return "figures"

    first, second = (World(torch.device("cpu"), rank, 2) for rank in (0, 1))
    assert distributed.broadcast_long_work(first, work) == "figures"
    assert [type(value).__name__ for value in sent] == ["_StillWorking", "_StillWorking", "str"]
    with pytest.raises(BadInput, match="too late"):
        distributed.broadcast_long_work(first, work)

    def receive(values: list[Any], device: torch.device) -> None:
        values[0] = sent.pop(0)

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", receive)
    assert distributed.broadcast_long_work(second, work) == "figures"
    with pytest.raises(BadInput, match="too late") as refused:
        distributed.broadcast_long_work(second, work)
    assert refused.value.on_all_ranks
    assert sent == []


def test_lesions_give_a_sign_of_life_at_each_batch(
    config: Config, program: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    signs: list[int] = []
    monkeypatch.setattr(probing, "broadcast_long_work", lambda _, work: work(lambda: signs.append(1)))
    code, _, err = program("run", config(train={"steps": 2}, probes={"lesion": {"images": 8}}))
    assert code == 0, err
    assert len(signs) >= 2 * 3  # of 5 images, for each of three units


# --- lost ranks -------------------------------------------------------------------------------------------------------


def of_two(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """The environment of the first of two ranks that no launcher started."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(process_exit, "skip_cleanup", lambda: None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_rank_that_never_comes_is_one_line(
    config: Config, program: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_two(monkeypatch, free_port())
    code, _, err = program("run", config(), "train.timeout=2")
    [line] = err.splitlines()
    assert code == 69
    assert line.startswith("resnet-train: another rank has stopped, or its node or network was lost; ")
    assert line.endswith("1/2 clients joined (train.timeout = 2 s)")


def test_a_port_in_use_is_one_line(
    config: Config, program: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        of_two(monkeypatch, port)
        code, _, err = program("run", config(), "train.timeout=2")
    message = f"MASTER_PORT = {port}: rank 0 cannot listen there; the port is in use: choose another"
    assert (code, err) == (2, f"resnet-train: {message}\n")


SILENT = """
import sys, torch
from datetime import timedelta
from resnet_train.errors import report
from resnet_train.runtime import distributed, process_exit, rank_environment

code = 0
try:
    with distributed.start("cpu", timeout=300) as world:
        assert distributed.all_gather(world, torch.ones(1)).tolist() == [[1.0], [1.0]]
        if world.is_main:  # a short time from here on: on a busy machine it may take long to join
            torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=0.5))
            distributed.all_gather(world, torch.ones(1))
        else:
            sys.stdin.read()
except BaseException as error:
    code = report(error)
process_exit.exit_process(code)
"""


def test_a_rank_that_falls_silent_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the link between two nodes were cut."""
    of_two(monkeypatch, free_port())
    (tmp_path / "silent.py").write_text(SILENT)
    first = spawn(program=[tmp_path / "silent.py"])
    monkeypatch.setenv("RANK", "1")
    second = spawn(program=[tmp_path / "silent.py"], stdin=subprocess.PIPE)
    _, err = first.communicate(timeout=300)
    second.kill()
    second.communicate()
    assert (first.returncode, "Traceback" in err) == (69, False), err
    [line] = [line for line in err.splitlines() if line.startswith("resnet-train: ")]  # torch warns of the private call
    assert line.startswith("resnet-train: another rank has stopped, or its node or network was lost; ")
    assert re.search(r"Timed out waiting 500ms for \w+ operation to complete \(train.timeout = 300 s\)$", line)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.distributed.DistBackendError("NCCL error in: NCCLUtils.cpp:77, unhandled cuda error\nLast error:\nx"),
            "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error",
        ),
        (
            RuntimeError(
                "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset "
                "by peer. This is typically caused by a remote worker hanging"
            ),
            "Read error [127.0.0.1]:1: Connection reset by peer",
        ),
        (
            RuntimeError("[/a/gloo/transport/tcp/pair.cc:9] No route to host\nException raised from …"),
            "No route to host",
        ),
        (torch.distributed.DistError(""), "DistError"),
    ],
)
def test_the_reason_of_the_process_group_is_named(error: Exception, reason: str) -> None:
    """It may be the same on every rank, so that no other message says it."""
    assert str(distributed._loss_of_rank(error, 9.0)).endswith(
        f"if no rank has another message, the reason is: {reason}"
    )


def test_other_errors_are_not_of_the_group() -> None:
    assert distributed._loss_of_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 9.0) is None
    assert distributed._loss_of_rank(OSError("Connection refused"), 9.0) is None


def test_ranks_save_and_stop_when_torchrun_is_killed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent stands in for torchrun: its child has the variable that torchrun sets, and ends once it is orphaned."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    path = config(train={"steps": 100_000}, eval={"every": {"steps": 100_000}}, log={"every": {"steps": 1}})
    code = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', 'resnet_train', 'run', {str(path)!r}])"
    )  # fmt: skip
    agent = spawn(program=["-c", code])
    folder = Path("runs/tiny") / FOLDER
    while agent.poll() is None and len(figures(folder) if (folder / "metrics.jsonl").exists() else []) < 5:
        time.sleep(0.05)
    agent.kill()
    _, err = agent.communicate(timeout=300)  # until the last process that may write has ended
    assert "SIGTERM: saving and stopping" in err
    assert ", saved; run again to continue" in err
    assert 4 < read_checkpoint(folder / "checkpoints/last.pt").step < 100_000


def test_one_visible_gpu_is_the_ranks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun shows it with --gpus-per-task=1. Two ranks of one GPU are refused, by its identity."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for visible, local_rank, device in ((1, 0, 0), (1, 3, 0), (4, 3, 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda visible=visible: visible)
        assert distributed._local_device("auto", local_rank) == torch.device("cuda", device)
    with pytest.raises(BadInput, match="rank 4 has no GPU: start 4 processes"):
        distributed._local_device("cuda", 4)
    store = torch.distributed.HashStore()
    for rank, gpu in enumerate("aba"):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: SimpleNamespace(uuid=gpu))
        with pytest.raises(BadInput, match="rank 2 has the same GPU") if rank == 2 else nullcontext():
            distributed._check_own_gpu(store, World(torch.device("cuda", 0), rank, 3))


def test_an_apple_gpu_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with distributed.start("mps") as world:
        assert world.device == torch.device("mps")
    monkeypatch.setattr(rank_environment, "read", lambda: RankEnvironment(1, 2, 1, 2))
    with (
        pytest.raises(BadInput, match="mps is for one process, and there are 2 ranks"),
        distributed.start("mps"),
    ):
        pass


def test_the_messages_of_main_first_are_those_of_the_first_rank(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every rank opens the data; a warning of it is shown once."""
    logger = logging.getLogger("resnet_train.data")
    world = World(torch.device("cpu"))
    distributed.main_first(world, lambda: logger.warning("one file is left out"))
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda world, function: None)  # as on another rank
    assert distributed.main_first(world, lambda: logger.warning("one file is left out") or 7) == 7  # type: ignore[func-returns-value]
    logger.warning("afterwards")
    assert [record.getMessage() for record in caplog.records] == ["one file is left out", "afterwards"]
