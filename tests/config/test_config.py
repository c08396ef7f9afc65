"""From YAML and the command line to an experiment, and what is said when that fails."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from resnet_train.config import load
from resnet_train.errors import BadInput

CONFIGS = Path(__file__).parents[2] / "configs"


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(BadInput) as caught:
        load.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_load_and_open_with_command_cost_and_expectation(path: Path) -> None:
    experiment = load.load(path)
    assert experiment.name == path.stem
    assert list(load.runs(experiment))
    head = path.read_text().partition("\nname:")[0]
    assert head.startswith("# yaml-language-server: $schema=schema.json")
    assert f"resnet_train run configs/{path.name}" in head.replace("resnet-train run", "resnet_train run")
    assert "Cost:" in head
    assert "Expect" in head


def test_schema_file_is_what_the_program_prints() -> None:
    assert json.loads((CONFIGS / "schema.json").read_text()) == load.json_schema(), "run `resnet-train schema`"


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


def test_null_takes_a_key_back_in_any_order(config: Callable[..., Path]) -> None:
    path = config(optimizer={"nesterov": True})
    for overrides in (["optimizer.lr=0.3", "optimizer.nesterov=null"], ["optimizer.nesterov=null", "optimizer.lr=0.3"]):
        optimizer = load.load(path, overrides).optimizer
        assert (optimizer.lr, optimizer.nesterov) == (0.3, False)


def test_evaluation_follows_the_training_crop_unless_told(config: Callable[..., Path]) -> None:
    crop = {"crop": {"kind": "random-resized", "size": 112}}
    experiment = load.load(config(data={"kind": "imagefolder", "path": "x"}, augment=crop))
    assert experiment.view is not None
    assert (experiment.view.resize, experiment.view.crop) == (128, 112)


def test_a_kind_may_come_after_its_keys(config: Callable[..., Path]) -> None:
    data = load.load(config(augment=None), ["data.path=/x", "data.kind=cifar10"]).data
    assert data.kind == "cifar10"
    assert data.path == "/x"


def test_strings_that_look_like_numbers_survive_the_run_folder(config: Callable[..., Path]) -> None:
    for name in ("12e3", "09", "true", "off"):
        experiment = load.load(config(name="tiny"), [f'name="{name}"'])
        Path("again.yaml").write_text(load.to_yaml(load.dump(experiment)))
        assert load.read_yaml(Path("again.yaml"))["name"] == name


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


def test_progressive_resizing_is_one_schedule(config: Callable[..., Path]) -> None:
    """A later one replaces an earlier; the run folder gives it back; what it contradicts is named."""
    crop = {"kind": "random-resized", "size": 192}
    path = config(
        data={"kind": "imagefolder", "path": "x"}, augment={"crop": crop, "progressive_resizing": {0: 128, 0.4: 192}}
    )
    run = next(load.runs(load.load(path, ["augment.progressive_resizing={0: 160, 0.75: 192}"])))
    assert run.augment.progressive_resizing == {0.0: 160, 0.75: 192}
    Path("again.yaml").write_text(load.to_yaml(load.dump(run)))
    assert load.read_run(load.read_yaml(Path("again.yaml")), "again") == run
    for value, said in (
        ("{0: 128, 0.4: 160}", "augment: progressive_resizing ends at 160 and crop.size is 192"),
        (
            "{0: 256, 0.4: 192}",
            "augment: progressive_resizing has 256 pixels and ends at 192, the crop.size: none may be larger",
        ),
        ("{0.1: 128, 0.4: 192}", "augment: progressive_resizing begins at 0"),
        ("{0: 128, 0.8: 160, 0.4: 192}", "augment: progressive_resizing begins at 0, and its fractions rise"),
        ("{0: 192}", "augment: progressive_resizing has no effect with one size"),
        ("{0: 128, 1.5: 192}", 'augment.progressive_resizing.1.5 = "1.5": input should be less than 1'),
    ):
        assert said in refusal(path, f"augment.progressive_resizing={value}")


def test_a_scaler_that_waits_is_no_part_of_a_graph(config: Callable[..., Path]) -> None:
    path = config(train={"cuda_graph": True, "precision": "fp16", "device": "cuda"})
    assert "train.cuda_graph needs precision bf16 with" in refusal(path, "optimizer.kind=lars")
    assert load.load(path, ["optimizer.kind=lars", "train.precision=bf16"]).train.cuda_graph


def test_twins_stand_beside_residual_networks_that_have_none(config: Callable[..., Path]) -> None:
    gated = {"base": "cifar-resnet-14", "name": "gated", "addition": {"kind": "shortcut-gating"}}
    path = config(networks=["cifar-resnet-8", "cifar-plain-8", gated], twins=True)
    networks = load.load(path).networks
    assert [network.name for network in networks] == ["cifar-resnet-8", "cifar-plain-8", "gated", "gated-plain"]
    assert networks[3].plain
    assert networks[3].depth == 14
    Path("again.yaml").write_text(load.to_yaml(load.dump(load.load(path))))
    assert load.load(Path("again.yaml")).networks == networks
    with pytest.raises(BadInput, match="twins has no effect"):
        load.load(config(networks=["cifar-plain-8"], twins=True))


def test_scalars_are_those_of_yaml_1_2(config: Callable[..., Path]) -> None:
    """PyYAML alone reads 1e-4 as a string, `off` as false and 017 as fifteen."""
    path = config()
    assert load.load(path, ["optimizer.weight_decay=1e-4"]).optimizer.weight_decay == 1e-4
    assert load.load(path, ["name=off"]).name == "off"
    assert load.load(path, ["train.steps=017"]).train.steps == 17


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epoch=5", "train.epoch: unknown key; did you mean epochs?"),
        ("optimiser.lr=5", "optimiser: unknown key; did you mean optimizer?"),
        ("train.steps=abc", 'train.steps = "abc": input should be a valid integer'),
        ("train.steps=0", "train.steps = 0: input should be greater than or equal to 1"),
        ("train.batch_size=true", "train.batch_size = true: input should be a valid integer"),
        ("train.grad_accum_steps=3", "train: batch_size 16 is not divisible by grad_accum_steps 3"),
        ("optimizer.lr=.nan", "optimizer.lr = NaN: input should be a finite number"),
        ("data.workers=2", "data.workers: has no effect with kind synthetic: remove it"),
        ("data.kind=imagenet", "data.kind: 'imagenet' is none of 'imagefolder', 'shards'"),
        ("networks=[resnet-35]", "unknown network 'resnet-35': the nearest depths are resnet-34 and resnet-50"),
        ("networks=[cifar-plain-57]", "unknown network 'cifar-plain-57': depths are 6n+2, the nearest cifar-plain-56"),
        ("networks=[resent-34]", "unknown network 'resent-34': did you mean resnet-34"),
        ("networks=[plain-18-A]", "unknown network 'plain-18-A': -A has no effect on plain-18"),
        ("networks=[{base: resnet-18, shortcutt: A}]", "networks.0.shortcutt: unknown key; did you mean shortcut?"),
        ("networks=[{base: resnet-18, stride_on: 3x3}]", "networks.0: stride_on has no effect with unit basic"),
        ("networks=[{base: vgg-16, widths: [3]}]", "networks.0.widths: has no effect with unit vgg: remove it"),
        ("networks=[{base: vgg-16, batchnorm: true}]", "networks.0.batchnorm: unknown key; did you mean batch_norm?"),
        ("networks=[{unit: conv, name: x}]", "networks.0.unit: 'conv' is none of 'basic', 'bottleneck', 'vgg'"),
        ("networks=[{name: x}]", "networks.0.unit is missing"),
        ("networks=[{base: plain-18, addition: {kind: shortcut-gating}}]", "addition has no effect on a plain net"),
        ("networks=[wrn-28-0]", "unknown network 'wrn-28-0'"),
        ("networks=[wrn-29-10]", "depths are 6n+4, the nearest wrn-28 and wrn-34"),
        ("networks=[resnet-18, {base: resnet-18}]", "network resnet-18 is listed twice"),
        ("seeds=[1, 1]", "seed 1 is listed twice"),
        ("optimizer={momentum: 0, nesterov: true}", "optimizer: nesterov has no effect with momentum 0"),
        ("schedule={kind: cosine, milestones: []}", "schedule.milestones: has no effect with kind cosine"),
        ("schedule={kind: step, warmup: {kind: constant, steps: 3}}", "a constant warm-up at lr 0 trains nothing"),
        ("eval.view.crop=3", "eval.view has no effect with data.kind synthetic"),
        ("augment.crop={kind: scale}", "augment.crop of kind scale is for files of any size"),
        (
            "augment.progressive_resizing={0: 8, 0.5: 16}",
            "augment: progressive_resizing needs a crop of kind scale or random-resized",
        ),
        (
            "augment={crop: null, flip: false, repeated_augmentation: 2}",
            "augment: repeated_augmentation 2 would make equal copies",
        ),
        ("augment.repeated_augmentation=3", "train.batch_size 16 is not divisible by augment.repeated_augmentation 3"),
        (
            "augment.auto_augment={kind: rand-augment, operations: 9}",
            "augment.auto_augment.operations = 9: input should be less",
        ),
        (
            "augment.auto_augment={kind: trivial-augment, magnitude: 9}",
            "augment.auto_augment.magnitude: has no effect with kind",
        ),
        ("optimizer.trust_coefficient=0.1", "optimizer: trust_coefficient has no effect with kind sgd"),
        ("optimizer={kind: lars, nesterov: true}", "optimizer: nesterov is for kind sgd"),
        ("per_network={resnet-50: {train: {steps: 3}}}", "per_network.resnet-50 has no effect: networks are"),
        ("per_network.cifar-resnet-8.train.step=3", "train.step: unknown key; did you mean steps?"),
        ("networks=[resnet-18-A-B]", "unknown network 'resnet-18-A-B': -B contradicts the suffix before it"),
        ("eval.every.steps=0", "eval.every.steps = 0: input should be greater than or equal to 1"),
        (
            "per_network={cifar-resnet-8: {seed: 7}}",
            "per_network.cifar-resnet-8.seed: an exception is to data, optimizer",
        ),
        ("name=!!int x", "command line, name: not an experiment"),
        ("data=&a {b: *a}", "command line, data: not an experiment"),
        ("networks=[{base: cifar-resnet-8, widths: [8, 4, 4]}]", "networks.0: shortcut A pads with channels of zeros"),
        ("schedule={kind: step, warmup: {lr: 0.1, steps: 3}}", "schedule.warmup has no effect: its lr is optimizer.lr"),
        ("name=a/b", 'name = "a/b": string should match'),
        ("train", "'train' is not of the form key=value"),
        ("train.steps=[", "command line, train.steps, line 1"),
    ],
)
def test_bad_values_are_named_with_their_cure(config: Callable[..., Path], override: str, said: str) -> None:
    assert said in refusal(config(), override)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "bad.yaml, line 2, column 1: "),
        ("name: a\nname: b", "bad.yaml, line 2, column 1: key 'name' is given twice"),
        ("- a", "bad.yaml: expected `key: value` lines, found list"),
        ("", "bad.yaml: expected `key: value` lines, found nothing"),
        ("base: none.yaml", "cannot read"),
        ("base: bad.yaml", "bad.yaml: base: leads back to this file"),
        ("name: x\nnetworks: [resnet-18]\ntrain: {steps: 1}", "bad.yaml: data is missing"),
        ("name: x\nnetworks: [resnet-18]\ndata: {path: x}\ntrain: {steps: 1}", "bad.yaml: data.kind is missing"),
        ("name: x\nnetworks: [resnet-18]\ndata: {kind: digits}\ntrain: {}", "give exactly one of epochs, steps"),
    ],
)
def test_bad_files_are_named_with_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text + "\n")
    assert said in refusal(path)


def test_the_file_that_holds_the_fault_is_named(config: Callable[..., Path], tmp_path: Path) -> None:
    config("under.yaml", train={"step": 3})
    over = tmp_path / "over.yaml"
    over.write_text("base: under.yaml\nname: over\n")
    assert "under.yaml: train.step" in refusal(over)
    assert "command line: train.stepz" in refusal(config(), "train.stepz=1")
    assert "tiny.yaml: augment.crop of kind scale is for" in refusal(config(augment={"crop": {"kind": "scale"}}))


def test_complaints_and_help_come_before_torch_is_imported(config: Callable[..., Path]) -> None:
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
    told = json.loads(out)
    assert code == 0
    assert [network["steps"] for network in told["networks"]] == [8]
    again: dict[str, Any] = told["experiment"]
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again))
    assert load.load(tmp_path / "again.yaml") == load.load(path)
    assert not Path("runs").exists()
    assert TINY["name"] in program("run", path, "--dry-run")[1]
    absent = ["data={kind: cifar10, path: nowhere}", "--dry-run", "train.epochs=3"]
    code, out, err = program("run", path, *absent)
    assert (code, "–" in out, "no complete cifar10 in nowhere" in err) == (0, True, True)
