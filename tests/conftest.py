"""What the tests share: a tiny experiment, the program called in process, and the real images where they are."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resnet_train import cli, run_folder
from resnet_train.config import load
from resnet_train.config.load import merge
from resnet_train.config.schema import Run
from resnet_train.run_folder import TIMES, Record

TINY: dict[str, Any] = {
    "name": "tiny",
    "networks": [{"base": "cifar-resnet-8", "widths": [4, 8, 8]}],
    "data": {"kind": "synthetic", "size": 8, "classes": 4, "train_images": 40, "val_images": 14},
    "augment": {"crop": {"kind": "pad", "padding": 1}, "flip": True},
    "train": {"steps": 8, "batch_size": 16, "device": "cpu"},
    "eval": {"every": {"steps": 4}, "batch_size": 5, "clean_train": 10},
    "checkpoint": {"every": {"steps": 3}},
    "log": {"every": {"steps": 2}},
}
"""16 of 40 samples a step: every third step crosses an epoch. Saved between two log lines."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, which is where `runs/` goes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny experiment with changes, such as `config(train={"steps": 2})`; the path of the file."""

    def write(file: str = "tiny.yaml", **changes: Any) -> Path:
        path = tmp_path / file
        path.write_text(yaml.safe_dump(merge(TINY, changes)))
        return path

    return write


@pytest.fixture
def tiny_run(config: Callable[..., Path]) -> Callable[..., Run]:
    """The first run of the tiny experiment with changes."""
    return lambda **changes: next(load.runs(load.load(config(**changes))))


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `resnet-train` in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def spawn(*arguments: object, ranks: int = 1, **options: Any) -> subprocess.Popen[str]:
    """Start `resnet-train` as a process of its own, under torchrun where there are several ranks."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    module = ["-m", "resnet_train"]
    command = [sys.executable, *launcher, *module, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **(pipes | options))


def figures(folder: Path) -> list[Record]:
    """The records of a run but for the clock."""
    return [{k: v for k, v in record.items() if k not in TIMES} for record in run_folder.read_metrics(folder)]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold bit-identical state."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    flat_a, flat_b = (
        torch.utils._pytree.tree_leaves(
            [p[key] for key in ("net", "ema", "optimizer", "scaler", "ranks", "step", "best")]
        )
        for p in (a, b)
    )
    assert any(isinstance(leaf, torch.Tensor) for leaf in flat_a)
    return len(flat_a) == len(flat_b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(flat_a, flat_b, strict=True)
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders of three photographs for each of two classes."""
    from PIL import Image

    for part in ("train", "val"):
        for i, name in enumerate(("a", "b")):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for j in range(3):
                Image.new("RGB", (50 + j, 44), (80 * i, 40 * j, 90)).save(folder / f"{j}.JPEG")
    return tmp_path / "imagenet"


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Class folders of noise, 9 training images of 8 x 8 pixels for each of four classes, and one more of the last."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for part, count in (("train", 37), ("val", 14)):
        for i in range(count):
            folder = tmp_path / "squares" / part / f"class-{min(i // (count // 4), 3)}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return tmp_path / "squares"


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images that RESNET_TRAIN_DATA names."""
    folder = os.environ.get("RESNET_TRAIN_DATA")
    if not folder:
        pytest.skip("RESNET_TRAIN_DATA names no folder of real images")
    return Path(folder)
