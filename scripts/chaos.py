"""Kill `resnet-train`, or fail one of its calls, at every place in turn; then run it again and compare every bit.

    python scripts/chaos.py --minutes 20
    python scripts/chaos.py --only run/write/17/kill      # one trial, with what it printed

A trial is SCENARIO/CALL/NUMBER/FAULT: in the scenario, the NUMBER-th call of that kind suffers the fault. `kill` ends
the process by SIGKILL (a write is half done then), `fail` lets this call fail, `full` this call and all that follow.
A command that is not killed must end in order: with success, or with one line and a documented exit code. The same
command, run again without a fault, must then finish with the results of a run that nothing disturbed. Where there are
data workers, these must be the results without them.

The order of the trials is random and a function of --seed. Prints a table; exits with 1 if a trial failed.
"""

import argparse
import builtins
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import forks
import yaml
from forks import Outcome

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "step")
"""`step` is a step of the training, where only `kill` makes sense."""
FAULTS = ("kill", "fail", "full")

EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "networks": [{"base": "cifar-resnet-8", "widths": [4, 8, 8]}],
    "data": {"kind": "synthetic", "size": 8, "classes": 4, "train_images": 40, "val_images": 14},
    "augment": {"crop": {"kind": "pad", "padding": 1}, "flip": True},
    "train": {"steps": 6, "batch_size": 16, "device": "cpu", "ema_decay": 0.9},
    "eval": {"every": {"steps": 2}, "batch_size": 5, "clean_train_images": 10},
    "checkpoint": {"every": {"steps": 2}, "keep_every": {"steps": 4}},
    "log": {"every": {"steps": 1}},
    "probes": {"gradients": {"every": {"steps": 3}}},
}
"""Saves between log lines; an epoch ends within a step."""
IMAGES: dict[str, Any] = EXPERIMENT | {
    "data": {"kind": "imagefolder", "path": "images", "workers": 2},
    "augment": {"crop": {"kind": "random-resized", "size": 48}},
    "train": EXPERIMENT["train"] | {"batch_size": 8},
    "eval": {"every": {"steps": 3}, "batch_size": 8, "clean_train_images": 11},
}
"""Two data workers. Both evaluations end with a smaller batch, whose parts take less memory than those before."""
WITHOUT_WORKERS = "data.workers=0"


# --- the faults -------------------------------------------------------------------------------------------------------


