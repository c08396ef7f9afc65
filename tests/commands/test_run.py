"""`resnet-train run --dry-run`: the runs, their cost, and what to change."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resnet_train.config.merge import merge
from resnet_train.training import throughput
from resnet_train.training.schedule import Interval

Config = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
WIDE = [{"base": f"cifar-{kind}-8", "widths": [16, 32, 64]} for kind in ("plain", "resnet")]


def test_it_begins_with_the_table_and_ends_with_what_all_runs_take(config: Config, program: Program) -> None:
    path = config(networks=WIDE, seeds=[1, 2, 3], sweep={"optimizer.lr": [0.1, 0.2]})
    code, out, err = program("run", path, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "network         depth  parameters  multiply-adds  steps   memory",
        "cifar-plain-8       8      74.9 k          765 k      8  1.49 MB",
        "cifar-resnet-8      8      74.9 k          765 k      8  1.49 MB",
        "",
        "12 runs: 2 networks x 2 values x 3 seeds, 96 steps",
        "disk: 21.6 MB of checkpoints in runs",
        "time: add --measure, which takes some steps of each network",
    ]
    assert not Path("runs").exists()


@pytest.mark.parametrize("changes", [{}, {"checkpoint": {"keep_every": {"steps": 3}}, "train": {"ema_decay": 0.9}}])
def test_the_disk_is_what_the_checkpoints_take(changes: Any, config: Config, program: Program) -> None:
    path = config(**merge({"networks": WIDE[:1]}, changes))
    plan = json.loads(program("run", path, "--dry-run", "--json")[1])
    assert program("run", path)[0] == 0
    files = list(Path("runs").rglob("*.pt"))
    assert len(files) == (5 if changes else 3)
    assert plan["disk"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    assert plan["runs"] == 1


def test_the_time_is_measured_if_asked_for(config: Config, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 0.5 s, and 5 images are evaluated in 0.25 s: 8 steps, and twice 14 + 10 images, in 6.4 s."""
    path = config(networks=WIDE, seeds=[1, 2])
    monkeypatch.setattr(throughput, "seconds_per_step", lambda *_: 0.5)
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=itertools.count(0, 0.25).__next__))
    code, out, err = program("run", path, "--dry-run", "--measure")
    assert (code, err) == (0, "")
    table, _, rest = out.partition("\n\n")
    assert [line.split()[-2:] for line in table.splitlines()[1:]] == [["6", "s"], ["6", "s"]]
    assert rest.splitlines()[-1] == "time: 26 s one after the other, without probes"
    assert not Path("runs").exists()


def test_some_steps_and_evaluations_are_taken(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[None] = []
    monkeypatch.setattr(throughput, "train_step", lambda *_: steps.append(None))
    monkeypatch.setattr(throughput.measure_run, "__defaults__", (0.0,))
    plan = json.loads(program("run", config(), "--dry-run", "--measure", "--json")[1])
    assert plan["seconds"] > 0
    assert plan["networks"][0]["seconds"] == plan["seconds"]
    assert len(steps) >= 2


@pytest.mark.parametrize("option", ["--measure", "--verbose"])
def test_options_of_the_dry_run_need_it(option: str, config: Config, program: Program) -> None:
    code, out, err = program("run", config(), option)
    assert (code, out) == (2, "")
    assert err == f"resnet-train: {option} is for --dry-run: add that, or leave {option} out\n"


@pytest.mark.parametrize(
    "interval", [Interval(3), Interval(2.5), Interval(None), Interval(7, 20), Interval(1, 20), Interval(50)]
)
def test_how_often_something_is_due(interval: Interval) -> None:
    assert interval.times(20) == sum(map(interval.is_due, range(1, 21)))
