"""Using what was trained: predictions, and files for other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LAST
from PIL import Image
from torch import Tensor

from resnet_train.config import zoo
from resnet_train.errors import BadInput
from resnet_train.evaluation import export, pretrained
from resnet_train.models.network import build_network

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def by_hand(checkpoint: str, images: Tensor) -> Tensor:
    """uint8 [n, H, W, C] -> logits, without the program's own normalization."""
    member = pretrained.load(checkpoint)
    seen = (images.float() - member.normalization.mean) / member.normalization.std
    with torch.no_grad():
        return member.network(seen.permute(0, 3, 1, 2))


def test_predictions_are_the_networks_own(checkpoint: str, program: Program) -> None:
    pixels = [picture(Path(f"images/{i % 2}/{i}.png"), (8, 8), i) for i in range(3)]
    order = [0, 2, 1]
    probabilities = by_hand(checkpoint, torch.from_numpy(np.stack([pixels[i] for i in order]))).softmax(1)
    code, out, _ = program("predict", checkpoint, "images", "--json")
    told = json.loads(out)
    assert (code, [one["image"] for one in told]) == (0, ["images/0/0.png", "images/0/2.png", "images/1/1.png"])
    for one, expected in zip(told, probabilities, strict=True):
        found = {p["class"]: p["probability"] for p in one["predictions"]}
        assert [found[f"class-{i}"] for i in range(4)] == pytest.approx(expected.tolist(), abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_predictions_are_printed_with_names(checkpoint: str, program: Program) -> None:
    picture(Path("wide.jpg"), (40, 20))
    Path("names.txt").write_text("cat\ndog\nemu\nfox\n")
    code, out, err = program("predict", checkpoint, "wide.jpg", "--classes", "names.txt", "--top", "2")
    head, *lines = out.splitlines()
    assert (code, head, len(lines), err) == (0, "wide.jpg", 2, "")
    assert all(line.split()[0].endswith("%") and line.split()[1] in ("cat", "dog", "emu", "fox") for line in lines)


def test_an_image_that_cannot_be_decoded_does_not_stop_the_others(checkpoint: str, program: Program) -> None:
    picture(Path("images/b.png"), (8, 9))
    Path("images/a.png").write_bytes(b"no image")
    code, out, err = program("predict", checkpoint, "images", "none.png")
    assert (code, out.splitlines()[0]) == (2, "images/b.png")
    assert "cannot decode images/a.png" in err
    assert "cannot decode none.png: No such file" in err
    assert "2 of 3 images could not be predicted" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["empty"], "empty: no image in or under it"),
        (["x.png", "--classes", "names.txt"], "names.txt has 1 lines for 4 classes"),
        (["x.png", "--classes", "none.txt"], "--classes: cannot read none.txt"),
    ],
)
def test_predict_refuses(checkpoint: str, arguments: list[str], said: str, program: Program) -> None:
    Path("empty").mkdir()
    Path("names.txt").write_text("cat\n")
    code, out, err = program("predict", checkpoint, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_grey_images_and_folders_are_seen_as_evaluation_sees_them(config: Config, program: Program) -> None:
    data: dict[str, Any] = {"size": 8, "channels": 1}
    assert program("run", config(train={"steps": 1}, data=data))[0] == 0
    path = LAST.format("cifar-resnet-8")
    picture(Path("x.png"), (20, 16))
    told = json.loads(program("predict", path, "x.png", "--json")[1])
    with Image.open("x.png") as image:
        small = image.convert("L").resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 9, 8))
    expected = by_hand(path, torch.from_numpy(np.array(small))[None, :, :, None]).softmax(1).max()
    assert told[0]["predictions"][0]["probability"] == pytest.approx(float(expected), abs=1e-5)


def test_a_network_of_resident_files_sees_images_of_their_size(config: Config, squares: Path, program: Program) -> None:
    data = {"kind": "imagefolder", "path": str(squares), "workers": 1, "device_cache_gb": 1}
    assert program("run", config(data=data, train={"steps": 1}))[0] == 0
    path = LAST.format("cifar-resnet-8")
    picture(Path("x.png"), (20, 16))
    code, out, err = program("predict", path, "x.png", "--json")
    assert code == 0, err
    with Image.open("x.png") as image:
        small = image.resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 9, 8))
    expected = by_hand(path, torch.from_numpy(np.array(small))[None]).softmax(1).max()
    assert json.loads(out)[0]["predictions"][0]["probability"] == pytest.approx(float(expected), abs=1e-5)


def test_another_programs_weights_see_imagenet_crops(program: Program) -> None:
    from torchvision import models

    torch.manual_seed(0)
    net = models.resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), "bare.pth")
    picture(Path("x.png"), (300, 280))
    told = json.loads(program("predict", "bare.pth", "x.png", "--network", "resnet-18", "--json")[1])
    with Image.open("x.png") as image:
        small = image.resize((274, 256), Image.Resampling.BILINEAR).crop((25, 16, 249, 240))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen = (torch.from_numpy(np.array(small)).float() / 255 - mean) / std
    with torch.no_grad():
        best = net(seen.permute(2, 0, 1)[None]).softmax(1)[0].topk(5)
    assert [p["class"] for p in told[0]["predictions"]] == [f"class {i}" for i in best.indices.tolist()]
    assert [p["probability"] for p in told[0]["predictions"]] == pytest.approx(best.values.tolist(), abs=1e-4)


