"""What `eval` takes, and what it says that it wrote."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_train.evaluation.logits import Logits

Program = Callable[..., tuple[int, str, str]]


def test_the_folder_of_an_experiment_stands_for_the_last_checkpoint_of_each_run(
    config: Callable[..., Path], program: Program
) -> None:
    networks = [{"base": f"cifar-{kind}-8", "widths": [4, 8, 8]} for kind in ("plain", "resnet")]
    assert program("run", config(networks=networks, train={"steps": 4}))[0] == 0
    plain, residual = (Path(f"runs/tiny/cifar-{kind}-8/seed-0") for kind in ("plain", "resnet"))
    (residual / "checkpoints/last.pt").unlink()  # as a kill between two renames leaves it
    code, out, err = program("eval", "runs/tiny", "--json")
    assert code == 0, err
    assert [(row["checkpoint"], row["step"]) for row in json.loads(out)] == [
        (f"{plain}/checkpoints/last.pt", 4),
        (f"{residual}/checkpoints/previous.pt", 3),
        ("ensemble of 2", None),
    ]
    assert len(Path("runs/tiny/evaluation/results.jsonl").read_text().splitlines()) == 3
    (residual / "checkpoints/previous.pt").unlink()
    code, out, err = program("eval", "runs/tiny")
    assert (code, f"{residual} is left out: it has no checkpoint yet" in err) == (0, True)
    assert f"{plain}/checkpoints/last.pt  cifar-plain-8" in out
    (plain / "evaluation").mkdir()
    (plain / "evaluation/results.jsonl").write_text('{"checkpoint": "a"}\n{"checkp')  # a process was killed
    code, out, err = program("eval", plain)
    assert (code, out.splitlines()[-1]) == (0, f"wrote {plain}/evaluation")
    lines = (plain / "evaluation/results.jsonl").read_text().splitlines()
    assert [json.loads(line)["checkpoint"] for line in lines] == ["a", f"{plain}/checkpoints/last.pt"]
    code, _, err = program("eval", residual)
    assert (code, f"{residual}: no run in or under it has a checkpoint yet" in err) == (2, True)


def test_what_was_not_written_is_not_said_to_be(checkpoint: str, program: Program) -> None:
    Path("file").touch()
    code, out, err = program("eval", checkpoint, "--out", "file")
    assert (code, "top-1 error" in out, "wrote" in out) == (0, True, False)
    assert "--out: cannot write file: File exists" in err


def test_logits_that_cannot_be_written_lose_no_result(
    checkpoint: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = program("eval", checkpoint, "--save-logits", "/proc/none/x.npz")
    assert (code, "top-1 error" in out, len(err.splitlines())) == (2, True, 1)
    assert "--save-logits: cannot write /proc/none/x.npz" in err


def test_a_network_that_diverged_has_an_error_and_no_loss(checkpoint: str, program: Program) -> None:
    payload = torch.load(checkpoint, weights_only=True)
    payload["net"]["fc.bias"].fill_(torch.nan)
    torch.save(payload, checkpoint)
    code, out, _ = program("eval", checkpoint, "--json", "--save-logits", "x.npz")
    [row] = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert (code, row["loss"]) == (0, None)
    assert json.loads(program("eval", "x.npz", "--json")[1]) == [row]
    assert Logits.read(Path("x.npz")).values.shape == (1, 14, 1, 4)
    assert program("eval", "x.npz")[1].endswith("–\n")
