"""Predictions for image files, against the network called by hand."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import logits_by_hand
from conftest import LAST
from PIL import Image

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


def picture(path: Path, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_predictions_are_the_networks_own(checkpoint: str, program: Program) -> None:
    pixels = [picture(Path(f"images/{i % 2}/{i}.png"), (8, 8), i) for i in range(3)]
    order = [0, 2, 1]
    probabilities = logits_by_hand(checkpoint, torch.from_numpy(np.stack([pixels[i] for i in order]))).softmax(1)
    code, out, _ = program("predict", checkpoint, "images", "--json")
    records = json.loads(out)
    assert (code, [one["image"] for one in records]) == (0, ["images/0/0.png", "images/0/2.png", "images/1/1.png"])
    for one, expected in zip(records, probabilities, strict=True):
        probability_of = {p["class"]: p["probability"] for p in one["predictions"]}
        assert [probability_of[f"class-{i}"] for i in range(4)] == pytest.approx(expected.tolist(), abs=1e-5)
        assert list(probability_of.values()) == sorted(probability_of.values(), reverse=True)


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
    assert "cannot read none.png: No such file" in err
    assert "2 of 3 images could not be predicted" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "empty: no image in or under it"),
        (["x.png", "--classes", "names.txt"], "names.txt has 1 lines for 4 classes"),
        (["x.png", "--classes", "none.txt"], "--classes: cannot read none.txt"),
        (["x.png", "--classes", "pipe"], "--classes: cannot read pipe: it is a pipe, not a file"),
        (["x.png", "--classes", "/dev/zero"], "--classes: cannot read /dev/zero: it is a device, not a file"),
    ],
)
def test_predict_refuses(checkpoint: str, arguments: list[str], message: str, program: Program) -> None:
    Path("empty").mkdir()
    os.mkfifo("pipe")
    Path("names.txt").write_text("cat\n")
    code, out, err = program("predict", checkpoint, *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_grey_images_are_seen_as_in_evaluation(config: Config, program: Program) -> None:
    data: dict[str, Any] = {"size": 8, "channels": 1}
    assert program("run", config(train={"steps": 1}, data=data))[0] == 0
    path = LAST.format("cifar-resnet-8")
    picture(Path("x.png"), (20, 16))
    records = json.loads(program("predict", path, "x.png", "--json")[1])
    with Image.open("x.png") as image:
        small = image.convert("L").resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 9, 8))
    expected = logits_by_hand(path, torch.from_numpy(np.array(small))[None, :, :, None]).softmax(1).max()
    assert records[0]["predictions"][0]["probability"] == pytest.approx(float(expected), abs=1e-5)


def test_a_network_of_cached_files_sees_images_of_their_size(config: Config, squares: Path, program: Program) -> None:
    data = {"kind": "imagefolder", "path": str(squares), "workers": 1, "device_cache_gb": 1}
    assert program("run", config(data=data, train={"steps": 1}))[0] == 0
    path = LAST.format("cifar-resnet-8")
    picture(Path("x.png"), (20, 16))
    code, out, err = program("predict", path, "x.png", "--json")
    assert code == 0, err
    with Image.open("x.png") as image:
        small = image.resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 9, 8))
    expected = logits_by_hand(path, torch.from_numpy(np.array(small))[None]).softmax(1).max()
    assert json.loads(out)[0]["predictions"][0]["probability"] == pytest.approx(float(expected), abs=1e-5)


def test_weights_of_other_programs_see_imagenet_crops(program: Program) -> None:
    from torchvision import models

    torch.manual_seed(0)
    net = models.resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), "bare.pth")
    picture(Path("x.png"), (300, 280))
    records = json.loads(program("predict", "bare.pth", "x.png", "--network", "resnet-18", "--json")[1])
    with Image.open("x.png") as image:
        small = image.resize((274, 256), Image.Resampling.BILINEAR).crop((25, 16, 249, 240))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (torch.from_numpy(np.array(small)).float() / 255 - mean) / std
    with torch.no_grad():
        best = net(normalized.permute(2, 0, 1)[None]).softmax(1)[0].topk(5)
    assert [p["class"] for p in records[0]["predictions"]] == [f"class {i}" for i in best.indices.tolist()]
    assert [p["probability"] for p in records[0]["predictions"]] == pytest.approx(best.values.tolist(), abs=1e-4)
