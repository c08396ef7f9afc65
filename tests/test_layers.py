"""The floors of the house: imports point down."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import resnet_train

ROOT = Path(resnet_train.__file__).parent

FLOORS: dict[str, int] = {
    "__init__": 0,
    "errors": 0,
    "claim": 1,
    "whole": 0,
    "tables": 0,
    "config": 1,
    "run_folder": 2,
    "models": 2,
    "data": 2,
    "engine": 3,
    "packing": 3,
    "groups": 3,
    "figures": 4,
    "compare": 5,
    "observe": 4,
    "evaluate": 4,
    "mistakes": 5,
    "predict": 5,
    "export": 5,
    "probe": 5,
    "train": 6,
    "cost": 5,
    "dry_run": 6,
    "grid": 7,
    "results": 7,
    "bench": 7,
    "cli": 8,
    "__main__": 9,
}

TORCH_FREE = ("errors", "whole", "claim", "tables", "config", "run_folder", "groups", "figures", "compare", "cli")


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def test_every_import_points_down() -> None:
    for path in ROOT.rglob("*.py"):
        here = room(path)
        assert here in FLOORS, f"{path} has no floor"
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "resnet_train" and len(parts) > 1 and parts[1] in FLOORS and parts[1] != here:
                assert FLOORS[parts[1]] < FLOORS[here], f"{here} imports {name}, which is not below it"


def test_models_and_data_do_not_know_each_other() -> None:
    for one, other in (("models", "data"), ("data", "models")):
        for path in (ROOT / one).glob("*.py"):
            assert not any(name.startswith(f"resnet_train.{other}") for name in imports(path)), path


def test_what_must_be_quick_does_not_import_torch() -> None:
    """Neither itself nor by way of another: none is loaded once all of them are."""
    files = [path for path in ROOT.rglob("*.py") if room(path) in TORCH_FREE]
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in files]
    slow = {"torch", "torchvision", "matplotlib", "tensorboard"}
    code = f"import {', '.join(names)}, sys; print(*sorted({slow} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "\n"


def test_no_module_is_long_or_has_a_name_that_says_nothing() -> None:
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
        assert path.stem not in ("utils", "helpers", "common", "core", "base", "misc"), path
