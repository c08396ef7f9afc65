"""What a machine may lack: programs, a home, a cache of fonts, parts of Python."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import resnet_train
from resnet_train.runs import environment
from resnet_train.runtime.distributed import World

SITE = """
import os, sys
sys.modules.update(dict.fromkeys(["_bz2", "_curses", "_lzma", "_sqlite3", "_tkinter", "readline"]))
for name in ("memfd_create", "pidfd_open", "posix_fallocate", "sched_getaffinity"):  # macOS has none of them
    delattr(os, name)
"""
COMMANDS = """
import json, sys
from resnet_train import cli

if __name__ == "__main__":
    print("exit codes", [cli.main(command) for command in json.loads(sys.argv[1])])
"""


@pytest.mark.long
def test_every_command_works_on_a_bare_machine(config: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    """No programs (git, compilers, fc-list, jpegtran), no HOME, no locale, no folder for matplotlib's cache of fonts, a
    Python that was built without some libraries, and none of the functions that only Linux
    has. In a new Python, since all of that is read at its start."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    (tmp_path / "commands.py").write_text(COMMANDS)
    path = config(
        data={"kind": "imagefolder", "path": str(images), "workers": 1},
        augment={"crop": {"kind": "random-resized", "size": 16}},
        eval={"view": {"resize": 20, "crop": 16}, "clean_train_images": 4},
        train={"steps": 2, "batch_size": 4},
    )
    last = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
    commands = [
        ["run", str(path)],
        ["compare", "runs"],
        ["eval", last],
        ["predict", last, str(images / "val/a/0.JPEG")],
        ["prepare", str(images), "packed"],
        ["bench", str(path), "--seconds", "1"],
    ]
    bare = {
        "MPLCONFIGDIR": "/proc/nothing",
        "OMP_NUM_THREADS": "1",
        "PATH": "/proc/nothing",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(resnet_train.__file__).parents[1])]),
        "TMPDIR": str(tmp_path),
    }
    arguments = [sys.executable, "commands.py", json.dumps(commands)]
    ended = subprocess.run(arguments, env=bare, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1:] == ["exit codes [0, 0, 0, 0, 0, 0]"], ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_environment_is_recorded_without_git_and_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def no_proc(path: Path, *arguments: Any, **options: Any) -> str:
        if path.is_relative_to("/proc"):
            raise FileNotFoundError(path)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", no_proc)
    monkeypatch.setenv("PATH", "/proc/nothing")
    session = environment.describe_session(World(torch.device("cpu")))
    assert session["commit"] is None
    assert isinstance(session["device"], str)
