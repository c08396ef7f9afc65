"""The experiment files that are shipped."""

from pathlib import Path

import pytest

from resnet_train.config import load
from resnet_train.config.expect import text

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_load_and_open_with_command_cost_and_expectation(path: Path) -> None:
    experiment = load.load(path)
    assert experiment.name == path.stem
    assert list(load.runs(experiment))
    head = path.read_text().partition("\nname:")[0]
    assert head.startswith("# yaml-language-server: $schema=schema.json")
    assert f"resnet_train run configs/{path.name}" in head.replace("resnet-train run", "resnet_train run")
    assert "Cost:" in head
    assert experiment.expect or "Expect" in head


def test_every_published_recipe_carries_its_figures() -> None:
    """Every file but those whose recipe nobody reports figures of, or none yet."""
    without = {path.stem for path in CONFIGS.glob("*.yaml") if not load.load(path).expect}
    assert without == {"cifar10-cpu", "fashion-mnist-depth", "imagenet-large-batch"}


def test_figures_of_the_files_are_those_of_the_papers() -> None:
    """Some of each paper, and of a file under a base; a file states its own recipe, so nothing differs."""
    for name, network, source, error, figure in (
        ("cifar10-depth", "cifar-resnet-110", "He et al. 2015, table 6", "val_error_top1", "6.61 ± 0.16 (5)"),
        ("cifar10-depth", "cifar-plain-56", "He et al. 2015, figure 6", "val_error_top1", "9.5 to 13.5"),
        ("cifar10-shortcuts", "cifar-resnet-110-C", "He et al. 2016, table 1", "val_error_top1", "12.22 (median of 5)"),
        ("imagenet-preact", "preact-resnet-200", "He et al. 2016, table 5", "val_error_top5", "5.30"),
        ("imagenet-wide", "wrn-50-2", "Zagoruyko and Komodakis 2016, table 8", "val_error_top1", "21.90"),
    ):
        entries = load.load(CONFIGS / f"{name}.yaml").expect
        assert [entry.differs for entry in entries] == [None] * len(entries)
        [entry] = [entry for entry in entries if entry.source == source]
        assert text(entry.figures(error)[network]) == figure


def test_every_reproduction_names_its_differences() -> None:
    """Every file but those that reproduce no published recipe."""
    for path in CONFIGS.glob("*.yaml"):
        if path.stem not in ("quickstart", "fashion-mnist-depth"):
            head = path.read_text().partition("\nname:")[0].partition("\nbase:")[0]
            assert "Difference" in head or "differences to theirs" in head or "It differs from" in head, path.stem


def test_pre_activation_recipe_for_imagenet_is_the_papers() -> None:
    """He et al. 2016, appendix: divided by 10 at 30 and 60 epochs, without warm-up, batches of 256."""
    for run in load.runs(load.load(CONFIGS / "imagenet-preact.yaml")):
        assert run.schedule.kind == "step"
        assert ([m.epochs for m in run.schedule.milestones], run.schedule.gamma) == ([30, 60], 0.1)
        assert (run.schedule.warmup, run.train.epochs, run.train.batch_size) == (None, 90, 256)
        assert (run.optimizer.lr, run.optimizer.momentum, run.optimizer.weight_decay) == (0.1, 0.9, 1e-4)


def test_cifar_recipe_is_the_papers() -> None:
    """He et al. 2015, section 4.2, warm-up of the 110-layer net included."""
    runs = {run.network.name: run for run in load.runs(load.load(CONFIGS / "cifar10-depth.yaml"))}
    assert sorted(run.network.depth for run in runs.values()) == [20, 20, 32, 32, 44, 44, 56, 56, 110]
    for name, run in runs.items():
        assert (run.train.steps, run.train.batch_size) == (64000, 128)
        assert (run.optimizer.lr, run.optimizer.momentum) == (0.1, 0.9)
        assert run.optimizer.weight_decay == 1e-4
        assert run.schedule.kind == "step"
        assert [m.steps for m in run.schedule.milestones] == [32000, 48000]
        warmup = run.schedule.warmup
        if name == "cifar-resnet-110":
            assert warmup is not None
            assert (warmup.kind, warmup.lr, warmup.steps) == ("constant", 0.01, 400)
        else:
            assert warmup is None
