"""A signal within an evaluation or a probe ends it between two batches; the run that goes on measures that step first."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import figures, same_weights, spawn
from tiny_runs import FOLDER, Config, Program, finish

from resnet_train.errors import Interrupted
from resnet_train.evaluation import evaluator
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.training import checkpoint

KEPT = {"checkpoint": {"every": {"steps": 3}, "keep_every": {"steps": 4}}}
"""A checkpoint is kept for good at the steps that are evaluated."""
PARTS = Path("parts") / FOLDER.relative_to("runs")


def signal_at(
    nth: int, monkeypatch: pytest.MonkeyPatch, module: Any = evaluator, name: str = "score_logits"
) -> list[int]:
    """Send SIGTERM to this process within the nth call of a function. The list that is returned gets an item each call."""
    calls: list[int] = []
    real: Callable[..., Any] = getattr(module, name)

    def function(*arguments: Any) -> Any:
        calls.append(len(calls) + 1)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(module, name, function)
    return calls


def stop(program: Program, path: Path, step: int) -> None:
    code, _, err = program("run", path, "output=parts")
    assert (code, f"stopped at step {step} of 8, saved; run again to continue" in err) == (75, True), err
    assert "Traceback" not in err


def assert_same(whole: Path, parts: Path) -> None:
    assert figures(parts) == figures(whole)
    names = {path.name for path in (whole / "checkpoints").iterdir()} - {"previous.pt"}
    assert names >= {"best.pt", "last.pt"}
    for name in names:
        one, other = (folder / "checkpoints" / name for folder in (whole, parts))
        assert same_weights(one, other), name
        assert read_checkpoint(one).payload["unmeasured"] == [], name
        assert read_checkpoint(other).payload["unmeasured"] == [], name


@pytest.mark.parametrize(
    ("nth", "step", "evaluated"),
    [(1, 4, 1), (3, 4, 3), (4, 4, 4), (6, 8, 6)],
    ids=["first batch", "last batch of the validation set", "clean training error", "last step"],
)
def test_a_signal_within_an_evaluation_ends_it(
    nth: int, step: int, evaluated: int, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches at steps 4 and 8: three of the validation set, two of the clean training error."""
    path = config(**KEPT)
    whole = finish(program, path, output="whole")
    with monkeypatch.context() as patched:
        calls = signal_at(nth, patched)
        stop(program, path, step)
        assert len(calls) == evaluated
    saved = read_checkpoint(PARTS / "checkpoints/last.pt")
    assert (saved.step, saved.payload["unmeasured"]) == (step, ["eval"])
    assert [record["step"] for record in figures(PARTS) if record["kind"] == "eval"] == [4][: step // 4 - 1]
    assert_same(whole, finish(program, path, output="parts"))


def test_a_signal_while_statistics_are_recomputed_ends_the_evaluation(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(eval={"recompute_bn": 20}, train={"ema_decay": 0.5}, **KEPT)
    whole = finish(program, path, output="whole")
    with monkeypatch.context() as patched:
        calls = signal_at(2, patched, evaluator, "no_cudnn_benchmark")
        stop(program, path, 4)
        assert len(calls) == 2
    assert_same(whole, finish(program, path, output="parts"))


def test_a_signal_among_lesions_leaves_the_evaluation_of_that_step(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the best, and is not made again. The other probe is made before, as its order is."""
    every = {"every": {"steps": 4}, "images": 10}
    path = config(probes={"gradients": every, "lesion": every}, **KEPT)
    calls = signal_at(0, monkeypatch)
    whole = finish(program, path, output="whole")
    batches = len(calls)
    with monkeypatch.context() as patched:
        calls = signal_at(5 + 3, patched)
        stop(program, path, 4)
        assert len(calls) == 8
    assert read_checkpoint(PARTS / "checkpoints/last.pt").payload["unmeasured"] == ["lesion"]
    assert read_checkpoint(PARTS / "checkpoints/best.pt").step == 4
    calls = signal_at(0, monkeypatch)
    parts = finish(program, path, output="parts")
    assert len(calls) == batches - 5
    assert [r["kind"] for r in figures(parts) if r["step"] == 4] == ["train", "eval", "gradients", "lesion"]
    assert figures(parts) == figures(whole)
    assert same_weights(parts / "checkpoints/last.pt", whole / "checkpoints/last.pt")


def test_stopped_twice_within_one_evaluation(config: Config, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on answers a signal before its first step, too."""
    path = config(**KEPT)
    whole = finish(program, path, output="whole")
    for nth in (2, 1):
        with monkeypatch.context() as patched:
            calls = signal_at(nth, patched)
            stop(program, path, 4)
            assert len(calls) == nth
    assert_same(whole, finish(program, path, output="parts"))


def test_killed_before_it_saves_what_it_measures_again(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the evaluation is on the disk, and the checkpoint says that it is not made: it is made once more.

    Otherwise the best network would not be kept.
    """
    path = config(**KEPT)
    whole = finish(program, path, output="whole")
    with monkeypatch.context() as patched:
        signal_at(1, patched)
        stop(program, path, 4)

    def killed(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", killed)
        assert program("run", path, "output=parts")[0] == 9
    assert [record["kind"] for record in figures(PARTS)].count("eval") == 1
    assert_same(whole, finish(program, path, output="parts"))


def test_what_is_no_longer_due_is_not_measured(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intervals may change when a run goes on."""
    path = config(probes={"lesion": {"every": {"steps": 4}, "images": 10}})
    signal_at(1, monkeypatch)
    stop(program, path, 4)
    parts = finish(program, path, "probes=null", "eval.every.steps=3", output="parts")
    kinds = ("eval", "lesion")
    assert [(r["kind"], r["step"]) for r in figures(parts) if r["kind"] in kinds] == [("eval", 6), ("eval", 8)]


def test_a_signal_while_an_evaluation_waits_for_its_images_saves(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank may save where its data workers do not answer."""
    path = config(**KEPT)
    whole = finish(program, path, output="whole")

    def stalled(*_: object) -> None:
        interrupted = Interrupted("SIGTERM: stopped while the data workers do not answer")
        interrupted.on_all_ranks = False
        raise interrupted

    with monkeypatch.context() as patched:
        patched.setattr(evaluator, "score_logits", stalled)
        stop(program, path, 4)
    assert_same(whole, finish(program, path, output="parts"))


SIGNAL_IN_EVALUATION = """
import os, signal, sys
from resnet_train import cli
from resnet_train.evaluation import evaluator
from resnet_train.runtime.process_exit import exit_process

score_logits, calls = evaluator.score_logits, []

def signal_one(*arguments):
    calls.append(arguments)
    if len(calls) == int(sys.argv[2]) and os.environ["RANK"] == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGTERM)
    return score_logits(*arguments)

evaluator.score_logits = signal_one
code = cli.main(sys.argv[3:])
os.write(1, f"code {code} after {len(calls)}\\n".encode())
exit_process(code)
"""


def test_a_signal_to_one_rank_ends_the_evaluation_of_all(config: Config, tmp_path: Path) -> None:
    """They agree although one has two batches of the validation set and the other has one."""
    path = config(eval={"clean_train_images": 20}, **KEPT)
    (tmp_path / "signal_one.py").write_text(SIGNAL_IN_EVALUATION)

    def run(output: str, rank: int, nth: int) -> tuple[int, str, str]:
        process = spawn(rank, nth, "run", path, f"output={output}", ranks=2, program=[tmp_path / "signal_one.py"])
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    assert run("whole", 0, 0)[0] == 0
    for rank, nth in ((1, 1), (0, 2)):
        code, out, err = run(f"parts-{rank}", rank, nth)
        assert (code, err.count("stopped at step 4 of 8, saved; run again to continue")) == (1, 1), err
        assert out.count("code 75 after ") == 2, (out, err)
        assert max(int(line.rpartition(" ")[2]) for line in out.splitlines()) <= nth + 1
        code, _, err = run(f"parts-{rank}", 0, 0)
        assert code == 0, err
        assert_same(Path("whole") / FOLDER.relative_to("runs"), Path(f"parts-{rank}") / FOLDER.relative_to("runs"))
