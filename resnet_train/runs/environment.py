"""What a run was made with: versions, machine and commit. Never the environment's variables, which may hold secrets."""

import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resnet_train import __version__
from resnet_train.runs.run_folder import sessions
from resnet_train.runtime.atomic import atomic_write_text
from resnet_train.runtime.distributed import World


def add_session(folder: Path, step: int, world: World) -> None:
    """Add this session to a run folder's `env.json`. Raises `OSError`."""
    told = [*sessions(folder), {"from_step": step, **describe(world)}]
    atomic_write_text(folder / "env.json", json.dumps({"sessions": told}, indent=2) + "\n")


def describe(world: World) -> dict[str, Any]:
    """This session's versions, machine and commit."""
    cuda = world.device.type == "cuda"
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resnet_train": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("torchvision", "numpy", "pillow")},
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "device": torch.cuda.get_device_name(world.device) if cuda else _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": world.size,
        "platform": platform.platform(),
    }


def _commit() -> str | None:
    """The commit of the source tree, if this runs from one; marked where it was changed."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, check=True, capture_output=True, timeout=10)
        return subprocess.run(git, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
