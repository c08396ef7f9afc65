"""Networks against torchvision, the paper's table and figures in git."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from resnet_train.config import zoo
from resnet_train.config.network import NetConfig
from resnet_train.errors import BadInput
from resnet_train.models import complexity
from resnet_train.models.blocks import DiracConv2d, SkipInit, StochasticDepth, ZeroPad, conv
from resnet_train.models.network import build_network, initialise

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "complexity.json").read_text())


def net_config(name: str, **changes: object) -> Any:
    return zoo.network_config(name, **changes)


def cost(name: str) -> complexity.Complexity:
    cfg = net_config(name)
    return complexity.network_complexity(cfg, *complexity.default_input(cfg))


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
    net = build_network(net_config(f"resnet-{depth}" if depth < 50 else f"resnet-{depth}-v1.5"), classes=10)
    initialise(net, seed=1)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
    theirs.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for training in (True, False):  # the first pass also moves the running statistics that the second one uses
        net.train(training), theirs.train(training)
        torch.testing.assert_close(net(images), theirs(images), rtol=1e-5, atol=1e-5)
    net.load_state_dict(theirs.state_dict())


def copied(net: torch.nn.Module, theirs: torch.nn.Module, renamed: Callable[[str], str]) -> None:
    """Give a peer's network our weights; every one of them must find its place."""
    state = {renamed(key): value for key, value in net.state_dict().items()}
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: value.reshape(shapes.get(key, value.shape)) for key, value in state.items()})


@pytest.mark.parametrize("depth", [50, 101])
def test_wide_networks_are_torchvisions_on_the_same_weights(depth: int) -> None:
    net = build_network(net_config(f"wrn-{depth}-2"), classes=10).eval()
    initialise(net, seed=1)
    theirs = getattr(torchvision.models, f"wide_resnet{depth}_2")(num_classes=10).eval()
    theirs.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(images), theirs(images), rtol=1e-4, atol=1e-4)


def timms(key: str) -> str:
    """timm's name for a weight of a pre-activation network of ours."""
    if key.startswith(("bn1.", "bn_last.", "conv1.", "fc.")):
        first, _, rest = key.partition(".")
        places = {"bn1": "stages.0.blocks.0.norm1", "bn_last": "norm", "conv1": "stem.conv", "fc": "head.fc"}
        return f"{places[first]}.{rest}"
    key = re.sub(r"^layer(\d)\.(\d+)", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}", key)
    return key.replace(".bn", ".norm").replace("downsample.0", "downsample.conv")


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_pre_activation_networks_are_timms_on_the_same_weights(depth: int) -> None:
    """timm pools before the stem's batch norm and ReLU, we after: the same, since a new norm's factors are positive."""
    net = build_network(net_config(f"preact-resnet-{depth}-v1.5"), classes=10).eval()
    initialise(net, seed=1)
    theirs = timm.create_model(f"resnetv2_{depth}", num_classes=10).eval()
    copied(net, theirs, timms)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_pre_activation_networks_have_timms_weights(depth: int) -> None:
    """timm does not activate before the first unit splits, as section 4.1 of He et al. 2016 does; the weights are alike."""
    net = build_network(net_config(f"preact-resnet-{depth}"), classes=10)
    copied(net, timm.create_model(f"resnetv2_{depth}", num_classes=10), timms)


FIGURE_4 = {
    "original": "conv bn relu conv bn + relu",
    "bn-after-addition": "conv bn relu conv + bn relu",
    "relu-before-addition": "conv bn relu conv bn relu +",
    "relu-only-pre-activation": "relu conv bn relu conv bn +",
    "pre-activation": "bn relu conv bn relu conv +",
}


