"""LAMB against timm's on the same gradients, AdamW against torch's plain loop, and which weights adapt."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from resnet_train.config.optim import OptimizerConfig
from resnet_train.config.schema import Run
from resnet_train.training.estimate import estimate_training
from resnet_train.training.lamb import LAMB
from resnet_train.training.optim import build_optimizer, set_lr


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_lamb_is_timms() -> None:
    """At rates that change, with a weight of norm 0 and a group without decay, from the first step on."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.randn(3))]
    copies = copy.deepcopy(weights)
    lr = torch.tensor(0.0)
    ours = LAMB(
        [{"params": weights[:2], "weight_decay": 0.02}, {"params": weights[2:], "adapt": False}], lr, (0.9, 0.99)
    )
    groups: list[dict[str, Any]] = [
        {"params": copies[:2], "weight_decay": 0.02},
        {"params": copies[2:], "weight_decay": 0.0},
    ]
    theirs = timm.optim.Lamb(groups, lr=0.1, betas=(0.9, 0.99), max_grad_norm=None)
    for rate in (0.5, 0.5, 0.1, 0.01, 0.2):
        for weight, copied in zip(weights, copies, strict=True):
            weight.grad = torch.randn_like(weight)
            copied.grad = weight.grad.clone()
        lr.fill_(rate)
        for group in theirs.param_groups:
            group["lr"] = rate
        ours.step()
        theirs.step()
        for weight, copied in zip(weights, copies, strict=True):
            torch.testing.assert_close(weight, copied, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("decay_on", ["all", "matrices"])
def test_lamb_adapts_what_is_decayed_and_matrices_as_timm_does(decay_on: Any) -> None:
    net = network()
    optimizer = build_optimizer(net, OptimizerConfig(kind="lamb", weight_decay=1e-3, decay_on=decay_on, beta2=0.99))
    assert isinstance(optimizer, LAMB)
    actual = {
        id(parameter): (group["adapt"], group["weight_decay"], group["betas"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in net.named_parameters():
        decayed = decay_on == "all" or name in ("0.weight", "3.weight")
        assert actual[id(parameter)] == (decayed, 1e-3 if decayed else 0.0, (0.9, 0.99))
    assert build_optimizer(net, OptimizerConfig(kind="lamb", weight_decay=0.0)).param_groups[0]["adapt"]


def test_adamw_is_torchs() -> None:
    torch.manual_seed(0)
    net = network()
    twin = copy.deepcopy(net)
    ours = build_optimizer(net, OptimizerConfig(kind="adamw", weight_decay=0.05, momentum=0.8, beta2=0.99))
    theirs = torch.optim.AdamW(twin.parameters(), lr=1.0, betas=(0.8, 0.99), weight_decay=0.05, foreach=False)
    for rate in (0.1, 0.1, 0.01):
        for parameter, copied in zip(net.parameters(), twin.parameters(), strict=True):
            parameter.grad = torch.randn_like(parameter)
            copied.grad = parameter.grad.clone()
        set_lr(ours, rate)
        theirs.param_groups[0]["lr"] = rate
        ours.step()
        theirs.step()
    for parameter, copied in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, copied, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_two_means_are_kept_for_each_weight(kind: str, tiny_run: Callable[..., Run]) -> None:
    two, one = (estimate_training(tiny_run(optimizer={"kind": name})) for name in (kind, "sgd"))
    assert two.memory - one.memory == 4 * one.params


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_both_go_on_from_their_state(kind: Any) -> None:
    net = network()
    cfg = OptimizerConfig(kind=kind)
    ours = build_optimizer(net, cfg)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    ours.step()
    other = copy.deepcopy(net)
    again = build_optimizer(other, cfg)
    again.load_state_dict(copy.deepcopy(ours.state_dict()))
    for parameter, twin in zip(net.parameters(), other.parameters(), strict=True):
        parameter.grad = twin.grad = torch.full_like(parameter, -2.0)
    ours.step()
    again.step()
    for parameter, twin in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, twin)