class Faults:
    """Counts the calls of this process and its children in a folder, and lets one of them suffer."""

    def __init__(self, folder: Path, call: str = "", number: int = 0, fault: str = "") -> None:
        self.folder, self.call, self.number, self.fault = str(folder), call, number, fault
        self.counts = {name: multiprocessing.get_context("fork").Value("q", 0) for name in CALLS}

    def reach(self, call: str, path: object = None, half: Callable[[], object] = lambda: None) -> None:
        """Count a call; end the process or raise `OSError` if it is its turn, after `half` of it is done."""
        if path is not None and not str(Path(os.fsdecode(path)).absolute()).startswith(self.folder):  # type: ignore[arg-type]
            return
        with self.counts[call].get_lock():
            self.counts[call].value += 1
            nth = self.counts[call].value
        if call != self.call or nth < self.number or (nth > self.number and self.fault != "full"):
            return
        half()
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.ENOSPC if call in ("write", "fsync", "mkdir") else errno.EIO
        raise OSError(number, os.strerror(number), None if path is None else os.fsdecode(path))  # type: ignore[arg-type]

    def install(self) -> None:
        """Replace the calls of this process."""
        reach = self.reach

        class RawFile(io.FileIO):
            error: OSError | None = None

            def write(self, data: Any) -> int:
                if self.error is not None:
                    error, self.error = self.error, None
                    raise error
                half = memoryview(data).cast("B")[: len(data) // 2]
                try:
                    reach("write", self.name, lambda: io.FileIO.write(self, half))
                except OSError as error:
                    if not half:
                        raise
                    self.error = error  # a disk that fills up takes a part; the next call fails
                    return len(half)
                return super().write(data)

        def open_file(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if isinstance(file, int):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            reach("open", file)
            raw = RawFile(os.fspath(file), mode.replace("t", "").replace("b", ""), closefd, opener)
            if buffering == 0:
                return raw
            if "+" in mode:
                buffered: Any = io.BufferedRandom(raw)
            else:
                buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

        def before(module: Any, name: str, call: str) -> None:
            real = getattr(module, name)

            def function(*arguments: Any, **options: Any) -> Any:
                # A number in place of a path is a file of this process, one of ours.
                reach(call, arguments[0] if isinstance(arguments[0], str | bytes | os.PathLike) else None)
                return real(*arguments, **options)

            setattr(module, name, function)

        from resnet_train.training import loop

        real_open = io.open
        io.open = builtins.open = tarfile.bltn_open = open_file  # type: ignore[assignment,attr-defined]
        for name, call in {"fsync": "fsync", "replace": "rename", "rename": "rename", "unlink": "unlink"}.items():
            before(os, name, call)
        before(os, "mkdir", "mkdir")
        before(loop, "train_step", "step")
        forks.fork_workers()  # so that their calls count, too


# --- the scenarios ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """What is run, and what it must leave behind."""

    make: Callable[[Path], object]
    """Fills a new folder with what the command reads."""
    arguments: tuple[str, ...]
    result: Callable[[Path], object]
    """What must be equal in the end."""
    ranks: int = 1
    most_steps: int = 0
    """Steps of all ranks in both sessions: more means that a checkpoint was lost, and the training began again. A rank
    may have begun one more when another ends."""
    reference: tuple[str, ...] = ()
    """More arguments, with which the command must give the same result."""


def make_experiment(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(EXPERIMENT))


def make_images(folder: Path, train: int = 5, val: int = 2) -> None:
    """Class folders of that many images for each of two classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in ("a", "b"):
            (folder / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(generator.integers(0, 256, (40, 44 + i, 3), dtype=np.uint8))
                image.save(folder / "images" / split / name / f"{i}.{'png' if i == 1 else 'jpg'}")


def make_image_experiment(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(IMAGES))
    make_images(folder, train=10, val=17)


def make_run(folder: Path) -> None:
    make_image_experiment(folder)
    ended = forks.call("run", "tiny.yaml", WITHOUT_WORKERS, folder=folder)
    assert ended.code == 0, ended.err


def run_result(folder: Path) -> object:
    """The records of a run but for the clock, and every bit of its checkpoints."""
    from resnet_train.runs import run_folder

    run = folder / "runs/tiny/cifar-resnet-8/seed-0"
    records = [
        {key: value for key, value in record.items() if key not in run_folder.TIMING_KEYS}
        for record in run_folder.read_metrics(run)
    ]
    left = sorted(str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name)
    return records, left, {path.name: weights(path) for path in sorted(run.rglob("*.pt"))}


def weights(path: Path) -> str:
    """A digest of the state in a checkpoint."""
    import torch

    payload = torch.load(path, weights_only=True)
    state = [payload[key] for key in ("net", "ema", "optimizer", "scaler", "ranks", "step", "best")]
    digest = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(state):
        digest.update(leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return digest.hexdigest()


def packed_result(folder: Path) -> object:
    """Every file of the packed set."""
    packed = folder / "packed"
    files = sorted(path for path in packed.rglob("*") if path.is_file())
    return [(str(path.relative_to(packed)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def eval_result(folder: Path) -> object:
    """The last result, that every line is one, and the files beside it; the logits."""
    import numpy as np

    evaluation = folder / "runs/tiny/cifar-resnet-8/seed-0/evaluation"
    records = [json.loads(line) for line in (evaluation / "results.jsonl").read_text().splitlines()]
    classes = sorted(path.name for path in evaluation.glob("*.csv"))
    with np.load(folder / "logits.npz") as stored:
        values = {name: hashlib.sha256(stored[name].tobytes()).hexdigest() for name in ("labels", "values")}
    last = {key: value for key, value in records[-1].items() if "second" not in key and key != "time"}
    return last, classes, values, [path.name for path in folder.rglob("*.tmp")]


SCENARIOS = {
    "run": Scenario(make_experiment, ("run", "tiny.yaml"), run_result, most_steps=6 + 2),
    "ranks": Scenario(make_experiment, ("run", "tiny.yaml"), run_result, ranks=2, most_steps=2 * (6 + 2) + 1),
    "workers": Scenario(
        make_image_experiment, ("run", "tiny.yaml"), run_result, most_steps=6 + 2, reference=(WITHOUT_WORKERS,)
    ),
    "prepare": Scenario(
        make_images, ("prepare", "images", "packed", "--shard-images", "4", "--workers", "1"), packed_result
    ),
    "eval": Scenario(
        make_run,
        (
            *("eval", "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt", "--save-logits", "logits.npz"),
            *("--set", "data.workers=2"),
        ),
        eval_result,
        reference=("--set", WITHOUT_WORKERS),
    ),
}


# --- a trial ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    scenario: str
    call: str
    number: int
    fault: str

    def __str__(self) -> str:
        return f"{self.scenario}/{self.call}/{self.number}/{self.fault}"


def run_ranks(scenario: Scenario, folder: Path, faults: Faults, *more: str) -> list[Outcome]:
    """Run the command, with more arguments, on each rank; their ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def rank(number: int) -> int:
        if scenario.ranks > 1:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(scenario.ranks)}
            os.environ |= {"LOCAL_WORLD_SIZE": str(scenario.ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        faults.install()
        return forks.command(*scenario.arguments, *more)

    started = [forks.start(partial(rank, number), folder) for number in range(scenario.ranks)]
    return [forks.finish(*each) for each in started]


def attempt(trial: Trial, folder: Path, expected: object, show: bool = False) -> tuple[str, str]:
    """Do a trial in a copy of a scenario's folder: (how the disturbed command ended, what is wrong or nothing)."""
    from resnet_train.errors import RankLost

    scenario = SCENARIOS[trial.scenario]
    faults = Faults(folder, trial.call, trial.number, trial.fault)
    outcomes = run_ranks(scenario, folder, faults)
    if show:
        print(*(f"--- exit code {outcome.code}\n{outcome.out}{outcome.err}" for outcome in outcomes), sep="\n")
    reached = faults.counts[trial.call].value >= trial.number
    killed = any(outcome.code == -signal.SIGKILL for outcome in outcomes)
    end = "not reached" if not reached else "killed" if killed else f"exit {max(outcome.code for outcome in outcomes)}"
    codes = (0, 2) if scenario.ranks == 1 else (0, 2, RankLost.exit_code)
    for outcome in outcomes:
        if outcome.code != -signal.SIGKILL or trial.fault != "kill":
            # One rank reports for all.
            said = outcome if scenario.ranks == 1 else replace(outcome, err="".join(other.err for other in outcomes))
            if wrong := said.complaint(codes):
                return end, wrong
    undisturbed = Faults(folder)
    again = run_ranks(scenario, folder, undisturbed)
    if show:
        print(*(f"--- again: exit code {outcome.code}\n{outcome.out}{outcome.err}" for outcome in again), sep="\n")
    for outcome in again:
        if wrong := outcome.complaint((0,)):
            return end, f"run again: {wrong}"
    if (steps := faults.counts["step"].value + undisturbed.counts["step"].value) > scenario.most_steps:
        return end, f"run again: {steps} steps, more than {scenario.most_steps}: a checkpoint is lost"
    try:
        result = scenario.result(folder)
    except Exception as error:
        return end, f"run again: {type(error).__name__}: {error}"
    if result != expected:
        if show:
            print(f"--- expected\n{expected}\n--- found\n{result}")
        return end, "run again: another result"
    return end, ""


def all_trials(counts: dict[str, dict[str, int]], seed: int) -> list[Trial]:
    """Every place of every scenario in a random order."""
    trials = [
        Trial(scenario, call, number, fault)
        for scenario, calls in counts.items()
        for call, count in calls.items()
        for number in range(1, count + 1)
        for fault in (FAULTS if call != "step" else ("kill",))
    ]
    random.Random(seed).shuffle(trials)
    return trials


def in_parallel(work: Iterator[tuple[Trial, Callable[[], int], Path]], jobs: int) -> Iterator[tuple[Trial, str]]:
    """Call functions in copies of this process, several at a time; what each printed."""
    running: dict[int, tuple[Trial, Any, Path]] = {}
    exhausted = False
    while running or not exhausted:
        while len(running) < jobs and not exhausted:
            following = next(work, None)
            if following is None:
                exhausted = True
            else:
                trial, function, folder = following
                started = forks.start(function, folder)
                running[started[0]] = trial, started, folder
        if running:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            assert info is not None
            trial, started, folder = running.pop(info.si_pid)
            outcome = forks.finish(*started)
            shutil.rmtree(folder, ignore_errors=True)
            yield trial, outcome.out if outcome.code == 0 else json.dumps(["broke", outcome.err[-2000:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="begin no trial after this time (default: 5)")
    parser.add_argument("--trials", type=int, help="do at most this number of trials (default: no limit)")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--only", metavar="TRIAL", help="do this trial alone, and show what it printed")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (default: 2)")
    args = parser.parse_args()
    started = time.monotonic()
    forks.import_everything()
    if args.only:
        scenario, call, number, fault = args.only.split("/")
        only = Trial(scenario, call, int(number), fault)
        args.scenarios = [scenario]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        expected, counts = {}, {}
        for scenario_name in args.scenarios:
            scenario, folder = SCENARIOS[scenario_name], root / scenario_name
            folder.mkdir()
            scenario.make(folder)

            def undisturbed(name: str, *more: str, scenario: Scenario = scenario, folder: Path = folder) -> Any:
                copy = shutil.copytree(folder, root / f"{folder.name}-{name}")
                faults = Faults(copy)
                for outcome in run_ranks(scenario, copy, faults, *more):
                    assert outcome.code == 0, outcome.err
                return scenario.result(copy), {call: count.value for call, count in faults.counts.items()}

            expected[scenario_name], counts[scenario_name] = undisturbed("undisturbed")
            if scenario.reference and undisturbed("reference", *scenario.reference)[0] != expected[scenario_name]:
                print(f"{scenario_name}: another result with {' '.join(scenario.reference)}")
                return 1
        if args.only:
            folder = root / only.scenario
            end, wrong = attempt(only, folder, expected[only.scenario], show=True)
            print(f"{only}: {end}: {wrong or 'as it should be'}")
            return int(bool(wrong))

        def work() -> Iterator[tuple[Trial, Callable[[], int], Path]]:
            for number, trial in enumerate(all_trials(counts, args.seed)):
                if time.monotonic() - started > 60 * args.minutes or number == args.trials:
                    return
                folder = shutil.copytree(root / trial.scenario, root / f"trial-{number}", symlinks=True)

                def function(trial: Trial = trial, folder: Path = folder) -> int:
                    print(json.dumps(attempt(trial, folder, expected[trial.scenario])))
                    return 0

                yield trial, function, folder

        ends: Counter[tuple[str, str, str]] = Counter()
        failed = []
        for trial, printed in in_parallel(work(), args.jobs):
            end, wrong = json.loads(printed)
            ends[trial.scenario, trial.fault, end] += 1
            if wrong:
                failed.append(trial)
                print(f"{trial}: {end}: {wrong}", flush=True)
    print_table(ends, counts, failed, time.monotonic() - started)
    return int(bool(failed))


def print_table(ends: Counter[tuple[str, str, str]], counts: Any, failed: list[Trial], seconds: float) -> None:
    rows = [("scenario", "fault", "trials", "of", "ended", "failed")]
    for scenario, fault in sorted({(scenario, fault) for scenario, fault, _ in ends}):
        these = {end: count for (one, other, end), count in sorted(ends.items()) if (one, other) == (scenario, fault)}
        places = sum(count for call, count in counts[scenario].items() if fault == "kill" or call != "step")
        wrong = sum(trial.scenario == scenario and trial.fault == fault for trial in failed)
        text = ", ".join(f"{end} {count}" for end, count in these.items())
        rows.append((scenario, fault, str(sum(these.values())), str(places), text, str(wrong)))
    print("\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ("---",) * 6, *rows[1:]]))
    print(f"{sum(ends.values())} trials in {seconds / 60:.1f} minutes, {len(failed)} failed")


if __name__ == "__main__":
    sys.exit(main())
