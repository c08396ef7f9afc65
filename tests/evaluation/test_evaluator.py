"""Protocols of evaluation: views, ensembles, stored logits, other programs' weights, what was confused."""

import contextlib
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import TINY, spawn
from PIL import Image
from torchvision.transforms import v2

from resnet_train import cli
from resnet_train.config.merge import merge
from resnet_train.data import datasets
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.views import apply_views
from resnet_train.evaluation import confusion, ensemble, evaluator, pretrained
from resnet_train.evaluation.evaluator import EnsembleMember
from resnet_train.evaluation.logits import Logits
from resnet_train.evaluation.protocols import views_of
from resnet_train.models.network import Network
from resnet_train.runtime.distributed import World

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]
CPU = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of several sizes in three classes of which one can be recognised by its colour, and two networks trained
    for some steps on it. To be copied."""
    random = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("once")
    for part, count in (("train", 4), ("val", 7)):
        for label, name in enumerate(("a", "b", "c")):
            folder = root / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 160, (44 + 7 * (i % 3), 60 - 6 * (i % 2), 3), dtype=np.uint8)
                pixels[..., (label + (i == 0)) % 3] += 60  # the first of each class is a mistake to make
                Image.fromarray(pixels).save(folder / f"{i}.png")
    changes = {
        "data": {"kind": "imagefolder", "path": "photos", "workers": 0},
        "networks": [{"base": f"cifar-{kind}-8", "widths": [4, 8, 8]} for kind in ("resnet", "plain")],
        "augment": {"crop": {"kind": "random-resized", "size": 32}},
    }
    (root / "tiny.yaml").write_text(yaml.safe_dump(merge(TINY, changes)))
    with contextlib.chdir(root):
        assert cli.main(["run", "tiny.yaml"]) == 0
    return root


@pytest.fixture
def photos(once: Path) -> Path:
    return shutil.copytree(once / "photos", Path("photos"))


@pytest.fixture
def runs(once: Path, photos: Path) -> list[str]:
    """Checkpoints of the two networks, whose photos are beside them."""
    shutil.copytree(once / "runs", Path("runs"))
    return [f"runs/tiny/cifar-{kind}-8/seed-0/checkpoints/last.pt" for kind in ("resnet", "plain")]


def figures(program: Program, *arguments: object) -> list[dict[str, Any]]:
    code, out, err = program("eval", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)  # type: ignore[no-any-return]


@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize("protocol", ["ten-crop", "multi-scale", "multi-scale-dense"])
def test_every_average_is_that_of_one_image_at_a_time(protocol: str, average: str, runs: list[str]) -> None:
    """Against a loop over images, networks and views, one at a time, in float64."""
    sides = ["eval.short_sides=[32, 40, 56]"] if protocol.startswith("multi-scale") else []
    overrides = [f"eval.protocol={protocol}", f"eval.average={average}", *sides, "eval.batch_size=4"]
    loaded = [pretrained.load(path, overrides=overrides) for path in runs]
    run = loaded[0].run
    val = datasets.open_validation(run.data)
    nets = [evaluator.as_evaluated(one.network, run) for one in loaded]
    members = [EnsembleMember(net, one.normalization, "fp32") for net, one in zip(nets, loaded, strict=True)]
    results = evaluator.evaluate(members, evaluator.evaluation_data(run, val, CPU), average, CPU)
    views = views_of(run.view, run.eval)
    for i in range(len(val)):
        scores = []
        for image in apply_views(val.decoded(i), views):
            for one, net in zip(loaded, nets, strict=True):
                batch = EvaluationData(val.subset(np.array([i])), views[:1], 1, CPU.device)
                [known] = list(batch.batches())
                pixels = known._replace(images=torch.from_numpy(image.copy())[None])
                with torch.no_grad():
                    scores.append(net(one.normalization(pixels))[0].double())
        table = torch.stack(scores)
        p = table.softmax(1).mean(0) if average == "softmax" else table.mean(0).softmax(0)
        ensemble = results[2]
        assert ensemble.predicted[i] == p.argmax()
        assert ensemble.confidence[i].item() == pytest.approx(p.max().item(), rel=1e-5)
        assert ensemble.loss[i].item() == pytest.approx(-p[int(val.labels[i])].log().item(), rel=1e-5)
    assert results[0].errors() != results[1].errors()


def test_the_dense_form_is_the_head_as_a_convolution_after_a_sliding_pooling(runs: list[str]) -> None:
    """He et al. 2015, section 3.4, against its definition in float64: of larger, equal and smaller maps than the crop's."""
    loaded = pretrained.load(runs[0], overrides=["eval.protocol=multi-scale-dense"])
    net = loaded.network.double()
    dense = evaluator.as_evaluated(net, loaded.run)
    assert isinstance(net, Network)
    head = torch.nn.functional.conv2d
    for size in ((32, 32), (56, 40), (36, 24), (20, 20)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        last = net.last_map(images)
        window = [min(8, side) for side in last.shape[2:]]  # 32 pixels are halved twice
        scores = head(torch.nn.functional.avg_pool2d(last, window, 1), net.fc.weight[:, :, None, None], net.fc.bias)
        torch.testing.assert_close(dense(images), scores.mean(dim=(2, 3)))
        is_same = size in ((32, 32), (20, 20))
        assert torch.allclose(dense(images), net(images)) == is_same
    assert dense.state_dict().keys() == {f"net.{key}" for key in net.state_dict()}


def test_results_under_the_dense_form_are_named(runs: list[str], program: Program) -> None:
    sides = ("--set", "eval.short_sides=[32, 48]")
    [dense], [pooled] = (
        figures(program, runs[0], "--protocol", p, *sides) for p in ("multi-scale-dense", "multi-scale")
    )
    assert "whole image, fully convolutional, shorter sides 32, 48 px, mean of softmax" in dense["protocol"]
    assert "whole image, pooled at once, shorter sides 32, 48 px, mean of softmax" in pooled["protocol"]
    assert dense["loss"] != pooled["loss"]
    Path("vgg.pth").write_bytes(b"")
    arguments = ("vgg.pth", "--network", "vgg-16", "--data", "photos", "--protocol", "multi-scale-dense")
    code, _, err = program("eval", *arguments)
    assert (code, "vgg-16 has no pooling that can slide over its last map: use eval.protocol multi-scale" in err) == (
        2,
        True,
    )


def test_the_dense_form_is_evaluated_and_probed_during_training(photos: Path, config: Config, program: Program) -> None:
    changes: dict[str, Any] = {
        "data": {"kind": "imagefolder", "path": "photos", "workers": 0},
        "networks": [{"base": "cifar-resnet-8", "widths": [4, 8, 8]}],
        "augment": {"crop": {"kind": "random-resized", "size": 32}},
        "train": {"steps": 1, "ema_decay": 0.5},
        "eval": {"protocol": "multi-scale-dense", "short_sides": [40]},
        "probes": {"lesion": {"images": 4}},
    }
    code, _, err = program("run", config(**changes))
    assert code == 0, err
    lines = Path("runs/tiny/cifar-resnet-8/seed-0/metrics.jsonl").read_text().splitlines()
    [recorded] = [record for record in map(json.loads, lines) if record["kind"] == "eval"]
    [again] = figures(program, "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt")
    assert again["loss"] == recorded["val_loss"]


def test_results_are_printed_and_stored_with_their_protocol(
    runs: list[str], photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    draw = confusion._contact_sheet

    def draw_sheet(*given: Any) -> Image.Image:
        titles.append(given[-1])
        return draw(*given)

    monkeypatch.setattr(confusion, "_contact_sheet", draw_sheet)
    [one] = figures(program, runs[0])
    [ten] = figures(program, runs[0], "--protocol", "ten-crop")
    both = figures(program, *runs, "--flip")
    assert [title.partition(":")[0] for title in titles] == [
        "The most confident mistakes of cifar-resnet-8",
        "The most confident mistakes of cifar-resnet-8",
        "The most confident mistakes of ensemble of 2",
    ]
    assert one["protocol"].startswith("validation set; one 32 px crop at the centre, shorter side 37 px; last weights")
    assert "ten 32 px crops (corners, centre, mirror images), shorter side 37 px, mean of softmax" in ten["protocol"]
    assert [row["network"] for row in both] == ["cifar-resnet-8", "cifar-plain-8", "ensemble"]
    assert "and its mirror image" in both[2]["protocol"]
    folder = Path("runs/tiny/cifar-resnet-8/seed-0/evaluation")
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert records == [{**figure, "data": str(photos)} for figure in (one, ten, *both)]
    assert {path.name for path in folder.iterdir()} >= {
        "last-one-crop-mistakes.png",
        "last-ten-crop-classes.csv",
        "ensemble-of-2-one-crop-flip-classes.csv",
    }
    out = program("eval", runs[0])[1]
    assert out.startswith(f"21 images: {one['protocol']}\ncheckpoint")
    assert "worst classes: " in out


def test_confusions_have_the_names_of_the_classes(runs: list[str], program: Program) -> None:
    Path("names.txt").write_text("a ant\nb bee\nc cat, a pet\n")
    assert program("prepare", "photos", "packed", "--class-names", "names.txt")[0] == 0
    folder, names = Path(runs[0]).parents[1] / "evaluation", {"ant", "bee", "cat, a pet"}
    for arguments in (("--data", "packed"), ("--classes", "names.txt", "--save-logits", "one.npz")):
        code, out, err = program("eval", runs[0], *arguments)
        assert (code, err) == (0, "")
        assert out.partition("worst classes: ")[2].startswith(tuple(names))
        rows = list(csv.reader((folder / "last-one-crop-classes.csv").read_text().splitlines()))
        assert {row[0] for row in rows[1:]} == names
        assert {row[3] for row in rows[1:]} <= names | {""}
    Path("short.txt").write_text("a\n")
    code, out, err = program("eval", runs[0], "--classes", "short.txt")
    assert (code, out) == (2, "")
    assert "--classes: short.txt has 1 lines for 3 classes" in err
    code, _, err = program("eval", "one.npz", "--classes", "names.txt")
    assert (code, "--classes has no effect on stored logits" in err) == (2, True)


def test_stored_logits_give_every_result_without_a_network(runs: list[str], program: Program) -> None:
    live = figures(program, *runs, "--protocol", "ten-crop", "--save-logits", "both.npz")
    for i, path in enumerate(runs):
        figures(program, path, "--protocol", "ten-crop", "--save-logits", f"{i}.npz")
        Path(path).unlink()
    for names in (["both.npz"], ["0.npz", "1.npz"]):
        stored = figures(program, *names)
        assert stored == live  # to the last digit
    other = figures(program, "both.npz", "--set", "eval.average=logits")
    assert "mean of logits" in other[2]["protocol"]
    assert other[2]["loss"] != stored[2]["loss"]
    stored_logits = Logits.read(Path("both.npz"))
    assert (stored_logits.values.shape, stored_logits.values.dtype) == ((2, 21, 10, 3), np.float32)


def test_of_equal_scores_the_first_class_counts() -> None:
    """As networks in 16 bits give them. Whether the label is among the first five does not depend on the device."""
    labels = torch.tensor([6, 5, 4, 3, 0, 1])
    logits = torch.tensor([[0.0, 2, 2, 2, 2, 2, 2], [2.0, 2, 2, 2, 2, 2, 0], *[[1.0] * 7] * 3, [torch.nan] * 7])
    [results] = evaluator.results_of(evaluator.score_logits(labels, logits[None, :, None], "softmax"))
    assert results.predicted.tolist()[:5] == [1, 0, 0, 0, 0]
    assert results.hit5.tolist() == [0, 0, 1, 1, 1, 0]


def test_stored_logits_decide_between_close_classes() -> None:
    """Two views of 500 images, one for each of two classes, nearly as sure: class 0 wins where a > b."""
    random = torch.Generator().manual_seed(0)
    a, b = 1 + 1e-4 * torch.randn(2, 500, generator=random)
    zero = torch.zeros(500)
    values = torch.stack([torch.stack([zero, -a], 1), torch.stack([-b, zero], 1)], 1)[None]
    labels = torch.randint(2, (500,), generator=random)
    network = {"checkpoint": "a\udce9.pt", "network": "x", "seed": 0, "step": 1}
    errors = []
    for kept in (values, values.half().float()):
        Logits([network], "two views", ("a", "b\udce9"), labels.numpy(), kept.numpy()).write(Path("close.npz"))
        [record] = ensemble.evaluate_logits(Logits.read(Path("close.npz")))
        errors.append(record["error_top1"])
        assert record["checkpoint"] == "a\udce9.pt"  # the name of a file that is not text
    assert errors[0] == 100 * ((a < b) != labels).double().mean().item()
    assert errors[1] != errors[0]  # 16 bits would decide otherwise


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": np.array([0, 1, 2])}, "labels are 0 to 2, of 2 classes"),
        ({"labels": np.array([0, 1, -1])}, "labels are -1 to 1, of 2 classes"),
        ({"labels": np.array([0, 1, 1.0])}, "labels are float64 [3], not int64 [images]"),
        ({"labels": np.array([0, 1, 1], ">i8")}, "labels are >i8 [3], not int64 [images]"),
        ({"labels": np.array([0, 1])}, "values are float32 [1, 3, 1, 2], not float32 [1, 2, views, 2]"),
        ({"labels": np.array([], int)}, "labels are int64 [0], not int64 [images]"),
        ({"values": np.zeros((1, 3, 1, 2), np.float16)}, "values are float16 [1, 3, 1, 2], not float32 "),
        ({"values": np.zeros((1, 3, 1, 2), ">f4")}, "values are >f4 [1, 3, 1, 2], not float32 "),
        ({"values": np.zeros((1, 3, 0, 2), np.float32)}, "values are float32 [1, 3, 0, 2], not float32 "),
        ({"values": np.float32(3)}, "values are float32 [], not float32 "),
        ({"values": np.array([None])}, "Object arrays cannot be loaded"),
        ({"about": np.array(3)}, "Input should be a valid dictionary"),
        ({"about": np.array("[" * 100_000)}, ""),
        ({"about": np.array('{"networks": [], "protocol": "x", "classes": ["a", "b"]}')}, "networks: List should have"),
        ({"about": np.array('{"networks": [3], "protocol": "x", "classes": ["a", "b"]}')}, "networks.0: Input should"),
    ],
)
def test_a_file_of_another_shape_than_logits_is_one_line(change: dict[str, Any], reason: str, program: Program) -> None:
    header = {"networks": [{"checkpoint": "a", "network": "b", "seed": 0, "step": None}], "protocol": "one view"}
    about = np.array(json.dumps(header | {"classes": ["a", "b"]}))
    content = {"about": about, "labels": np.array([0, 1, 1]), "values": np.zeros((1, 3, 1, 2), np.float32)}
    np.savez("sound.npz", **content)
    assert program("eval", "sound.npz")[0] == 0
    np.savez("x.npz", **(content | change))
    code, out, err = program("eval", "x.npz")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert f"x.npz holds no logits of --save-logits: {reason}" in err


