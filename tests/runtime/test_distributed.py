"""Several ranks, as processes over gloo: the same training as one rank, the same evaluation, one decision."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import figures, same_weights, spawn

from resnet_train.models import batch_norm
from resnet_train.runtime import distributed, process_exit
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import autocast
from resnet_train.training import checkpoint
from resnet_train.training.log import JsonLines

Config = Callable[..., Path]
FOLDER = Path("cifar-resnet-8/seed-0")


def trained(path: Path, output: str, ranks: int, *overrides: str) -> Path:
    process = spawn("run", path, f"output={output}", *overrides, ranks=ranks)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return Path(output) / "tiny" / FOLDER


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.read_checkpoint(folder / "checkpoints/last.pt").payload["net"]
    return found


def assert_close(one: Any, other: Any, tolerance: float) -> None:
    """Each tensor within a relative distance of the other."""
    for (key, a), b in zip(one.items(), other.values(), strict=True):
        assert (a - b).double().norm() <= tolerance * a.double().norm(), key


def test_two_ranks_are_one_rank(config: Config) -> None:
    """With batch statistics over all ranks (fp32, 1e-5); every sample is evaluated once, of an odd number too."""
    path = config(train={"sync_bn": True, "steps": 4}, optimizer={"lr": 0.02}, data={"val_images": 15})
    one, two = trained(path, "one", 1), trained(path, "two", 2)
    assert_close(weights(one), weights(two), 1e-5)
    for a, b in zip(figures(one), figures(two), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key] == (pytest.approx(b[key], rel=1e-5) if isinstance(a[key], float) else b[key]), key


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_synchronised_batch_norm_is_torchs(precision: str) -> None:
    """Under autocast it is given half precision, and calculates in full."""
    cpu = torch.device("cpu")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    nets = [torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.BatchNorm2d(5)) for _ in range(2)]
    random = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(nets[0][0].weight, generator=random)
    torch.nn.init.zeros_(nets[0][0].bias)
    nets[1].load_state_dict(nets[0].state_dict())
    batch_norm.convert_sync_batchnorm(nets[1], World(cpu, size=2))
    x = torch.randn(8, 3, 4, 4, generator=random)
    rounding = 10 * torch.finfo(half).eps
    for _ in range(2):
        outputs = []
        for net in nets:
            with autocast(precision, cpu):
                outputs.append(net(x))
            (outputs[-1].float() ** 3).sum().backward()
        assert outputs[0].dtype == outputs[1].dtype == half
        torch.testing.assert_close(outputs[1], outputs[0], rtol=rounding, atol=rounding)
        for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
            if name != "0.bias":  # whose gradient is 0 but for rounding
                assert (b.grad - a.grad).norm() <= rounding * a.grad.norm(), name
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict())


def test_two_ranks_are_two_passes_of_one(config: Config) -> None:
    """Without it a rank's share of the batch is normalised by itself, as a pass of the accumulation is.

    Running statistics differ: two ranks average theirs, one rank moves them twice.
    """
    path = config(train={"steps": 2}, optimizer={"lr": 0.02})
    one, two = trained(path, "one", 1, "train.grad_accum_steps=2"), trained(path, "two", 2)
    parameters = [{k: w for k, w in weights(f).items() if "running" not in k and "num" not in k} for f in (one, two)]
    assert_close(*parameters, 1e-5)


def test_divided_images_reach_the_rank_that_wants_them(config: Config, squares: Path) -> None:
    """Two ranks that hold a half each train as one rank that holds all, pass by pass."""
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
    """After one step from the same start, the mean of two ranks' statistics: those of a move by the mean of halves."""
    path = config(train={"steps": 1})
    one, two = weights(trained(path, "one", 1)), weights(trained(path, "two", 2))
    assert_close({"mean": one["bn1.running_mean"]}, {"mean": two["bn1.running_mean"]}, 1e-6)


