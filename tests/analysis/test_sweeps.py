"""The comparison of a sweep, from run folders written by hand."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import groups
from matplotlib.figure import Figure

from resnet_train import read_runs
from resnet_train.analysis import findings
from resnet_train.analysis.sweep_figure import draw_sweeps
from resnet_train.analysis.sweeps import at_best, sweeps

Recorded = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]
ERRORS = {
    "cifar-plain-20": {0.02: 9.0, 0.1: 5.0, 0.2: 6.0},
    "cifar-plain-56": {0.02: 20.0, 0.1: 30.0, 0.2: 40.0},
    "cifar-resnet-56": {0.02: 7.0, 0.1: 2.0, 0.2: 3.0},
}
"""Clean training errors by learning rate; validation errors are 4 more."""


@pytest.fixture
def swept(recorded: Recorded) -> Recorded:
    """Write a run of a sweep over learning rates."""

    def write(network: str, lr: Any, clean: float, seed: int = 0, **changes: Any) -> Path:
        return recorded(network, seed, clean, sweep={"optimizer.lr": [lr]}, **changes)

    return write


@pytest.fixture
def all_runs(swept: Recorded) -> None:
    for network, errors in ERRORS.items():
        for lr, clean in errors.items():
            swept(network, lr, clean)


@pytest.mark.usefixtures("all_runs")
def test_networks_are_set_against_each_other_at_their_best_values() -> None:
    sentences = findings.findings(groups())
    assert sentences == [
        "cifar-plain-20 optimizer.lr=0.1 is the best of optimizer.lr 0.02, 0.1, 0.2: validation top-1 9.00 %",
        "cifar-plain-56 optimizer.lr=0.02 is the best of optimizer.lr 0.02, 0.1, 0.2: validation top-1 24.00 %",
        "cifar-resnet-56 optimizer.lr=0.1 is the best of optimizer.lr 0.02, 0.1, 0.2: validation top-1 6.00 %",
        "plain: the deeper network's training error is higher: cifar-plain-56 optimizer.lr=0.02 20.00 %, "
        "cifar-plain-20 optimizer.lr=0.1 5.00 % (clean; each at the optimizer.lr where this error is lowest)",
        "cifar-plain-56 against cifar-plain-20, training error at equal values: "
        "higher at every one of optimizer.lr 0.02, 0.1, 0.2",
        "56 layers: the residual network's training error is lower: cifar-resnet-56 optimizer.lr=0.1 2.00 %, "
        "cifar-plain-56 optimizer.lr=0.02 20.00 % (clean; each at the optimizer.lr where this error is lowest)",
        "cifar-resnet-56 against cifar-plain-56, training error at equal values: "
        "lower at every one of optimizer.lr 0.02, 0.1, 0.2",
    ]
    assert findings.warnings(groups()) == [
        "cifar-plain-56: its best optimizer.lr, 0.02, is the lowest that was tried; a lower one may be better"
    ]


def test_the_figure_marks_the_values_that_the_sentences_name(
    swept: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal training errors, as 0 % of several, that with the lowest validation error."""
    for lr, val in ((0.02, 9.0), (0.1, 3.0), (0.2, 5.0)):
        path = swept("cifar-plain-20", lr, 0.0) / "metrics.jsonl"
        path.write_text(path.read_text().replace('"val_error_top1": 4.0', f'"val_error_top1": {val}'))
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    draw_sweeps(groups(), tmp_path / "sweep.png")
    larger = [[line.get_xdata()[0] for line in ax.lines if line.get_markersize() == 9] for ax in saved[0].axes]
    assert larger == [[0.1], [0.1]]


@pytest.mark.usefixtures("all_runs")
def test_files_have_every_value_and_mark_the_best(program: Program) -> None:
    code, out, err = program("compare", "runs", "--out", "out")
    assert code == 0, err
    assert Path("out/compare-sweep.png").read_bytes()[:4] == b"\x89PNG"
    table = list(csv.DictReader(Path("out/compare.csv").read_text().splitlines()))
    assert [(row["network"], float(row["optimizer.lr"]), row["best_of_sweep"] == "True") for row in table] == [
        (network, lr, error == min(errors.values()))
        for network, errors in ERRORS.items()
        for lr, error in errors.items()
    ]
    markdown = Path("out/compare.md").read_text()
    assert "| cifar-plain-56 | **0.02** | 56 |" in markdown
    assert "| cifar-plain-56 | 0.1 | 56 |" in markdown
    assert "(compare-sweep.png)" in markdown
    assert "Bold, and in the figures above: each network at its best optimizer.lr" in markdown
    assert "* 0.02" in out
    rows = json.loads(program("compare", "runs", "--json")[1])
    assert [row["optimizer.lr"] for row in rows if row["best_of_sweep"]] == [0.1, 0.02, 0.1]
    assert [run["sweep"] for run in read_runs("runs/tiny/cifar-plain-20")] == [
        {"optimizer.lr": lr} for lr in (0.02, 0.1, 0.2)
    ]


