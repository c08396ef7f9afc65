"""The run folder: the only contract between training and reading. No torch.

config.yaml      the resolved configuration of the run
metrics.jsonl    one JSON object a line, each with `step` and `kind`: start, train, eval, end, or a probe's kind
                 (gradients, responses, lesion), whose values are mappings from units or layers to numbers
checkpoints/     last.pt, previous.pt, best.pt, step-N.pt
*tfevents*       TensorBoard's log: the records as scalars; configuration, findings, pictures
gradients.png    gradient norms by depth and time, if they were probed
env.json         versions, machine and commit of each session
lock             locked by the process that trains in the folder
"""

import logging
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from resnet_train.config.defining import flatten, is_defining
from resnet_train.config.load import dump, read_run
from resnet_train.config.schema import Run
from resnet_train.config.sweep import folder_names
from resnet_train.config.yaml12 import read_yaml, to_yaml
from resnet_train.errors import BadInput
from resnet_train.runs.records import Record, parse_record, parse_records, parse_sessions
from resnet_train.runtime.atomic import atomic_write_text
from resnet_train.runtime.file_lock import locked
from resnet_train.runtime.memoize import memoized
from resnet_train.runtime.regular_file import exists, read_text

logger = logging.getLogger(__name__)

_RECORDS_LIMIT = 1 << 40
"""Bytes of the largest metrics.jsonl: a line for each step of a long run is more text than people write."""

TIMING_KEYS = frozenset(
    {
        *("time", "seconds", "images_per_second", "data_wait_seconds"),
        *("eval_seconds", "probe_seconds", "probe_share"),
    }
)
"""The keys of a record that depend on the clock. All others are the same for an uninterrupted and a resumed run."""


def folder_of(output: str, run: Run) -> Path:
    """The folder of a run."""
    return Path(output, run.experiment, place_of(run))


def place_of(run: Run) -> str:
    """Where a run lies in the folder of its experiment, such as cifar-resnet-20/optimizer.lr=0.05/seed-0."""
    return "/".join([run.network.name, *folder_names(run.sweep), f"seed-{run.seed}"])


def check_checkpoint_exists(path: Path) -> None:
    """Raise `BadInput` if a path is not a file."""
    is_there = exists(path)
    if is_there and path.is_dir():
        best = "checkpoints/best.pt"
        [*found] = sorted(path.glob(f"*/seed-*/{best}"))  # of an experiment
        raise BadInput(f"{path} is a folder: give a file, such as {found[0] if found else path / best}")
    if not is_there or not path.is_file():
        raise BadInput(f"{path}: no such checkpoint; expected a file such as RUN/checkpoints/best.pt")


