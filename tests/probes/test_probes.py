"""Probes: against autograd, by hand, and without a trace."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import figures, same_weights
from matplotlib.figure import Figure

from resnet_train.analysis import style
from resnet_train.config import zoo
from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader, normalize
from resnet_train.errors import BadInput
from resnet_train.models.network import Network, build_network, initialise
from resnet_train.probes import figures as probe_figures
from resnet_train.probes.gradients import gradient_norms, gradient_tensors, scale_weights
from resnet_train.probes.lesions import lesion_errors
from resnet_train.probes.measure import run_probe
from resnet_train.probes.responses import response_deviations
from resnet_train.runs import run_folder
from resnet_train.runtime.distributed import World
from resnet_train.training.step import create_train_state, train_step

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]

IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def network(name: str, **changes: Any) -> Network:
    net = build_network(zoo.network_config(name, **{"widths": (4, 6, 8), **changes}), 3).double()
    initialise(net, seed=1)
    return net  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("cifar-plain-20", "original"),
        ("cifar-resnet-20", "relu-only-pre-activation"),
        ("cifar-preact-20", "pre-activation"),
    ],
)
def test_gradients_are_autograds(name: str, order: str) -> None:
    net = network(name, order=order, **({"dropout": 0.5} if name == "cifar-resnet-20" else {}))
    result = gradient_norms(net, IMAGES, LABELS)
    plain = copy.deepcopy(net).train()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    inputs: dict[str, torch.Tensor] = {}
    x = plain.relu(plain.bn1(plain.conv1(IMAGES)))
    for place, unit in plain.units().items():
        inputs[place] = x
        x.retain_grad()
        x = unit(x.clone())
    loss = F.cross_entropy(plain.fc(plain.relu_last(plain.bn_last(x)).mean((2, 3))), LABELS)
    loss.backward()
    assert list(result["units"]) == list(inputs)
    for place, value in result["units"].items():
        assert value == pytest.approx(inputs[place].grad.norm().item(), rel=1e-5)
    for place, value in result["weights"].items():
        assert value == pytest.approx(plain.get_submodule(place).weight.grad.norm().item(), rel=1e-5)
    assert len(result["weights"]) == 19


@pytest.mark.parametrize("order", ["pre-activation", "relu-only-pre-activation", "relu-before-addition"])
def test_the_two_parts_of_a_gradient_add_up(order: str) -> None:
    """He et al. 2016, equation 5; each part is caught at a place of its own."""
    splits = gradient_tensors(network("cifar-resnet-32", order=order), IMAGES, LABELS).splits
    assert list(splits) == [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(5) if (s, i) not in ((2, 0), (3, 0))]
    for split in splits.values():
        torch.testing.assert_close(split.identity + split.residual, split.total, rtol=1e-10, atol=1e-14)
        assert split.residual.norm() > 0
    assert torch.equal(splits["layer1.0"].identity, splits["layer1.4"].identity)
    assert "carried" not in gradient_norms(network("cifar-resnet-20"), IMAGES, LABELS)  # a ReLU follows the addition


@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("shortcut", ["none", "A"])
def test_scaled_weights_give_the_gradient_of_the_formula(shortcut: str, scale: float) -> None:
    """Of linear units, x + B A x with shortcuts and B A x without, on images of one pixel: dE/dx_l is a product of
    (1 + B A) or of B A, times dE/dx_L (He et al. 2016, equation 5)."""
    net = network("cifar-preact-8-nobn", depths=(5,), widths=(4,), shortcut=shortcut)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.ReLU):
            net.set_submodule(name, torch.nn.Identity())
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.bias)
    images, parameters = IMAGES[:, :, :1, :1], dict(net.named_parameters())

    def linear(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return parameters[f"{name}.weight"][:, :, 1, 1], parameters[f"{name}.bias"]

    stem, bias = linear("conv1")
    x, jacobians = images[:, :, 0, 0] @ stem.T + bias, []
    for i in range(5):
        (a, one), (b, two) = linear(f"layer1.{i}.conv1"), linear(f"layer1.{i}.conv2")
        identity = torch.eye(4, dtype=torch.float64) * (shortcut == "A")
        jacobians.append(identity + scale**2 * b @ a)
        x = x @ identity + (x @ (scale * a).T + one) @ (scale * b).T + two
    logits = x @ net.fc.weight.T + net.fc.bias
    gradient = (logits.softmax(1) - F.one_hot(LABELS, 3)) / len(LABELS) @ net.fc.weight
    expected, at_end = [], gradient.norm().item()
    for jacobian in reversed(jacobians):
        gradient = gradient @ jacobian
        expected.insert(0, gradient.norm().item())
    result = gradient_norms(scale_weights(net, scale), images, LABELS)
    assert list(result["units"].values()) == pytest.approx(expected, rel=1e-10)
    if shortcut == "A":
        assert list(result["carried"].values()) == pytest.approx([at_end] * 5, rel=1e-10)
        assert scale > 1e-3 or expected[0] == pytest.approx(at_end, rel=1e-4)


def test_a_scale_that_the_network_divides_out_is_refused() -> None:
    for net in (network("cifar-plain-8"), network("cifar-plain-8-nobn", dirac=True)):
        with pytest.raises(BadInput, match="no effect with batch norm, nor with dirac"):
            scale_weights(net, 0.1)


def test_responses_of_a_deep_stem_are_of_each_convolution() -> None:
    net = network("resnet-18", stem_type="deep", widths=(4, 4, 8, 8))
    layers = response_deviations(net, torch.randn(2, 3, 64, 64, dtype=torch.float64))["layers"]
    assert list(layers)[:4] == ["conv1.0", "conv1.3", "conv1.6", "layer1.0.conv1"]
    assert layers["conv1.6"] == pytest.approx(1, abs=1e-2)  # after bn1


def test_gradients_of_a_plain_network_fall_as_the_power_of_its_depth() -> None:
    """With ReLUs, which a scale leaves as they are, over 106 convolutions, below what a float32 holds."""
    images = IMAGES.float()
    net = network("cifar-plain-110-nobn").float()
    one, scaled = (gradient_norms(scale_weights(net, scale), images, LABELS)["units"] for scale in (1, 0.01))
    ratio = [values["layer1.0"] / values["layer3.17"] for values in (one, scaled)]
    assert ratio[1] / ratio[0] == pytest.approx(0.01 ** (2 * 53), rel=1e-6)
    residual = network("cifar-preact-110-nobn").float()
    small = gradient_norms(scale_weights(residual, 0.01), images, LABELS)["units"]
    assert small["layer1.0"] > 0.5 * small["layer3.17"]
    gradients = [gradient_norms(net, images, LABELS)["units"]["layer1.0"] for net in (net, scale_weights(net, 1))]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-2)


def test_responses_are_those_of_figure_7() -> None:
    net = network("cifar-resnet-20").train()
    torch.nn.init.constant_(net.layer1[0].bn2.weight, 0.25)
    result = response_deviations(net, IMAGES)["layers"]
    assert list(result)[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert len(result) == 19
    assert result["layer1.0.conv1"] == pytest.approx(1, abs=1e-2)  # batch norm makes it so
    assert result["layer1.0.conv2"] == pytest.approx(0.25, abs=1e-2)
    pre = network("cifar-preact-20")
    caught: list[float] = []
    pre.layer3[2].conv2.register_forward_hook(lambda _, __, out: caught.append(out.std().item()))
    pre.train()(IMAGES)
    assert response_deviations(pre, IMAGES)["layers"]["layer3.2.conv2"] == pytest.approx(caught[0], rel=1e-5)
    for name in ("vgg-16", "vgg-16-bn"):
        vgg = build_network(zoo.network_config(name), 3)
        initialise(vgg, seed=1)
        caught.clear()
        vgg.features[1 if name.endswith("bn") else 0].register_forward_hook(
            lambda _, __, out: caught.append(out.std().item())
        )
        images = torch.randn(4, 3, 32, 32)
        result = response_deviations(vgg, images)["layers"]
        vgg.train()(images)
        assert (len(result), result["features.0"]) == (13, pytest.approx(caught[-1], rel=1e-5))
    bottleneck = network("cifar-preact-29-bottleneck")
    assert list(response_deviations(bottleneck, IMAGES)["layers"])[:2] == ["conv1", "layer1.0.conv2"]


def measured(figures: dict[str, float | None]) -> list[str]:
    return [name for name, value in figures.items() if value is not None]


@pytest.mark.parametrize("kind", ["resnet", "plain", "preact"])
def test_lesions_are_those_of_a_network_changed_by_hand(kind: str) -> None:
    net = network(f"cifar-{kind}-20").eval()

    def outputs(net: torch.nn.Module) -> float:
        with torch.no_grad():
            return net(IMAGES).sum().item()

    silent = net.layer1[1]
    if kind == "resnet":
        torch.nn.init.zeros_(silent.bn2.weight)
    result = lesion_errors(net, outputs)
    whole = result["whole"]["whole"]
    shape_keeping = [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3) if s == 1 or i]
    everything = [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3)]
    assert list(result["dropped"]) == everything
    assert measured(result["dropped"]) == (shape_keeping if kind == "plain" else everything)
    assert (result["dropped"]["layer1.1"] == whole) == (kind == "resnet")
    assert result["dropped"]["layer2.1"] != whole
    first = [] if kind == "preact" else ["layer1.0 layer1.1"]
    assert len(result["swapped"]) == 8
    assert measured(result["swapped"]) == [*first, "layer1.1 layer1.2", "layer2.1 layer2.2", "layer3.1 layer3.2"]
    swapped = copy.deepcopy(net)
    swapped.layer2 = torch.nn.Sequential(net.layer2[0], net.layer2[2], net.layer2[1])
    assert result["swapped"]["layer2.1 layer2.2"] == outputs(swapped)


def test_a_probe_leaves_no_trace() -> None:
    net = network("wrn-16-1-dropout").train()
    F.cross_entropy(net(IMAGES), LABELS).backward()
    before, gradients = copy.deepcopy(net), [parameter.grad.clone() for parameter in net.parameters()]
    random = torch.get_rng_state()
    gradient_norms(net, IMAGES, LABELS)
    response_deviations(net, IMAGES)
    lesion_errors(net, lambda net: net(IMAGES).sum().item())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())
    for (name, a), b in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_probe_in_the_middle_of_training_leaves_no_trace(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(
        networks=[{"base": "cifar-preact-8", "widths": [4, 8, 8], "dropout": 0.2}],
        train={"ema_decay": 0.9, "batch_size": 8},
    )
    world = World(torch.device("cpu"))
    train_set, val_set = datasets.open_data(run.data)
    data, normalization = (
        loader.training_data(run, train_set, 0, 0, 1, world.device),
        normalize.statistics(run, train_set),
    )
    state = create_train_state(run, 4, 3, world)
    for share in data.from_step(0, until=3):
        train_step(state, share, normalization, 0.1, run.train)
    assert state.ema is not None

    def everything() -> list[Any]:
        gradients = [parameter.grad for parameter in state.net.parameters()]
        dicts = [state.net.state_dict(), state.ema.state_dict(), state.optimizer.state_dict()]
        return copy.deepcopy(torch.utils._pytree.tree_leaves([dicts, gradients, state.sums, torch.get_rng_state()]))

    before, training = everything(), [module.training for module in state.net.modules()]
    for kind, source in (("gradients", train_set), ("responses", train_set), ("lesion", val_set)):
        for net in (state.net, state.ema):
            run_probe(kind, net, run, source, 8, normalization, world.device)
    assert [module.training for module in state.net.modules()] == training
    for a, b in zip(everything(), before, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


PROBES = {"gradients": {"every": {"steps": 3}, "images": 8}, "responses": {}, "lesion": {"images": 14}}


def test_a_run_with_probes_is_the_run_without_them_and_resumes_exactly(config: Config, program: Program) -> None:
    networks = [{"base": "cifar-resnet-8", "widths": [4, 8, 8], "dropout": 0.2}]
    assert program("run", config(networks=networks, name="without"))[0] == 0
    path = config(networks=networks, name="with", probes=PROBES, train={"ema_decay": 0.5})
    assert program("run", path, "train.ema_decay=null")[0] == 0
    one, other = (Path(f"runs/{name}/cifar-resnet-8/seed-0") for name in ("without", "with"))
    assert same_weights(one / "checkpoints/last.pt", other / "checkpoints/last.pt")
    kinds = ("gradients", "responses", "lesion")
    assert [r for r in figures(other) if r["kind"] not in kinds] == figures(one)
    probed = [(r["kind"], r["step"]) for r in figures(other) if r["kind"] in kinds]
    assert [step for kind, step in probed if kind == "gradients"] == [0, 3, 6, 8]
    assert [step for kind, step in probed if kind == "lesion"] == [8]
    assert (other / "gradients.png").stat().st_size > 5000
    share = [json.loads(line).get("probe_share") for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert 0 < max(s for s in share if s is not None) < 1

    assert program("run", path, "name=parts", "train.ema_decay=null")[0] == 0
    parts = Path("runs/parts/cifar-resnet-8/seed-0")
    (parts / "checkpoints/last.pt").unlink()  # the one before it is of step 6
    records = (parts / "metrics.jsonl").read_text().splitlines()
    (parts / "metrics.jsonl").write_text("\n".join(r for r in records if json.loads(r)["kind"] != "end") + "\n")
    assert program("run", path, "name=parts", "train.ema_decay=null")[0] == 0
    assert figures(parts) == figures(other)


def test_the_command_draws_networks_side_by_side(config: Config, program: Program) -> None:
    assert program("run", config(probes=PROBES))[0] == 0
    folder = "runs/tiny/cifar-resnet-8/seed-0"
    for kind in ("gradients", "responses", "lesion"):
        names = ["cifar-plain-8", "cifar-resnet-8", f"{folder}/checkpoints/last.pt"]
        code, out, err = program("probe", kind, *names, "--data", "synthetic", "--images", 8)
        assert code == 0, err
        assert Path(f"{kind}.png").stat().st_size > 5000
        assert "cifar-plain-8" in out
    code, out, _ = program("probe", "gradients", "cifar-resnet-8", "--data", "digits", "--json", "--images", 8)
    assert (code, list(json.loads(out)["cifar-resnet-8"])) == (0, ["units", "weights"])
    assert program("probe", "gradients", folder, "--out", "map.png")[0] == 0
    assert Path("map.png").exists()
    names = ["cifar-plain-8-nobn", "cifar-preact-8-nobn"]
    scales = ("--data", "synthetic", "--images", 8, "--weight-scale", "1,1e-30", "--out", "scale.png")
    with pytest.MonkeyPatch.context() as patched:
        saved: list[Figure] = []
        save = Figure.savefig
        patched.setattr(Figure, "savefig", lambda figure, *a, **k: (saved.append(figure), save(figure, *a, **k)))
        code, out, err = program("probe", "gradients", *names, *scales)
    assert saved[0].get_suptitle().endswith("8 training images, weights x 1, 1e-30")
    assert (code, out.split()[1:13:3]) == (0, [name for name in names for _ in range(2)]), err
    [summary, *_] = [line.split() for line in out.splitlines() if line.startswith("largest / smallest")]
    assert (float(summary[3]) < 1e3, float(summary[4]) > 1e100, float(summary[6]) < 1e3) == (True, True, True), out
    assert Path("scale.png").stat().st_size > 5000


def test_the_table_of_lesions_says_what_its_numbers_are(program: Program) -> None:
    """Errors in percent; of the whole network there is one, and a ratio of errors says nothing."""
    code, out, err = program("probe", "lesion", "cifar-resnet-8", "--data", "synthetic", "--images", "8")
    assert code == 0, err
    heads = [block.splitlines()[0].split("  ")[0] for block in out.split("\n\n")]
    assert heads == ["whole (error %)", "dropped (error %)", "swapped (error %)"]
    assert [block.count("median") for block in out.split("\n\n")] == [0, 1, 1]
    assert "largest" not in out


def test_the_command_uses_the_precision_of_the_run(config: Config, program: Program, monkeypatch: Any) -> None:
    """Not torch's own default, by which a GPU convolves in tf32; a CPU, which has none, probes such a run, too."""
    assert program("run", config())[0] == 0
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    checkpoint = Path("runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt")
    payload = torch.load(checkpoint, weights_only=True)
    payload["run"]["train"] |= {"precision": "tf32", "device": "auto"}
    torch.save(payload, checkpoint)
    code, _, err = program("probe", "responses", checkpoint, "--images", 8)
    assert code == 0, err
    assert torch.backends.cudnn.allow_tf32 == torch.cuda.is_available()


