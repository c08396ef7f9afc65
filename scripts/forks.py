"""Commands of `resnet-train` in copies of this process, which has imported everything once.

What a copy does (its exit status, its output, its time) is what a process of its own would do, without the seconds of
importing torch. For `chaos.py` and `fuzz.py`.
"""

import gc
import importlib
import multiprocessing
import os
import resource
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

LIMIT = 300
"""Seconds after which a process hangs. Generous, since this machine may be busy."""

_EVERYTHING = (
    *(f"commands.{name}" for name in ("run", "compare", "eval", "predict", "prepare", "export", "probe", "summary")),
    *("training.grid", "training.loop", "training.probing", "training.sinks", "evaluation.ensemble"),
    *("evaluation.confusion", "packing.prepare", "packing.verify", "packing.parquet", "data.class_labels"),
    *("analysis.figures", "analysis.findings", "analysis.tables"),
)


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    code: int
    """Exit code; negative: the number of the signal."""
    out: str
    err: str
    hung: bool

    def complaint(self, codes: Sequence[int], lines: int = 3) -> str:
        """What is wrong with this end; empty if it is one of `codes`, with a short message where it is no success."""
        if self.hung:
            return "hangs"
        if "Traceback" in self.err:
            return f"traceback: {self.err.strip().splitlines()[-1][:200]}"
        if self.code not in codes:
            return f"exit code {self.code}: {self.err.strip()[-200:]}"
        messages = [line for line in self.err.splitlines() if line.startswith("resnet-train:")]
        if self.code in (1, 2) and not messages:
            return f"exit code {self.code} without a message: {self.err.strip()[-200:]}"
        if len(messages) > lines or any(len(line) > 2100 for line in self.err.splitlines()):
            return f"a message of {len(self.err.splitlines())} lines and {len(self.err)} characters"
        return ""


def import_everything() -> None:
    """Import what any command imports, so that its copies need not. Starts no thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("matplotlib.pyplot", "torch.utils.tensorboard", "torchvision", "multiprocessing.popen_fork"):
        importlib.import_module(name)
    for name in _EVERYTHING:
        importlib.import_module(f"resnet_train.{name}")
    gc.collect()
    gc.freeze()  # a copy that looked through all of these for garbage would copy their pages


def start(function: Callable[[], int], folder: Path) -> tuple[int, TextIO, TextIO]:
    """Call `function` in a copy of this process, in `folder`: (process id, its standard output, its standard error).

    The copy leads a process group, and ends with the exit code that `function` returns.
    """
    out, err = (tempfile.TemporaryFile("w+", errors="replace") for _ in range(2))  # noqa: SIM115
    process = os.fork()
    if process:
        return process, out, err
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        for file, number in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        # Of its own: an imported test runner or terminal may have replaced these.
        sys.stdout, sys.stderr = (open(number, "w", errors="replace", closefd=False) for number in (1, 2))  # noqa: SIM115
        code = function()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def finish(process: int, out: TextIO, err: TextIO, limit: float = LIMIT) -> Outcome:
    """Wait for a copy; kill it and what it started if it takes longer than `limit` seconds."""
    handle = os.pidfd_open(process)
    hung = not select.select([handle], [], [], limit)[0]
    os.close(handle)
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # also what it left behind
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read())
        file.close()
    return Outcome(code, texts[0], texts[1], hung)


def command(*arguments: object) -> int:
    """Run `resnet-train` with arguments in this process, as its own process would; its exit code."""
    from resnet_train import cli

    return cli.main([str(argument) for argument in arguments])


def fork_workers() -> None:
    """Start the workers of this process as copies of it: multiprocessing's fork server would import torch once more."""
    from resnet_train.runtime import processes

    context = multiprocessing.get_context("fork")
    processes.multiprocessing.get_context = lambda _=None: context  # type: ignore[assignment,attr-defined]
    processes.ensure_fork_server = lambda: None


def call(*arguments: object, folder: Path, before: Callable[[], object] = lambda: None) -> Outcome:
    """Run `resnet-train` in a copy, in `folder`, after a call of `before` there."""

    def function() -> int:
        fork_workers()
        before()
        return command(*arguments)

    return finish(*start(function, folder))


def limit_memory(gigabytes: float) -> None:
    """Let this process fail, and not the machine, where an input asks for more memory than it may."""
    size = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
