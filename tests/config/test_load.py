"""From YAML and the command line to an experiment and its runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from resnet_train.config import load
from resnet_train.config.yaml12 import to_yaml
from resnet_train.errors import BadInput


def test_layers_of_a_config(tmp_path: Path, config: Callable[..., Path]) -> None:
    """The base, then the file, then the command line; a kind replaces a section and a unit replaces a unit."""
    config("under.yaml", optimizer={"weight_decay": 1e-3})
    over = tmp_path / "over.yaml"
    over.write_text("base: under.yaml\nname: over\noptimizer: {lr: 0.2}\ntrain: {epochs: 3}\n")
    experiment = load.load(over, ["optimizer.momentum=0.5", "data.kind=digits", "augment.crop=null"])
    assert experiment.name == "over"
    assert experiment.optimizer.model_dump() | {"lr": 0.2, "momentum": 0.5, "weight_decay": 1e-3} == (
        experiment.optimizer.model_dump()
    )
    assert (experiment.train.epochs, experiment.train.steps, experiment.train.batch_size) == (3, None, 16)
    assert experiment.data.kind == "digits"
    assert experiment.augment.crop is None
    assert experiment.augment.flip


def test_null_resets_a_key_in_any_order(config: Callable[..., Path]) -> None:
    path = config(optimizer={"nesterov": True})
    for overrides in (["optimizer.lr=0.3", "optimizer.nesterov=null"], ["optimizer.nesterov=null", "optimizer.lr=0.3"]):
        optimizer = load.load(path, overrides).optimizer
        assert (optimizer.lr, optimizer.nesterov) == (0.3, False)


def test_evaluation_follows_the_training_crop_by_default(config: Callable[..., Path]) -> None:
    crop = {"crop": {"kind": "random-resized", "size": 112}}
    experiment = load.load(config(data={"kind": "imagefolder", "path": "x"}, augment=crop))
    assert experiment.view is not None
    assert (experiment.view.resize, experiment.view.crop) == (128, 112)


def test_a_kind_may_come_after_its_keys(config: Callable[..., Path]) -> None:
    data = load.load(config(augment=None), ["data.path=/x", "data.kind=cifar10"]).data
    assert data.kind == "cifar10"
    assert data.path == "/x"


def test_grid_is_networks_by_seeds_with_exceptions(config: Callable[..., Path]) -> None:
    path = config(
        networks=["cifar-plain-8", {"base": "cifar-resnet-8", "name": "narrow", "widths": [2, 4, 8]}],
        seeds=[3, 5],
        per_network={"narrow": {"optimizer": {"lr": 0.5}, "train": {"epochs": 1}}},
    )
    runs = list(load.runs(load.load(path)))
    assert [(run.network.name, run.seed) for run in runs] == [
        ("cifar-plain-8", 3),
        ("cifar-plain-8", 5),
        ("narrow", 3),
        ("narrow", 5),
    ]
    assert [run.optimizer.lr for run in runs] == [0.1, 0.1, 0.5, 0.5]
    assert [(run.train.steps, run.train.epochs) for run in runs] == [(8, None)] * 2 + [(None, 1)] * 2
    assert runs[2].network.widths == (2, 4, 8)
    assert load.read_run(load.dump(runs[2]), "again") == runs[2]


def test_twins_are_added_beside_residual_networks_that_have_none(config: Callable[..., Path]) -> None:
    gated = {"base": "cifar-resnet-14", "name": "gated", "addition": {"kind": "shortcut-gating"}}
    path = config(networks=["cifar-resnet-8", "cifar-plain-8", gated], twins=True)
    networks = load.load(path).networks
    assert [network.name for network in networks] == ["cifar-resnet-8", "cifar-plain-8", "gated", "gated-plain"]
    assert networks[3].plain
    assert networks[3].depth == 14
    Path("again.yaml").write_text(to_yaml(load.dump(load.load(path))))
    assert load.load(Path("again.yaml")).networks == networks
    with pytest.raises(BadInput, match="twins has no effect"):
        load.load(config(networks=["cifar-plain-8"], twins=True))


def test_errors_and_help_are_printed_before_torch_is_imported(config: Callable[..., Path]) -> None:
    code = (
        "import sys; from resnet_train.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(code)"
    )
    run = ["run", str(config()), "train.epoch=1"]
    for arguments, expected in ((run, 2), (["--help"], 0), (["eval", "none.pt"], 2)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (expected, False), done.stderr


def test_dry_run_prints_an_experiment_that_loads_again(
    config: Callable[..., Path], program: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = config(seeds=[1, 2])
    code, out, _ = program("run", path, "--dry-run", "--json")
    report = json.loads(out)
    assert code == 0
    assert [network["steps"] for network in report["networks"]] == [8]
    resolved: dict[str, Any] = report["experiment"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(resolved))
    assert load.load(tmp_path / "again.yaml") == load.load(path)
    assert not Path("runs").exists()
    assert TINY["name"] in program("run", path, "--dry-run")[1]
    absent = ["data={kind: cifar10, path: nowhere}", "--dry-run", "train.epochs=3"]
    code, out, err = program("run", path, *absent)
    assert (code, "–" in out, "no complete cifar10 in nowhere" in err) == (0, True, True)
