"""scripts/gpu_check.sh, rehearsed with a stand-in for the interpreter: the commands are real, what they print is not."""

import os
import re
import shlex
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from resnet_train import cli
from resnet_train.config import load

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/bash
printf '%s\\n' "$(printf '%q ' "$@")" >>"$CALLS"
printf '%s\\n' "$PYTHONPATH" >"$CALLS.path"
case "$*" in
*"sys.exit(not torch.cuda.is_available())"*) exit "${NO_GPU:-0}" ;;
*"import resnet_train"*) [ -z "${LACKS:-}" ] || { echo "ModuleNotFoundError: No module named '$LACKS'" >&2; exit 1; } ;;
*"-m pytest"*) echo "5 passed, 1 failed in 3 s"; exit "${TESTS_FAIL:-0}" ;;
*benchmark_step*) echo "eager fp32  3.20  3.10– 3.30  6.9" ;;
*benchmark_loader*) echo "random-resized reference 1.00" ;;
*benchmark_cifar*) echo "ours 4.00" ;;
*"resnet_train run"*)
    for word; do [[ $word != output=* ]] || mkdir -p "${word#output=}/cifar10-depth"; done
    exit "${RUN_CODE:-0}" ;;
*"resnet_train compare"*) echo "cifar-resnet-20 8.7 %" ;;
*"resnet_train bench"*) echo "step alone  9,000  80 % of the roofline" ;;
*"print(torch.cuda.device_count())"*) echo "${GPUS:-2}" ;;
*speed_together*) echo "9,000 images/s of 4 together" ;;
*"-c import platform"*) echo "a GPU" ;;
esac
"""


def test_each_dependency_is_brought_or_expected() -> None:
    """A machine with a GPU may reach no registry."""
    head = (ROOT / "scripts/gpu_check.sh").read_text().partition("set -uo")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split("[<>=]", requirement)[0] for requirement in project["dependencies"]]
    assert [name for name in names if not re.search(rf"\b{name}\b", head)] == []


def rehearse(tmp_path: Path, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    stand_in, data = tmp_path / "python", tmp_path / "data"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    for folder in ("cifar-10-batches-py", "imagenet-natural-c100/train"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    calls = tmp_path / "calls"
    calls.write_text("")
    environment = os.environ | {"PYTHON": str(stand_in), "CALLS": str(calls), "OUT": str(tmp_path / "out"), **variables}
    if not (tmp_path / "programs/nvidia-cuda-mps-control").exists():
        program(tmp_path / "programs", "nvidia-cuda-mps-control", "exit 1")  # a true one would be started
    environment["PATH"] = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "scripts/gpu_check.sh"), str(data)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done, calls.read_text().splitlines()


def torchrun_takes(words: list[str]) -> bool:
    """Whether its parser does; it ends the process otherwise. One with NUMA binding has the option."""
    args = get_args_parser().parse_args(words)
    return (args.numa_binding == "node") == ("--numa-binding=node" in words)


def test_all_parts_yield_a_table_and_one_file(tmp_path: Path) -> None:
    program(tmp_path / "programs", "numactl", "")
    done, calls = rehearse(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("tests: done after", "5 passed", "eager fp32", "cifar-resnet-20 8.7 %", "ours 4.00", "random-resized"):
        assert line in done.stdout
    assert done.stdout.count("step alone") == 3
    assert "9,000 images/s of 4 together" in done.stdout
    [packed] = (tmp_path / "out").iterdir()
    with tarfile.open(packed) as tar:
        assert {"gpu/summary.txt", "gpu/tests.txt", "gpu/step-resnet-50.err"} <= set(tar.getnames())
    # Each run is one that the program takes, and each option of a script exists.
    runs = [words for words in map(shlex.split, calls) if {"run", "bench"} & set(words)]
    assert len(runs) >= 7
    for words in runs:
        assert not words[0].startswith("-m") or words[1] == "resnet_train" or torchrun_takes(words[2:])
        args = cli.parse(words[words.index("resnet_train") + 1 :])
        assert list(load.runs(load.load(ROOT / args.config, args.overrides)))
    for call in calls:
        if call.startswith("scripts/"):
            script, *words = call.split()
            text = (ROOT / script).read_text()
            assert all(f'"{word}"' in text for word in words if word.startswith("--")), call


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"LACKS": "annotated_types"},
            "lacks something: ModuleNotFoundError: No module named 'annotated_types'; bring",
        ),
        ({"NO_GPU": "1"}, "no CUDA device is visible"),
        ({"PARTS": "speed"}, "PARTS: speed is none of tests, step, train, cifar, loader, jobs, choices and ranks"),
    ],
)
def test_what_cannot_run_is_one_line(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    done, _ = rehearse(tmp_path, **variables)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_failure_is_told_from_an_end_of_the_time(tmp_path: Path) -> None:
    done, _ = rehearse(tmp_path, PARTS="train", RUN_CODE="75")
    assert (done.returncode, "train: ended by the time" in done.stdout) == (0, True)
    done, _ = rehearse(tmp_path, PARTS="tests", TESTS_FAIL="1")
    assert (done.returncode, "tests: failed (1)" in done.stdout) == (1, True)
    done, calls = rehearse(tmp_path, PARTS="tests step", MINUTES="0")
    assert (done.returncode, "tests: no time left" in done.stdout) == (0, True)
    assert not any(call.startswith("-m pytest") for call in calls)


def test_python_path_and_an_earlier_run_are_kept(tmp_path: Path) -> None:
    earlier = tmp_path / "runs/cifar10-depth/cifar-resnet-20"
    earlier.mkdir(parents=True)
    (earlier / "some.txt").write_text("")
    done, _ = rehearse(tmp_path, PARTS="train", RUNS=str(tmp_path / "runs"), PYTHONPATH="/somewhere")
    assert done.returncode == 0
    assert (tmp_path / "calls.path").read_text() == f"{ROOT}:/somewhere\n"
    with tarfile.open(tmp_path / "out/gpu-train.tar") as tar:
        assert "gpu/runs/cifar10-depth/cifar-resnet-20/some.txt" in tar.getnames()


def program(folder: Path, name: str, code: str) -> None:
    """Write one that a machine may lack."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{code}\n")
    (folder / name).chmod(0o755)


def test_several_gpus_are_not_asked_of_one(tmp_path: Path) -> None:
    done, calls = rehearse(tmp_path, PARTS="ranks", GPUS="1")
    assert (done.returncode, "ranks: there is one GPU" in done.stdout) == (0, True)
    assert not any("torch.distributed.run" in call for call in calls)


def test_several_runs_at_once_are_measured_with_mps(tmp_path: Path) -> None:
    """Which is started before them and ended after them."""
    log = tmp_path / "mps"
    program(tmp_path / "programs", "nvidia-cuda-mps-control", f'[ "$1" = -d ] && echo start >>{log} || cat >>{log}')
    done, calls = rehearse(tmp_path, PARTS="jobs")
    assert (done.returncode, log.read_text()) == (0, "start\nquit\n")
    assert [call.split()[-1] for call in calls if "resnet_train run" in call] == ["1", "4", "4"]
    assert "jobs-4-mps: done after" in done.stdout
