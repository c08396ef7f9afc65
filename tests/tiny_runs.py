"""Runs of the tiny experiment."""

import json
from collections.abc import Callable
from pathlib import Path

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]

FOLDER = Path("runs/tiny/cifar-resnet-8/seed-0")
CONFIGS = Path(__file__).parents[1] / "configs"


def finish(program: Program, path: Path, *arguments: object, output: str = "runs") -> Path:
    code, _, err = program("run", path, f"output={output}", *arguments)
    assert code == 0, err
    return Path(output) / FOLDER.relative_to("runs")


def last_step(folder: Path) -> int:
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:-1] if (folder / "metrics.jsonl").exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0