@pytest.mark.parametrize("kernels", [[3], [3, 3], [1, 3, 1]])
@pytest.mark.parametrize(("order", "words"), FIGURE_4.items())
def test_orders_are_those_of_figure_4(order: str, words: str, kernels: list[int]) -> None:
    """Each unit against figure 4 of He et al. 2016, followed word by word in float64; also with other kernels."""
    changes: dict[str, Any] = {"order": order, "widths": (4, 6, 8), "kernels": tuple(kernels)}
    net = build_network(net_config("cifar-resnet-20", **changes), classes=3).double().train()
    initialise(net, seed=2)
    unit = net.layer1[1]
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    convs, out = iter([getattr(unit, f"conv{i}") for i in range(1, len(kernels) + 1)]), x
    words = words.replace("conv bn relu", " ".join(["conv bn relu"] * (len(kernels) - 1)), 1)
    for word in words.split():
        if word == "conv":
            out = next(convs)(out)
        elif word == "bn":
            out = torch.nn.functional.batch_norm(out, None, None, training=True)
        elif word == "relu":
            out = out.relu()
        else:
            out = out + x
    before = x.clone()
    torch.testing.assert_close(unit(x), out)
    assert torch.equal(x, before), "the unit overwrote its input, which its shortcut needs"


def test_pre_activation_treats_its_first_and_last_units_as_section_4_1_says() -> None:
    net = build_network(net_config("cifar-preact-20"), classes=3)
    assert not hasattr(net.layer1[0], "bn1")  # the stem's stands in its place
    assert (net.layer1[0].before, net.layer1[1].before) == ((), ("bn1", "relu"))
    assert net.bn_last.num_features == 64
    unit = net.layer2[0].eval()  # where the shape changes, both paths start from the activated input
    unit.dropped = True
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(unit(x), ZeroPad(16, 32, 2)(unit.bn1(x).relu()))


@pytest.mark.parametrize(
    ("addition", "on_shortcut", "on_residual"),
    [
        ({"kind": "constant-scaling", "shortcut": 0.25, "residual": 0.5}, lambda g: 0.25, lambda g: 0.5),
        ({"kind": "exclusive-gating"}, lambda g: 1 - g, lambda g: g),
        ({"kind": "shortcut-gating", "bias": -2.0}, lambda g: 1 - g, lambda g: 1),
        ({"kind": "shortcut-dropout", "rate": 0.75}, lambda g: 1, lambda g: 1),
    ],
)
def test_additions_are_those_of_section_3(addition: dict[str, Any], on_shortcut: Any, on_residual: Any) -> None:
    net = build_network(net_config("cifar-resnet-20", addition=addition), classes=3).eval()
    initialise(net, seed=2)
    unit, plain = (
        net.layer1[0],
        build_network(net_config("cifar-plain-20", order="relu-before-addition"), 3).eval().layer1[0],
    )
    plain.load_state_dict(unit.state_dict(), strict=False)
    x = torch.randn(2, 16, 5, 5)
    residual = unit._through(unit.residual, x)
    gate = None if unit.gate is None else torch.sigmoid(unit.gate._conv_forward(x, unit.gate.weight, unit.gate.bias))
    torch.testing.assert_close(unit(x), (on_shortcut(gate) * x + on_residual(gate) * residual).relu())
    if gate is not None:
        assert unit.gate.bias.unique().item() == addition.get("bias", -6.0)
    if addition["kind"] == "shortcut-dropout":
        unit.train().dropped = True
        kept = unit(torch.ones(4, 16, 8, 8))
        assert set(kept.unique().tolist()) == {0.0, 4.0}
        assert (kept == 0).double().mean().item() == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stochastic_depth_is_torchvisions(mode: str, dtype: torch.dtype) -> None:
    x, layer = torch.randn(6, 3, 4, 4, dtype=dtype), StochasticDepth(0.3, mode)
    for seed in range(8):
        torch.manual_seed(seed)
        ours = layer(x)
        torch.manual_seed(seed)
        assert torch.equal(ours, torchvision.ops.stochastic_depth(x, 0.3, mode))
    assert layer.eval()(x) is x


