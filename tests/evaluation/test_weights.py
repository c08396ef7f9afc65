"""Weights as other programs save them: under prefixes, in checkpoints, with other heads, in any order."""

import argparse
import collections
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from resnet_train import load
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput
from resnet_train.runtime.distributed import World
from resnet_train.training.finetune import load_initial_weights
from resnet_train.training.step import create_train_state

Weights = dict[str, Tensor]


class Settings(dict[str, Any]):
    """A class that only the other program has; by its name it holds items."""


Settings.__name__ = Settings.__qualname__ = "SettingsDict"
SettingsDict = Settings  # where pickle looks for it


class Meter:
    """Another one, with attributes."""

    def __init__(self) -> None:
        self.values = collections.deque([1.0])


@pytest.fixture(scope="module")
def theirs() -> models.ResNet:
    torch.manual_seed(0)
    net = models.resnet18(num_classes=7).eval()
    for module in net.modules():  # else a batch norm that is left out would not be seen
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    return net


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {f"{prefix}{key}": value for key, value in weights.items()}


def zeros(weights: Weights) -> Weights:
    return {key: torch.zeros_like(value) for key, value in weights.items()}


LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "DataParallel": lambda w: prefixed(w, "module."),
    "torch.compile": lambda w: prefixed(w, "_orig_mod."),
    "compiled stages": lambda w: {key.replace("layer1.", "layer1._orig_mod."): value for key, value in w.items()},
    "both": lambda w: {"model": prefixed(w, "module._orig_mod.")},
    "sorted": lambda w: {key: w[key] for key in sorted(w)},
    "half": lambda w: {key: value.half() if value.is_floating_point() else value for key, value in w.items()},
    "before torch 0.4.1": lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    # train.py of vision/references/classification
    "torchvision's reference": lambda w: {
        "model": zeros(w),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 3,
        "args": argparse.Namespace(model="resnet18", output_dir=Path("x")),
        "model_ema": {"n_averaged": torch.tensor(3)} | prefixed(w, "module."),
    },
    # CheckpointSaver of timm
    "timm's training": lambda w: {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": zeros(w),
        "state_dict_ema": w,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(71.5),
        "version": 2,
    },
    "Lightning": lambda w: {
        "state_dict": prefixed(w, "model.") | {"criterion.weight": torch.ones(7)},
        "hyper_parameters": SettingsDict(lr=0.1),
        "callbacks": {"meter": Meter()},
        "loops": collections.defaultdict(list, a=[1]),
    },
    "another name of the head": lambda w: {key.replace("fc.", "last_linear."): value for key, value in w.items()},
    "deep": lambda w: {"a": {"b": {"c": {"backbone": {"encoder": w}}}}, "again": {"b": {"state_dict": {}}}},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found(layout: str, legacy: bool, theirs: models.ResNet) -> None:
    torch.save(LAYOUTS[layout](theirs.state_dict()), "w.pth", _use_new_zipfile_serialization=not legacy)
    model = load("w.pth", network="resnet-18")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tolerance = 1e-2 if layout == "half" else 1e-5
        torch.testing.assert_close(model.network(images), theirs(images), rtol=tolerance, atol=tolerance)
    assert len(model.classes) == 7


def test_safetensors_have_prefixes_too(theirs: models.ResNet) -> None:
    from safetensors.torch import save_file

    save_file(prefixed(theirs.state_dict(), "backbone."), "w.safetensors")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load("w.safetensors", network="resnet-18").network(images), theirs(images))


@pytest.mark.parametrize("average", ["ema.", "model_ema.module.", "EMA.net.", "net.ema_model."])
def test_the_average_is_known_by_a_word_not_by_letters(average: str, theirs: models.ResNet) -> None:
    """`semantic` and `schema` hold the letters of ema."""
    weights = theirs.state_dict()
    others = prefixed(zeros(weights), "semantic.") | prefixed(zeros(weights), "schema.")
    torch.save(others | prefixed(weights, average), "w.pth")
    assert torch.equal(load("w.pth", network="resnet-18").network.state_dict()["conv1.weight"], weights["conv1.weight"])
    torch.save(prefixed(weights, "semantic.") | prefixed(weights, "instance."), "w.pth")
    with pytest.raises(BadInput, match=r"several networks are in it, semantic\., instance\."):
        load("w.pth", network="resnet-18")


def without_head(weights: Weights) -> Weights:
    return {key: value for key, value in weights.items() if not key.startswith("fc.")}


