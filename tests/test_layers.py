"""The layers of the package: imports point down."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import resnet_train
from resnet_train.cli import COMMANDS

ROOT = Path(resnet_train.__file__).parent

LAYERS: dict[str, int] = {
    "errors": 0,
    "runtime": 1,
    "config": 2,
    "data": 3,
    "models": 3,
    "packing": 4,
    "runs": 4,
    "analysis": 5,
    "evaluation": 5,
    "__init__": 6,
    "probes": 6,
    "training": 7,
    "commands": 8,
    "cli": 9,
    "__main__": 10,
}
"""The layer of each module and folder at the root of the package: imports point to a lower one."""

TORCH_FREE = (
    "errors",
    "config",
    "analysis",
    "runs/records",
    "runs/run_folder",
    "runs/status",
    "runtime/atomic",
    "runtime/processes",
    "runtime/progress",
    "runtime/rank_environment",
    "runtime/regular_file",
    "runtime/signals",
    "runtime/streams",
    "runtime/tables",
    "cli",
)
"""What must be quick to import."""


def layer_of(path: Path) -> str:
    """The file or folder at the root of the package that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def is_torch_free(path: Path) -> bool:
    place = path.relative_to(ROOT).with_suffix("").as_posix()
    return any(place == name or place.startswith(f"{name}/") for name in TORCH_FREE)


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
        here = layer_of(path)
        assert here in LAYERS, f"{path} has no layer"
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package != "resnet_train" or not rest:
                continue
            there = rest.partition(".")[0]
            if there not in LAYERS:
                there = "__init__"  # a name that the package itself defines
            if there != here:
                assert LAYERS[there] < LAYERS[here], f"{here} imports {name}, which is not below it"


def test_models_and_data_do_not_know_each_other() -> None:
    for one, other in (("models", "data"), ("data", "models")):
        for path in (ROOT / one).glob("*.py"):
            assert not any(name.startswith(f"resnet_train.{other}") for name in imports(path)), path


def test_what_must_be_quick_does_not_import_torch() -> None:
    """Neither itself nor by way of another: none is loaded once all of them are."""
    files = [path for path in ROOT.rglob("*.py") if is_torch_free(path)]
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


def prints_a_result(node: ast.AST) -> bool:
    """Whether a call writes to standard output."""
    if not isinstance(node, ast.Call):
        return False
    function = ast.unparse(node.func)
    if function == "print":
        return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("file") != "sys.stderr"
    return function.startswith("sys.stdout.write")


def test_only_commands_print_results() -> None:
    """Everything below returns what it measures, so that a notebook or a script can use it."""
    assert any(prints_a_result(node) for path in ROOT.glob("commands/*.py") for node in ast.walk(parsed(path)))
    for path in ROOT.rglob("*.py"):
        if layer_of(path) != "commands":
            for node in ast.walk(parsed(path)):
                assert not prints_a_result(node), f"{path}:{getattr(node, 'lineno', 0)} writes to standard output"


def test_every_file_in_commands_is_a_command() -> None:
    files = {path.stem for path in ROOT.glob("commands/*.py")} - {"__init__"}
    assert files == set(COMMANDS)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_the_root_of_the_package_is_small() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "__main__", "cli", "errors"}


def test_private_words_stay_out() -> None:
    """Words that only the authors understood, where the field has its own."""
    private = re.compile(r"\b(told|judged|cure|hall|verb|verbs)\b", re.IGNORECASE)
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "docs").glob("*.md"), ROOT.parent / "README.md"]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not private.search(line), f"{path}, line {number}: {line.strip()}"


def test_the_architecture_page_names_modules_that_exist() -> None:
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    names = set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?|\w+\.py)`", page)) - {
        "runs/",
        "unfinished/",
        "tests/test_layers.py",
    }
    assert len(names) > 30
    for name in names:
        assert any((ROOT / name).exists() or path.match(name) for path in ROOT.rglob("*")), name
    for folder, layer in LAYERS.items():
        if (ROOT / folder).is_dir():
            assert f"| {layer} | `{folder}/` |" in page, folder


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    assert resnet_train.__version__ == project["version"]