def test_a_network_with_stochastic_depth_is_timms() -> None:
    """Its rates, which rise in a line, and on the same weights and the same random numbers its outputs."""
    net = build_network(net_config("resnet-50-v1.5", drop_path_rate=0.6), classes=4)
    initialise(net, seed=1)
    theirs = timm.create_model("resnet50", num_classes=4, drop_path_rate=0.6)
    theirs.load_state_dict(net.state_dict())
    rates = [m.drop_prob for m in theirs.modules() if isinstance(m, timm.layers.DropPath)]
    assert [m.rate for m in net.modules() if isinstance(m, StochasticDepth)] == rates
    assert (len(rates), rates[-1]) == (15, 0.6)
    images = torch.randn(4, 3, 32, 32)
    outputs = []
    for one in (net.train(), theirs.train()):
        torch.manual_seed(3)
        outputs.append(one(images))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["original", "relu-before-addition", "pre-activation"])
def test_without_norms_a_network_is_the_one_whose_norms_do_nothing(order: str) -> None:
    """Batch norms that divide by 1 and subtract 0 are nothing; the biases begin at 0 and are learnt."""
    for shortcut in ("none", "A", "C"):
        changes = {"order": order, "shortcut": shortcut, "widths": (4, 6, 8)}
        bare, normed = (net_config(f"cifar-resnet-8{suffix}", **changes) for suffix in ("-nobn", ""))
        nets = [build_network(cfg, classes=3).double() for cfg in (bare, normed)]
        for net in nets:
            initialise(net, seed=1)
        for module in nets[1].eval().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(nets[0](images), nets[1](images))
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in nets[0].modules())
        unit = build_network(net_config("cifar-resnet-14-nobn", **changes), classes=3).double().layer1[1]
        before = (x := torch.randn(2, 4, 5, 5).double()).clone()
        unit(x)
        assert torch.equal(before, x), "the unit overwrote its input, which its shortcut needs"
        nets[0](images).sum().backward()
        assert all(bool(p.grad.any()) for name, p in nets[0].named_parameters() if name.endswith("bias"))


def zeros(net: torch.nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if name.endswith("weight") and not parameter.any()}


def test_residual_branches_start_at_zero_as_torchvisions_and_timms() -> None:
    for ours, theirs in (("resnet-18", "resnet18"), ("resnet-50-v1.5", "resnet50")):
        net = build_network(net_config(ours, zero_init_residual=True), classes=3)
        initialise(net, seed=1)
        assert zeros(net) == zeros(getattr(torchvision.models, theirs)(zero_init_residual=True)) != set()
        assert torch.equal(net.eval().layer1[1](x := torch.rand(1, net.layer1[1].w_out, 4, 4)), x)
    net = build_network(net_config("preact-resnet-50-v1.5", zero_init_residual=True), classes=3)
    initialise(net, seed=1)
    theirs = timm.create_model("resnetv2_50", zero_init_last=True)
    assert {timms(name) for name in zeros(net)} == zeros(theirs) != set()
    initialise(net := build_network(net_config("resnet-18"), classes=3), seed=1)
    assert zeros(net) == set()


def test_a_plain_network_is_one_whose_shortcuts_are_scaled_by_0() -> None:
    """The row "0, 1" of He et al. 2016, table 1."""
    addition = {"kind": "constant-scaling", "shortcut": 0, "residual": 1}
    plain, scaled = (
        build_network(net_config(f"cifar-{kind}-20", **changes), classes=3).eval()
        for kind, changes in (("plain", {}), ("resnet", {"addition": addition}))
    )
    initialise(plain, seed=1), initialise(scaled, seed=1)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain(images), scaled(images))