def test_several_ranks_give_the_result_of_one_to_the_last_digit(runs: list[str], program: Program) -> None:
    arguments = ["--protocol", "ten-crop", "--set", "eval.batch_size=4", "--save-logits"]
    outputs = []
    for ranks in (1, 2, 3):
        process = spawn("eval", *runs, *arguments, f"{ranks}.npz", "--json", ranks=ranks)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        outputs.append((json.loads(out), Logits.read(Path(f"{ranks}.npz")).values.tobytes()))
    assert outputs[0] == outputs[1] == outputs[2]


def test_batch_norm_is_recomputed_over_training_images(runs: list[str], program: Program) -> None:
    """Of one batch of all training images they are that batch's, with the unbiased variance that torch keeps."""
    one = pretrained.load(runs[0], overrides=["eval.recompute_bn=12", "eval.batch_size=12"])
    train_set, _ = datasets.open_data(one.run.data)
    net = evaluator.recompute_bn_statistics(one.network, one.run, train_set, one.normalization, CPU)
    views = views_of(one.run.view, one.run.eval)
    [batch] = EvaluationData(train_set, views, 12, CPU.device).batches()
    with torch.no_grad():
        out = net.conv1(one.normalization(batch))
    torch.testing.assert_close(net.bn1.running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.bn1.running_var, out.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert net.bn1.momentum == 0.1
    assert not any(module.training for module in net.modules())
    for batch_size, images in ((5, 10), (12, 12), (256, 12)):  # no batch is smaller than the others
        [record] = figures(program, runs[0], "--set", "eval.recompute_bn=12", "--set", f"eval.batch_size={batch_size}")
        assert f"BN statistics of {images} training images" in record["protocol"]


def test_recomputing_statistics_does_not_change_the_training(config: Config, program: Program) -> None:
    for name, count in (("as-it-is", 0), ("recomputed", 16)):
        assert program("run", config(name=name), f"eval.recompute_bn={count}")[0] == 0
    nets = [
        torch.load(f"runs/{name}/cifar-resnet-8/seed-0/checkpoints/last.pt")["net"]
        for name in ("as-it-is", "recomputed")
    ]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values(), strict=True))