def test_without_a_sweep_there_is_no_trace_of_one(recorded: Recorded, program: Program) -> None:
    recorded("cifar-plain-20", 0, 5.0)
    program("compare", "runs", "--out", "out")
    assert not Path("out/compare-sweep.png").exists()
    assert "best_of_sweep" not in Path("out/compare.csv").read_text()


def test_values_are_in_the_order_of_numbers_and_seeds_are_of_one_value(swept: Recorded) -> None:
    for lr in (100.0, 2.0, 1e-5):
        for seed in (0, 1):
            swept("cifar-plain-20", lr, 5.0 + seed, seed)
    assert [group.sweep["optimizer.lr"] for group in groups()] == [1e-5, 2.0, 100.0]
    assert [len(group.runs) for group in groups()] == [2, 2, 2]


def test_values_of_one_folder_are_one_value(swept: Recorded) -> None:
    """1 and 1.0, by another command for the second seed."""
    swept("cifar-plain-20", 1, 5.0, 0), swept("cifar-plain-20", 1.0, 6.0, 1)
    assert [len(group.runs) for group in groups()] == [2]


def test_a_single_value_is_not_the_best(swept: Recorded, program: Program) -> None:
    swept("cifar-plain-20", 0.1, 5.0), swept("cifar-plain-56", 0.1, 6.0)
    code, out, _ = program("compare", "runs", "--out", "out")
    assert (code, "*" in out, "best" in out) == (0, False, False)


def test_a_key_that_only_some_were_swept_over_is_a_difference(swept: Recorded, recorded: Recorded) -> None:
    swept("cifar-plain-20", 0.05, 5.0), swept("cifar-plain-56", 0.2, 9.0)
    assert findings.warnings(groups()) == [
        "not every network was swept over the same optimizer.lr: 0.05 (cifar-plain-20); 0.2 (cifar-plain-56)"
    ]
    recorded("cifar-resnet-56", 0, 3.0)
    [line] = [line for line in findings.warnings(groups()) if "optimizer.lr = " in line]
    assert line == (
        "not only the network differs: optimizer.lr = swept (cifar-plain-20 optimizer.lr=0.05, "
        "cifar-plain-56 optimizer.lr=0.2); 0.1 (cifar-resnet-56)"
    )
    swept("cifar-plain-20", 0.1, 4.0, optimizer={"momentum": 0.8})  # not swept
    assert any("optimizer.momentum = 0.9" in line for line in findings.warnings(groups()))


def test_a_section_that_was_swept_is_no_difference_in_its_keys(recorded: Recorded) -> None:
    for kind in ({"kind": "cosine"}, {"kind": "step", "milestones": [{"steps": 4}]}):
        recorded("cifar-plain-20", 0, 5.0, sweep={"schedule": [kind]})
    assert findings.warnings(groups()) == []
    [sweep] = sweeps(groups())
    assert len(sweep.values("schedule")) == 2


def test_the_best_has_not_diverged_and_is_of_the_same_step(swept: Recorded) -> None:
    swept("cifar-plain-20", 0.1, 5.0), swept("cifar-plain-20", 0.2, 1.0, status="diverged")
    assert [group.sweep["optimizer.lr"] for group in at_best(groups())] == [0.1]
    swept("cifar-plain-56", 0.1, 5.0), swept("cifar-plain-56", 0.2, 9.0)
    assert (
        "training error at equal values: not measurably different at optimizer.lr 0.1; cifar-plain-20 diverged at "
        in ("\n".join(findings.findings(groups())))
    )
    # One is still at step 10, where the other was better.
    folder = swept("cifar-plain-20", 0.3, 4.0, status=None)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= 10))
    [best] = [group for group in at_best(groups(), "clean_train_error") if group.name == "cifar-plain-20"]
    assert best.sweep["optimizer.lr"] == 0.3  # 14 against 15, both at step 10


def test_several_keys_are_drawn_one_by_one_and_words_stand_in_their_order(recorded: Recorded, program: Program) -> None:
    for lr in (0.1, 0.2):
        for smoothing in (None, 0.1):
            changes = {"optimizer.lr": [lr], "train.label_smoothing": [smoothing]}
            recorded("cifar-plain-20", 0, 10 * lr + (smoothing or 0), sweep=changes)
    code, out, err = program("compare", "runs")
    assert code == 0, err
    assert "cifar-plain-20 optimizer.lr=0.1 train.label_smoothing=null is the best of " in out
    header = Path("runs/compare.csv").read_text().splitlines()[0]
    assert header.endswith("optimizer.lr,train.label_smoothing,best_of_sweep")
