"""The run folder: the only contract between training and reading. No torch.

config.yaml      the run, resolved
metrics.jsonl    one object a line, each with `step` and `kind`: start, train, eval, end, or a probe's (gradients,
                 responses, lesion), whose figures are mappings from units or layers to numbers
checkpoints/     last.pt, previous.pt, best.pt, step-N.pt
tensorboard/     the same figures
gradients.png    gradient norms by depth and time, if they were probed
env.json         versions, machine and commit of each session
lock             held by the process that trains in the folder
"""

import json
import shutil
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from resnet_train.config.load import Tree, dump, read_run, read_yaml, to_yaml
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput
from resnet_train.runtime.atomic import atomic_write_text
from resnet_train.runtime.lock import claimed

Record = dict[str, Any]

TIMES = frozenset({"time", "seconds", "images_per_second", "data_wait_seconds", "probe_seconds", "probe_share"})
"""The keys of a record that depend on the clock; all others are the same for an uninterrupted and a resumed run."""

_FREE = frozenset(
    {
        *("data.path", "data.download", "data.workers", "data.device_cache_gb", "train.device"),
        *("eval.batch_size", "train.on_divergence"),
    }
)
"""Keys that say where and how a run is made, not what it is: they may change from one session to the next, as may those
of `checkpoint`."""


def folder_of(output: str, run: Run) -> Path:
    """Where a run lives."""
    return Path(output) / run.experiment / run.network.name / f"seed-{run.seed}"


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds."""

    folder: Path
    run: Run
    records: list[Record]

    @property
    def end(self) -> Record | None:
        """The record of how it ended, if it is over: finished or diverged."""
        return next((r for r in self.records if r["kind"] == "end"), None)

    @property
    def machines(self) -> list[str]:
        """What it was made on, session by session."""
        return [f"{s['ranks']} x {s['device']}, torch {s['torch']}" for s in sessions(self.folder)]


def sessions(folder: Path) -> list[Record]:
    """What `env.json` says of each session; none where it is missing or, with a warning, damaged."""
    path = folder / "env.json"
    try:
        return list(json.loads(path.read_text())["sessions"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        print(f"warning: {path} is damaged: on which machines the run was made, nobody knows", file=sys.stderr)
        return []


def read(folder: Path) -> RunRecord:
    """A run folder. Raises `BadInput` where it is none."""
    run = read_run(read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    return RunRecord(folder, run, read_metrics(folder))


def read_metrics(folder: Path) -> list[Record]:
    """The records so far; a last line cut short by a crash is not one."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise BadInput(f"{path}, line {number}: not a JSON object; the file was changed by hand") from None
    return records


def find(roots: Iterable[Path]) -> list[RunRecord]:
    """Every run folder in or under `roots`, each once. Raises `BadInput` where there is none."""
    found: dict[Path, Path] = {}
    for root in roots:
        here = sorted(p.parent for p in root.rglob("metrics.jsonl") if not p.parent.name.endswith(".old"))
        if not here:
            raise BadInput(f"{root}: no run folder in or under it (a run folder holds config.yaml and metrics.jsonl)")
        for folder in here:
            found.setdefault(folder.resolve(), folder)
    return [read(folder) for folder in found.values()]


def differences(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """The keys in which two runs differ, with both values; keys that only name a place are left out."""
    a, b = flat(dump(one)), flat(dump(other))
    return [(key, a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]


def flat(tree: Tree, prefix: str = "") -> Record:
    """Nested mappings as dotted keys."""
    leaves: Record = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return {key: value for key, value in leaves.items() if key not in _FREE and not key.startswith("checkpoint.")}


def held_by(folder: Path, run: Run) -> RunRecord | None:
    """What a run's folder holds so far. Raises `BadInput` where that is another run."""
    if not (folder / "config.yaml").exists():
        return None
    held = read(folder)
    for key, old, new in differences(held.run, run):
        raise BadInput(f"{folder} holds a run with {key} = {old}, not {new}: set it back, choose a name=… or --fresh")
    return held


def status(folder: Path, run: Run) -> str | None:
    """How a run ended, if its folder says that it has. Raises `BadInput` where the folder holds another run."""
    held = held_by(folder, run)
    return None if held is None or held.end is None else str(held.end["status"])


def claim(folder: Path, claims: ExitStack) -> None:
    """Keep a run's folder, if there is one, for this process until `claims` are given up; call before reading it.

    Raises `BadInput` where another process trains in it.
    """
    if folder.exists():
        try:
            claims.enter_context(claimed(folder / "lock", f"{folder}: another process trains in it; stop that first"))
        except OSError as error:
            raise BadInput(f"output: cannot write {folder}: {error.strerror}") from None


def prepare(run: Run, folder: Path, fresh: bool, claims: ExitStack) -> list[Record]:
    """Make the folder of a run about to start, with its config, and claim it; the records that it holds already.

    `fresh` moves an older folder aside. Raises `BadInput` where the folder cannot be written, holds another run, or
    another process trains in it.
    """
    try:
        if fresh and folder.exists():
            claim(folder, claims)
            old = folder.with_name(f"{folder.name}.{datetime.now():%Y%m%d-%H%M%S-%f}.old")
            shutil.move(folder, old)
            print(f"moved the old run to {old}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, claims)
        if held := held_by(folder, run):
            for stray in folder.glob("checkpoints/*.tmp"):  # of a process that was killed while it wrote
                stray.unlink()
            return held.records
        atomic_write_text(folder / "config.yaml", to_yaml(dump(run)))
    except OSError as error:
        raise BadInput(f"output: cannot write {folder}: {error.strerror}") from None
    return []
