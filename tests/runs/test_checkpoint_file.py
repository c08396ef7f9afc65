"""What is read as a checkpoint, and what is refused."""

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_train.errors import BadInput
from resnet_train.runs.checkpoint import FORMAT, read_checkpoint
from resnet_train.runs.torch_file import read_torch_file

Program = Callable[..., tuple[int, str, str]]


class Code:
    """Unpickled as a call."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


def refusal(path: Path) -> str:
    """The line by which a file is refused; empty if it is read."""
    try:
        read_checkpoint(path)
    except BadInput as error:
        return str(error)
    return ""


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pt")
    torch.save({"format": FORMAT - 1}, tmp_path / "old.pt")
    (tmp_path / "text.pt").write_text("hello")
    os.mkfifo(tmp_path / "pipe.pt")
    for name, message in {
        "other.pt": "is not a checkpoint of resnet-train",
        "code.pt": "is damaged or not a checkpoint of resnet-train",
        "old.pt": f"is of format {FORMAT - 1}; this program reads format {FORMAT}",
        "text.pt": "truncated or not a checkpoint",
        "none.pt": "no such checkpoint",
        "pipe.pt": "no such checkpoint",
        "x" * 300: "File name too long",
        ".": "is a folder: give a file",
    }.items():
        with pytest.raises(BadInput, match=message):
            read_checkpoint(tmp_path / name)


def test_the_folder_of_an_experiment_is_refused_with_a_file_that_is_there(tmp_path: Path) -> None:
    best = tmp_path / "cifar-plain-8" / "seed-1" / "checkpoints" / "best.pt"
    best.parent.mkdir(parents=True)
    best.touch()
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path} is a folder: give a file, such as {best}")):
        read_checkpoint(tmp_path)


def test_no_code_of_a_file_is_run(tmp_path: Path) -> None:
    for content in (Code(), {"format": FORMAT, "x": Code()}, {"state_dict": {"x": torch.zeros(1)}, "args": Code()}):
        torch.save(content, "bad.pt")
        with pytest.raises(BadInput):
            read_torch_file(Path("bad.pt"))
        with pytest.raises(BadInput):
            read_torch_file(Path("bad.pt"), any_class=True)
        assert not Path("was-run").exists()


OTHERS: list[Any] = [None, True, -1, 2.5, float("nan"), 10**30, "x", [], [None], {}, {"x": 1}, {1: []}, torch.zeros(2)]


def others_of(tensor: torch.Tensor) -> list[Any]:
    values = [tensor[None], tensor.flatten()[:-1], tensor.to(torch.int8), tensor.to(torch.complex64), tensor.to("meta")]
    # One value that stands for 10^12.
    return [*OTHERS, *values, tensor.to_sparse(), torch.zeros(1).expand(10**12)]


def test_content_of_another_type_or_shape_is_refused(checkpoint: str) -> None:
    """Whatever stands in the place of a key, the file is refused in a line or what is read has the types it should."""
    payload = torch.load(checkpoint, weights_only=True)

    def check(place: str, changed: dict[str, Any]) -> None:
        torch.save(changed, "changed.pt")
        message = refusal(Path("changed.pt"))
        assert "\n" not in message
        assert message or place in valid, place

    # Any number of steps, say; a mapping of the optimizer, which is compared with the run when it is resumed.
    optional = {"changed", "image_size", "unmeasured"}
    valid = {"train_images", "step", "best", "ema", "optimizer", "scaler", "ranks", *optional}
    for key, value in payload.items():
        check(key if key in optional else "", {k: v for k, v in payload.items() if k != key})
        for other in OTHERS:
            check(key, payload | {key: other})
        for name in [*value][:1] if isinstance(value, dict) and key in ("run", "net") else []:
            check("", payload | {key: {k: v for k, v in value.items() if k != name}})
            check("", payload | {key: value | {"more": value[name]}})
            for other in others_of(value[name]) if key == "net" else [float("nan"), 3, None]:
                check("", payload | {key: value | {name: other}})
    run = payload["run"]
    for network in ({"depths": [10**9] * 3}, {"widths": [10**12] * 3}, {"depths": []}, {"unit": "vgg"}):
        check("", payload | {"run": run | {"network": run["network"] | network}})
    for normalization in ([torch.zeros(2), torch.ones(3)], [torch.zeros(1, 1, 3), torch.ones(0)], [payload["net"]] * 2):
        check("", payload | {"normalization": normalization})
    mean, std = payload["normalization"]
    check("", payload | {"normalization": [mean / 0, std]})
    check("", payload | {"normalization": [mean.double(), std]})
    loop: dict[str, Any] = {}
    loop["x"] = loop
    check("", payload | {"run": loop})


def test_archives_that_are_larger_inside_than_outside_are_not_unpacked(checkpoint: str) -> None:
    with zipfile.ZipFile(checkpoint) as whole, zipfile.ZipFile("bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
        bomb.writestr("archive/data/999", bytes(10**7))
    with pytest.raises(BadInput, match=r"bomb\.pt is a compressed archive"):
        read_checkpoint(Path("bomb.pt"))
    with zipfile.ZipFile(checkpoint) as whole, zipfile.ZipFile("same.pt", "w") as several:
        for name in whole.namelist():
            several.writestr(name, whole.read(name))
        several.filelist += several.filelist * 2  # the same bytes under the same names
    with pytest.raises(BadInput, match="its records are longer than the file"):
        read_checkpoint(Path("same.pt"))


@pytest.mark.parametrize("command", ["eval", "predict", "export", "probe", "run"])
def test_each_command_refuses_a_damaged_checkpoint_in_a_line(
    command: str, checkpoint: str, config: Callable[..., Path], program: Program
) -> None:
    payload = torch.load(checkpoint, weights_only=True)
    payload["net"]["conv1.weight"] = 3
    torch.save(payload, checkpoint)
    new = config(name="new", train={"init_from": checkpoint})
    arguments = {
        "eval": [checkpoint],
        "predict": [checkpoint, "x.png"],
        "export": [checkpoint, "--to", "torchvision"],
        "probe": ["responses", checkpoint],
        "run": [new],
    }
    code, out, err = program(command, *arguments[command])
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert "is not a checkpoint of resnet-train: net is missing or of another type" in err
