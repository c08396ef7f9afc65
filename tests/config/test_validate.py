"""What is invalid is refused in a line for each complaint."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_train.config import load
from resnet_train.config.yaml12 import read_yaml, to_yaml
from resnet_train.errors import BadInput


def error_message(path: Path, *overrides: str) -> str:
    """The one line that refuses an experiment."""
    with pytest.raises(BadInput) as caught:
        load.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=5", "train.epoch: unknown key; did you mean epochs?"),
        ("optimiser.lr=5", "optimiser: unknown key; did you mean optimizer?"),
        ("train.steps=abc", 'train.steps = "abc": input should be a valid integer'),
        ("train.steps=0", "train.steps = 0: input should be greater than or equal to 1"),
        ("train.batch_size=true", "train.batch_size = true: input should be a valid integer"),
        ("train.grad_accum_steps=3", "train: batch_size 16 is not divisible by grad_accum_steps 3"),
        ("optimizer.lr=.nan", "optimizer.lr = NaN: input should be a finite number"),
        (
            "data={kind: shards, path: x, workers: 10000}",
            "data.workers = 10000: input should be less than or equal to 1024",
        ),
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
        ("networks=[{base: plain-18, addition: {kind: shortcut-gating}}]", "addition has no effect on a plain network"),
        ("networks=[{base: plain-18, drop_path_rate: 0.1}]", "drop_path_rate has no effect on a plain network"),
        (
            "networks=[{base: plain-18, zero_init_residual: true}]",
            "zero_init_residual has no effect on a plain network",
        ),
        ("networks=[{base: cifar-resnet-8, stem_type: deep}]", "stem_type has no effect with stem cifar"),
        ("networks=[{base: resnet-18-A, avg_down: true}]", "avg_down has no effect with shortcut A, which has no conv"),
        ("networks=[{base: plain-18, avg_down: true}]", "avg_down has no effect on a plain network"),
        (
            "networks=[{base: resnet-18, depths: [2], widths: [4], avg_down: true}]",
            "avg_down has no effect with one stage, which halves no image",
        ),
        (
            "networks=[{base: resnet-18, zero_init_residual: true, addition: {kind: skip-init}}]",
            "zero_init_residual stops addition skip-init, whose gain is 0, too: remove one of them",
        ),
        (
            "networks=[{base: preact-resnet-18, zero_init_residual: true, dirac: true}]",
            "zero_init_residual needs a batch norm at the end of F with dirac",
        ),
        ("networks=[{base: plain-18, norm: fixup}]", "norm fixup starts with F(x) = 0, so a plain network would pass"),
        ("networks=[{base: preact-resnet-18, norm: fixup}]", "norm fixup is defined for order original, not pre-activ"),
        ("networks=[{base: resnet-18, norm: fixup, kernels: [3]}]", "norm fixup needs two convolutions or more"),
        ("networks=[{base: resnet-18, norm: fixup, addition: {kind: skip-init}}]", "skip-init has no effect with norm"),
        (
            "networks=[{base: resnet-18, norm: fixup, zero_init_residual: true}]",
            "zero_init_residual has no effect with",
        ),
        (
            "networks=[{base: resnet-18, norm: fixup, dirac: true}]",
            "dirac has filters of norm 1, and norm fixup scales",
        ),
        ("networks=[vgg-16-nobn]", "-nobn has no effect on vgg-16"),
        (
            "networks=[{base: resnet-18-nobn, order: bn-after-addition}]",
            "order bn-after-addition has no effect with norm none: use original, which is the same then",
        ),
        (
            "networks=[{base: resnet-18-nobn, order: relu-only-pre-activation}]",
            "order relu-only-pre-activation has no effect with norm none: use pre-activation, which",
        ),
        ("networks=[{base: resnet-18, drop_path_mode: batch}]", "drop_path_mode has no effect without drop_path_rate"),
        (
            "networks=[{base: cifar-resnet-8, depths: [1], widths: [4], drop_path_rate: 0.1}]",
            "drop_path_rate has no effect on one unit",
        ),
        (
            "networks=[{base: resnet-18, order: relu-before-addition, zero_init_residual: true}]",
            "zero_init_residual stops order relu-before-addition: no gradient passes a ReLU at 0, so remove it",
        ),
        ("networks=[wrn-28-0]", "unknown network 'wrn-28-0'"),
        ("networks=[wrn-29-10]", "depths are 6n+4, the nearest wrn-28 and wrn-40"),
        ("networks=[resnet-18, {base: resnet-18}]", "network resnet-18 is listed twice"),
        ("seeds=[1, 1]", "seed 1 is listed twice"),
        ("optimizer={momentum: 0, nesterov: true}", "optimizer: nesterov has no effect with momentum 0"),
        ("schedule={kind: cosine, milestones: []}", "schedule.milestones: has no effect with kind cosine"),
        ("schedule={kind: step, warmup: {kind: constant, steps: 3}}", "a constant warm-up at lr 0 trains nothing"),
        ("eval.view.crop=3", "eval.view has no effect with data.kind synthetic"),
        ("augment.crop={kind: scale}", "augment.crop of kind scale is for image files of any size"),
        (
            "augment.progressive_resizing={0: 8, 0.5: 16}",
            "augment: progressive_resizing needs a crop of kind scale or random-resized",
        ),
        (
            "augment={crop: null, flip: false, repeated_augmentation: 2}",
            "augment: repeated_augmentation 2 would make identical copies",
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
        ("optimizer={kind: lars, nesterov: true}", "optimizer: nesterov has no effect with kind lars"),
        ("optimizer={kind: lamb, trust_coefficient: 0.1}", "optimizer: trust_coefficient has no effect with kind lamb"),
        ("optimizer.beta2=0.9", "optimizer: beta2 has no effect with kind sgd: remove it, or use kind adamw or lamb"),
        ("optimizer={kind: lamb, momentum: 0}", "optimizer: kind lamb needs momentum and beta2 above 0"),
        ("train.target_threshold=0.2", "train: target_threshold has no effect with loss cross-entropy"),
        (
            "train={loss: binary-cross-entropy, target_threshold: 0.2}",
            "train.target_threshold has no effect without augment.mixup or augment.cutmix: remove it",
        ),
        (
            "train={loss: binary-cross-entropy, target_threshold: 0.2, label_smoothing: 0.1}",
            "train: label_smoothing has no effect with target_threshold",
        ),
        (
            "augment.auto_augment={kind: timm-rand-augment, magnitude: 11}",
            "augment.auto_augment.magnitude = 11: input should be less than or equal to 10",
        ),
        ("per_network={resnet-50: {train: {steps: 3}}}", "per_network.resnet-50 has no effect: the networks are"),
        ("per_network.cifar-resnet-8.train.step=3", "train.step: unknown key; did you mean steps?"),
        ("networks=[resnet-18-A-B]", "unknown network 'resnet-18-A-B': -B contradicts the suffix before it"),
        ("eval.every=5", "command line: eval.every = 5: expected a section, such as eval.every.epochs=…"),
        ("data=digits", 'command line: data = "digits": expected a section, such as data.kind=…'),
        ("train=[1]", "command line: train: expected a section, such as train.epochs=…"),
        ("sweep=3", "command line: sweep = 3: expected a section, such as sweep.KEY=…"),
        ("seeds=3", "command line: seeds = 3: expected a list in brackets, such as [A, B]"),
        ("networks=plain-18", 'networks = "plain-18": expected a list in brackets, such as [A, B]'),
        ("eval.every.steps=0", "eval.every.steps = 0: input should be greater than or equal to 1"),
        (
            "per_network={cifar-resnet-8: {seed: 7}}",
            "per_network.cifar-resnet-8.seed: only keys of the recipe can be set for one network: data, optimizer",
        ),
        ("name=!!int x", "command line, name, line 1, column 1: 'x' is not valid as int"),
        ("data=&a {b: *a}", "command line, data, line 1, column 1: an alias stands for a value that it is in"),
        ("networks=[{base: cifar-resnet-8, widths: [8, 4, 4]}]", "networks.0: shortcut A pads with channels of zeros"),
        ("schedule={kind: step, warmup: {lr: 0.1, steps: 3}}", "schedule.warmup has no effect: its lr is optimizer.lr"),
        ("train.kind=x", "train.kind: unknown key; valid keys are epochs, steps"),
        ("kind=x", "command line: kind: unknown key; valid keys are data, optimizer"),
        ("name=a/b", 'name = "a/b": string should match'),
        ("train", "'train' is not of the form key=value"),
        ("name=!!bool maybe", "command line, name, line 1, column 1: 'maybe' is not valid as bool"),
        ("name=!!float ''", "command line, name, line 1, column 1: '' is not valid as float"),
        ("name=!!binary eA==", "could not determine a constructor for the tag"),
        ("name=!!timestamp x", "could not determine a constructor for the tag"),
        ("probes={gradients: {kind: x}}", "probes.gradients.kind: unknown key; valid keys are every, images"),
        ("train={1: 3}", "command line: train.1: unknown key; valid keys are epochs, steps"),
        ("train={? [a] : 3}", "command line, train, line 1, column 4: a key is a word or a number"),
        ('data.path="\\0"', "command line, data.path, line 1, column 1: '\\x00' is not valid as str"),
        ('data.path="\\ud800"', "command line, data.path, line 1, column 1: '\\ud800' is not valid as str"),
        ("data.path=\udcff", "command line, data.path: special characters are not allowed"),
        ('name="a\\nb"', "command line, name, line 1, column 1: 'a\\nb' is not valid as str"),
        ("output=" + "x" * 10_000, 'output = "xxxx'),
        ("data.\udcff=1", "command line: 'data.\\udcff=1' is not of the form key=value"),
        ("." * 1000 + "=1", "is not of the form key=value"),
        ("a" + ".a" * 1000 + "=1", "is not of the form key=value"),
        ("name=" + "[" * 3000, "command line, name: more than 32 mappings and lists within each other"),
        ("name=" + "[" * 40 + "]" * 40, "more than 32 mappings and lists within each other"),
        ("train.steps=" + "9" * 5000, "train.steps = Infinity: input should be a valid integer"),
        ("train.steps=" + "9" * 300, ": input should be less than or equal to 9007199254740992"),
        ("data={kind: synthetic, size: 16385}", "size = 16385: input should be less than or equal to 16384"),
        ("eval.view={resize: 2147483648}", "resize = 2147483648: input should be less than or equal to 16384"),
        (f"networks=[cifar-resnet-{'9' * 5000}]", "networks: unknown network 'cifar-resnet-99999"),
        (
            "networks=[{base: cifar-resnet-8, depths: [1, 1, 1000000000]}]",
            "networks.0.depths.2 = 1000000000: input should",
        ),
        (
            "networks=[wrn-34-10]",
            "a width of 1, 2 or 3; for CIFAR: {base: wrn-28-10, name: wrn-34-10, depths: [5, 5, 5]}",
        ),
        ("networks=[{base: resnet-18, unit: []}]", "networks.0.unit: '[]' is none of 'basic', 'bottleneck', 'vgg'"),
        ("train.steps=[", "command line, train.steps, line 1"),
    ],
)
def test_bad_values_are_named_with_a_hint(config: Callable[..., Path], override: str, message: str) -> None:
    assert message in error_message(config(), override)


BILLION_LAUGHS = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)
"""9^11 values in twelve lines."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "bad.yaml, line 2, column 1: "),
        ("name: a\nname: b", "bad.yaml, line 2, column 1: key 'name' is given twice"),
        ("- a", "bad.yaml: expected `key: value` lines, found list"),
        ("", "bad.yaml: expected `key: value` lines, found nothing"),
        ("base: none.yaml", "cannot read"),
        ("base: bad.yaml", "bad.yaml: base: leads back to this file"),
        ("base: other.yaml", "bad.yaml: base: leads back to this file"),
        ("base: link", "cannot read"),
        ("base: fifo", "it is a pipe, not a file"),
        ("base: /dev/zero", "cannot read /dev/zero: it is a device, not a file"),
        ("base: 3", "bad.yaml: base = 3: it is a file, or the name of a shipped experiment, such as cifar10-depth"),
        (f"base: {'x' * 10000}", "it is a file, or the name of a shipped experiment, such as cifar10-depth"),
        (f"base: {'x' * 300}", "cannot read"),
        ('base: "a\\0b"', "bad.yaml, line 1, column 7: 'a\\x00b' is not valid as str"),
        ('base: "a\\udcffb"', "bad.yaml, line 1, column 7: 'a\\udcffb' is not valid as str"),
        ("name: &a {b: *a}", "bad.yaml, line 1, column 7: an alias stands for a value that it is in"),
        (BILLION_LAUGHS, "more than 100,000 values, those of aliases included"),
        (
            BILLION_LAUGHS.replace("[", "{<<: [").replace("]", "]}"),
            "more than 100,000 values, those of aliases included",
        ),
        ("name: x\nnetworks: [resnet-18]\ntrain: {steps: 1}", "bad.yaml: data is missing"),
        ("name: x\nnetworks: [resnet-18]\ndata: {path: x}\ntrain: {steps: 1}", "bad.yaml: data.kind is missing"),
        ("name: x\nnetworks: [resnet-18]\ndata: {kind: digits}\ntrain: {}", "give exactly one of epochs, steps"),
    ],
)
def test_bad_files_are_named_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text + "\n")
    (tmp_path / "other.yaml").write_text("base: bad.yaml\n")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("link")
    assert message in error_message(path)


