"""What cannot be trained is refused before anything is opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.config import load, zoo
from resnet_train.config.batch import check_batch, check_network, stem_note
from resnet_train.config.network import NetConfig
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput
from resnet_train.models.network import build_network

Config = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]

CIFAR: dict[str, Any] = {"networks": ["resnet-18"], "data": {"kind": "cifar10", "path": "x"}, "augment": None}
"""Five halvings of 32 pixels: the last map has one pixel."""


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50", "preact-resnet-18", "plain-34", "cifar-preact-20"])
@pytest.mark.parametrize("size", [8, 31, 32, 33, 64, 65])
def test_the_last_map_is_the_networks(name: str, size: int) -> None:
    cfg = zoo.network_config(name)
    assert isinstance(cfg, NetConfig)
    sizes: list[int] = []
    with torch.device("meta"):
        net = build_network(cfg, classes=2).eval()
        net.get_submodule(f"layer{len(cfg.depths)}").register_forward_hook(
            lambda *args: sizes.append(args[2].shape[-1])
        )
        net(torch.empty(1, 3, size, size))
    assert sizes == [cfg.last_map(size)]


def test_batch_norm_of_one_value_is_refused_before_training(config: Config, program: Program) -> None:
    """torch would raise ValueError at the first step."""
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        build_network(zoo.network_config("resnet-18"), classes=2).train()(torch.rand(1, 3, 32, 32))
    message = "batch norm of resnet-18 needs more than one value, and its last map has one pixel at 32 pixels: raise"
    for overrides, key in (
        (["train.batch_size=1"], "train.batch_size"),
        (["train.batch_size=8", "train.grad_accum_steps=8"], "train.batch_size"),
        (["probes.gradients.images=1"], "probes.gradients.images"),
        (["eval.recompute_bn=1"], "eval.recompute_bn"),
        (["eval.recompute_bn=9", "eval.batch_size=1"], "eval.recompute_bn"),
    ):
        code, _, err = program("run", config(**CIFAR), *overrides)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"{message} {key}" in err
    assert not Path("runs").exists()
    code, _, err = program("run", config(**CIFAR), "train.batch_size=2", "eval.recompute_bn=9", "--dry-run")
    assert code == 0, err


def test_the_share_of_a_rank_is_what_counts(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(**CIFAR, train={"batch_size": 4})
    check_network(run, 2, 32)
    with pytest.raises(BadInput, match=r"raise train.batch_size, or lower the number of ranks, or set train.sync_bn$"):
        check_network(run, 4, 32)
    check_network(tiny_run(**CIFAR | {"networks": ["resnet-18-nobn"]}, train={"batch_size": 4}), 4, 32)
    check_network(tiny_run(**CIFAR, train={"batch_size": 4, "sync_bn": True}), 4, 32)
    crop = {"crop": {"kind": "random-resized", "size": 64}, "progressive_resizing": {0: 32, 0.5: 64}}
    files = tiny_run(networks=["resnet-18"], data={"kind": "imagefolder", "path": "x"}, augment=crop)
    check_network(files, 8, None)
    with pytest.raises(BadInput, match="one pixel at 32 pixels"):
        check_network(files, 16, None)


def test_advice_is_what_can_be_changed(config: Config) -> None:
    """One rank cannot be fewer, one accumulation step neither, and sync_bn needs several ranks."""
    for train, advice in (
        ({"batch_size": 1}, "raise train.batch_size"),
        ({"batch_size": 2, "grad_accum_steps": 2}, "raise train.batch_size, or lower train.grad_accum_steps"),
    ):
        with pytest.raises(BadInput, match=f"one pixel at 32 pixels: {advice}$"):
            load.load(config(**CIFAR, train=train))
        with pytest.raises(BadInput, match=f"more than one image at a time: {advice}$"):
            load.load(config(augment={"mixup": 0.2}, train=train))


def test_all_that_a_batch_cannot_be_is_said_at_once(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(augment={"crop": {"kind": "pad", "padding": 4, "mode": "reflect"}, "mixup": 0.2})
    with pytest.raises(BadInput) as caught:
        check_batch(run, 32, 4)
    assert [text.partition(" ")[0] for text in caught.value.args] == [
        "train.batch_size",
        "augment.mixup",
        "augment.crop.padding",
    ]
    assert "not divisible by 32 ranks x 1 train.grad_accum_steps: use 32" in str(caught.value)


def test_vgg_needs_images_that_its_poolings_can_halve(config: Config, program: Program) -> None:
    code, _, err = program("run", config(networks=["vgg-16"]), "--dry-run")
    assert (code, "vgg-16 needs images of at least 32 pixels, and here are 8" in err) == (2, True)
    code, _, err = program("probe", "responses", "vgg-16", "--data", "digits")
    assert (code, "vgg-16 needs images of at least 32 pixels, and here are 8" in err) == (2, True)


def test_keys_of_batch_norm_are_refused_where_no_network_has_it(config: Config, tiny_run: Callable[..., Run]) -> None:
    keys = ["train.sync_bn=true", "eval.recompute_bn=8"]
    data = {"size": 32}
    for key in keys:
        name = key.partition("=")[0]
        message = f"{name} has no effect without batch norm, and vgg-16 has none: remove it"
        with pytest.raises(BadInput, match=f": {message}$"):
            load.load(config(networks=["vgg-16"], data=data), [key])
        with pytest.raises(BadInput, match=f"^command line: {message}$"):
            load.override_run(tiny_run(networks=["vgg-16"], data=data), [key])
    with pytest.raises(BadInput, match=r"train.sync_bn has no effect without batch norm, and resnet-18-nobn"):
        load.load(config(networks=["resnet-18-nobn"], data=data), keys)
    for networks in (["vgg-16-bn"], ["vgg-16", "cifar-resnet-8"]):
        load.load(config(networks=networks, data=data), keys)
    run = tiny_run(networks=["vgg-16", "cifar-resnet-8"], data=data, train={"sync_bn": True})
    assert load.override_run(run, ["eval.batch_size=3"]).train.sync_bn
    with pytest.raises(BadInput, match=r"^command line: eval.recompute_bn has no effect"):
        load.override_run(run, keys)


def test_a_stem_for_images_of_another_size_is_noted(tiny_run: Callable[..., Run]) -> None:
    """Of images that have one size, this is known when they are opened. An error would be too late to ask for it."""
    small, large = tiny_run(), tiny_run(networks=["wrn-34-2"])
    assert [stem_note(small, size) for size in (8, 96)] == [None, None]
    assert "has a stem for small images, a 3x3 convolution without pooling" in str(stem_note(small, 97))
    assert [stem_note(large, size) for size in (33, 224)] == [None, None]
    assert "has a stem for large images, and its last map has one pixel at 32 pixels" in str(stem_note(large, 32))


def test_the_note_is_shown_when_a_run_starts(config: Config, program: Program) -> None:
    network = {"base": "resnet-18", "widths": [4, 4, 4, 4], "depths": [1, 1, 1, 1]}
    code, _, err = program("run", config(networks=[network], train={"steps": 1}))
    assert (code, err.count("has a stem for large images, and its last map has one pixel at 8 pixels")) == (0, 1)
