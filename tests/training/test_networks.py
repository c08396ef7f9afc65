"""Every kind of network of the zoo trains, is stopped, saved, resumed and evaluated. Narrow and shallow, to be quick."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import same_weights
from torch import nn
from torchvision.models import vgg

from resnet_train.config import zoo
from resnet_train.config.zoo import IMAGENET
from resnet_train.errors import Interrupted
from resnet_train.evaluation import confusion
from resnet_train.training import log

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]

FAMILIES = ("plain", "resnet", "preact-resnet")
NAMES = [
    *(f"{family}-{depth}" for family in FAMILIES for depth in IMAGENET if depth in (18, 50)),
    *("resnet-18-C", "resnet-50-v1.5", "wrn-50-2", "wrn-16-2-dropout"),
    *("cifar-plain-8", "cifar-preact-8", "cifar-preact-164", "cifar-resnet-11-bottleneck"),
    *("vgg-16", "vgg-16-bn"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    "relu-only-pre-activation": {"order": "relu-only-pre-activation"},
    "scaled": {"addition": {"kind": "constant-scaling"}},
    "exclusive-gating": {"addition": {"kind": "exclusive-gating"}},
    "shortcut-dropout": {"addition": {"kind": "shortcut-dropout"}},
    "no-norm": {"norm": "none", "addition": {"kind": "skip-init"}, "init": "orthogonal"},
    "fixup": {"norm": "fixup"},
    "dirac": {"shortcut": "none", "dirac": True, "init": "delta-orthogonal"},
    "resnet-d": {"stem": "imagenet", "stem_type": "deep", "shortcut": "B", "avg_down": True},
    "stochastic-depth": {"drop_path_rate": 0.5, "zero_init_residual": True},
}


class NarrowVGG(vgg.VGG):
    """torchvision's, with 8 channels in place of 4,096 between its last layers."""

    def __init__(self, features: nn.Module, num_classes: int = 1000, **_: Any) -> None:
        nn.Module.__init__(self)
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        layers = [nn.Linear(8 * 49, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 8), nn.ReLU(True), nn.Dropout()]
        self.classifier = nn.Sequential(*layers, nn.Linear(8, num_classes))


@pytest.fixture
def _narrow_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "VGG", NarrowVGG)
    for key, layers in vgg.cfgs.items():
        monkeypatch.setitem(vgg.cfgs, key, [layer if layer == "M" else 8 for layer in layers])


def narrow(name: str) -> Any:
    fields = zoo.network_fields(name)
    if fields["unit"] == "vgg":
        return name
    stages = len(fields["depths"])
    widths = {"depths": [1] * stages, "widths": [4, 4, 8, 8][:stages]}
    return {"base": name, **widths, **({"stem_width": 4} if "stem_width" in fields else {})}


@pytest.mark.usefixtures("_narrow_vgg")
@pytest.mark.parametrize("name", [*NAMES, *VARIANTS])
def test_every_network_trains_resumes_and_is_evaluated(
    name: str, config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = narrow("cifar-resnet-8") | {"name": name, **VARIANTS[name]} if name in VARIANTS else narrow(name)
    size = (
        32
        if (zoo.resolve(network) if isinstance(network, dict) else zoo.network_fields(name)).get("stem") != "cifar"
        else 8
    )
    data = {"size": size, "train_images": 8, "val_images": 4}
    every = {"every": {"steps": 3}, "clean_train_images": 0, "batch_size": 4}
    train = {"steps": 3, "batch_size": 4, "ema_decay": 0.5}
    path = config(networks=[network], data=data, train=train, eval=every, log={"every": {"steps": 1}})
    code, _, err = program("run", path, "output=whole")
    assert code == 0, err
    note_loading, steps = log.Log.note_loading, 0

    def interrupt(self: log.Log, batches: Any) -> None:
        nonlocal steps
        note_loading(self, batches)
        steps += 1
        if steps == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.Log, "note_loading", interrupt)
    assert program("run", path, "output=parts")[0] == Interrupted.exit_code
    assert program("run", path, "output=parts")[0] == 0
    whole, parts = (Path(folder, "tiny", name, "seed-0/checkpoints/last.pt") for folder in ("whole", "parts"))
    assert same_weights(whole, parts)
    monkeypatch.setattr(confusion, "draw", lambda *_: None)  # which takes longer than all of the rest
    code, out, err = program("eval", parts, "--json")
    assert code == 0, err
    records = [json.loads(line) for line in (parts.parents[1] / "metrics.jsonl").read_text().splitlines()]
    [trained] = [record for record in records if record["kind"] == "eval"]
    assert json.loads(out)[0]["error_top1"] == trained["val_error_top1"]
