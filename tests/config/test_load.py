"""From YAML and the command line to an experiment and its runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    experiment = load.load(config(networks=["resnet-18"], data={"kind": "imagefolder", "path": "x"}, augment=crop))
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
    gated |= {"drop_path_rate": 0.5, "drop_path_mode": "batch", "zero_init_residual": True}
    path = config(networks=["cifar-resnet-8", "cifar-plain-8", gated], twins=True)
    networks = load.load(path).networks
    assert [network.name for network in networks] == ["cifar-resnet-8", "cifar-plain-8", "gated", "gated-plain"]
    assert networks[3].plain
    assert networks[3].depth == 14
    Path("again.yaml").write_text(to_yaml(load.dump(load.load(path))))
    assert load.load(Path("again.yaml")).networks == networks
    with pytest.raises(BadInput, match="twins has no effect"):
        load.load(config(networks=["cifar-plain-8"], twins=True))


def test_a_twin_is_trained_under_its_partners_exceptions(config: Callable[..., Path]) -> None:
    changes = {"cifar-resnet-8": {"optimizer": {"lr": 0.5}, "schedule": {"kind": "cosine"}}}
    path = config(networks=["cifar-resnet-8"], twins=True, per_network=changes)
    for overrides in ([], ["per_network.cifar-resnet-8-plain.optimizer.momentum=0.5"]):
        experiment = load.load(path, overrides)
        residual, twin = load.runs(experiment)
        assert [(run.optimizer.lr, run.schedule.kind) for run in (residual, twin)] == [(0.5, "cosine")] * 2
        assert twin.optimizer.momentum == (0.5 if overrides else 0.9)
        Path("again.yaml").write_text(to_yaml(load.dump(experiment)))
        assert list(load.runs(load.load(Path("again.yaml")))) == [residual, twin]


def test_a_listed_network_that_is_the_twin_is_trained_under_its_partners_exceptions(
    config: Callable[..., Path],
) -> None:
    """As the twin that would be added in its absence."""
    changes = {"cifar-resnet-8": {"optimizer": {"lr": 0.5, "momentum": 0.5}}, "own": {"optimizer": {"momentum": 0.8}}}
    own = {"base": "cifar-plain-8", "name": "own"}
    for networks in (["cifar-resnet-8", own, "cifar-plain-14"], [own, "cifar-plain-14", "cifar-resnet-8"]):
        path = config(networks=networks, twins=True, per_network=changes)
        runs = {run.network.name: run.optimizer for run in load.runs(load.load(path))}
        assert {name: (run.lr, run.momentum) for name, run in runs.items()} == {
            "cifar-resnet-8": (0.5, 0.5),
            "own": (0.5, 0.8),
            "cifar-plain-14": (0.1, 0.9),
        }
        alone = {run.network.name: run.optimizer.lr for run in load.runs(load.load(path, ["twins=false"]))}
        assert alone["own"] == 0.1


def test_exceptions_stay_behind_with_the_networks_that_are_replaced(config: Callable[..., Path]) -> None:
    under = config(
        networks=["cifar-resnet-8", {"base": "cifar-resnet-14", "name": "gated"}],
        twins=True,
        per_network={name: {"optimizer": {"lr": 0.5}} for name in ("cifar-resnet-8", "gated", "gated-plain")},
    )
    over = under.with_name("over.yaml")
    over.write_text(f"base: {under.name}\nnetworks: [cifar-resnet-8, cifar-resnet-20]\n")
    for experiment in (load.load(under, ["networks=[cifar-resnet-8, cifar-resnet-20]"]), load.load(over)):
        rates = {run.network.name: run.optimizer.lr for run in load.runs(experiment)}
        assert [rates[name] for name in ("cifar-resnet-8", "cifar-resnet-8-plain", "cifar-resnet-20")] == [
            0.5,
            0.5,
            0.1,
        ]
        assert experiment.per_network.keys() == {"cifar-resnet-8", "cifar-resnet-8-plain"}
    for mistaken in (  # a name that nothing listed, and an exception that is not older than the networks
        ["networks=[cifar-resnet-20]", "per_network.gated.optimizer.lr=0.3"],
        ["per_network.cifar-resnet-9.optimizer.lr=0.3"],
    ):
        with pytest.raises(BadInput, match="has no effect: the networks are"):
            load.load(under, mistaken)
    under.write_text(
        under.read_text().replace("gated: {optimizer", "gatde: {optimizer").replace("  gated:", "  gatde:")
    )
    with pytest.raises(BadInput, match=r"per_network\.gatde has no effect"):
        load.load(over)


def test_null_in_an_exception_survives_the_dump(config: Callable[..., Path]) -> None:
    path = config(
        networks=["cifar-resnet-8", "cifar-plain-8"],
        schedule={"kind": "step", "warmup": {"steps": 2}},
        per_network={"cifar-plain-8": {"schedule": {"warmup": None}}},
    )
    runs = list(load.runs(load.load(path)))
    assert [run.schedule.warmup is None for run in runs] == [False, True]
    Path("again.yaml").write_text(to_yaml(load.dump(load.load(path))))
    assert list(load.runs(load.load(Path("again.yaml")))) == runs


PROBES = {"gradients": {"every": {"steps": 4}}}


@pytest.mark.parametrize(
    "override",
    [
        "probes={}",
        "probes={gradients: {}}",
        "probes.gradients={}",
        "per_network={}",
        "eval={}",
    ],
)
def test_a_mapping_that_changes_nothing_is_refused(config: Callable[..., Path], override: str) -> None:
    path = config(probes=PROBES, schedule={"kind": "cosine", "warmup": {"steps": 2}})
    key = override.partition("=")[0]
    with pytest.raises(BadInput, match=f"changes nothing: mappings are merged; {key}=null resets the key"):
        load.load(path, [override])
    with pytest.raises(BadInput, match="changes nothing"):
        load.load(config(), ["probes={}"])


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("schedule={kind: cosine}", "schedule=null 'schedule={kind: cosine}' replaces it"),
        ("data={kind: synthetic}", "data=null 'data={kind: synthetic}' replaces it"),
        ("data={}", "remove it"),
        ("train={}", "remove it"),
    ],
)
def test_the_advice_can_be_followed(config: Callable[..., Path], override: str, advice: str) -> None:
    """`data` and `train` have no default."""
    path = config(data={"holdout": 100}, schedule={"kind": "cosine", "warmup": {"steps": 2}})
    with pytest.raises(BadInput, match=f"command line: {override} changes nothing: mappings are merged; {advice}$"):
        load.load(path, [override])
    key = override.partition("=")[0]
    if override.endswith("{}"):
        over = path.with_name("over.yaml")
        over.write_text(f"base: {path.name}\n{key}: {{}}\n")
        with pytest.raises(BadInput, match=rf"over.yaml: {key}: {{}} changes nothing: .*; {advice}$"):
            load.load(over)
    else:
        replaced = load.load(path, [f"{key}=null", override])
        assert (replaced.data.holdout if key == "data" else replaced.schedule.warmup) in (0, None)


def test_a_mapping_that_says_again_what_is_set_is_accepted(config: Callable[..., Path]) -> None:
    """A sweep passes the values of the file, too."""
    depth = Path(__file__).parents[2] / "configs" / "cifar10-depth.yaml"
    for override in (
        "optimizer={lr: 0.1}",
        "optimizer={kind: sgd, lr: 0.1}",
        "augment={crop: {kind: pad, padding: 4}}",
        "train={batch_size: 128}",
        "per_network={cifar-resnet-110: {schedule: {warmup: {lr: 0.01}}}}",
    ):
        assert load.load(depth, [override]) == load.load(depth)


def test_a_mapping_that_changes_something_or_repeats_it_is_accepted(config: Callable[..., Path]) -> None:
    assert load.load(config(), ["probes.gradients={}"]).probes.gradients is not None
    assert load.load(config(), ["probes={gradients: {}}"]).probes.gradients is not None
    path = config(probes=PROBES)
    assert load.load(path, ["probes=null"]).probes.gradients is None
    assert load.load(path, ["eval.every={steps: 4}"]) == load.load(path)
    probes = load.load(path, ["probes=null", "probes.lesion={}", "probes.responses={images: 3}"]).probes
    assert (probes.gradients, probes.lesion is None, probes.responses is None) == (None, False, False)


def test_an_empty_mapping_in_a_file_does_not_hide_its_base(config: Callable[..., Path], tmp_path: Path) -> None:
    config("under.yaml", probes=PROBES, schedule={"kind": "cosine", "warmup": {"steps": 2}})
    over = tmp_path / "over.yaml"
    over.write_text("base: under.yaml\nprobes: {}\n")
    with pytest.raises(
        BadInput, match=r"over.yaml: probes: {} changes nothing: mappings are merged; probes: null resets"
    ):
        load.load(over)
    over.write_text("base: under.yaml\nschedule: {kind: step, warmup: {}}\n")
    with pytest.raises(BadInput, match=r"schedule.warmup: give exactly one of epochs, steps, fraction"):
        load.load(over)  # it replaces a schedule of another kind
    over.write_text("base: under.yaml\nper_network: {cifar-resnet-8: {probes: {gradients: {}}}}\n")
    with pytest.raises(BadInput, match=r"per_network.cifar-resnet-8.probes.gradients: {} changes nothing"):
        load.load(over)


IMAGENET_CROP = {"data": {"kind": "imagefolder", "path": "x"}, "augment": {"crop": {"kind": "random-resized"}}}


def test_a_stem_for_small_images_is_refused_on_large_ones_unless_it_is_asked_for(config: Callable[..., Path]) -> None:
    path = config(networks=["wrn-28-10"], **IMAGENET_CROP)
    with pytest.raises(BadInput, match=r"wrn-28-10 has a stem for small images, .* 224 pixels: choose another network"):
        load.load(path)
    assert load.load(path, ["networks=[{base: wrn-28-10, stem: cifar}]"]).networks[0].stem == "cifar"
    Path("again.yaml").write_text(to_yaml(load.dump(load.load(path, ["networks=[{base: wrn-28-10, stem: cifar}]"]))))
    assert load.load(Path("again.yaml")).networks[0].stem == "cifar"
    assert load.load(path, ["augment.crop.size=96"]).networks[0].stem == "cifar"
    for overrides in (
        ["networks=[cifar-resnet-8]", "twins=true"],
        ["networks=[{base: cifar-resnet-8, widths: [4, 8, 8]}]"],
        ["data={kind: synthetic, size: 128}", "augment.crop=null"],
        ["augment.crop.size=96", "per_network={wrn-28-10: {augment: {crop: {size: 224}}}}"],
    ):
        with pytest.raises(BadInput, match="has a stem for small images"):
            load.load(path, overrides)


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
    out = program("run", path, "--dry-run", "--verbose")[1]
    (tmp_path / "verbose.yaml").write_text(out)
    assert load.load(tmp_path / "verbose.yaml") == load.load(path)
    assert f"# {program('run', path, '--dry-run')[1].splitlines()[0]}" == out.splitlines()[0]
    absent = ["data={kind: cifar10, path: nowhere}", "--dry-run", "train.epochs=3"]
    code, out, err = program("run", path, *absent)
    assert (code, "–" in out, "no complete cifar10 in nowhere" in err) == (0, True, True)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (["data.kind=shards", "data.path=y"], {"normalize", "holdout", "workers", "class_map", "on_bad_image"}),
        (["data={kind: shards, path: y, workers: 3}"], {"normalize", "holdout", "class_map", "on_bad_image"}),
        (["data.kind=digits", "augment=null"], {"normalize", "holdout"}),
        (
            ["data.kind=shards", "data.path=y", "data.normalize=null"],
            {"holdout", "workers", "class_map", "on_bad_image"},
        ),
    ],
)
def test_data_of_another_kind_keep_the_keys_that_both_kinds_have(
    changes: list[str], kept: set[str], config: Callable[..., Path], tmp_path: Path
) -> None:
    """On the command line, and in a file that is based on another."""
    given = {"normalize": "pixel-mean", "holdout": 5, "workers": 2, "class_map": "names", "on_bad_image": "skip"}
    data = {"kind": "imagefolder", "path": "x", "val_labels": "labels", **given}
    path = config("under.yaml", data=data, augment={"crop": {"kind": "random-resized", "size": 8}})
    (tmp_path / "over.yaml").write_text(f"base: under.yaml\n{yaml.safe_dump(load.parse_overrides(changes))}")
    for got in (load.load(path, changes).data, load.load(tmp_path / "over.yaml").data):
        assert {key for key, value in given.items() if getattr(got, key, None) == value} == kept
        assert getattr(got, "path", "y") == "y"


def test_where_data_of_another_kind_are_must_be_said(config: Callable[..., Path]) -> None:
    path = config(data={"kind": "imagefolder", "path": "x"}, augment={"crop": {"kind": "random-resized", "size": 8}})
    with pytest.raises(BadInput, match=r"data\.path"):
        load.load(path, ["data.kind=shards"])


def test_null_before_data_of_another_kind_keeps_nothing(config: Callable[..., Path]) -> None:
    path = config(data={"normalize": "pixel-mean", "holdout": 5})
    assert load.load(path, ["data=null", "data={kind: digits}"]).data.holdout == 0
    assert load.load(path, ["data={kind: digits}"]).data.holdout == 5
