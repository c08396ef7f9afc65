"""What `eval` takes, and what it says that it wrote."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_train.analysis.published import compare_with
from resnet_train.config.expect import FigureConfig
from resnet_train.evaluation import pretrained
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


NETS = ("cifar-plain-8", "cifar-resnet-8")
FIGURE = FigureConfig(mean=75, std=3, n=5)


@pytest.fixture
def trained(squares: Path, config: Callable[..., Path], program: Program) -> Path:
    """Two seeds of two networks, of which sources report ten crops, one crop, and several scales of other images."""
    figures = {"val_error_top1": {net: {"mean": 75, "std": 3, "n": 5} for net in NETS}}
    entries = [
        {"source": "a paper, table 1", "val_images": 14, "protocol": "ten-crop", **figures},
        {
            "source": "its code",
            "val_images": 14,
            "val_error_top1": {"cifar-resnet-8": 90},
            "clean_train_error": {"cifar-resnet-8": 1},
        },
        {"source": "a paper, table 2", "val_images": 50_000, "protocol": "multi-scale", **figures},
    ]
    path = config(
        networks=[{"base": net, "stem": "cifar", "widths": [4, 8, 8]} for net in NETS],
        seeds=[0, 1],
        data={"kind": "imagefolder", "path": str(squares), "workers": 0},
        augment={"crop": {"kind": "random-resized", "size": 8}},
        train={"steps": 4},
        expect=entries,
    )
    code, _, err = program("run", path)
    assert code == 0, err
    return Path("runs/tiny")


def rows_of(out: str) -> list[list[str]]:
    """The cells of the published errors."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in out.splitlines()
        if " table " in line or "its code" in line
    ]


def test_an_evaluation_stands_beside_what_its_protocol_is_reported_to_give(trained: Path, program: Program) -> None:
    """Training measures one crop, and the papers' tables are of ten crops or several scales."""
    code, out, err = program("eval", trained, "--protocol", "ten-crop", "--json")
    assert code == 0, err
    records = [record for record in json.loads(out) if record["network"] == NETS[1]]
    values = [record["error_top1"] for record in records]
    code, out, err = program("eval", trained, "--protocol", "ten-crop")
    assert code == 0, err
    difference = statistics.mean(values) - 75
    verdict = compare_with(FIGURE, values, 14)[2]
    measured = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (2)"
    assert [row[0] for row in rows_of(out)] == list(NETS)
    assert rows_of(out)[1] == [
        NETS[1],
        "val top-1",
        measured,
        "75.00 ± 3.00 (5)",
        f"{difference:+.2f}",
        verdict,
        "a paper, table 1",
    ]
    assert "another protocol" not in out
    for record in records:
        assert record["published_error_top1"] == "75.00 ± 3.00 (5)"
        assert (record["verdict_error_top1"], record["source_error_top1"]) == (verdict, "a paper, table 1")
        assert record["difference_error_top1"] == pytest.approx(difference)
    stored = Path("runs/tiny/evaluation/results.jsonl").read_text()
    assert "verdict" not in stored  # sources may be corrected


@pytest.mark.parametrize(
    ("options", "source", "reason"),
    [
        ((), "its code", None),
        (("--flip",), "its code", "eval.flip = true, not false"),
        (("--set", "eval.view={resize: 8, crop: 8}"), "its code", "eval.view.resize = 8, not null"),
        (("--set", "data.workers=1", "--set", "eval.batch_size=3", "--set", "train.precision=bf16"), "its code", None),
        (
            ("--protocol", "multi-scale", "--set", "eval.short_sides=[8,12]"),
            "a paper, table 1",
            "eval.protocol = multi-scale, not ten-crop",
        ),
    ],
)
def test_an_evaluation_that_no_source_reports_is_of_another_protocol(
    options: tuple[str, ...], source: str, reason: str | None, trained: Path, program: Program
) -> None:
    code, out, err = program("eval", trained / NETS[1], *options)
    assert code == 0, err
    [row] = rows_of(out)
    assert row[-1] == source
    assert (row[-2] == "another protocol") == (reason is not None)
    assert (f"another protocol: {reason}" in out) == (reason is not None)


def test_an_evaluation_of_reduced_images_is_of_another_protocol(trained: Path, squares: Path, program: Program) -> None:
    for options, side in ((), 8), (("--short-side", 6), 6):
        assert program("prepare", squares, f"packed-{side}", *options)[0] == 0
        out = program("eval", trained / NETS[1], "--data", f"packed-{side}")[1]
        assert ("another protocol: packed images, shorter sides reduced to 6 px" in out) == (side == 6)


def test_a_checkpoint_before_the_end_or_outside_its_folder(trained: Path, program: Program) -> None:
    """One is of an earlier step, and the other does not say whether its training ended."""
    run = trained / NETS[1] / "seed-0"
    (run / "checkpoints/best.pt").unlink()
    code, out, _ = program("eval", run / "checkpoints/previous.pt")
    assert (code, "another protocol: step 3 of 4 (cifar-resnet-8)" in out) == (0, True)
    last = (run / "checkpoints/last.pt").rename("alone.pt")
    code, out, _ = program("eval", last)
    assert (code, "published" in out) == (0, False)
    last.rename(run / "checkpoints/last.pt")
    with (run / "metrics.jsonl").open("r+") as file:
        file.write("x")
    code, out, err = program("eval", run)
    assert (code, "published" in out, "is compared with no published error" in err) == (0, False, True)


def test_weights_of_another_program_in_a_run_folder_have_no_published_error(trained: Path, program: Program) -> None:
    """They know no step of the run, so that its recipe says nothing of them."""
    weights = trained / NETS[1] / "seed-0/checkpoints/weights.pt"
    torch.save(pretrained.untrained("cifar-resnet-8", "synthetic").network.state_dict(), weights)
    code, out, err = program("eval", weights, "--network", "cifar-resnet-8", "--data", "synthetic")
    assert (code, "published" in out) == (0, False), err