def test_the_file_that_holds_the_fault_is_named(config: Callable[..., Path], tmp_path: Path) -> None:
    config("under.yaml", train={"step": 3})
    over = tmp_path / "over.yaml"
    over.write_text("base: under.yaml\nname: over\n")
    assert "under.yaml: train.step" in error_message(over)
    assert "command line: train.stepz" in error_message(config(), "train.stepz=1")
    assert "tiny.yaml: augment.crop of kind scale is for" in error_message(config(augment={"crop": {"kind": "scale"}}))


def test_progressive_resizing_is_one_schedule(config: Callable[..., Path]) -> None:
    """A later one replaces an earlier; the run folder gives it back; what it contradicts is named."""
    crop = {"kind": "random-resized", "size": 192}
    path = config(
        networks=["resnet-18"],
        data={"kind": "imagefolder", "path": "x"},
        augment={"crop": crop, "progressive_resizing": {0: 128, 0.4: 192}},
    )
    run = next(load.runs(load.load(path, ["augment.progressive_resizing={0: 160, 0.75: 192}"])))
    assert run.augment.progressive_resizing == {0.0: 160, 0.75: 192}
    Path("again.yaml").write_text(to_yaml(load.dump(run)))
    assert load.read_run(read_yaml(Path("again.yaml")), "again") == run
    for value, message in (
        ("{0: 128, 0.4: 160}", "augment: progressive_resizing ends at 160 pixels and crop.size is 192"),
        (
            "{0: 256, 0.4: 192}",
            "augment: progressive_resizing has a size of 256 pixels, which is larger than crop.size 192",
        ),
        ("{0.1: 128, 0.4: 192}", "augment: progressive_resizing must begin at 0"),
        ("{0: 128, 0.8: 160, 0.4: 192}", "augment: progressive_resizing must begin at 0 and have rising fractions"),
        ("{0: 192}", "augment: progressive_resizing has no effect with one size"),
        ("{0: 128, 1.5: 192}", 'augment.progressive_resizing.1.5 = "1.5": input should be less than 1'),
    ):
        assert message in error_message(path, f"augment.progressive_resizing={value}")