@pytest.mark.parametrize(
    ("name", "theirs"), [("resnet-18", "resnet18"), ("resnet-50", "resnet50"), ("vgg-16-bn", "vgg16_bn")]
)
def test_torchvisions_files_are_evaluated_as_torchvision_does(
    name: str, theirs: str, photos: Path, program: Program
) -> None:
    torch.manual_seed(0)
    net = getattr(torchvision.models, theirs)(num_classes=3).eval()
    torch.save(net.state_dict(), "weights.pth")
    [record] = figures(
        program, "weights.pth", "--network", name, "--data", photos, "--set", "eval.view={resize: 40, crop: 32}"
    )
    preprocess = v2.Compose([v2.Resize(40), v2.CenterCrop(32), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    norm = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    data = torchvision.datasets.ImageFolder(photos / "val", lambda image: norm(preprocess(image)))
    images, labels = (torch.stack(list(map(torch.as_tensor, column))) for column in zip(*data, strict=True))
    with torch.no_grad():
        logits = net(images)
    assert record["error_top1"] == pytest.approx(100 * (logits.argmax(1) != labels).double().mean().item())
    assert record["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_numbered_classes_are_in_the_order_of_their_names_or_of_a_file(photos: Path, program: Program) -> None:
    """0, 10, 2 as torchvision sorts them. Another program may have counted 0, 2, 10: then their numbers differ."""
    for split in ("train", "val"):
        for old, new in zip("abc", ("0", "10", "2"), strict=True):
            (photos / split / old).rename(photos / split / new)
    torch.manual_seed(0)
    weights = torchvision.models.resnet18(num_classes=3).state_dict()
    weights["fc.bias"] = torch.tensor([0.0, 1000.0, 0.0])  # so label 1 is predicted for every image
    torch.save(weights, "18.pth")
    arguments = ["eval", "18.pth", "--network", "resnet-18", "--data", photos]
    arguments += ["--set", "eval.view={resize: 40, crop: 32}"]
    Path("order.txt").write_text("0\n2\n10\n")
    for options, warns, predicted in (([], True, "10"), (["--set", "data.class_map=order.txt"], False, "2")):
        code, out, err = program(*arguments, *options)
        assert (code, "warning: the classes are in the order of their names, 0, 10, 2" in err) == (0, warns)
        assert f"most often taken for {predicted})" in out


def test_what_cannot_be_evaluated_is_one_line(runs: list[str], photos: Path, program: Program, config: Config) -> None:
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "18.pth")
    torch.save([1], "list.pth")
    Path("notes.txt").write_text("hello")
    figures(program, runs[0], "--save-logits", "a.npz")
    figures(program, runs[0], "--flip", "--save-logits", "b.npz")
    Path("cut.npz").write_bytes(Path("a.npz").read_bytes()[:-40])
    messages = {
        ("cut.npz",): "cut.npz holds no logits",
        ("18.pth",): "18.pth holds weights and does not name their network: give --network NAME",
        ("list.pth",): "list.pth is not a checkpoint of resnet-train",
        ("18.pth", "--network", "resnet-18"): "18.pth is a state dict, which knows no data: give --data PATH",
        (
            "18.pth",
            "--network",
            "resnet-34",
            "--data",
            photos,
        ): "18.pth is not of a resnet-34: weight layer1.2.conv1.weight",
        (
            "18.pth",
            "--network",
            "plain-18",
            "--data",
            photos,
        ): "18.pth is not of a plain-18: weight layer2.0.downsample",
        ("list.pth", "--network", "resnet-18", "--data", photos): "list.pth holds no tensors by name",
        ("notes.txt", "--network", "resnet-18", "--data", photos): "notes.txt is damaged or not a file of weights",
        ("notes.txt",): "notes.txt is truncated or not a checkpoint",
        (runs[0], "--network", "resnet-18"): "knows its network: leave --network out",
        ("18.pth", "--network", "resnet-18", "--data", "nowhere"): "--data nowhere: no such folder",
        ("a.npz", runs[0]): "logits and checkpoints do not mix",
        ("a.npz", "b.npz"): "b.npz was taken under another protocol",
        ("a.npz", "--set", "eval.view.crop=3"): "has no effect on stored logits",
        (runs[0], "--flip", "--protocol", "ten-crop"): "flip has no effect with protocol ten-crop",
        (runs[0], "--set", "eval.short_sides=[32]"): "short_sides has no effect with protocol one-crop",
    }
    for arguments, message in messages.items():
        code, out, err = program("eval", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), (arguments, err)
        assert message in err


def test_stored_images_have_their_mirror_image(config: Config, program: Program) -> None:
    assert program("run", config())[0] == 0
    path = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
    plain, flipped = figures(program, path), figures(program, path, "--flip")
    assert plain[0]["loss"] != flipped[0]["loss"]
    assert "whole image and its mirror image, mean of softmax" in flipped[0]["protocol"]
    assert program("eval", path, "--protocol", "ten-crop")[0] == 2


def test_real_photographs_under_every_protocol(real_images: Path, program: Program) -> None:
    torch.save(torchvision.models.resnet18(num_classes=100).state_dict(), "18.pth")
    arguments = ["18.pth", "--network", "resnet-18", "--data", real_images / "imagenet-natural-c100"]
    sides = ["--set", "eval.short_sides=[64, 96]"]
    for more in ([], ["--protocol", "multi-scale", *sides], ["--protocol", "multi-scale-dense", *sides]):
        [record] = figures(program, *arguments, *more)
        assert record["images"] == 200
    with Path("evaluation/18-one-crop-classes.csv").open() as file:
        assert len(list(csv.reader(file))) == 101
