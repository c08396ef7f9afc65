"""A sweep: its cells, their folders, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from resnet_train.config import load, sweep
from resnet_train.config.yaml12 import to_yaml
from resnet_train.errors import BadInput
from resnet_train.runs.run_folder import differences, folder_of

Config = Callable[..., Path]


def cells(path: Path, *overrides: str) -> list[Any]:
    return list(load.runs(load.load(path, overrides)))


def test_each_network_is_trained_with_each_combination_of_values(config: Config) -> None:
    path = config(networks=["cifar-plain-8", "cifar-resnet-8"], seeds=[0, 1], sweep={"optimizer.lr": [0.05, 0.2]})
    runs = cells(path, "sweep.train.batch_size=[8,16]")
    assert [str(folder_of("runs", run)) for run in runs[:3]] == [
        "runs/tiny/cifar-plain-8/optimizer.lr=0.05/train.batch_size=8/seed-0",
        "runs/tiny/cifar-plain-8/optimizer.lr=0.05/train.batch_size=8/seed-1",
        "runs/tiny/cifar-plain-8/optimizer.lr=0.05/train.batch_size=16/seed-0",
    ]
    assert [(run.optimizer.lr, run.train.batch_size) for run in runs[::2]] == 2 * [
        *((0.05, 8), (0.05, 16), (0.2, 8), (0.2, 16))
    ]
    assert len({folder_of("runs", run) for run in runs}) == len(runs) == 16
    [plain] = cells(config(networks=["cifar-plain-8"], optimizer={"lr": 0.05}, train={"batch_size": 8}))
    assert differences(plain, runs[0]) == []  # a cell is the run that its values make
    assert runs[0].title == "cifar-plain-8 optimizer.lr=0.05 train.batch_size=8 seed 0"


def test_the_resolved_experiment_has_the_same_cells(config: Config) -> None:
    values: dict[str, Any] = {"train.ema_decay": [None, 0.5], "augment.mixup": [0.2, None]}
    values["schedule"] = [{"kind": "cosine"}, {"kind": "step", "milestones": [{"steps": 4}]}]
    path = config(sweep=values, seeds=[0])
    experiment = load.load(path)
    Path("again.yaml").write_text(to_yaml(load.dump(experiment)))
    assert cells(Path("again.yaml")) == cells(path)
    runs = cells(path)
    assert {(run.train.ema_decay, run.augment.mixup, run.schedule.kind) for run in runs} == {
        (decay, mixup, kind) for decay in (None, 0.5) for mixup in (0.2, None) for kind in ("cosine", "step")
    }
    for run in runs:
        assert load.read_run(load.dump(run), "config.yaml") == run


def test_a_sweep_of_the_file_is_changed_by_key_on_the_command_line(config: Config) -> None:
    path = config(sweep={"optimizer.lr": [0.1, 0.2], "optimizer.momentum": [0.5, 0.9]})
    assert load.load(path, ["sweep.optimizer.lr=[0.3]"]).sweep == {
        "optimizer.lr": (0.3,),
        "optimizer.momentum": (0.5, 0.9),
    }
    assert load.load(path, ["sweep.optimizer.lr=null"]).sweep == {"optimizer.momentum": (0.5, 0.9)}
    assert load.load(path, ["sweep=null"]).sweep == {}


def test_every_value_has_a_folder_of_its_own() -> None:
    values = [0.05, -1.5, 1e-7, 3, True, None, "null", "true", "0.05", "A", "a/b", "a-b", "..", "", "é" * 200, "-" * 70]
    values += [
        {"kind": "cosine"},
        {"kind": "cosine", "min_lr": 0.1},
        {"kind cosine": None},
        [1, 2],
        "[1, 2]",
        "x" * 100,
    ]
    names = [name for value in values for name in sweep.folder_names({"k": value})]
    assert len(set(names)) == len(names)
    assert names[:6] == ["k=0.05", "k=-1.5", "k=1e-07", "k=3", "k=true", "k=null"]
    for name in names:
        folder = Path("made") / name
        folder.mkdir(parents=True)
        assert folder.parent.resolve() == Path("made").resolve()
        assert name.isascii()
    assert sweep.folder_names({"k": 3.0}) == sweep.folder_names({"k": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": [1, 2]}, "sweep.seeds: only keys of the recipe can be swept: data, optimizer"),
        ({"networks": ["x"]}, "sweep.networks: only keys of the recipe"),
        ({"name": ["x"]}, "sweep.name: only keys of the recipe"),
        ({"output": ["x"]}, "sweep.output: only keys of the recipe"),
        ({"optimizer.lr": [0.1, 1e-1]}, "sweep.optimizer.lr: 0.1 is listed twice"),
        ({"train.epochs": [1, 1.0]}, "sweep.train.epochs: 1 is listed twice"),
        ({"optimizer.lr": []}, "sweep.optimizer.lr: tuple should have at least 1 item"),
        ({"optimizer.lr": 0.1}, "sweep.optimizer.lr = 0.1: expected a list in brackets, such as [A, B]"),
        ({"optimizer": {}}, "sweep.optimizer: expected a list in brackets"),
        ({"optimizer.lr": [0.1], "optimizer": [{"lr": 0.2}]}, "sweep.optimizer.lr is a part of sweep.optimizer"),
        ({"optimizer.lr": [0.1, -1]}, "sweep, optimizer.lr=-1: optimizer.lr = -1: input should be greater than 0"),
        ({"optimizer.rate": [0.1]}, "sweep, optimizer.rate=0.1: optimizer.rate: unknown key"),
        ({"data.workers": [1]}, "sweep, data.workers=1: data.workers: has no effect with kind synthetic"),
        ({"train.timeout": [1, 2]}, "sweep: train.timeout=1 and train.timeout=2 train the same: remove one of them"),
        ({"eval.every": [{"steps": 1}, {"steps": 2}]}, "sweep: eval.every={steps: 1} and eval.every={steps: 2} train"),
        ({"train.ema_decay": [None, 0.5], "train.timeout": [1, 2]}, "sweep: train.timeout=1 and train.timeout=2 train"),
        ({"train.label_smoothing": [0, 0.0, 0.1]}, "sweep.train.label_smoothing: 0 is listed twice"),
        ({"augment.flip": [None, False]}, "sweep: augment.flip=null and augment.flip=false train the same"),
        (
            {"schedule": [{"kind": "cosine", "warmup": {"steps": 3, "lr": 0.1}}]},
            "sweep, schedule={kind: cosine, warmup: {lr: 0.1, steps: 3}}: schedule.warmup has no",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_a_line(values: dict[str, Any], message: str, config: Config) -> None:
    with pytest.raises(BadInput) as error:
        load.load(config(sweep=values, optimizer={"lr": 0.1}))
    [line] = str(error.value).splitlines()
    assert message in line


def test_an_exception_for_one_network_over_a_swept_key_is_refused(config: Config) -> None:
    exception = {"cifar-resnet-8": {"optimizer": {"lr": 0.3}}}
    for values in ([0.1], [0.1, 0.2]):  # a single value, too: the run would be named 0.1 and trained at 0.3
        with pytest.raises(BadInput, match=r"per_network.cifar-resnet-8.optimizer.lr: the sweep sets it, too"):
            load.load(config(sweep={"optimizer.lr": values}, per_network=exception))
    path = config(sweep={"optimizer.lr": [0.1, 0.2]}, per_network={"cifar-resnet-8": {"optimizer": {"momentum": 0.3}}})
    assert [(run.optimizer.lr, run.optimizer.momentum) for run in cells(path)] == [(0.1, 0.3), (0.2, 0.3)]


def test_a_figure_of_a_source_is_not_about_other_values(config: Config) -> None:
    figures = {"source": "a table", "val_images": 14, "val_error_top1": {"cifar-resnet-8": 5.0}}
    path = config(expect=[figures], optimizer={"lr": 0.1}, sweep={"optimizer.lr": [0.1, 0.2]})
    same, other = cells(path)
    assert same.expect[0].differs is None
    assert other.expect[0].differs == {"cifar-resnet-8": ("optimizer.lr = 0.2, not 0.1",)}


def test_a_misspelt_sweep_writes_nothing(config: Config, program: Callable[..., Any]) -> None:
    path = config(sweep={"optimizer.lr": [0.1, 0.0]})
    assert yaml.safe_load(path.read_text())["data"] == TINY["data"]
    code, _, err = program("run", path)
    assert (code, len(err.splitlines()), Path("runs").exists()) == (2, 1, False)