def test_stopped_by_a_signal_to_one_rank_all_save_and_resume(config: Config) -> None:
    path = config(train={"steps": 60, "ema_decay": 0.9})
    whole = trained(path, "whole", 2)
    process = spawn("run", path, "output=parts", ranks=2)
    parts = Path("parts/tiny") / FOLDER
    while process.poll() is None and len(figures(parts) if (parts / "metrics.jsonl").exists() else []) < 8:
        time.sleep(0.01)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    one = next(int(pid) for pid in ranks if "resnet_train" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(one, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("saved; run again to continue") == 1
    assert 8 < checkpoint.read_checkpoint(parts / "checkpoints/last.pt").step < 60
    trained(path, "parts", 2)
    assert figures(parts) == figures(whole)
    assert same_weights(parts / "checkpoints/last.pt", whole / "checkpoints/last.pt")


def test_bad_input_ends_all_ranks(config: Config) -> None:
    process = spawn("run", config(train={"batch_size": 15}), ranks=2)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "train.batch_size = 15 (global) is not divisible by 2 ranks" in err
    assert 'resnet_train/cli.py", line' not in err  # torchrun's own traceback is not ours to mend
    assert not Path("runs").exists()


def test_an_error_of_one_rank_is_told_once_and_ends_the_other(config: Config, tmp_path: Path) -> None:
    """A validation image that only the second rank reads."""
    from PIL import Image

    for part in ("train", "val"):
        (tmp_path / "images" / part / "a").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (12, 12)).save(tmp_path / "images" / part / "a" / f"{i}.png")
    (tmp_path / "images/val/a/1.png").write_bytes(b"broken")
    data = {"kind": "imagefolder", "path": str(tmp_path / "images"), "workers": 1}
    sizes = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    process = spawn("run", config(data=data, **sizes), ranks=2)
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert err.count("resnet-train: cannot decode") == 1
    assert 'resnet_train/cli.py", line' not in err


def test_eval_on_two_ranks_is_eval_on_one(config: Config) -> None:
    folder = trained(config(data={"val_images": 15}), "one", 1)
    found = []
    for ranks in (1, 2):
        process = spawn("eval", folder / "checkpoints/last.pt", "--json", ranks=ranks)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        found.append(json.loads(out[out.index("[") :]))
    [[one], [two]] = found
    assert one.pop("loss") == pytest.approx(two.pop("loss"), rel=1e-9)
    assert one == two


def test_kept_records_are_rewritten_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    lines = JsonLines(path, [{"step": 1, "kind": "train"}])
    lines.write({"step": 2, "kind": "eval"})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_node_has_fewer_ranks_than_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda _: iter([(store, 3, 16)]))
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    monkeypatch.setattr(process_exit, "skip_cleanup", lambda: None)
    with distributed.start("cpu") as world:
        pass
    assert (world.rank, world.size, world.local_size) == (3, 16, 8)


def test_a_rank_probes_and_recomputes_alone(config: Callable[..., Path]) -> None:
    """Batch norm that is synchronised over ranks would wait for the others, who are elsewhere."""
    probes = {"gradients": {"every": {"steps": 2}, "images": 8}, "responses": {"images": 8}, "lesion": {"images": 8}}
    path = config(probes=probes, train={"sync_bn": True, "steps": 4}, eval={"recompute_bn": 8})
    process = spawn("run", path, ranks=2)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    kinds = [record["kind"] for record in figures(Path("runs/tiny/cifar-resnet-8/seed-0"))]
    assert (kinds.count("gradients"), kinds.count("lesion")) == (3, 1)


TWICE = """
import sys
from resnet_train import cli
from resnet_train.runtime.process_exit import exit_process

codes = [cli.main(["run", *sys.argv[1:], f"train.batch_size={size}"]) for size in (16, 15, 16)]
print("exit codes", *codes)
exit_process(0)
"""


def test_what_follows_a_command_runs_on_every_rank(config: Config, tmp_path: Path) -> None:
    """As in a notebook: a command leaves its group, also where it fails on all ranks alike."""
    (tmp_path / "twice.py").write_text(TWICE)
    process = spawn(config(train={"steps": 2}), ranks=2, program=[tmp_path / "twice.py"])
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert out.count("exit codes 0 2 0") == 2, (out, err)
