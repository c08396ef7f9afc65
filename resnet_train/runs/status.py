"""How far each run of a folder is: waiting, running, stopped, finished or diverged. No torch."""

import os
import re
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.config.yaml12 import read_yaml
from resnet_train.errors import BadInput
from resnet_train.runs.records import Record, parse_record
from resnet_train.runs.run_folder import folders, place_of, sessions

_ELSEWHERE_QUIET = 10
"""A run of another machine counts as stopped once its record is quiet for so many times its usual pause..."""
_LEAST_QUIET = 300.0
"""...and for so many seconds."""


@dataclass(frozen=True)
class RunStatus:
    """What a run has reached. None is what is not known yet."""

    folder: str
    experiment: str
    network: str
    """With the values of a sweep."""
    seed: int
    state: str
    """waiting (for its turn in a command that trained another run), running, stopped, finished or diverged."""
    host: str | None = None
    """Of the last session; of a run that waits, of the command that will train it."""
    pid: int | None = None
    """Like `host`; of a run that waits, None once that command has ended."""
    step: int = 0
    total_steps: int | None = None
    train_error: float | None = None
    """Running, in percent."""
    clean_train_error: float | None = None
    val_error_top1: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    """Of a running one, at the mean speed of its session: evaluations and probes included."""
    last_line_seconds: float | None = None
    """The age of the last record."""

    @property
    def is_active(self) -> bool:
        """Whether it may change without a new command."""
        return self.state == "running" or (self.state == "waiting" and self.pid is not None)


def run_statuses(root: Path) -> list[RunStatus]:
    """The status of every run in or under a folder, then of those that wait. Raises `BadInput` if it has no run."""
    held = _lock_holders()
    statuses: dict[Path, RunStatus] = {}
    waiting: dict[Path, RunStatus] = {}
    for folder in folders([root]):
        session: Record = next(reversed(sessions(folder)), {})
        config = folder / "config.yaml"
        run = read_run(read_yaml(config), str(config))
        statuses[folder] = _status(folder, run, session, held)
        host, pid = session.get("host"), session.get("pid")
        is_trained = statuses[folder].state == "running" or (host == socket.gethostname() and _is_process(pid))
        for name in session.get("queue", []):
            path = folder.parents[place_of(run).count("/")] / name
            cell, _, seed = name.rpartition("/seed-")
            if path in waiting and not is_trained:
                continue  # another session of its command may go on
            waiting[path] = RunStatus(
                *(str(path), run.experiment, cell.replace("/", " "), int(seed), "waiting"),
                host=host,
                pid=pid if is_trained else None,
            )
    return [*statuses.values(), *(status for path, status in waiting.items() if path not in statuses)]


def _status(folder: Path, run: Run, session: Record, held: set[tuple[int, int]] | None) -> RunStatus:
    start, last = _last_records(folder / "metrics.jsonl")
    newest = max((start, *last.values()), key=lambda record: (record.get("step", 0), record.get("time", 0.0)))
    step = newest.get("step", 0)
    host, pid = session.get("host"), session.get("pid")
    age = time.time() - newest["time"] if newest else None
    if end := last.get("end"):
        state = str(end["status"])
    elif _is_locked(folder / "lock", host, held, newest, age):
        state = "running"
    else:
        state = "diverged" if _diverged_at(folder) >= max(step, 1) else "stopped"
    left, total = None, start.get("steps")
    if state == "running" and total and step:
        left = (total - step) * newest["seconds"] / step
    train, evaluation = last.get("train", {}), last.get("eval", {})
    return RunStatus(
        folder=str(folder),
        experiment=run.experiment,
        network=run.cell,
        seed=run.seed,
        state=state,
        host=host,
        pid=pid,
        step=step,
        total_steps=total,
        train_error=train.get("error"),
        clean_train_error=evaluation.get("clean_train_error_top1"),
        val_error_top1=evaluation.get("val_error_top1"),
        images_per_second=train.get("images_per_second"),
        seconds_left=left,
        last_line_seconds=age,
    )


def _last_records(path: Path) -> tuple[Record, dict[str, Record]]:
    """The first record of `metrics.jsonl`, and the last of each kind. Only those are parsed: a file may be long."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last end of line is being written
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    last: dict[str, Record] = {}
    kinds = {
        kind: f'"kind": "{kind}"'.encode() for kind in ("train", "eval", "end", "gradients", "responses", "lesion")
    }
    for number in range(len(lines), 1, -1):
        for kind, text in kinds.items():
            if kind not in last and text in lines[number - 1]:
                last[kind] = _parsed(path, lines, number)
        if "train" in last and "eval" in last:
            break
    return (_parsed(path, lines, 1) if lines else {}), last


def _parsed(path: Path, lines: Sequence[bytes], number: int) -> Record:
    try:
        return parse_record(lines[number - 1].decode())
    except ValueError as error:
        raise BadInput(f"{path}, line {number}: not a record of a run: {error}; restore that line") from None


def _diverged_at(folder: Path) -> int:
    """The last step at which its loss was not finite; 0 if there is none."""
    names = (re.fullmatch(r"diverged-at-step-(\d+)\.txt", path.name) for path in folder.glob("diverged-at-step-*.txt"))
    return max((int(match[1]) for match in names if match), default=0)


def _is_locked(
    lock: Path, host: str | None, held: set[tuple[int, int]] | None, newest: Record, age: float | None
) -> bool:
    """Whether a process trains in the folder. It is not tried by locking: that would stop a run that is starting."""
    if held is not None and host in (None, socket.gethostname()):
        try:
            stat = lock.stat()
        except OSError:
            return False
        return (stat.st_dev, stat.st_ino) in held
    usual_pause = newest["seconds"] / max(1, newest["step"]) if newest else 0.0
    return age is not None and age < max(_LEAST_QUIET, _ELSEWHERE_QUIET * usual_pause)


def _is_process(pid: int | None) -> bool:
    """Whether this machine has a process of this number."""
    if pid is None or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _lock_holders() -> set[tuple[int, int]] | None:
    """Device and inode of each file that a process of this machine has locked; None where the kernel does not say."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    files = (line.split()[-3].split(":") for line in lines if " FLOCK " in line)
    return {(os.makedev(int(major, 16), int(minor, 16)), int(inode)) for major, minor, inode in files}


def summarise(statuses: Iterable[RunStatus]) -> str:
    """How many runs are in each state, such as `2 finished, 1 running, 1 waiting`."""
    states = [status.state for status in statuses]
    order = ("finished", "diverged", "stopped", "running", "waiting")
    return ", ".join(f"{states.count(state)} {state}" for state in order if state in states)