def test_a_deep_stem_and_averaging_shortcuts_are_timms() -> None:
    """ResNet-50-D: names, shapes and, on the same weights, outputs, also where a map has an odd size."""
    net = build_network(net_config("resnet-50-v1.5", stem_type="deep", avg_down=True), classes=10)
    initialise(net, seed=1)
    theirs = timm.create_model("resnet50d", num_classes=10)
    theirs.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        net.train(training), theirs.train(training)
        torch.testing.assert_close(net(images), theirs(images), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_averaging_shortcuts_before_an_activation_are_timms() -> None:
    net = build_network(net_config("preact-resnet-50-v1.5", avg_down=True), classes=10).eval()
    initialise(net, seed=1)
    names = net.state_dict().keys() & {"layer1.0.downsample.1.weight", "layer2.0.downsample.1.weight"}
    assert len(names) == 2
    theirs = timm.create_model("resnetv2_50", num_classes=10, avg_down=True).eval()
    copied(net, theirs, lambda key: timms(key).replace("downsample.1", "downsample.conv"))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("w_in", "w_out", "stride", "kernel"), [(4, 4, 1, 3), (4, 6, 2, 3), (6, 4, 1, 1)])
def test_dirac_convolutions_are_the_papers(w_in: int, w_out: int, stride: int, kernel: int) -> None:
    """a x + b V(x): without V the image itself, every second pixel of it, or as many channels as there are."""
    cfg = net_config("cifar-plain-8", dirac=True)
    layer = conv(cfg, w_in, w_out, kernel, stride, kind=DiracConv2d).double()
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, w_in, 6, 6, dtype=torch.float64)
    torch.nn.init.normal_(layer.alpha), torch.nn.init.normal_(layer.beta)
    norms = torch.stack([one.square().sum().sqrt() for one in layer.weight])
    filters = layer.weight / norms[:, None, None, None] * layer.beta[:, None, None, None]
    expected = torch.nn.functional.conv2d(x, filters, stride=stride, padding=kernel // 2)
    shared = min(w_in, w_out)
    expected[:, :shared] += layer.alpha[:shared, None, None] * x[:, :shared, ::stride, ::stride]
    torch.testing.assert_close(layer(x), expected)


def test_dirac_networks_start_close_to_the_identity_and_train() -> None:
    net = build_network(net_config("cifar-plain-20-nobn", dirac=True), classes=3)
    initialise(net, seed=1)
    convs = [module for module in net.modules() if isinstance(module, DiracConv2d)]
    assert len(convs) == 18
    assert all((c.alpha == 1).all() and torch.allclose(c.beta, torch.tensor(0.1)) for c in convs)
    assert sum(p.numel() for p in net.parameters()) == 2 * sum(c.out_channels for c in convs) + sum(
        p.numel() for p in build_network(net_config("cifar-plain-20-nobn"), 3).parameters()
    )
    x = torch.rand(2, 16, 8, 8)
    assert (net.layer1[0](x) - x).norm() < 0.3 * x.norm()
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(bool(p.grad.any()) for p in net.parameters())
    assert "layer1.0.conv1.delta" not in net.state_dict()


@pytest.mark.parametrize("init", ["orthogonal", "delta-orthogonal"])
def test_orthogonal_filters_are_orthogonal(init: str) -> None:
    """As matrices [w_out, w_in k k] their rows are; a delta-orthogonal convolution keeps the norm of any image."""
    net = build_network(net_config("cifar-plain-20", init=init), classes=3).double()
    initialise(net, seed=1)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            matrix = module.weight.flatten(1)
            product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            rows = slice(None) if init == "orthogonal" or matrix.shape[0] == module.in_channels else slice(0)
            torch.testing.assert_close(product[rows], 2 * torch.eye(len(product)).double()[rows], msg=name)
    x = torch.randn(2, 16, 7, 7, dtype=torch.float64)
    ratio = net.layer1[1].conv1(x).norm() / x.norm()
    assert (abs(ratio.item() - math.sqrt(2)) < 1e-9) == (init == "delta-orthogonal")
    again = build_network(net_config("cifar-resnet-20", init=init), classes=3).double()
    initialise(again, seed=1)
    assert torch.equal(again.layer3[2].conv2.weight, net.layer3[2].conv2.weight)
    initialise(again, seed=2)
    assert not torch.equal(again.layer3[2].conv2.weight, net.layer3[2].conv2.weight)


@pytest.mark.parametrize("order", ["original", "pre-activation"])
def test_skip_init_is_a_learnt_factor_of_the_residual_branch(order: str) -> None:
    """y = x + gain F(x), at first x; timm multiplies by its `skipinit_gain` at the same place."""
    changes = {"order": order, "widths": (4, 6, 8)}
    net = build_network(net_config("cifar-resnet-20-nobn", addition={"kind": "skip-init"}, **changes), classes=3)
    initialise(net, seed=1)
    unit, x = net.layer1[1], torch.rand(2, 4, 5, 5)
    assert torch.equal(unit(x), x)
    bare = build_network(net_config("cifar-resnet-20-nobn", **changes), classes=3)
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if "skip_init" not in k})
    torch.nn.init.constant_(unit.skip_init.gain, 0.25)
    residual = bare.layer1[1]._through((*unit.before, *bare.layer1[1].residual), x)
    expected = x + 0.25 * residual
    torch.testing.assert_close(unit(x), expected.relu() if order == "original" else expected)
    half = build_network(net_config("cifar-resnet-20", addition={"kind": "skip-init", "gain": 0.5}), classes=3)
    initialise(half, seed=1)
    assert {m.gain.item() for m in half.modules() if isinstance(m, SkipInit)} == {0.5}


