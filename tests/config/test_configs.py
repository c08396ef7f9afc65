"""The experiment files that are shipped."""

from pathlib import Path

import pytest

from resnet_train.config import load
from resnet_train.config.expect import text
from resnet_train.models.complexity import network_complexity

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
    assert without == {
        "cifar10-cpu",
        "cifar10-why",
        "digits-sweep",
        "fashion-mnist-depth",
        "imagenet-cpu",
        "imagenet-large-batch",
    }


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
        if path.stem not in ("quickstart", "digits-sweep", "fashion-mnist-depth"):
            head = path.read_text().partition("\nname:")[0].partition("\nbase:")[0]
            assert "Difference" in head or "differences to theirs" in head or "It differs from" in head, path.stem


def test_remedies_differ_from_the_plain_network_in_one_key_each() -> None:
    """So each error is the doing of that key; the recipe is that of cifar10-cpu, where depth hurts."""
    experiment, other = (load.load(CONFIGS / f"{name}.yaml") for name in ("cifar10-why", "cifar10-cpu"))
    fields = {network.name: network.model_dump(exclude={"name"}).items() for network in experiment.networks}
    plain = fields.pop("cifar-plain-56")
    assert [[key for key, value in items if (key, value) not in plain] for items in fields.values()] == [
        ["norm"], ["init"], ["init"], ["dirac"], ["shortcut"],
    ]  # fmt: skip
    for key in ("data", "augment", "optimizer", "schedule", "seeds"):
        assert getattr(experiment, key) == getattr(other, key)
    assert experiment.train == other.train.model_copy(update={"on_divergence": "record"})


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


@pytest.mark.parametrize(
    ("name", "size", "millions"),
    [
        ("cifar10-wide-units", 32, [1.4, 1.2, 1.3, 1.3, 1.5, 1.1, 2.2, 2.2, 2.2, 2.2]),
        ("cifar10-wide-depths", 32, [0.6, 2.2, 8.9, 35.7, 36.5, 52.5, 17.2, 26.8, 11.0, 17.1]),
        ("imagenet-wide-basic", 224, [11.7, 25.9, 45.6, 101.8, 21.8, 48.6, 86.0]),
        ("cifar10-orders", 32, [1.7] * 10),
        ("svhn-wide", 32, [0.8, 0.8, 2.7, 2.7, 11.0, 11.0]),
    ],
)
def test_networks_have_the_papers_parameters(name: str, size: int, millions: list[float]) -> None:
    """Zagoruyko and Komodakis 2016, tables 2, 3, 4, 7; He et al. 2016; each network has a figure of its source."""
    experiment = load.load(CONFIGS / f"{name}.yaml")
    classes = 1000 if size == 224 else 10
    params = [network_complexity(network, size, classes).params / 1e6 for network in experiment.networks]
    assert [round(count, 1) for count in params] == millions
    figures = {network for entry in experiment.expect for network in entry.networks}
    assert {network.name for network in experiment.networks} == figures


def test_svhn_recipe_is_the_papers() -> None:
    """Zagoruyko and Komodakis 2016, section 3: no augmentation, 0.01 divided by 10 at 80 and 120 of 160 epochs."""
    for run in load.runs(load.load(CONFIGS / "svhn-wide.yaml")):
        assert (run.augment.crop, run.augment.flip, run.data.kind) == (None, False, "svhn-extra")
        assert (run.optimizer.lr, run.optimizer.weight_decay, run.optimizer.nesterov) == (0.01, 5e-4, True)
        assert run.schedule.kind == "step"
        assert ([m.epochs for m in run.schedule.milestones], run.schedule.gamma) == ([80, 120], 0.1)
        assert (run.train.epochs, run.train.batch_size) == (160, 128)
        assert run.network.dropout == (0.4 if run.network.name.endswith("-dropout") else 0)


def test_the_batch_of_64_is_that_of_the_authors_code() -> None:
    """github.com/KaimingHe/resnet-1k-layers; fb.resnet.torch divides the rate at 81 and 122 epochs, counted from 1."""
    *_, run = load.runs(load.load(CONFIGS / "cifar10-preact.yaml"))
    assert (run.network.depth, run.train.batch_size, run.train.steps, run.train.epochs) == (1001, 64, None, 200)
    assert run.schedule.kind == "step"
    assert [m.epochs for m in run.schedule.milestones] == [80, 121]


def test_the_networks_that_only_the_text_of_a_paper_has_are_trained_by_name() -> None:
    networks = "networks=[cifar-resnet-1202, cifar-plain-110]"
    deepest, plain = load.runs(load.load(CONFIGS / "cifar10-depth.yaml", [networks]))
    assert (deepest.network.depth, deepest.schedule.warmup, plain.network.plain) == (1202, None, True)
    assert [entry.source for run in (deepest, plain) for entry in run.expect] == [
        "He et al. 2015, table 6",
        "He et al. 2015, figure 6",
    ]
