"""Networks against torchvision, the paper's table and figures in git."""

import json
import math
from pathlib import Path

import pytest
import torch
import torchvision

from resnet_train.config import zoo
from resnet_train.config.network import NetConfig
from resnet_train.errors import BadInput
from resnet_train.models.blocks import ZeroPad
from resnet_train.models.network import Network, initialise
from resnet_train.observe import complexity

GOLDEN = json.loads((Path(__file__).parent / "golden" / "complexity.json").read_text())


def net_config(name: str, **changes: object) -> NetConfig:
    return NetConfig.model_validate({**zoo.network(name), **changes})


def cost(name: str) -> complexity.Complexity:
    cifar = name.startswith("cifar")
    return complexity.of_network(net_config(name), 32 if cifar else 224, 10 if cifar else 1000)


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_and_multiply_adds_are_those_in_git(name: str) -> None:
    found = cost(name)
    assert {"params": found.params, "macs": found.macs, "activations": found.activations} == GOLDEN[name]


@pytest.mark.parametrize(("depth", "flops"), [(18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3)])
def test_multiply_adds_are_those_of_table_1(depth: int, flops: float) -> None:
    """To a tenth of 1e9, the table's last digit, which it cuts off rather than rounds (3.64e9 is its 3.6, 3.86e9 its 3.8)."""
    assert abs(cost(f"resnet-{depth}-A" if depth < 50 else f"resnet-{depth}").macs / 1e9 - flops) < 0.1


def test_parameters_are_those_of_table_6() -> None:
    for depth, millions in {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}.items():
        assert round(cost(f"cifar-resnet-{depth}").params / 1e6, 1 if millions > 1 else 2) == millions


@pytest.mark.parametrize(("plain", "residual"), [("plain-18", "resnet-18-A"), ("plain-34", "resnet-34-A")])
def test_plain_and_shortcut_a_have_equal_parameters(plain: str, residual: str) -> None:
    assert cost(plain).params == cost(residual).params
    assert cost("cifar-plain-56").params == cost("cifar-resnet-56").params


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_outputs_are_torchvisions_on_the_same_weights(depth: int) -> None:
    net = Network(net_config(f"resnet-{depth}" if depth < 50 else f"resnet-{depth}-v1.5"), classes=10)
    initialise(net, seed=1)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    theirs.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for training in (True, False):  # the first pass also moves the running statistics that the second one uses
        net.train(training), theirs.train(training)
        torch.testing.assert_close(net(images), theirs(images), rtol=1e-5, atol=1e-5)
    net.load_state_dict(theirs.state_dict())


def test_a_plain_net_starts_from_its_residual_partners_weights() -> None:
    plain, residual = (Network(net_config(f"{kind}-50"), classes=7) for kind in ("plain", "resnet"))
    initialise(plain, seed=3), initialise(residual, seed=3)
    shared = residual.state_dict()
    assert plain.state_dict().keys() < shared.keys()
    assert all(torch.equal(weight, shared[key]) for key, weight in plain.state_dict().items())
    initialise(plain, seed=4)
    assert not torch.equal(plain.conv1.weight, residual.conv1.weight)


def test_initialisation_is_hes() -> None:
    net = Network(net_config("resnet-50"), classes=1000)
    initialise(net, seed=0)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            wanted = math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size)))
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(module.weight.mean().item()) < 0.05 * wanted, name


def test_zero_padding_drops_pixels_and_appends_channels() -> None:
    image = torch.arange(2 * 5 * 5.0).reshape(1, 2, 5, 5)
    out = ZeroPad(2, 5, stride=2)(image)
    assert torch.equal(out[:, :2], image[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert out.shape == (1, 5, 3, 3)
    assert not out[:, 2:].any()


@pytest.mark.parametrize("shortcut", ["none", "A", "B", "C"])
@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_any_mixture_of_the_grammar_trains(unit: str, shortcut: str) -> None:
    """A unit whose residual branch is silenced is its shortcut; without one it is silent."""
    stride = {} if unit == "basic" else {"stride_on": "1x1"}
    cfg = NetConfig.model_validate(
        {"name": "x", "unit": unit, "depths": (1, 2), "widths": (4, 6), "stem": "cifar", "shortcut": shortcut, **stride}
    )
    net = Network(cfg, classes=3, channels=1)
    initialise(net, seed=0)
    last = net.layer1[0].bn2 if unit == "basic" else net.layer1[0].bn3
    torch.nn.init.zeros_(last.weight)
    features = net.layer1(torch.rand(2, 4, 9, 9))
    assert bool(features.any()) == (shortcut != "none")
    net(torch.rand(2, 1, 9, 9)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert sum(m.kernel_size == (1, 1) for m in net.modules() if isinstance(m, torch.nn.Conv2d)) == (
        (6 if unit == "bottleneck" else 0) + {"none": 0, "A": 0, "B": 1 + (unit == "bottleneck"), "C": 3}[shortcut]
    )


def test_depth_is_counted_as_the_papers_do() -> None:
    for name in ("resnet-18", "plain-34", "resnet-152", "cifar-resnet-110", "cifar-plain-8"):
        assert net_config(name).depth == int(name.rpartition("-")[2])


def test_every_depth_of_6n_plus_2_is_in_the_zoo() -> None:
    for n in range(1, 40):
        assert net_config(f"cifar-resnet-{6 * n + 2}").depths == (n, n, n)
    with pytest.raises(BadInput, match="cifar-resnet-8"):
        zoo.network("cifar-resnet-2")
