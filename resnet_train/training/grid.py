"""The verb `run`: a grid of runs, one after the other or several at once."""

import json
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from resnet_train.analysis import findings, tables
from resnet_train.analysis.groups import group_runs
from resnet_train.config.schema import Run
from resnet_train.data import datasets
from resnet_train.errors import BadInput, Diverged, Interrupted
from resnet_train.models import complexity
from resnet_train.runs import run_folder
from resnet_train.runs.run_folder import folder_of
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import out_of_memory_hint
from resnet_train.runtime.processes import Children
from resnet_train.runtime.signals import StopRequest, catch_stop_signals
from resnet_train.training import finetune
from resnet_train.training.loop import train


class _Member(NamedTuple):
    """A run that is to be trained."""

    run: Run
    folder: Path
    fresh: bool
    later: float
    """The work that comes after it, in units of its own."""

    def __str__(self) -> str:
        return f"{self.run.network.name} seed {self.run.seed}"


def train_all(runs: Sequence[Run], output: str, device: str, fresh: bool, jobs: int, as_json: bool) -> None:
    """Train what is unfinished, `jobs` runs at a time, then print the comparison of all.

    Raises what `train` raises; a divergence that is to be recorded is, and the next run begins.
    """
    folders = [folder_of(output, run) for run in runs]
    with distributed.start(device) as world, catch_stop_signals(announce=world.is_main) as request:
        if jobs > 1 and world.size > 1:
            raise BadInput(f"--jobs {jobs} is for one rank, and there are {world.size}: leave it out")
        pending: list[tuple[Run, Path]] = []
        for run, folder in zip(runs, folders, strict=True):
            status = partial(run_folder.end_status, folder, run)
            over = None if fresh else distributed.broadcast_from_main(world, status)
            if over is None:
                pending.append((run, folder))
            elif world.is_main:
                print(f"{folder}: {over} already", file=sys.stderr)
        distributed.broadcast_from_main(
            world, lambda: finetune.check_init_from((run for run, _ in pending), output, fresh)
        )
        work = [_work(run) for run, _ in pending]
        members = [
            _Member(run, folder, fresh, sum(work[i + 1 :]) / work[i] / jobs) for i, (run, folder) in enumerate(pending)
        ]
        if jobs > 1:
            _train_several(members, jobs, request)
        else:
            for member in members:
                _train(member, world, request)
        if world.is_main:
            made = group_runs(run_folder.read(folder) for folder in folders)
            if as_json:
                print(json.dumps([group.row() for group in made], indent=2))
            else:
                print("\n".join([tables.text_table(made), *findings.warnings(made), *findings.findings(made)]))


def _train(member: _Member, world: World, request: StopRequest) -> None:
    run, folder, fresh, later = member
    fewer = ", or lower --jobs" if multiprocessing.parent_process() else ""
    cure = (
        f"train.batch_size {run.train.batch_size} is over {world.size} ranks x {run.train.grad_accum_steps} passes: "
        "raise train.grad_accum_steps, lower train.batch_size (or eval.batch_size, if it was evaluating; or "
        f"data.device_cache_gb), or use train.precision=bf16{fewer}"
    )
    try:
        with out_of_memory_hint(str(member), world.device, cure):
            train(run, folder, world, request, fresh, later)
    except Diverged as diverged:
        if run.train.on_divergence == "stop":
            raise
        if world.is_main:
            print(f"recorded: {diverged}", file=sys.stderr)


def _train_several(members: Sequence[_Member], jobs: int, request: StopRequest) -> None:
    """Each run in a process of its own, not in a thread: a small network is bound by Python, which runs one thread.

    A signal to this process reaches all of them; if one fails, the others save and stop. Raises `BadInput` if one was
    killed, else a `Stop` of the exit code of the first that failed, or `Interrupted`.
    """
    for data in {repr(member.run.data): member.run.data for member in members}.values():
        datasets.open_data(data)  # complains, or downloads, once
    threads = max(1, torch.get_num_threads() // jobs)
    waiting = list(members)
    with Children(hint="lower --jobs, and run again", end_by=signal.SIGTERM) as children:
        while waiting or children.running:
            while waiting and len(children.running) < jobs:
                member = waiting.pop(0)
                children.start(str(member), _train_alone, member, threads)
            for _, message in children.receive(timeout=0.2):
                raise AssertionError(f"runs send no messages: {message}")
            if request.signal_name is not None:
                interrupted = Interrupted(f"{request.signal_name}: all runs are saved")
                interrupted.reported = True  # by each run
                raise interrupted


def _train_alone(_: Connection, member: _Member, threads: int) -> None:
    """The process of one run. At SIGTERM it saves and stops."""
    torch.set_num_threads(threads)
    with distributed.start(member.run.train.device) as world, catch_stop_signals(announce=False) as request:
        _train(member, world, request)


def _work(run: Run) -> float:
    """Multiply-adds of an image, at a size that is the same for every network of its stem."""
    return complexity.network_complexity(run.network, *complexity.default_input(run.network)).macs