def written(checkpoint: str, to: str, program: Program, *more: str) -> Path:
    code, out, err = program("export", checkpoint, "--to", to, *more)
    assert code == 0, err
    assert "read back, its logits differ by at most" in out
    return Path(out.removeprefix("wrote ").split(": ")[0])


def noise(count: int, size: int = 8) -> Tensor:
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def test_safetensors_hold_the_weights_and_what_they_mean(checkpoint: str, program: Program) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = written(checkpoint, "safetensors", program)
    member = pretrained.load(checkpoint)
    weights = load_file(path)
    assert weights.keys() == member.network.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in member.network.state_dict().items())
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert json.loads(about["network"])["widths"] == [4, 8, 8]
    assert json.loads(about["classes"]) == [f"class-{i}" for i in range(4)]
    assert torch.equal(torch.tensor(json.loads(about["mean"])), member.normalization.mean)
    assert torch.equal(torch.tensor(json.loads(about["std"])), member.normalization.std)


@pytest.mark.parametrize("normalize", ["channel-mean-std", "pixel-mean"])
def test_onnx_and_torch_export_take_images_as_they_are(normalize: str, config: Config, program: Program) -> None:
    import onnx
    import onnxruntime

    assert program("run", config(train={"steps": 2}, data={"normalize": normalize}))[0] == 0
    checkpoint = LAST.format("cifar-resnet-8")
    path = written(checkpoint, "onnx", program)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    saved = written(checkpoint, "torch-export", program, "--out", "here/net.pt2")
    assert saved == Path("here/net.pt2")
    module = torch.export.load(saved).module()
    for count in (1, 2, 5):
        expected = by_hand(checkpoint, noise(count))
        [found] = session.run(None, {session.get_inputs()[0].name: noise(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(module(noise(count)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "theirs"), [("resnet-18", "resnet18"), ("resnet-50", "resnet50")])
def test_torchvision_gets_back_what_is_its_own(name: str, theirs: str, program: Program) -> None:
    from torchvision import models

    net = getattr(models, theirs)(num_classes=4)
    torch.save(net.state_dict(), "bare.pth")
    exported = written("bare.pth", "torchvision", program, "--network", name, "--out", "net.pth")
    weights = torch.load(exported, weights_only=True)
    assert weights.keys() == net.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", [*export.TORCHVISION, "vgg-16", "vgg-16-bn", "vgg-19", "vgg-19-bn"])
def test_each_of_torchvisions_networks_is_found(name: str) -> None:
    cfg = zoo.network_config(name)
    with torch.device("meta"):
        ours = build_network(cfg, 5).state_dict()
    theirs = export.torchvision_module(cfg, 5, 3).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_torchvision_is_refused_what_it_has_not(checkpoint: str, program: Program) -> None:
    from torchvision import models

    torch.save(models.resnet50(num_classes=4).state_dict(), "bare.pth")
    code, out, err = program("export", "bare.pth", "--to", "torchvision", "--network", "resnet-50-v1", "--out", "x.pth")
    assert (code, out, "torchvision halves on the 3x3" in err) == (2, "", True)
    code, out, err = program("export", checkpoint, "--to", "torchvision")
    assert (code, out, "it has resnet-18, resnet-34" in err) == (2, "", True)
    assert not Path("x.pth").exists()
    narrow = zoo.network_config("resnet-18", widths=(8, 16, 32, 64))
    with pytest.raises(BadInput, match="no such resnet-18: the one that it has differs in widths; export"):
        export.torchvision_module(narrow, 5, 3)


def test_a_file_that_reads_back_otherwise_is_not_written(
    checkpoint: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = export.FORMATS["safetensors"]._replace(decode=lambda *_: lambda images: torch.zeros(len(images), 4))
    monkeypatch.setitem(export.FORMATS, "safetensors", wrong)
    Path("net.safetensors").write_text("older")
    before = set(Path().rglob("*"))
    code, out, err = program("export", checkpoint, "--to", "safetensors", "--out", "net.safetensors")
    assert (code, out, set(Path().rglob("*"))) == (2, "", before)
    assert "net.safetensors is not written: read back, its logits are" in err
    assert Path("net.safetensors").read_text() == "older"


def test_export_refuses(checkpoint: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    assert (
        f"{checkpoint} is the file to export" in program("export", checkpoint, "--to", "onnx", "--out", checkpoint)[2]
    )
    assert "cannot write /proc/x/net" in program("export", checkpoint, "--to", "safetensors", "--out", "/proc/x/net")[2]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = program("export", checkpoint, "--to", "onnx")
    assert (code, "needs onnx: pip install 'resnet-train[export]'" in err) == (2, True)
