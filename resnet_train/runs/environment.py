"""The versions, machine and commit of each session of a run. Never environment variables: they may hold secrets."""

import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from resnet_train.runs.run_folder import sessions
from resnet_train.runtime.atomic import atomic_write_text
from resnet_train.runtime.distributed import World
from resnet_train.runtime.version import __version__


def add_session(folder: Path, step: int, world: World, queue: Sequence[str] = ()) -> None:
    """Add this session, which starts at `step`, to the `env.json` of a run folder. Raises `OSError`.

    queue: the runs that the same command trains after this one, such as cifar-resnet-20/seed-0.
    """
    process = {"host": socket.gethostname(), "pid": os.getpid(), "queue": list(queue)}
    all_sessions = [*sessions(folder), {"from_step": step, **describe_session(world), **process}]
    atomic_write_text(folder / "env.json", json.dumps({"sessions": all_sessions}, indent=2) + "\n")


def describe_session(world: World) -> dict[str, Any]:
    """The versions, machine and commit of this session."""
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
    """The commit of the source tree if the program runs from one, with `-dirty` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    is_tracked = [*git, "ls-files", "--error-unmatch", Path(__file__).name]  # not some other repository above
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        subprocess.run(is_tracked, check=True, capture_output=True, timeout=10)
        return subprocess.run(describe, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
