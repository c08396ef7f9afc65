"""Files for other programs, against the network called by hand."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_hand import logits_by_hand
from conftest import LAST
from torch import Tensor

from resnet_train.config import zoo
from resnet_train.errors import BadInput
from resnet_train.evaluation import export, pretrained
from resnet_train.models.network import build_network

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


def written(checkpoint: str, to: str, program: Program, *more: str) -> Path:
    code, out, err = program("export", checkpoint, "--to", to, *more)
    assert code == 0, err
    assert "read back, its logits differ by at most" in out
    return Path(out.removeprefix("wrote ").split(": ")[0])


def noise(count: int, size: int = 8) -> Tensor:
    return torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


def test_safetensors_hold_weights_and_metadata(checkpoint: str, program: Program) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = written(checkpoint, "safetensors", program)
    model = pretrained.load(checkpoint)
    weights = load_file(path)
    assert weights.keys() == model.network.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in model.network.state_dict().items())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["network"])["widths"] == [4, 8, 8]
    assert json.loads(metadata["classes"]) == [f"class-{i}" for i in range(4)]
    assert torch.equal(torch.tensor(json.loads(metadata["mean"])), model.normalization.mean)
    assert torch.equal(torch.tensor(json.loads(metadata["std"])), model.normalization.std)


@pytest.mark.parametrize("normalize", ["channel-mean-std", "pixel-mean"])
def test_onnx_and_torch_export_take_uint8_images(normalize: str, config: Config, program: Program) -> None:
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
        expected = logits_by_hand(checkpoint, noise(count))
        [logits] = session.run(None, {session.get_inputs()[0].name: noise(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(module(noise(count)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "theirs"), [("resnet-18", "resnet18"), ("resnet-50", "resnet50")])
def test_torchvision_s_weights_are_written_unchanged(name: str, theirs: str, program: Program) -> None:
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
    if cfg.unit != "vgg":  # what only training sees is none of torchvision's business
        trained = zoo.network_config(name, drop_path_rate=0.05, zero_init_residual=True)
        assert type(export.torchvision_module(trained, 5, 3)) is type(export.torchvision_module(cfg, 5, 3))


def test_what_torchvision_does_not_have_is_refused(checkpoint: str, program: Program) -> None:
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


def test_a_file_with_other_logits_is_not_written(
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


@pytest.mark.parametrize("name", ["open", "fsync", "replace"])
def test_a_disk_that_fails_keeps_the_older_file(
    name: str, checkpoint: str, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("net.safetensors").write_text("older")
    before = set(Path().rglob("*"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    with monkeypatch.context() as patched:
        if name == "open":
            patched.setattr(Path, name, lambda path, mode="r": full() if "w" in mode else opened(path, mode))
        else:
            patched.setattr(os if name == "fsync" else Path, name, full)
        code, out, err = program("export", checkpoint, "--to", "safetensors", "--out", "net.safetensors")
    assert (code, out) == (2, "")
    assert err == "resnet-train: --out: cannot write net.safetensors: No space left on device\n"
    assert (Path("net.safetensors").read_text(), set(Path().rglob("*"))) == ("older", before)


def test_export_refuses(checkpoint: str, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    assert (
        f"{checkpoint} is the file to export" in program("export", checkpoint, "--to", "onnx", "--out", checkpoint)[2]
    )
    assert "cannot write /proc/x/net" in program("export", checkpoint, "--to", "safetensors", "--out", "/proc/x/net")[2]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = program("export", checkpoint, "--to", "onnx")
    assert (code, "needs onnx: pip install 'resnet-train[export]'" in err) == (2, True)