def test_skip_init_keeps_what_explodes_without() -> None:
    """De and Smith 2020, section 4: a residual network of 110 layers without batch norm."""
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    deviations = []
    for changes in ({}, {"addition": {"kind": "skip-init"}}):
        net = build_network(net_config("cifar-preact-110-nobn", **changes), classes=3)
        initialise(net, seed=1)
        deviations.append(net(images).std().item())
    assert deviations[0] > 1e3 * deviations[1]


class PapersFixup(torch.nn.Module):
    """Zhang, Dauphin, Ma 2019, figure 1 (right) and section 3, written from the paper: one unit after the other."""

    def __init__(self, net: torch.nn.Module, units: int, convolutions: int) -> None:
        super().__init__()
        self.weights = dict(net.named_parameters())
        self.units, self.convolutions = units, convolutions

    def forward(self, x: Tensor) -> Tensor:
        w = self.weights
        x = F.relu(F.conv2d(x, w["conv1.weight"], padding=1) + w["bn1.bias"])
        for stage, unit in itertools.product((1, 2, 3), range(self.units)):
            name, m = f"layer{stage}.{unit}", self.convolutions
            stride, out = 2 if stage > 1 and unit == 0 else 1, x
            for i in range(1, m + 1):
                kernel = w[f"{name}.conv{i}.weight"]
                # The stride of a bottleneck is on its first convolution here.
                out = F.conv2d(
                    out + w[f"{name}.bias{i}.bias"], kernel, None, stride if i == 1 else 1, kernel.shape[-1] // 2
                )
                out = (
                    F.relu(out + w[f"{name}.bn{i}.bias"])
                    if i < m
                    else w[f"{name}.scale.gain"] * out + w[f"{name}.bn{m}.bias"]
                )
            if (projection := w.get(f"{name}.downsample.0.weight")) is not None:
                x = F.conv2d(x + w[f"{name}.bias1.bias"], projection, stride=stride)
            elif stride == 2:
                x = (x + w[f"{name}.bias1.bias"])[:, :, ::2, ::2]
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = F.relu(out + x)
        return F.linear(x.mean((2, 3)) + w["bn_last.bias"], w["fc.weight"], w["fc.bias"])


