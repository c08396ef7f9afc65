"""Golden losses: the first 20 steps of four short recipes on the CPU.

A change of layout, names or speed must not move them. Renew them, where a change of results is meant, by

    python tests/test_golden_losses.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_train import cli

GOLDEN = Path(__file__).parent / "golden" / "losses.json"

TOLERANCES = {"lr": 1e-9, "loss": 1e-2, "grad_norm": 1e-1, "val_loss": 2e-3, "clean_train_loss": 2e-3}
"""Relative, as measured between one thread and two: where a ReLU is at 0, a last bit decides over a gradient."""

_COMMON: dict[str, Any] = {
    "data": {"kind": "digits", "normalize": "pixel-mean"},
    "augment": {"crop": {"kind": "pad", "padding": 1}, "flip": True},
    "optimizer": {"lr": 0.003},  # low, so that rounding errors stay small for 20 steps
    "train": {"steps": 20, "batch_size": 64, "device": "cpu"},
    "eval": {"every": {"steps": 10}, "clean_train_images": 200},
    "log": {"every": {"steps": 1}},
}

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {**_COMMON, "networks": [{"base": "cifar-plain-14", "widths": [8, 16, 32]}]},
    "residual": {**_COMMON, "networks": [{"base": "cifar-resnet-14", "widths": [8, 16, 32]}]},
    "pre-activation": {**_COMMON, "networks": [{"base": "cifar-preact-14", "widths": [8, 16, 32]}]},
    "modern": {
        **_COMMON,
        "networks": [{"base": "wrn-10-1", "dropout": 0.1}],
        "augment": {
            "crop": {"kind": "pad", "padding": 1, "mode": "reflect"},
            "auto_augment": {"kind": "trivial-augment"},
            "random_erasing": 0.2,
            "mixup": 0.2,
            "cutmix": 1.0,
            "repeated_augmentation": 2,
        },
        "optimizer": {"lr": 0.02, "nesterov": True, "decay_on": "matrices", "weight_decay": 5e-4},
        "schedule": {"kind": "cosine", "min_lr": 0.002, "warmup": {"steps": 5}},
        "train": {
            **_COMMON["train"],
            "grad_accum_steps": 2,
            "clip_grad_norm": 2.0,
            "ema_decay": 0.9,
            "label_smoothing": 0.1,
        },
    },
}


def measure(name: str, folder: Path) -> dict[str, list[float]]:
    """Train a recipe; its figures by step, and those of its evaluations."""
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"name": name, "output": str(folder / "runs"), **RECIPES[name]}))
    assert cli.main(["run", str(config)]) == 0
    [metrics] = (folder / "runs" / name).glob("*/seed-0/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    evaluations = [record for record in records if record["kind"] == "eval"]
    return {
        "loss": [record["loss"] for record in steps],
        "grad_norm": [record["grad_norm"] for record in steps],
        "lr": [record["lr"] for record in steps],
        "val_loss": [record["val_loss"] for record in evaluations],
        "clean_train_loss": [record["clean_train_loss"] for record in evaluations],
    }


@pytest.mark.parametrize("name", RECIPES)
def test_losses_of_the_first_steps(name: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[name]
    measured = measure(name, tmp_path)
    assert len(measured["loss"]) == 20
    for figure, tolerance in TOLERANCES.items():
        assert measured[figure] == pytest.approx(expected[figure], rel=tolerance), figure


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = {name: measure(name, Path(folder)) for name in RECIPES}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    sys.stderr.write(f"wrote {GOLDEN}\n")
