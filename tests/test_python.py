"""The Python interface: load, create_model, read_runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader
from torchvision import models
from torchvision.datasets import ImageFolder

import resnet_train
from resnet_train import BadInput, create_model, load, read_runs
from resnet_train.config.schema import Run
from resnet_train.runtime.distributed import World
from resnet_train.training.step import create_train_state

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


ROOT = Path(__file__).parents[1]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pixels(*images: Image.Image) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, resnet_train; from resnet_train import load, create_model, read_runs; "
        "print(*sorted({'torch', 'numpy', 'pydantic', 'PIL'} & sys.modules.keys()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(resnet_train.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "\n"


def test_a_checkpoint_predicts_images_and_pixels(checkpoint: str, program: Program) -> None:
    model = load(Path(checkpoint))
    images = [noise(8, 8, seed) for seed in range(3)]
    logits = model(images)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((3, 4), torch.float32, False)
    assert torch.equal(model(pixels(*images)), logits)
    torch.testing.assert_close(model(images[1]), logits[1:2])
    torch.testing.assert_close(model(pixels(images[1])[0]), logits[1:2])
    batch = torch.stack([model.preprocess(image) for image in images])
    torch.testing.assert_close(model.network(batch), logits)
    torch.testing.assert_close(model.to("cpu")(images), logits)

    predictions = model.predict(images, k=2)
    assert [len(classes) for classes in predictions] == [2, 2, 2]
    best, probability = predictions[0][0]
    assert best == model.classes[logits[0].argmax()]
    assert probability == pytest.approx(logits[0].softmax(0).max().item(), abs=1e-6)
    assert len(model.predict(images[0], k=99)[0]) == len(model.classes) == 4
    for i, image in enumerate(images):
        image.save(f"{i}.png")
    printed = json.loads(program("predict", checkpoint, "0.png", "1.png", "2.png", "--top", "2", "--json")[1])
    for record, expected in zip(printed, predictions, strict=True):
        assert [p["class"] for p in record["predictions"]] == [name for name, _ in expected]
        assert [p["probability"] for p in record["predictions"]] == pytest.approx([p for _, p in expected], abs=1e-5)


def test_many_images_are_predicted_in_batches(checkpoint: str) -> None:
    model = load(checkpoint)
    images = [noise(8, 8, seed) for seed in range(130)]
    torch.testing.assert_close(model(images)[128], model(images[128])[0])


def test_an_image_of_any_size_and_mode_is_preprocessed_as_in_evaluation(checkpoint: str) -> None:
    model = load(checkpoint)
    wide = noise(20, 16)
    seen = wide.resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 9, 8))
    torch.testing.assert_close(model(wide), model(pixels(seen)))
    grey = wide.convert("L")
    torch.testing.assert_close(model(grey), model(grey.convert("RGB")))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    torch.testing.assert_close(model(deep), model(grey))


def test_preprocess_is_the_transform_of_a_dataset(checkpoint: str, images: Path) -> None:
    model = load(checkpoint)
    [[batch, _]] = DataLoader(ImageFolder(images / "val", model.preprocess), batch_size=6)
    assert batch.shape == (6, 3, 8, 8)
    first = Image.open(images / "val/a/0.JPEG")
    torch.testing.assert_close(model.network(batch)[0], model(first)[0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images to predict"),
        ([Image.new("F", (8, 8))], "cannot use the image: its pixels are floats (mode F), which have no fixed range"),
        (["x.png"], "expected PIL images, or one uint8 tensor of pixels, not str"),
        (torch.zeros(2, 8, 8, 3), "expected pixels as uint8 [n, 8, 8, 3], not float32 [2, 8, 8, 3]; PIL images are"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "expected pixels as uint8 [n, 8, 8, 3], not uint8 [2, 3, 8, 8]"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), "expected pixels as uint8 [n, 8, 8, 3], not uint8 [9, 9, 3]"),
    ],
)
def test_other_images_are_refused(checkpoint: str, images: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        load(checkpoint)(images)
    assert str(error.value).startswith(message)


def test_provenance_says_where_the_weights_come_from(checkpoint: str) -> None:
    provenance = load(checkpoint).provenance
    assert (provenance["file"], provenance["network"]) == (checkpoint, "cifar-resnet-8")
    assert (provenance["seed"], provenance["step"]) == (0, 2)
    assert provenance["run"]["experiment"] == "tiny"
    assert provenance["protocol"].startswith("validation set; whole image, one view; last weights")
    assert provenance["environment"]["torch"] == torch.__version__
    json.dumps(provenance)


def test_an_exported_file_is_the_checkpoint(checkpoint: str, program: Program) -> None:
    assert program("export", checkpoint, "--to", "safetensors", "--out", "net.safetensors")[0] == 0
    model, exported = load(checkpoint), load("net.safetensors")
    image = noise(30, 20)
    assert torch.equal(exported(image), model(image))
    assert (exported.classes, exported.view) == (model.classes, model.view)
    different = {"file", "environment"}
    assert {k: v for k, v in exported.provenance.items() if k not in different} == {
        k: v for k, v in model.provenance.items() if k not in different
    }
    code, out, err = program("eval", checkpoint, "--json")
    assert code == 0, err
    [expected] = json.loads(out)
    [record] = json.loads(program("eval", "net.safetensors", "--json")[1])
    assert record == expected | {"checkpoint": "net.safetensors"}


def test_weights_of_other_programs_need_their_network(program: Program) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = models.resnet18(num_classes=7).eval()
    torch.save(net.state_dict(), "18.pth")
    save_file(net.state_dict(), "18.safetensors")
    image = noise(300, 280)
    for file in ("18.pth", "18.safetensors"):
        model = load(file, network="resnet-18")
        with torch.no_grad():
            expected = net(models.ResNet18_Weights.IMAGENET1K_V1.transforms()(image)[None])
        torch.testing.assert_close(model(image), expected, rtol=1e-2, atol=2e-2)  # it resizes without rounding
        assert model.classes == tuple(f"class {i}" for i in range(7))
        assert model.provenance == {"file": file, "network": "resnet-18"}
        with pytest.raises(BadInput, match=f"{file} holds weights and does not name their network"):
            load(file)
    assert (
        program("export", "18.pth", "--network", "resnet-18", "--to", "safetensors", "--out", "own.safetensors")[0] == 0
    )
    assert torch.equal(load("own.safetensors")(image), load("18.pth", network="resnet-18")(image))
    with pytest.raises(BadInput, match=r"own\.safetensors is of resnet-train: it knows its network"):
        load("own.safetensors", network="resnet-18")


@pytest.mark.parametrize(("ours", "theirs"), [("resnet-18", "resnet18"), ("resnet-50", "resnet50")])
def test_timms_weights_are_loaded(ours: str, theirs: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(theirs, num_classes=5).eval()
    torch.save(net.state_dict(), "timm.bin")
    model = load("timm.bin", network=ours)
    batch = model.preprocess(noise(224, 224))[None]
    with torch.no_grad():
        torch.testing.assert_close(model.network(batch), net(batch), rtol=1e-4, atol=1e-4)


def test_a_file_that_cannot_be_loaded_is_one_line() -> None:
    Path("cut.safetensors").write_bytes(b"no tensors")
    for file, message in {
        "none.pt": "none.pt: no such checkpoint",
        ".": ". is a folder: give a file",
        "cut.safetensors": "cut.safetensors is not a safetensors file, or is damaged",
    }.items():
        with pytest.raises(BadInput) as error:
            load(file)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)


def test_create_model_is_the_network_that_a_run_starts_from(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(seeds=[3])
    state = create_train_state(run, 4, 3, World(torch.device("cpu")))
    net = create_model({"base": "cifar-resnet-8", "widths": [4, 8, 8]}, num_classes=4, seed=3)
    assert net.state_dict().keys() == state.net.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.net.state_dict().values(), strict=True)
    )


def test_create_model_takes_names_and_mappings() -> None:
    assert create_model("cifar-resnet-20", num_classes=10, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    narrow = create_model({"base": "resnet-34", "name": "narrow", "widths": [8, 16, 32, 64]}, num_classes=5)
    assert narrow.fc.weight.shape == (5, 64)
    with pytest.raises(BadInput, match="unknown network 'resnet-35'"):
        create_model("resnet-35", num_classes=10)
    with pytest.raises(BadInput, match=r"network\.width: unknown key; did you mean widths\?"):
        create_model({"base": "resnet-34", "width": [8]}, num_classes=10)


def test_runs_are_plain_dicts(checkpoint: str) -> None:
    [run] = read_runs("runs")
    assert {key: run[key] for key in ("experiment", "network", "seed", "status")} == {
        "experiment": "tiny",
        "network": "cifar-resnet-8",
        "seed": 0,
        "status": "finished",
    }
    assert run["folder"] == "runs/tiny/cifar-resnet-8/seed-0"
    assert run["config"]["train"]["steps"] == 2
    assert run["records"][0]["kind"] == "start"
    json.dumps(run)
    pandas = pytest.importorskip("pandas")
    assert list(pandas.DataFrame(read_runs("runs"))["network"]) == ["cifar-resnet-8"]
    with pytest.raises(BadInput, match="no run folder in or under it"):
        read_runs("nowhere")


def test_reading_runs_imports_no_torch(checkpoint: str) -> None:
    code = "import sys, resnet_train; resnet_train.read_runs('runs'); print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(resnet_train.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"


def test_examples_of_the_page_run(program: Program) -> None:
    """docs/python.md from top to bottom, commands and code, after one epoch in place of fourteen."""
    pytest.importorskip("pandas")
    Path("configs").symlink_to(ROOT / "configs")
    Image.fromarray((load_digits().images[4] * (255 / 16)).astype(np.uint8)).save("digit.png")
    torch.save(models.resnet18().state_dict(), "resnet18.pth")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", (ROOT / "docs/python.md").read_text(), re.S | re.M)
    assert len(blocks) > 8
    names: dict[str, Any] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/python.md", "exec"), names)
            continue
        for line in block.splitlines():
            words = shlex.split(line)[1:]
            code, _, err = program(*words, *(["train.epochs=1"] if words[0] == "run" else []))
            assert code == 0, err


@pytest.mark.long
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/tour.ipynb as a reader runs it, but for one epoch; it is committed without outputs."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs/tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    [experiment] = [cell for cell in notebook.cells if "epochs: 3" in cell.source and cell.cell_type == "code"]
    experiment.source = experiment.source.replace("epochs: 3", "epochs: 1")
    folder = Path("bin")
    folder.mkdir()
    (folder / "resnet-train").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m resnet_train "$@"\n')
    (folder / "resnet-train").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder.resolve()}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(Path.cwd())}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "cifar-plain-56" in printed
    assert re.search(r"error on 40 validation images: \d", printed)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