class TimeSpent(NamedTuple):
    """Seconds of a run, over all its sessions."""

    training: float
    """All but the others: also saving, and waiting for data."""
    evaluation: float
    probes: float


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The newest checkpoint in the folder `checkpoints` of a run; None if there is none. It is not read."""
    paths = (checkpoints / name for name in ("last.pt", "previous.pt"))
    return next((path for path in paths if exists(path) and path.is_file()), None)


def describe_last_checkpoint(checkpoints: Path) -> str:
    """For messages about a run that stops."""
    path = last_checkpoint(checkpoints)
    return "there is no checkpoint yet" if path is None else f"the last checkpoint is {path}"


@dataclass(frozen=True)
class RunRecord:
    """The configuration and the records of a run folder."""

    folder: Path
    run: Run
    records: list[Record]

    @cached_property
    def end(self) -> Record | None:
        """The record that ends the run, once it is finished or has diverged."""
        return next((r for r in self.records if r["kind"] == "end"), None)

    @cached_property
    def training_seconds(self) -> list[float]:
        """The seconds of training up to each record; NaN from an evaluation on that was not timed."""
        seconds, evaluation, probes = [], 0.0, 0.0
        for record in self.records:
            if record["kind"] == "eval":
                evaluation += record.get("eval_seconds", math.nan)
            elif record["kind"] != "train":
                probes += record.get("probe_seconds", 0)
            seconds.append(record["seconds"] - evaluation - probes)
        return seconds

    @cached_property
    def time_spent(self) -> TimeSpent:
        """The time that the run has taken; NaN where an evaluation was not timed."""
        evaluation = sum(record.get("eval_seconds", math.nan) for record in self.records if record["kind"] == "eval")
        probes = sum(record["probe_seconds"] for record in self.records if "probe_seconds" in record)
        return TimeSpent(self.training_seconds[-1], evaluation, probes)

    @memoized
    def series(self, kind: str, key: str) -> dict[int, float]:
        """By step, the values of a key in the records of a kind that have one."""
        records = (record for record in self.records if record["kind"] == kind)
        return {record["step"]: record[key] for record in records if record.get(key) is not None}

    @property
    def machines(self) -> list[str]:
        """The machine of each session."""
        return [f"{s['ranks']} x {s['device']}, torch {s['torch']}" for s in sessions(self.folder)]


def sessions(folder: Path) -> list[Record]:
    """The sessions that `env.json` lists; none if it is missing or, with a warning, damaged."""
    path = folder / "env.json"
    if not exists(path):
        return []
    try:
        return parse_sessions(read_text(path))
    except (BadInput, ValueError) as error:
        logger.warning("%s is damaged: the machines of this run are unknown (%s)", path, error)
        return []


def read(folder: Path) -> RunRecord:
    """Read a run folder. Raises `BadInput` if it is none."""
    run = read_run(read_yaml(folder / "config.yaml"), str(folder / "config.yaml"))
    return RunRecord(folder, run, read_metrics(folder))


def read_metrics(folder: Path) -> list[Record]:
    """The records so far. A last line that a crash cut short is left out. Raises `BadInput` if another is damaged."""
    path = folder / "metrics.jsonl"
    if not exists(path) or path.stat().st_size == 0:  # a run that has just begun
        return []
    *lines, half = read_text(path, _RECORDS_LIMIT).split("\n")
    if half:
        with suppress(ValueError):
            parse_record(half)  # it lacks its end of line only
            lines.append(half)
    try:
        return parse_records(lines)
    except ValueError as error:
        raise BadInput(f"{path}, {error}; restore that line") from None


def find(roots: Iterable[Path]) -> list[RunRecord]:
    """Every run folder in or under `roots`, each once. Raises `BadInput` if a root has none."""
    return [read(folder) for folder in folders(roots)]


def folders(roots: Iterable[Path]) -> list[Path]:
    """Every run folder in or under `roots`, each once. Raises `BadInput` if a root has none."""
    by_place: dict[Path, Path] = {}
    for root in roots:
        under_root = sorted(p.parent for p in root.rglob("metrics.jsonl") if not p.parent.name.endswith(".old"))
        if not under_root:
            raise BadInput(f"{root}: no run folder in or under it (a run folder holds config.yaml and metrics.jsonl)")
        for folder in under_root:
            by_place.setdefault(folder.resolve(), folder)
    return list(by_place.values())


def last_checkpoints(root: Path) -> list[Path]:
    """The last checkpoint of every run in or under `root`. Raises `BadInput` if there is none."""
    checkpoints = []
    for folder in folders([root]):
        path = last_checkpoint(folder / "checkpoints")
        if path is None:
            logger.warning("%s is left out: it has no checkpoint yet", folder)
        else:
            checkpoints.append(path)
    if not checkpoints:
        raise BadInput(f"{root}: no run in or under it has a checkpoint yet")
    return checkpoints


def differences(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """The defining keys in which two runs differ, with both values. A probe that only one of them has is none."""
    a, b = defining_keys(one), defining_keys(other)
    return [
        (key, a.get(key), b.get(key))
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not (key.startswith("probes.") and None in (a.get(key), b.get(key)))
    ]


def differences_from_earlier(earlier: Run, run: Run) -> Iterator[str]:
    """Why `run` cannot continue an earlier one, in words. A longer training continues one if its schedule allows it."""
    for key, old, new in differences(earlier, run):
        if key in ("train.epochs", "train.steps"):
            if (reason := earlier.fixes_length or run.fixes_length) is not None:
                yield f"{key} = {old}, not {new}, and {reason} depends on the length"
        else:
            yield f"{key} = {old}, not {new}"


def defining_keys(run: Run) -> Record:
    """The configuration as dotted keys, without those that may change when the run resumes."""
    return {key: value for key, value in flatten(dump(run)).items() if is_defining(key)}


@contextmanager
def named_write_errors(folder: Path) -> Iterator[None]:
    """Raises `BadInput` if the block raises `OSError`: it writes a file of a run folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"cannot write in {folder}: {reason}; when it can be written, run again to continue") from None


