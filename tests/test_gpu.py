"""What only a GPU can show: each precision and compile, on the lines that the CPU tests run too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import figures, spawn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


def losses(program: Program, path: Path, name: str, *overrides: str) -> list[float]:
    code, _, err = program("run", path, f"output={name}", "train.device=cuda", *overrides)
    assert code == 0, err
    return [r["loss"] for r in figures(Path(name) / "tiny/cifar-resnet-8/seed-0") if r["kind"] == "train"]


@pytest.fixture
def wide(config: Config) -> Path:
    """Learnable at once, so that a wrong gradient shows."""
    network: dict[str, Any] = {"base": "cifar-resnet-8", "widths": [16, 16, 32]}
    return config(networks=[network], train={"steps": 20, "batch_size": 32}, optimizer={"lr": 0.05})


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_each_precision_follows_the_cpu(precision: str, wide: Path, program: Program) -> None:
    code, _, err = program("run", wide, "output=cpu")
    assert code == 0, err
    wanted = [r["loss"] for r in figures(Path("cpu/tiny/cifar-resnet-8/seed-0")) if r["kind"] == "train"]
    found = losses(program, wide, "gpu", f"train.precision={precision}")
    tolerance = 1e-2 if precision == "fp32" else 0.15
    assert found == pytest.approx(wanted, rel=tolerance)
    assert found[-1] < 0.8 * found[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_follows_eager(precision: str, wide: Path, program: Program) -> None:
    eager, compiled = (
        losses(program, wide, f"compile-{c}", f"train.precision={precision}", f"train.compile={c}")
        for c in ("false", "true")
    )
    assert compiled == pytest.approx(eager, rel=0.02 if precision == "fp32" else 0.15)


def test_under_torchrun_with_everything_on(wide: Path) -> None:
    """One rank of NCCL per GPU: average of the weights, accumulation, synchronised batch norm."""
    ranks = 2
    if torch.cuda.device_count() < ranks:
        pytest.skip("needs two GPUs")
    process = spawn(
        "run", wide, "train.device=cuda", "train.sync_bn=true", "train.ema=0.9", "train.accumulate=2", ranks=ranks
    )
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
