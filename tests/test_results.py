"""The results that the repository keeps: the table is generated from them, and each can still be trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import results
import yaml
from PIL import Image

from resnet_train.errors import BadInput

ROOT = Path(__file__).parents[1]


def test_the_table_is_generated_from_the_studies() -> None:
    text = (ROOT / "docs/results/README.md").read_text()
    assert text == results.table(ROOT / "docs/results"), "run `python scripts/results.py table`"


def test_studies_are_complete_and_small() -> None:
    """The page of a study begins with its command, which test_docs parses."""
    for folder in results.studies(ROOT / "docs/results"):
        study = json.loads((folder / "study.json").read_text())
        assert f"```bash\n{study['command']}\n```" in (folder / "README.md").read_text()
        assert study["experiment"] == results.experiment_of(study["command"]).name
        assert (folder / "experiment.yaml").exists()
        for picture in folder.glob("*.png"):
            assert picture.stat().st_size < results.PNG_LIMIT
            assert picture.with_suffix(".svg").exists()
        assert study["commits"]
        assert study["hardware"]


@pytest.fixture
def finished(recorded: Callable[..., Path]) -> str:
    """Runs of two networks with two seeds, one of them with a published error, and the command that they are of."""
    expect = [{"source": "a paper", "val_images": 10_000, "val_error_top1": {"cifar-resnet-8": 8.75}}]
    sessions = {"sessions": [{"ranks": 1, "device": "a processor", "torch": "2", "threads": 2, "commit": "0123456789"}]}
    for network in ("cifar-plain-8", "cifar-resnet-8"):
        for seed in (0, 1):
            folder = recorded(network, seed, 4.0 + seed / 10, file="study.yaml")
            (folder / "env.json").write_text(json.dumps(sessions))
    path = Path("study.yaml")
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"networks": ["cifar-plain-8", "cifar-resnet-8"], "expect": expect}))
    return f"resnet-train run {path.resolve()} seeds=[0,1] --jobs 2"


def test_a_finished_experiment_becomes_a_study(finished: str) -> None:
    """With what is expected of it today, even if its runs were made before."""
    results.collect(Path("runs"), finished, Path("kept/tiny"), "A note.")
    kept = {path.name for path in Path("kept/tiny").iterdir()}
    pictures = {f"compare{name}.{kind}" for name in ("", "-cost") for kind in ("png", "svg")}
    assert kept == {"README.md", "compare.csv", "compare.json", "experiment.yaml", "study.json", *pictures}
    text = results.table(Path("kept"))
    cells = ["[tiny](tiny/README.md)", "cifar-resnet-8", "2", "20", "4.05 ± 0.07", "8.05 ± 0.07", "8.75, a paper"]
    assert f"| {' | '.join(cells)} | too few seeds to tell | 0.2 | a processor, 2 threads | 0123456 |" in text
    page = Path("kept/tiny/README.md").read_text()
    assert f"```bash\n{finished}\n```" in page
    assert "A note." in page
    assert "0.8 hours in all; commit 0123456789." in page
    assert "| cifar-resnet-8 | validation top-1 | 8.05 ± 0.07 (2) | 8.75 | -0.70 |" in page


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("resnet-train run quickstart", "cifar-plain-8/seed-0: 'resnet-train run quickstart' does not train it"),
        ("{} optimizer.lr=0.2", "optimizer.lr = 0.1, and 0.2 with"),
        ("{} seeds=[0]", "seed-1: "),
        ("{} seeds=[0,1,2] --only cifar-resnet-8", "cifar-plain-8/seed-0: "),
        ("{} seeds=[0,1,2]", "seed 2, which is not there: a study holds every run"),
        ("{} train.step=3", "train.step: unknown key"),
        ("{} --job 2 --unknown", "is not understood"),
        ("resnet-train eval x.pt", "is not a resnet-train run"),
        ("make all", "is not a resnet-train run"),
    ],
)
def test_runs_that_the_command_would_not_make_are_refused(command: str, message: str, finished: str) -> None:
    with pytest.raises(BadInput) as error:
        results.collect(Path("runs"), command.format(finished), Path("kept/tiny"), None)
    assert message in str(error.value)
    assert not Path("kept").exists()


def test_cells_of_a_sweep_are_kept_apart(recorded: Callable[..., Path]) -> None:
    """Runs of one network and seed, with other values."""
    for rate in (0.1, 0.2):
        recorded("cifar-resnet-8", 0, 4.0 + rate, file="study.yaml", sweep={"optimizer.lr": [rate]})
    path = Path("study.yaml").resolve()
    results.collect(Path("runs"), f"resnet-train run {path} sweep.optimizer.lr=[0.1,0.2]", Path("kept/tiny"), None)
    assert Path("kept/tiny/compare-sweep.svg").exists()
    rows = json.loads(Path("kept/tiny/compare.json").read_text())
    assert [row["clean_train_error"] for row in rows] == [4.1, 4.2]
    assert "cifar-resnet-8 optimizer.lr=0.2 | 1 |" in results.table(Path("kept"))


def test_an_unfinished_run_is_refused(finished: str) -> None:
    path = next(Path("runs").rglob("metrics.jsonl"))
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"end"' not in line))
    with pytest.raises(BadInput, match="is not finished"):
        results.collect(Path("runs"), finished, Path("kept/tiny"), None)


@pytest.mark.parametrize("command", ["resnet-train run quickstart train.step=3", "resnet-train run none"])
def test_a_study_whose_command_is_no_longer_valid_fails(command: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/study.json").write_text(json.dumps({"command": command}))
    with pytest.raises(BadInput):
        results.table(tmp_path)


def test_a_large_picture_is_made_small(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.effect_noise((900, 900), 100).convert("RGB").save(path)
    assert path.stat().st_size > results.PNG_LIMIT
    results._shrink(path)
    assert path.stat().st_size < results.PNG_LIMIT
