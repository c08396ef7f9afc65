"""What a source reports of a recipe: stated in the file, and no part of what makes runs differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import groups

from resnet_train.analysis import findings
from resnet_train.config import load
from resnet_train.config.merge import merge
from resnet_train.config.yaml12 import to_yaml
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder

Program = Callable[..., tuple[int, str, str]]
NETWORKS = ["cifar-plain-8", {"base": "cifar-resnet-8", "name": "narrow", "widths": [2, 4, 8]}]
FIGURES = {"cifar-plain-8": 9.5, "narrow": {"mean": 8.0, "std": 0.2, "n": 5}, "cifar-resnet-14": 7.0}


def entry(**changes: Any) -> dict[str, Any]:
    return {"source": "a paper, table 1", "val_images": 14, "val_error_top1": FIGURES} | changes


def stated(config: Callable[..., Path], **changes: Any) -> Path:
    """The tiny experiment with two networks and what is expected of them, and of a third by its name."""
    return config(networks=NETWORKS, **merge({"expect": [entry()]}, changes))


def differs(path: Path, *overrides: str) -> dict[str, tuple[str, ...]] | None:
    [expected] = load.load(path, overrides).expect
    return expected.differs


def test_a_run_carries_the_figures_of_its_network(config: Callable[..., Path]) -> None:
    top5 = entry(source="another", val_error_top1={"narrow": 7}, val_error_top5={"narrow": {"low": 1, "high": 2}})
    path = stated(config, expect=[entry(), top5])
    plain, narrow = load.runs(load.load(path))
    assert load.dump(plain)["expect"] == [
        {
            "source": "a paper, table 1",
            "val_images": 14,
            "protocol": "one-crop",
            "val_error_top1": {"cifar-plain-8": 9.5},
        }
    ]
    assert [list(one.figures("val_error_top1")) for one in narrow.expect] == [["narrow"], ["narrow"]]
    assert load.read_run(load.dump(narrow), "config.yaml") == narrow


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        ([], None),
        (["train.steps=4"], {"train.steps = 4, not 8"}),
        (["train.epochs=2"], {"train.epochs = 2.0, not null", "train.steps = null, not 8"}),
        (["optimizer.lr=0.2", "data.holdout=5"], {"optimizer.lr = 0.2, not 0.1", "data.holdout = 5, not 0"}),
        (["train.ema_decay=0.9"], {"train.ema_decay = 0.9, not null"}),
        (
            ["optimizer.lr=0.1", "train.precision=bf16", "train.grad_accum_steps=2"],
            None,
        ),  # as it is, or how it is computed
        (["eval.every.steps=2", "eval.batch_size=3", "probes.gradients={}", "seeds=[0,1]", "name=x"], None),
        (["eval.flip=true"], {"eval.flip = true, not false"}),
    ],
)
def test_the_command_line_may_change_what_figures_are_about(
    overrides: list[str], texts: set[str] | None, config: Callable[..., Path]
) -> None:
    got = differs(stated(config), *overrides) or {}
    assert {name: set(one) for name, one in got.items()} == ({"cifar-plain-8": texts, "narrow": texts} if texts else {})


def test_a_file_under_a_base_may_change_it_too_or_state_its_own(config: Callable[..., Path], tmp_path: Path) -> None:
    stated(config, expect=[entry()], per_network={"narrow": {"optimizer": {"lr": 0.3}}})
    over = tmp_path / "over.yaml"
    over.write_text("base: tiny.yaml\nname: over\noptimizer: {momentum: 0.5}\n")
    texts = ("optimizer.momentum = 0.5, not 0.9",)
    assert differs(over) == {"cifar-plain-8": texts, "narrow": texts}
    assert differs(over, "per_network=null") == {
        "cifar-plain-8": texts,
        "narrow": ("optimizer.lr = 0.1, not 0.3", *texts),
    }
    own = yaml.safe_dump({"expect": [entry(val_error_top1={"narrow": 5})]})
    over.write_text(f"base: tiny.yaml\nname: over\noptimizer: {{momentum: 0.5}}\n{own}")
    assert differs(over) is None
    over.write_text("base: tiny.yaml\nname: over\nexpect: null\n")
    assert load.load(over).expect == ()


def test_a_figure_is_of_the_network_that_its_file_means(config: Callable[..., Path]) -> None:
    """Networks that are left out, or named by the zoo, are no error; another network of the same name differs."""
    path = stated(config)
    assert differs(path, "networks=[cifar-plain-8]") is None
    assert differs(path, "networks=[cifar-resnet-14]") is None
    [other] = load.runs(load.load(path, ["networks=[{base: cifar-resnet-8, name: narrow, widths: [2, 4, 4]}]"]))
    assert other.expect[0].differs == {"narrow": (f"narrow is not that of {path}",)}
    [unknown] = load.runs(load.load(path, ["networks=[{base: cifar-resnet-8, name: mine}]"]))
    assert unknown.expect == ()


def test_packed_images_are_the_same_images(config: Callable[..., Path]) -> None:
    files = {"kind": "imagefolder", "path": "x"}
    crop = {"kind": "random-resized", "size": 32}
    path = stated(config, data=files, augment={"crop": crop})
    assert differs(path, "data.kind=shards", "data.path=y", "data.workers=3") is None
    assert differs(path, "eval.protocol=ten-crop") is None  # each source has its own


def test_what_is_printed_says_the_same_when_it_is_loaded(config: Callable[..., Path], tmp_path: Path) -> None:
    experiment = load.load(stated(config), ["train.steps=4"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(to_yaml(load.dump(experiment)))
    assert load.load(printed) == experiment


def test_a_recipe_that_its_file_does_not_state_is_not_that_of_a_source(config: Callable[..., Path]) -> None:
    path = stated(config, train={"steps": None})
    text = (f"{path} does not state the whole recipe",)
    assert differs(path, "train.steps=8") == {"cifar-plain-8": text, "narrow": text}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"val_error_top1": {"cifar-resnet-9": 5}}, "expect.0: unknown network 'cifar-resnet-9': depths are 6n+2"),
        (
            {"val_error_top1": {"cifar-plain-8": 101}},
            "expect.0.val_error_top1.cifar-plain-8 = 101: input should be less",
        ),
        ({"val_error_top1": {"cifar-plain-8": "9"}}, 'expect.0.val_error_top1.cifar-plain-8 = "9": input should be a'),
        ({"val_error_top1": {"cifar-plain-8": {"mean": 9}}}, "cifar-plain-8: a figure is {mean, std, n}, {mean, n}, "),
        ({"val_error_top1": {"cifar-plain-8": {"low": 9, "high": 8}}}, "cifar-plain-8: low 9 is not below high 8"),
        ({"val_error_top1": {"cifar-plain-8": {"mean": 9, "std": 1, "n": 1}}}, "one training has no deviation"),
        ({"val_error_top1": {"cifar-plain-8": {"men": 9}}}, "cifar-plain-8.men: unknown key; did you mean mean?"),
        ({"val_error_top1": {}}, "expect.0.val_error_top1: dictionary should have at least 1 item"),
        ({"val_error_top1": None}, "expect.0: no figure: give one of val_error_top1, val_error_top5"),
        ({"val_images": None}, "expect.0.val_images"),
        ({"top1": {"narrow": 8}}, "expect.0.top1: unknown key"),
        ({"protocol": "ten crops"}, "expect.0.protocol"),
    ],
)
def test_a_wrong_expectation_is_named(wrong: dict[str, Any], message: str, config: Callable[..., Path]) -> None:
    with pytest.raises(BadInput) as error:
        load.load(stated(config, expect=[entry(**wrong)]))
    assert str(error.value).count("tiny.yaml") == 1
    assert message in str(error.value)


def test_a_run_whose_expectation_has_changed_is_continued(config: Callable[..., Path], program: Program) -> None:
    assert program("run", config(train={"steps": 2}))[0] == 0
    changed = [entry(val_error_top1={"cifar-resnet-8": 5})]
    code, _, err = program("run", config(train={"steps": 8}, expect=changed))
    assert code == 0, err
    [record] = run_folder.find([Path("runs")])
    assert record.end is not None
    assert record.end["step"] == 8
    assert record.run.expect[0].val_error_top1 == {"cifar-resnet-8": 5}


def test_expectations_are_no_difference_that_compare_warns_of(recorded: Callable[..., Path]) -> None:
    recorded("cifar-plain-8", 0, 5.0, expect=[entry(val_error_top1={"cifar-plain-8": 5})])
    recorded("cifar-resnet-8", 0, 5.0)
    assert findings.warnings(groups()) == []
