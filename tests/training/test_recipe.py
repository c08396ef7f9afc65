"""LARS against float64, and the recipes that ship against their sources."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from resnet_train.config import load
from resnet_train.config.optim import OptimizerConfig
from resnet_train.training.lars import LARS
from resnet_train.training.optim import build_optimizer
from resnet_train.training.schedule import build_schedule

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("lr", [0.7, torch.tensor(0.7)], ids=["float", "tensor"])
def test_lars_is_the_papers(lr: float | torch.Tensor) -> None:
    """You et al. 2017, algorithm 1, in float64; a rate that changes, a weight of norm 0, a parameter without trust."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.randn(3))]
    ours = LARS(
        [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0, "trust_coefficient": None}],
        lr,
        0.9,
        0.01,
        0.02,
    )
    exact, v = [w.detach().double().clone() for w in weights], [torch.zeros_like(w).double() for w in weights]
    for rate in (0.7, 0.7, 0.1, 0.01):
        for i, weight in enumerate(weights):
            g = torch.randn_like(weight)
            weight.grad = g
            decay, norm = (0.0 if i == 2 else 0.01), exact[i].norm()
            local = 0.02 * norm / (g.double().norm() + decay * norm) if i < 2 and norm > 0 else 1.0
            v[i] = 0.9 * v[i] + rate * local * (g.double() + decay * exact[i])
            exact[i] = exact[i] - v[i]
        for group in ours.param_groups:
            group["lr"] = rate if isinstance(lr, float) else torch.tensor(rate)
        ours.step()
    for weight, expected in zip(weights, exact, strict=True):
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_lars_trusts_weights_of_convolutions_and_the_head_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(
        net, OptimizerConfig(kind="lars", trust_coefficient=0.01, weight_decay=1e-3, decay_on="matrices")
    )
    assert isinstance(optimizer, LARS)
    actual = {
        id(parameter): (group["trust_coefficient"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        id(p): (0.01, 1e-3) if name in ("0.weight", "3.weight") else (None, 0.0) for name, p in net.named_parameters()
    }
    assert actual == expected


def test_lars_goes_on_from_its_state() -> None:
    net = nn.Linear(3, 2)
    ours = LARS([{"params": list(net.parameters())}], 0.1)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    ours.step()
    other = copy.deepcopy(net)
    again = LARS([{"params": list(other.parameters())}], 0.1)
    again.load_state_dict(copy.deepcopy(ours.state_dict()))
    for parameter, twin in zip(net.parameters(), other.parameters(), strict=True):
        parameter.grad = twin.grad = torch.ones_like(parameter)
    ours.step()
    again.step()
    assert torch.equal(net.weight, other.weight)


def test_fast_recipe_is_ffcvs() -> None:
    """Rate and size of each epoch, by the formulas of its train_imagenet.py."""
    small = "networks=[resnet-18] train.batch_size=1024 optimizer.lr=0.5 optimizer.weight_decay=5e-5 schedule.warmup.lr=5e-5"
    path = CONFIGS / "imagenet-fast.yaml"
    assert small in " ".join(path.read_text().replace("#", " ").split())  # its head, in one line
    for batch, peak, changes in ((4096, 1.7, ""), (1024, 0.5, small)):
        [run] = load.runs(load.load(path, changes.split()))
        plan = build_schedule(run, 1_281_167 / batch)
        assert run.train.batch_size == batch
        for epoch in range(16):
            step = math.ceil(epoch * 1_281_167 / batch) + 1
            rate = np.interp(epoch, [0, 2, 16], [1e-4 * peak, peak, 0])
            assert plan.lr_at(step) == pytest.approx(rate, abs=4e-3 * peak)
            assert plan.image_size_at(step) == np.round(np.interp(epoch, [11, 13], [160, 192]) / 32) * 32
        assert plan.image_size_at(plan.total_steps - 1) == 192


def test_modern_recipe_averages_as_torchvisions() -> None:
    """Every 32 steps with alpha = (1 - decay) * batch * 32 / epochs: the rule of its references/classification/train.py."""
    run, *deeper = load.runs(load.load(CONFIGS / "imagenet-modern.yaml"))
    assert [run.augment.repeated_augmentation, *(other.augment.repeated_augmentation for other in deeper)] == [4, 1, 1]
    assert run.train.ema_decay is not None
    assert run.train.epochs is not None
    alpha = (1 - 0.99998) * run.train.batch_size * 32 / run.train.epochs
    assert 1 - run.train.ema_decay**32 == pytest.approx(alpha, rel=0.01)
    assert build_schedule(run, 100.0).image_size_at(0) is None


def test_recipes_of_resnet_strikes_back_are_the_papers() -> None:
    """Wightman et al. 2021, table 2: A1, A2, A3."""
    runs = [next(load.runs(load.load(CONFIGS / f"imagenet-rsb-a{i}.yaml"))) for i in (1, 2, 3)]
    for run, epochs, lr, decay, smoothing, depth, repeat, magnitude, mixup, size in zip(
        runs,
        *((600, 300, 100), (0.005, 0.005, 0.008), (0.01, 0.02, 0.02), (0.1, 0.0, 0.0), (0.05, 0.05, 0.0)),
        *((3, 3, 1), (7, 7, 6), (0.2, 0.1, 0.1), (224, 224, 160)),
        strict=True,
    ):
        train, optimizer, augment, net = run.train, run.optimizer, run.augment, run.network
        assert (train.epochs, train.loss, train.label_smoothing) == (epochs, "binary-cross-entropy", smoothing)
        assert (optimizer.kind, optimizer.lr, optimizer.weight_decay) == ("lamb", lr, decay)
        assert net.unit != "vgg"
        assert (net.drop_path_rate, net.zero_init_residual) == (depth, True)
        assert (augment.repeated_augmentation, augment.mixup, augment.cutmix) == (repeat, mixup, 1.0)
        assert augment.auto_augment is not None
        assert augment.auto_augment.model_dump() == {
            "kind": "timm-rand-augment",
            "operations": 2,
            "magnitude": magnitude,
            "magnitude_std": 0.5,
        }
        assert augment.crop is not None
        assert augment.crop.kind == "random-resized"
        assert augment.crop.size == size
        assert run.view is not None
        assert (run.view.crop, run.view.resize) == (224, int(224 / 0.95))
        assert run.schedule.warmup is not None
        assert (run.schedule.kind, run.schedule.warmup.epochs, train.batch_size // 8) == (
            "cosine",
            5,
            256 - (repeat > 1),
        )