def test_fp16_with_lars_can_be_a_cuda_graph(config: Callable[..., Path]) -> None:
    path = config(train={"cuda_graph": True, "precision": "fp16", "device": "cuda"})
    assert load.load(path, ["optimizer.kind=lars"]).train.cuda_graph


def test_all_complaints_are_made_at_once(config: Callable[..., Path], tmp_path: Path) -> None:
    """Of keys, of values, of what contradicts each other, of networks, and of exceptions for one network."""

    def complaints(path: Path, *overrides: str) -> list[str]:
        with pytest.raises(BadInput) as caught:
            load.load(path, overrides)
        first, *lines = str(caught.value).splitlines()
        assert first == f"{len(lines)} errors in the configuration:"
        return [line.removeprefix(f"  {path}: ") for line in lines]

    assert complaints(config(), "train.step", "a..b=1", "name=[") == [
        "  command line: 'train.step' is not of the form key=value, such as train.epochs=5",
        "  command line: 'a..b=1' is not of the form key=value, such as train.epochs=5",
        "  command line, name, line 1, column 2: expected the node content, but found '<stream end>'",
    ]
    path = config(
        networks=["resent-34", "cifar-plain-57"],
        optimizer={"lr": -1, "momentum": 0, "nesterov": True},
        train={"epochs": 3, "grad_accum_steps": 3, "precision": "tf32", "speed": 3},
    )
    expected = [
        "networks: unknown network 'resent-34': did you mean resnet-34 or resnet-50?",
        "networks: unknown network 'cifar-plain-57': depths are 6n+2, the nearest cifar-plain-56 and cifar-plain-62",
        "optimizer.lr = -1: input should be greater than 0",
        "train.speed: unknown key; valid keys are epochs",
    ]
    lines = complaints(path)
    assert len(lines) == len(expected)
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    assert complaints(path, "networks=[resnet-18]", "optimizer.lr=1", "train.speed=null", "train.steps=2") == [
        "  command line: optimizer: nesterov has no effect with momentum 0: remove one of them",
        "  command line: train: batch_size 16 is not divisible by grad_accum_steps 3",
        "  command line: train: precision tf32 has no effect with device cpu: use fp32 or bf16",
    ]
    exceptions = {"cifar-resnet-8": {"seed": 3, "name": "x"}, "cifar-plain-8": {"optimizer": {"lr": 0}, "log": 3}}
    path = config(networks=["cifar-resnet-8", "cifar-plain-8"], seeds=[1, 2], per_network=exceptions)
    assert len(complaints(path)) == 4
    with pytest.raises(BadInput, match=r"(?s)^40 errors in .*key14: unknown key.*\n  … and 25 more$"):
        load.load(config(), [f"key{i}=1" for i in range(40)])


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*place, key))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in one place."""
    if not place:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


USUAL: list[Any] = [None, True, 1, 3, 0.5, {}, "x"]
STRANGE: list[Any] = [
    *(0, -1, 2**63, 10**400, float("inf"), float("nan"), "", "a\0", "\ud800", "/", "x" * 10_000),
    *([], [[]], {"kind": "x"}, {"unit": []}, {"": {}}, {1: 2}, [1] * 50, {"base": [3]}, [None]),
]


def test_a_changed_experiment_loads_or_is_refused() -> None:
    """Whatever takes the place of whatever, in a file or on the command line: no other error than `BadInput`."""
    configs = Path(__file__).parents[2] / "configs"
    for path in configs.glob("*.yaml"):
        shutil.copy(path, ".")  # files that `base` names
    numbers = random.Random(0)
    refusals: list[str] = []
    accepted = 0
    for path in sorted(configs.glob("*.yaml")):
        tree = read_yaml(path)
        for _ in range(8):
            place = numbers.choice([place for place in places(tree) if place])
            value = numbers.choice(numbers.choice([USUAL, STRANGE]))
            file, key = Path("changed.yaml"), ".".join(map(str, place))
            file.write_text(to_yaml(replaced(tree, place, value)))
            for source, overrides in ((file, []), (path, [f"{key}={to_yaml(value)}"])):
                try:
                    load.load(source, overrides)
                    accepted += 1
                except BadInput as error:
                    refusals.append(str(error))
    assert accepted > 10
    assert len(refusals) > 100
    assert max(map(len, refusals)) < 3000
