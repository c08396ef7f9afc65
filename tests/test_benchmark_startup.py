"""scripts/benchmark_startup.py: its commands and its table."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resnet_train import cli
from resnet_train.config import load
from resnet_train.runs import run_folder

SCRIPT = Path(__file__).parents[1] / "scripts/benchmark_startup.py"
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_startup", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_command_is_measured_beside_torch(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[list[str]] = []

    def cpu_seconds(command: list[str], folder: Path) -> float:
        measured.append(command[1:])
        if command[-1] == "startup.yaml":
            assert load.load(folder / "startup.yaml").train.steps == 11
        elif command[-1] == "long":
            runs = run_folder.find([folder / "long"])
            assert [len(run.records) for run in runs] == [42] * 12
            assert all(run.end for run in runs)
        return 2.0 if command[1] == "-c" else 1.0 + len(measured) / 8

    monkeypatch.setattr(script, "cpu_seconds", cpu_seconds)
    monkeypatch.setattr("sys.argv", ["benchmark_startup.py", "--rounds", "2", "--lines", "20"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["import", "torch", "2.00", "0.00", "1.00"]
    assert len(lines) == 2 + len(script.COMMANDS) + 1
    assert len(measured) == 1 + 2 * (len(lines) - 1)
    for command in {" ".join(words[2:]) for words in measured if words[0] == "-m"} - {"--help"}:
        assert cli.parse(command.split())
