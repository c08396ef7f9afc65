"""What may change when a run goes on: when it is measured, and how long it is. Its weights stay those of one run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import same_weights
from tiny_runs import Config, Program, finish

from resnet_train.config.yaml12 import read_yaml
from resnet_train.runs import run_folder
from resnet_train.runs.checkpoint import read_checkpoint

STEPS = {"kind": "step", "milestones": [{"steps": 5}, {"epochs": 4}], "warmup": {"steps": 2}}
LAST = Path("tiny/cifar-resnet-8/seed-0/checkpoints/last.pt")


def run(program: Program, *arguments: object) -> tuple[int, str]:
    code, _, err = program("run", *arguments)
    return code, err


def last_records(output: str, kind: str) -> list[int]:
    folder = Path(output) / LAST.parents[1]
    return [record["step"] for record in run_folder.read_metrics(folder) if record["kind"] == kind]


@pytest.mark.parametrize("schedule", [None, STEPS], ids=["constant", "milestones"])
@pytest.mark.parametrize("longer", [{"steps": 12}, {"epochs": 4.8}], ids=["steps", "epochs"])
def test_a_finished_run_is_trained_further_to_the_run_that_was_longer_from_the_start(
    schedule: Any, longer: dict[str, Any], config: Config, program: Program
) -> None:
    changes: dict[str, Any] = {"train": {"ema_decay": 0.9}} | ({} if schedule is None else {"schedule": schedule})
    path = config(**changes)
    [override] = (f"train={{{key}: {value}}}" for key, value in longer.items())
    assert run(program, path, "output=whole", override)[0] == 0
    assert run(program, path, "output=longer")[0] == 0
    before = (Path("longer") / LAST).read_bytes()
    assert run(program, path, "output=longer")[0] == 0  # finished already
    assert (Path("longer") / LAST).read_bytes() == before
    code, err = run(program, path, "output=longer", override)
    assert code == 0, err
    assert same_weights(Path("whole") / LAST, Path("longer") / LAST)

    folder = Path("longer") / LAST.parents[1]
    records = run_folder.read_metrics(folder)
    assert (records[0]["steps"], [r["step"] for r in records if r["kind"] == "end"]) == (12, [12])
    assert last_records("longer", "eval") == last_records("whole", "eval") == [4, 8, 12]
    for train in (
        read_yaml(folder / "config.yaml")["train"],
        read_checkpoint(Path("longer") / LAST).payload["run"]["train"],
    ):
        assert [train.get(key) for key in ("steps", "epochs")] == [longer.get(key) for key in ("steps", "epochs")]
    code, err = run(program, path, "output=longer")
    assert (code, "last.pt is at step 12 already, and the training is to end at 8: raise train.steps" in err) == (
        2,
        True,
    )
    assert "finished already" in run(program, path, "output=longer", override)[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schedule": {"kind": "cosine"}}, "schedule.kind cosine"),
        ({"schedule": {"kind": "linear"}}, "schedule.kind linear"),
        ({"schedule": {"kind": "step", "milestones": [{"fraction": 0.5}]}}, "schedule.milestones in fractions"),
        ({"schedule": {"kind": "step", "warmup": {"fraction": 0.5}}}, "schedule.warmup in a fraction"),
        (
            {
                "data": {"kind": "imagefolder", "path": "imagenet"},
                "augment": {
                    "crop": {"kind": "random-resized", "size": 16},
                    "progressive_resizing": {0: 8, 0.5: 16},
                },
            },
            "augment.progressive_resizing",
        ),
    ],
)
@pytest.mark.usefixtures("images")
def test_a_longer_training_is_refused_where_the_schedule_depends_on_its_length(
    changes: dict[str, Any], reason: str, config: Config, program: Program
) -> None:
    path = config(train={"steps": 2}, **changes)
    finish(program, path, output="runs")
    before = (Path("runs") / LAST).read_bytes()
    code, err = run(program, path, "train.steps=4")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"holds a run with train.steps = 2, not 4, and {reason} depends on the length: set it back" in err
    assert (Path("runs") / LAST).read_bytes() == before


def test_when_a_run_is_measured_may_change_and_changes_no_weight(config: Config, program: Program) -> None:
    """An interrupted run that goes on with other intervals, and with probes, ends with the same weights."""
    path = config(train={"steps": 12}, probes={"responses": {"every": {"steps": 4}, "images": 4}})
    finish(program, path, output="whole")
    assert run(program, path, "output=changed", "train.steps=6")[0] == 0
    overrides = [
        *("eval.every.steps=3", "log.every={epochs: 1}", "checkpoint.every.steps=2"),
        *("probes=null", "probes.gradients={images: 4, every: {steps: 5}}"),
    ]
    code, err = run(program, path, "output=changed", *overrides)
    assert code == 0, err
    assert same_weights(Path("whole") / LAST, Path("changed") / LAST)
    assert last_records("changed", "eval") == [4, 6, 9, 12]
    assert (last_records("changed", "responses"), last_records("changed", "gradients")) == ([0, 4, 6], [10, 12])
    probes = read_yaml(Path("changed") / LAST.parents[1] / "config.yaml")["probes"]
    assert list(probes) == ["gradients"]
    code, err = run(program, path, "output=changed", *overrides, "probes.gradients.images=5", "train.steps=20")
    assert (code, "holds a run with probes.gradients.images = 4, not 5" in err) == (2, True)
    code, err = run(program, path, "output=changed", *overrides, "eval.flip=true", "train.steps=20")
    assert (code, "holds a run with eval.flip = False, not True" in err) == (2, True)


def test_a_run_is_not_cut_to_fewer_steps_than_it_has(config: Config, program: Program) -> None:
    path = config()
    finish(program, path, output="runs")
    before = (Path("runs") / LAST).read_bytes()
    for steps in (4, 7):
        code, err = run(program, path, f"train.steps={steps}")
        assert (code, f"is at step 8 already, and the training is to end at {steps}: raise train.steps" in err) == (
            2,
            True,
        )
    assert (Path("runs") / LAST).read_bytes() == before
    assert run(program, path, "train={epochs: 3.2}")[0] == 0  # 8 steps: finished already
    assert (Path("runs") / LAST).read_bytes() == before


def test_a_finished_run_without_checkpoints_is_not_begun_anew_to_be_longer(config: Config, program: Program) -> None:
    path = config()
    finish(program, path, output="runs")
    folder = Path("runs") / LAST.parents[1]
    before = (folder / "metrics.jsonl").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    code, err = run(program, path, "train.steps=12")
    assert (code, err.count("\n")) == (2, 1), err
    assert "there is no checkpoint to train it further from" in err
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert "finished already" in run(program, path)[1]
