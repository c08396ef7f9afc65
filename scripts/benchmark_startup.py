"""What the commands take before they do anything: seconds of processor time beside those of `import torch`.

    python scripts/benchmark_startup.py
    python scripts/benchmark_startup.py --lines 40000    # and `compare` of twelve runs with so many log lines each

Each command is a process of its own. In each round all run in random order; the figures are the least over the rounds,
since other programs can only add to them. Set OMP_NUM_THREADS=1: threads that wait count, too.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from resnet_train.config.default_run import default_run
from resnet_train.config.load import dump
from resnet_train.config.yaml12 import to_yaml
from resnet_train.runtime.tables import columns

TORCH = "import torch"
EXPERIMENT = """
base: quickstart
name: startup
networks: [cifar-plain-8, cifar-resnet-8]
schedule: {kind: cosine, warmup: null}
train: {epochs: null, steps: 11}
"""
LAST = "runs/startup/cifar-resnet-8/seed-0/checkpoints/last.pt"
COMMANDS = (
    "--help",
    "configs",
    "status runs",
    "schema",
    "compare runs",
    "summary resnet-50",
    "summary resnet-50 --vs resnet-152",
    "run quickstart --dry-run",
    f"predict {LAST} digit.png",
    f"eval {LAST}",
)
DEPTHS = (20, 32, 44, 56, 80, 110)
"""Of the long runs: plain and residual."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--lines", type=int, metavar="N", help="log lines of a long run (default: no long runs)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        cpu_seconds(program("run startup.yaml"), folder)
        commands = {TORCH: [sys.executable, "-c", TORCH], **{command: program(command) for command in COMMANDS}}
        if args.lines is not None:
            write_long_runs(folder / "long", args.lines)
            commands[f"compare of {2 * len(DEPTHS)} runs with {args.lines:,} log lines"] = program("compare long")
        seconds: dict[str, list[float]] = {command: [] for command in commands}
        for _ in range(args.rounds):
            for command in random.sample([*commands], len(commands)):
                seconds[command].append(cpu_seconds(commands[command], folder))
    print(table({command.replace(LAST, "last.pt"): min(values) for command, values in seconds.items()}))


def program(command: str) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-m", "resnet_train", *command.split()]


def cpu_seconds(command: list[str], folder: Path) -> float:
    """The processor time of a process that runs in `folder`, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(seconds: dict[str, float]) -> str:
    """The seconds of each command, how many more than those of `import torch`, and the ratio of both."""
    torch = seconds[TORCH]
    rows = [("command", "seconds", "more than torch", "ratio")]
    rows += [(name, f"{own:.2f}", f"{own - torch:.2f}", f"{own / torch:.2f}") for name, own in seconds.items()]
    return columns(rows)


def write_inputs(folder: Path) -> None:
    """What the commands read, but for the runs of `startup.yaml`."""
    (folder / "startup.yaml").write_text(EXPERIMENT)
    Image.new("L", (8, 8)).save(folder / "digit.png")


def write_long_runs(folder: Path, lines: int) -> None:
    """Run folders with `lines` log lines and 160 evaluations each, of errors that never were."""
    for depth in DEPTHS:
        for kind in ("plain", "resnet"):
            run = default_run(f"cifar-{kind}-{depth}", {"kind": "digits"})
            tree = dump(run) | {"experiment": "long", "train": {"steps": 10 * lines}}
            run_folder = folder / run.network.name / "seed-0"
            run_folder.mkdir(parents=True)
            (run_folder / "config.yaml").write_text(to_yaml(tree))
            text = "".join(json.dumps(record) + "\n" for record in _records(depth, lines))
            (run_folder / "metrics.jsonl").write_text(text)


def _records(depth: int, lines: int) -> Iterator[dict[str, Any]]:
    facts = {"train_images": 50_000, "val_images": 10_000, "protocol": "whole image"}
    steps = {"params": 1000 * depth, "macs": 10**6 * depth, "steps": 10 * lines}
    yield {"step": 0, "kind": "start", **steps, **facts, "seconds": 0.0, "time": 1.8e9}
    for line in range(1, lines + 1):
        times = {"seconds": line * 0.37, "time": 1.8e9 + line * 0.37}
        error = 90 * (1 - line / (lines + 1)) * random.uniform(0.9, 1.1)
        running = {"error": error, "loss": error / 30, "lr": 0.1, "grad_norm": random.random()}
        speed = {"images_per_second": random.uniform(100, 1000), "data_wait_seconds": random.random() / 100}
        yield {"step": 10 * line, "kind": "train", **running, **speed, **times}
        if line % max(1, lines // 160) == 0:
            clean = {"clean_train_error_top1": error, "clean_train_error_top5": error / 5, "clean_train_loss": 0.1}
            errors = {"val_error_top1": error, "val_error_top5": error / 5, "val_loss": 0.1}
            yield {"step": 10 * line, "kind": "eval", **errors, **clean, "eval_seconds": 0.01, **times}
    yield {"step": 10 * lines, "kind": "end", "status": "finished", **times}


if __name__ == "__main__":
    main()
