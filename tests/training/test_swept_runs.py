"""A sweep as it is trained: each cell is the run that its values make, and resumes by itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import figures, same_weights, spawn

Config = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
CELL = "tiny/cifar-resnet-8/optimizer.lr={}/seed-0"


def test_a_cell_is_the_run_that_its_values_make(config: Config, program: Program) -> None:
    path = config(sweep={"optimizer.lr": [0.05, 0.2]}, probes={"gradients": {}}, train={"steps": 4})
    code, out, err = program("run", path)
    assert code == 0, err
    assert "cifar-resnet-8 optimizer.lr=0.2 seed 0: step 4" in err
    for lr in (0.05, 0.2):
        assert program("run", path, "sweep=null", f"optimizer.lr={lr}", f"output=alone-{lr}")[0] == 0
        cell, alone = Path("runs") / CELL.format(lr), Path(f"alone-{lr}") / "tiny/cifar-resnet-8/seed-0"
        assert figures(cell) == figures(alone)
        assert same_weights(cell / "checkpoints/last.pt", alone / "checkpoints/last.pt")
        assert yaml.safe_load((cell / "config.yaml").read_text())["sweep"] == {"optimizer.lr": lr}
    # Again: nothing is left to do. One more value: that alone is trained.
    code, again, err = program("run", path)
    assert (code, "2 of 2 runs in runs: finished already" in err, again) == (0, True, out)
    code, _, err = program("run", path, "sweep.optimizer.lr=[0.05, 0.2, 0.3]")
    assert (code, "2 of 3 runs in runs: finished already" in err, Path("runs", CELL.format(0.3)).exists()) == (
        0,
        True,
        True,
    )
    # Commands on folders.
    code, out, err = program("eval", "runs/tiny/cifar-resnet-8/optimizer.lr=0.2")
    assert code == 0, err
    assert CELL.format(0.2) in out
    assert "optimizer.lr=0.05" not in out
    assert program("probe", "gradients", "runs/tiny", "--out", "maps.png")[0] == 0
    assert program("run", path, "--only", "optimizer.lr=0.2", "--fresh")[0] == 0
    assert len(list(Path("runs/tiny").rglob("*.old"))) == 1
    assert "optimizer.lr=0.2" in str(next(Path("runs/tiny").rglob("*.old")))


def test_only_and_dry_run_know_the_values(config: Config, program: Program) -> None:
    path = config(networks=["cifar-plain-8", "cifar-resnet-8"], sweep={"optimizer.lr": [0.05, 0.2]})
    code, out, err = program("run", path, "--dry-run", "--json")
    assert code == 0, err
    plan: dict[str, Any] = json.loads(out)
    assert plan["experiment"]["sweep"] == {"optimizer.lr": [0.05, 0.2]}
    assert [row["network"] for row in plan["networks"]] == [
        "cifar-plain-8",
        "cifar-resnet-8",
    ]  # all rates cost the same
    code, out, _ = program("run", path, "sweep.train.steps=[4,8]", "--dry-run", "--json", "--only", "train.steps=8")
    assert [(row["network"], row["steps"]) for row in json.loads(out)["networks"]] == [
        ("cifar-plain-8", 8),
        ("cifar-resnet-8", 8),
    ]
    code, _, err = program("run", path, "--only", "optimizer.lr=0.3")
    assert code == 2
    assert err.endswith("are cifar-plain-8, cifar-resnet-8, and of its sweep optimizer.lr=0.05, optimizer.lr=0.2\n")


def test_several_at_once_resume_each_in_its_folder(config: Config) -> None:
    path = config(sweep={"optimizer.lr": [0.05, 0.2]})
    for output, steps in (("whole", (8,)), ("parts", (5, 8))):
        for length in steps:
            process = spawn("run", path, "--jobs", 2, f"train.steps={length}", f"output={output}")
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
    for lr in (0.05, 0.2):
        whole, parts = (Path(output) / CELL.format(lr) for output in ("whole", "parts"))
        assert same_weights(whole / "checkpoints/last.pt", parts / "checkpoints/last.pt")


def test_status_names_the_values_of_what_runs_and_of_what_waits(config: Config, program: Program) -> None:
    path = config(sweep={"optimizer.lr": [0.05, 0.2]}, train={"steps": 2})
    assert program("run", path)[0] == 0
    shutil.rmtree(Path("runs") / CELL.format(0.2))
    rows = json.loads(program("status", "--json")[1])
    assert [(row["network"], row["state"], row["folder"]) for row in rows] == [
        ("cifar-resnet-8 optimizer.lr=0.05", "finished", f"runs/{CELL.format(0.05)}"),
        ("cifar-resnet-8 optimizer.lr=0.2", "waiting", f"runs/{CELL.format(0.2)}"),
    ]