@pytest.mark.parametrize(
    ("base", "units", "convolutions"), [("cifar-resnet-20", 3, 2), ("cifar-resnet-29-bottleneck", 3, 3)]
)
def test_fixup_is_the_papers(base: str, units: int, convolutions: int) -> None:
    """Its function for any weights; its weights at first; and that all of them learn from the second step on."""
    cfg = net_config(base, norm="fixup")
    net = build_network(cfg, classes=3).double()
    initialise(net, seed=1)
    bare = build_network(net_config(base, norm="none"), classes=3).double()
    initialise(bare, seed=1)
    he = dict(bare.named_parameters())
    scale = (3 * units) ** (-1 / (2 * convolutions - 2))
    for name, parameter in net.named_parameters():
        if name.startswith("fc.") or f".conv{convolutions}." in name or name.endswith(".bias"):
            assert not parameter.any(), name
        elif name.endswith("scale.gain"):
            assert parameter == 1
        else:
            inner = name.startswith("layer") and "downsample" not in name
            torch.testing.assert_close(parameter, he[name] * (scale if inner else 1), msg=name)
    assert {p.dim() for name, p in net.named_parameters() if "bias" in name and name != "fc.bias"} == {1}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())

    images, optimizer = torch.randn(4, 3, 16, 16).double(), torch.optim.SGD(net.parameters(), lr=0.1)
    assert not net(images).any()
    for _ in range(3):  # the head learns first, then the last convolutions of F, then the others
        optimizer.zero_grad()
        F.cross_entropy(net(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in net.parameters())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    torch.testing.assert_close(net(images), PapersFixup(net, units, convolutions)(images))


def test_wide_dropout_is_between_the_convolutions_of_a_unit() -> None:
    unit = build_network(net_config("wrn-16-2-dropout"), classes=3).layer1[1]
    assert unit.residual == ("conv1", "bn2", "relu", "dropout", "conv2")
    assert unit.dropout.p == 0.3
    assert "dropout" not in build_network(net_config("wrn-16-2"), classes=3).layer1[1].residual


@pytest.mark.parametrize("name", ["vgg-16", "vgg-19-bn"])
def test_vgg_is_torchvisions_and_trains(name: str) -> None:
    net = build_network(net_config(name), classes=5, channels=1)
    initialise(net, seed=1)
    assert (
        net.state_dict().keys()
        == getattr(torchvision.models, name.replace("-", "", 1).replace("-", "_"))().state_dict().keys()
    )
    net(torch.rand(2, 1, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_figures_of_the_wide_and_the_pre_activation_papers() -> None:
    """Millions of parameters: Zagoruyko and Komodakis 2016, tables 2, 4 and 8; He et al. 2016, table 6."""
    millions = {"wrn-40-4": 8.9, "wrn-16-8": 11.0, "wrn-28-10": 36.5, "wrn-50-2": 68.9, "cifar-preact-164": 1.7}
    for name, wanted in millions.items():
        assert round(cost(name).params / 1e6, 1) == wanted
    assert [net_config(name).depth for name in ("cifar-preact-164", "cifar-preact-1001", "preact-resnet-200")] == [
        164,
        1001,
        200,
    ]


@pytest.mark.parametrize(
    ("base", "kernels", "units", "millions"),
    [
        ("wrn-40-2", [1, 3, 1], 6, 1.4),
        ("wrn-40-2", [3, 1], 6, 1.2),
        ("wrn-40-2", [1, 3], 6, 1.3),
        ("wrn-40-2", [3, 1, 1], 6, 1.3),
        ("wrn-28-2", [3, 3], 4, 1.5),
        ("wrn-22-2", [3, 1, 3], 3, 1.1),
        ("wrn-40-2", [3], 12, 2.2),
        ("wrn-40-2", [3, 3], 6, 2.2),
        ("wrn-40-2", [3, 3, 3], 4, 2.2),
        ("wrn-40-2", [3, 3, 3, 3], 3, 2.2),
    ],
)
def test_block_types_are_those_of_the_wide_paper(base: str, kernels: list[int], units: int, millions: float) -> None:
    """Zagoruyko and Komodakis 2016, tables 2 and 3, parameters.

    The depths of table 2 are those of two convolutions in a unit: its 40 means 6 units in each stage.
    """
    cfg = net_config(base, kernels=tuple(kernels), depths=(units,) * 3)
    net = build_network(cfg, classes=10)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions
    sizes = [m.kernel_size[0] for name, m in net.named_modules() if re.fullmatch(r"layer\d\.\d+\.conv\d", name)]
    assert sizes == kernels * 3 * units
    assert cfg.depth == len(sizes) + 2
    assert complexity.network_complexity(cfg, 32, 10).macs == hand_counted_macs(kernels, units)
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert net.layer2[0].conv1.stride == (2, 2)


def hand_counted_macs(kernels: list[int], units: int) -> int:
    """Multiply-adds of a WRN of width 2 on 32x32 images: the paper's table 1, with 1x1 shortcuts where widths change."""
    total, w_in = 3 * 16 * 9 * 32**2 + 128 * 10, 16
    for width, pixels in ((32, 32**2), (64, 16**2), (128, 8**2)):
        total += w_in * width * pixels  # the shortcut
        for w_first in (w_in, *[width] * (units - 1)):
            total += sum((width if i else w_first) * width * k * k * pixels for i, k in enumerate(kernels))
        w_in = width
    return total


def test_figures_of_the_wide_networks_of_basic_units() -> None:
    """Zagoruyko and Komodakis 2016, table 7: ImageNet networks, whose stem keeps its width."""
    millions = {"wrn-18-1": 11.7, "wrn-18-2": 45.6, "wrn-18-3": 101.8, "wrn-34-1": 21.8, "wrn-34-2": 86.0}
    for name, wanted in millions.items():
        assert (net_config(name).stem, net_config(name).unit) == ("imagenet", "basic")
        assert round(complexity.network_complexity(net_config(name), 224, 1000).params / 1e6, 1) == wanted


def test_152_layers_cost_less_than_vgg() -> None:
    """He et al. 2015, section 3.3: VGG-16 and VGG-19 are of 15.3 and 19.6 billion, to the few tenths of its roundings."""
    assert cost("vgg-16").macs / 1e9 == pytest.approx(15.3, abs=0.2)
    assert cost("vgg-19").macs / 1e9 == pytest.approx(19.6, abs=0.1)
    assert cost("resnet-152").macs < cost("vgg-16").macs


def test_a_unit_without_its_residual_branch_is_its_shortcut() -> None:
    net = build_network(net_config("cifar-resnet-20"), classes=3).eval()
    unit, x = net.layer1[1], torch.rand(2, 16, 4, 4)
    unit.dropped = True
    assert torch.equal(unit(x), x)


def test_a_plain_net_starts_from_its_residual_partners_weights() -> None:
    plain, residual = (build_network(net_config(f"{kind}-50"), classes=7) for kind in ("plain", "resnet"))
    initialise(plain, seed=3), initialise(residual, seed=3)
    shared = residual.state_dict()
    assert plain.state_dict().keys() < shared.keys()
    assert all(torch.equal(weight, shared[key]) for key, weight in plain.state_dict().items())
    initialise(plain, seed=4)
    assert not torch.equal(plain.conv1.weight, residual.conv1.weight)


def test_initialisation_is_hes() -> None:
    net = build_network(net_config("resnet-50"), classes=1000)
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
    net = build_network(cfg, classes=3, channels=1)
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
    for n in sorted(set(range(1, 40)) - {27}):  # 164 is the bottleneck of He et al. 2016
        assert net_config(f"cifar-resnet-{6 * n + 2}").depths == (n, n, n)
    with pytest.raises(BadInput, match="cifar-resnet-8"):
        zoo.network_fields("cifar-resnet-2")