def test_heat_maps_of_several_runs_are_a_grid(tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    records = [{"kind": "gradients", "step": step, "units": {"0": 1.0, "1": 2.0}} for step in (0, 5)]
    runs = [run_folder.RunRecord(Path("x"), tiny_run(seeds=[seed]), records) for seed in range(3)]
    assert probe_figures.draw_heat_maps(runs, Path("map.png"), None)
    saved[0].draw_without_rendering()
    places = [(round(ax.get_position().x0, 2), round(ax.get_position().y0, 2)) for ax in saved[0].axes[:4]]
    assert len({x for x, _ in places}) == len({y for _, y in places}) == 2
    assert [ax.axison for ax in saved[0].axes[:4]] == [True, True, True, False]
    assert [ax.get_title() for ax in saved[0].axes[:3]] == [f"cifar-resnet-8 seed {seed}" for seed in range(3)]
    del records[1]["units"]["1"]  # as a file that was changed may have it
    assert probe_figures.draw_heat_maps(runs, Path("map.png"), None)


def test_long_titles_of_heat_maps_do_not_overlap(tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    records = [{"kind": "gradients", "step": step, "units": {"0": 1.0, "1": 2.0}} for step in (0, 5)]
    name = "a-network-with-a-name-that-says-all-there-is-to-say-of-it-and-more"
    networks = [{"base": "cifar-resnet-8", "name": f"{name}-{i}"} for i in range(4)]
    runs = [run_folder.RunRecord(Path("x"), tiny_run(networks=[network]), records) for network in networks]
    for width in (None, 3.3):
        assert probe_figures.draw_heat_maps(runs, Path("map.png"), None, style.Output(width=width))
        saved[-1].draw_without_rendering()
        titles = [ax.title.get_window_extent() for ax in saved[-1].axes if ax.get_title()]
        assert len(titles) == 4
        assert not overlap(titles)
        assert all(saved[-1].bbox.contains(*box.min) and saved[-1].bbox.contains(*box.max) for box in titles)


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_a_plain_network_is_left_of_its_residual_partner(
    seeds: int, tiny_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any number of runs; what has no partner follows."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    records = [{"kind": "gradients", "step": step, "units": {"0": 1.0, "1": 2.0, "2": 3.0}} for step in (0, 5)]
    names = [(name, seed) for name in ("resnet-14", "plain-8", "preact-8", "resnet-8") for seed in range(seeds)]
    runs = [
        run_folder.RunRecord(Path("x"), tiny_run(networks=[f"cifar-{name}"], seeds=[seed]), records)
        for name, seed in names
    ]
    assert probe_figures.draw_heat_maps(runs, Path("map.png"), None)
    saved[0].draw_without_rendering()
    panels = [(ax.get_title(), ax.get_position()) for ax in saved[0].axes if ax.get_title()]
    assert len(panels) == len(names)
    for seed in range(seeds):
        (plain, place), (residual, right) = panels[2 * seed : 2 * seed + 2]
        assert plain == f"cifar-plain-8 seed {seed}"
        assert residual == f"cifar-resnet-8 seed {seed}"  # which is more like it than cifar-preact-8
        assert (place.y0, place.x0 < right.x0) == (right.y0, True)
    ticks = saved[0].axes[0].get_yticks()
    assert all(tick == round(tick) for tick in ticks)  # there is no unit one and a half


def test_few_units_are_named_and_counted_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of one depth have units in common; others only a relative depth."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    units = {"layer1.0": 1.0, "layer2.0": 2.0, "layer3.0": 3.0}
    networks = {name: zoo.network_config(name) for name in ("cifar-plain-8", "cifar-resnet-8")}
    results: Any = {name: {"units": units} for name in networks}
    probe_figures.draw_side_by_side("gradients", results, networks, Path("x.png"), "digits: gradients of 8 images")
    for ax, name in zip(saved[0].axes, networks, strict=True):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["layer1.0", "layer2.0", "layer3.0"]
        assert list(ax.lines[0].get_xdata()) == [1, 2, 3]
        assert ax.lines[0].get_color() == style.hue("plain" if "plain" in name else "residual")
    assert saved[0].get_suptitle() == "digits: gradients of 8 images"
    swapped = {"layer1.0 layer2.0": None}
    lesions: Any = {name: {"dropped": units, "swapped": swapped, "whole": {"whole": 5.0}} for name in networks}
    probe_figures.draw_side_by_side("lesion", lesions, networks, Path("x.png"))
    assert len(saved.pop().axes) == 2  # no axes for neighbours that there are not
    networks["cifar-resnet-14"] = zoo.network_config("cifar-resnet-14")
    results["cifar-resnet-14"] = {"units": {f"layer{i}.{j}": 1.0 for i in (1, 2, 3) for j in (0, 1)}}
    probe_figures.draw_side_by_side("gradients", results, networks, Path("x.png"))
    assert list(saved[1].axes[1].lines[0].get_xdata()) == [0, 0.5, 1]


@pytest.mark.parametrize("kind", ["gradients", "responses"])
def test_networks_without_a_finite_value_have_an_empty_panel(kind: str, tmp_path: Path) -> None:
    results: Any = {
        "cifar-plain-8": {"units" if kind == "gradients" else "layers": {"layer1.0": None, "layer2.0": None}}
    }
    networks = {"cifar-plain-8": zoo.network_config("cifar-plain-8")}
    for width in (None, 3.0):
        probe_figures.draw_side_by_side(kind, results, networks, tmp_path / "x.png", output=style.Output(width=width))
    assert (tmp_path / "x.png").is_file()


def overlap(boxes: list[Any]) -> bool:
    return any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("width", [None, 3.3])
@pytest.mark.parametrize("count", [1, 11])
def test_nothing_covers_the_curves_of_probes(count: int, width: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One legend below the panels has every network; labels of ticks and axes do not overlap."""
    saved: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    names = [f"cifar-{kind}-{depth}" for depth in range(8, 8 + 6 * count, 6) for kind in ("plain", "resnet", "preact")]
    networks = {name: zoo.network_config(name) for name in names}
    places = ["conv1", *(f"layer{i}.0.conv{k}" for i in (1, 2, 3) for k in (1, 2))]
    places += [f"layer3.{i}.conv1" for i in range(1, count)]
    values = {place: 0.1 + i / 200 for i, place in enumerate(places)}
    results: Any = {name: {"units": values, "weights": values, "carried": {}, "through": {}} for name in names}
    for name in names[2::3]:
        results[name] |= {"carried": values, "through": values}
    probe_figures.draw_side_by_side("gradients", results, networks, Path("x.png"), "digits", style.Output(width=width))
    [figure] = saved
    figure.draw_without_rendering()
    [legend] = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(names)
    below = legend.get_window_extent()
    assert figure.bbox.x0 <= below.x0 < below.x1 <= figure.bbox.x1
    panels = [ax for ax in figure.axes if ax.axison]
    assert all(ax.lines for ax in panels)
    assert not any(below.overlaps(ax.get_tightbbox()) for ax in panels)
    assert not overlap([ax.yaxis.label.get_window_extent() for ax in panels if ax.get_ylabel()])
    for ax in panels:
        low, high = ax.get_ylim()
        for axis in (ax.xaxis, ax.yaxis):
            labels = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_text()]
            if all(label.get_rotation() == 0 for label in labels):
                assert not overlap([label.get_window_extent() for label in labels])
        shown = [float(tick.label1.get_text()) for tick in ax.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        assert len(shown) >= 2


def test_what_cannot_be_probed_is_one_line(config: Config, program: Program) -> None:
    messages = {
        ("gradients", "cifar-resnet-8"): "cifar-resnet-8 is untrained and has no data: give --data",
        ("gradients", "vgg-16", "--data", "synthetic"): "a VGG has no units to probe",
        ("lesion", "none.pt"): "none.pt: no such checkpoint",
        ("responses", "."): "run folders are for `probe gradients`",
        ("gradients", "cifar-resnet-9", "--data", "digits"): "depths are 6n+2",
        ("gradients", "cifar-plain-8", "--data", "digits", "--weight-scale", "0.1"): "nor with dirac: give",
        ("gradients", "vgg-16", "--data", "synthetic", "--weight-scale", "0.1"): "a VGG has no units to probe",
        ("gradients", ".", "--weight-scale", "0.1"): "--weight-scale is for networks, and run folders hold",
        ("lesion", "cifar-plain-8-nobn", "--weight-scale", "1"): "--weight-scale is for `probe gradients`, not for",
    }
    for arguments, message in messages.items():
        code, out, err = program("probe", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert message in err
    path = config(networks=["vgg-16"], probes=PROBES, data={"size": 32})
    code, _, err = program("run", path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{path}: vgg-16 has no units to probe: remove probes.gradients and probes.lesion" in err


def test_a_heat_map_that_could_not_be_drawn_is_drawn_by_the_next_run(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is finished only once nothing is left to do."""
    path = config(probes={"gradients": {}}, train={"steps": 2})
    with monkeypatch.context() as patched:
        patched.setattr(probe_figures, "draw_heat_maps", lambda *_: Path("not there").stat())
        code, _, err = program("run", path)
        assert (code, len(err.splitlines()[-1:])) == (2, 1), err
    assert program("run", path)[0] == 0
    assert Path("runs/tiny/cifar-resnet-8/seed-0/gradients.png").exists()