def moco(weights: Weights, head: Weights) -> dict[str, Any]:
    """A checkpoint of MoCo: the encoder that is trained, its slow copy, and a queue."""
    slow = prefixed(zeros(without_head(weights)) | head, "module.encoder_k.")
    queue = {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
    state = prefixed(without_head(weights) | head, "module.encoder_q.") | slow | queue
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


MLP = {f"fc.{i}.{part}": torch.zeros((16, 512 if i == 0 else 16)[: 2 if part == "weight" else 1]) for i in (0, 2) for part in ("weight", "bias")}  # fmt: skip
HEADLESS: dict[str, Callable[[Weights], Any]] = {
    "no head": without_head,
    "no head, under a name": lambda w: {"teacher": prefixed(without_head(w), "module.backbone.")},
    "MoCo v2": lambda w: moco(w, MLP),
    "two heads": lambda w: without_head(w) | {f"{n}.{k}": w[f"fc.{k}"] for n in "ab" for k in ("weight", "bias")},
}


@pytest.mark.parametrize("layout", HEADLESS)
def test_weights_without_a_head_are_fine_tuned_and_not_evaluated(
    layout: str, theirs: models.ResNet, tiny_run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    torch.save(HEADLESS[layout](theirs.state_dict()), "w.pth")
    with pytest.raises(BadInput, match=r"w\.pth has no linear head, .* train\.init_from=w\.pth"):
        load("w.pth", network="resnet-18")
    caplog.clear()
    run = tiny_run(networks=["resnet-18"])
    state, fresh = (create_train_state(run, 4, 3, World(torch.device("cpu"))) for _ in range(2))
    load_initial_weights("w.pth", run.network, state, World(torch.device("cpu")))
    assert "w.pth has no linear head: the head starts anew" in caplog.text
    for key, value in state.net.state_dict().items():
        assert torch.equal(value, (fresh.net if key.startswith("fc.") else theirs).state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: prefixed(w, "a.") | prefixed(w, "b."), "several networks are in it, a., b.: save the state dict of"),
        (lambda w: w | {"layer1.0.se.weight": torch.zeros(1)}, "weight layer1.0.se.weight has no place in it"),
        (lambda w: {"model": {k: v for k, v in w.items() if k != "bn1.bias"}}, "weight model.bn1.bias is missing"),
        (lambda w: w | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, "conv1.weight is of shape [64, 1, 7, 7] there and"),
        (lambda w: w | {"conv1.weight": w["conv1.weight"].to(torch.int8)}, "and type torch.int8 there and"),
        (lambda w: w | {"conv1.weight": w["conv1.weight"].to(torch.complex64)}, "and type torch.complex64 there and"),
        (lambda w: w | {"fc.bias": torch.zeros(1).expand(10**12)}, "is of shape [7, 512] there and of shape [10"),
        (
            lambda w: w | {"fc.bias": torch.zeros(1).expand(10**12), "fc.weight": torch.zeros(1, 1).expand(10**12, 512)},
            "fc.weight is not stored value by value",
        ),
        (lambda w: w | {"fc.bias": torch.zeros(0)}, "has no linear head"),
        (lambda w: [w], "holds no tensors by name: save the state_dict() of the network"),
        (lambda w: {"ema": Meter()}, "holds no tensors by name"),
    ],
)  # fmt: skip
def test_other_weights_are_refused_in_a_line(change: Callable[[Weights], Any], message: str, theirs: Any) -> None:
    torch.save(change(theirs.state_dict()), "w.pth")
    with pytest.raises(BadInput) as refused:
        load("w.pth", network="resnet-18")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_where_shortcuts_pad_is_not_in_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    """The best known CIFAR networks of others pad on both sides, ours behind: the same weights, another function."""
    from resnet_train import create_model

    torch.save(prefixed(create_model("cifar-resnet-20", num_classes=10).state_dict(), "module."), "w.pth")
    assert len(load("w.pth", network="cifar-resnet-20").classes) == 10
    assert "w.pth: its shortcuts must append channels of zeros" in caplog.text


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_pipe_is_not_waited_for(suffix: str, tiny_run: Callable[..., Run]) -> None:
    os.mkfifo(f"pipe.{suffix}")
    state = create_train_state(run := tiny_run(), 4, 3, World(torch.device("cpu")))
    with pytest.raises(BadInput, match=rf"pipe\.{suffix}: no such checkpoint"):
        load_initial_weights(f"pipe.{suffix}", run.network, state, World(torch.device("cpu")))