def check_same_run(record: RunRecord, run: Run) -> None:
    """Raise `BadInput` if a folder belongs to another run."""
    for difference in differences_from_earlier(record.run, run):
        raise BadInput(f"{record.folder} holds a run with {difference}: set it back, choose a name=… or --fresh")


def read_earlier(folder: Path, run: Run) -> RunRecord | None:
    """The record of earlier sessions of `run`, if its folder has one. Raises `BadInput` if it is another run's."""
    if not exists(folder / "config.yaml"):
        return None
    record = read(folder)
    check_same_run(record, run)
    return record


def lock_run_folder(folder: Path, stack: ExitStack) -> None:
    """Lock a run folder, if it exists, until `stack` is closed. Call this before reading it.

    Raises `FolderInUse` if another process trains in it, and `BadInput` if it cannot be written.
    """
    if exists(folder):
        try:
            stack.enter_context(locked(folder / "lock", f"{folder}: another process trains in it; stop that first"))
        except OSError as error:
            raise BadInput(f"output: cannot write {folder}: {error.strerror or error}") from None


def open_run_folder(run: Run, folder: Path, fresh: bool, stack: ExitStack) -> list[Record]:
    """Make and lock the folder of a run that is about to start, and write its config; the records of earlier sessions.

    `fresh` moves an older folder aside. Raises `BadInput` if the folder cannot be written or is another run's,
    `FolderInUse` if another process trains in it.
    """
    try:
        if fresh and exists(folder):
            lock_run_folder(folder, stack)
            old = folder.with_name(f"{folder.name}.{datetime.now():%Y%m%d-%H%M%S-%f}.old")
            shutil.move(folder, old)
            stack.close()  # the lock has moved with its folder
            for log in old.glob("*tfevents*"):  # TensorBoard, too, leaves an old run out
                log.rename(log.with_name(log.name.replace("tfevents", "old-events")))
            logger.info("moved the old run to %s", old)
        folder.mkdir(parents=True, exist_ok=True)
        lock_run_folder(folder, stack)
        if record := read_earlier(folder, run):
            for partial in folder.glob("checkpoints/*.tmp"):  # a process was killed while it wrote
                partial.unlink()
            if record.run != run:
                atomic_write_text(folder / "config.yaml", to_yaml(dump(run)))
            return record.records
        atomic_write_text(folder / "config.yaml", to_yaml(dump(run)))
    except OSError as error:
        raise BadInput(f"output: cannot write {folder}: {error.strerror or error}") from None
    return []


def update_expected(folder: Path, run: Run) -> None:
    """Write what is expected of a finished run by now into its config, which `compare` reads. Raises `BadInput`."""
    path = folder / "config.yaml"
    recorded = read_run(read_yaml(path), str(path))
    if recorded.expect != run.expect:
        try:
            atomic_write_text(path, to_yaml(dump(recorded.model_copy(update={"expect": run.expect}))))
        except OSError as error:
            raise BadInput(f"output: cannot write {path}: {error.strerror or error}") from None
