"""The verb `run`: a grid of runs, one after the other or several at once."""

import json
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from resnet_train.analysis import findings, tables
from resnet_train.analysis.groups import group_runs
from resnet_train.config.schema import Run
from resnet_train.data import datasets
from resnet_train.errors import BadInput, Diverged, Interrupted, Stop, report
from resnet_train.models import complexity
from resnet_train.runs import run_folder
from resnet_train.runs.run_folder import folder_of
from resnet_train.runtime import distributed, processes
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import out_of_memory_hint
from resnet_train.runtime.signals import Request, listening
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
    with distributed.start(device) as world, listening(world.is_main) as request:
        if jobs > 1 and world.size > 1:
            raise BadInput(f"--jobs {jobs} is for one rank, and there are {world.size}: leave it out")
        pending: list[tuple[Run, Path]] = []
        for run, folder in zip(runs, folders, strict=True):
            over = None if fresh else distributed.broadcast_from_main(world, partial(run_folder.status, folder, run))
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


def _train(member: _Member, world: World, request: Request) -> None:
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


def _train_several(members: Sequence[_Member], jobs: int, request: Request) -> None:
    """Each run in a process of its own, not in a thread: a small network is bound by Python, which runs one thread.

    A signal to this process reaches all of them; if one fails, the others save and stop. Raises `BadInput` if one was
    killed, else a `Stop` of the exit code of the first that failed, or `Interrupted`.
    """
    for data in {repr(member.run.data): member.run.data for member in members}.values():
        datasets.open_data(data)  # complains, or downloads, once
    processes.shield_helpers()
    context = multiprocessing.get_context("forkserver")  # not fork: this process may have a CUDA context
    share = max(1, torch.get_num_threads() // jobs)
    waiting, running = list(members), dict[BaseProcess, _Member]()
    failed: Stop | None = None
    while running or (waiting and failed is None):
        while waiting and len(running) < jobs and failed is None:
            member = waiting.pop(0)
            started = context.Process(target=_work_alone, args=(member, share, os.getpid()))
            started.start()
            running[started] = member
        connection.wait([process.sentinel for process in running], timeout=0.2)
        for process in [process for process in running if process.exitcode is not None]:
            ended = running.pop(process)
            failed = failed or _failure(ended, process.exitcode or 0)
        if failed is None and request.name is not None:
            failed = _told(Interrupted.exit_code)
        if failed is not None:
            for process in running:
                process.terminate()  # over and over: one that is just starting is still deaf
    if failed is not None:
        raise failed


def _work_alone(member: _Member, threads: int, parent: int) -> None:
    """What the process of one run does. If the one that started it is killed, it saves and stops."""
    torch.set_num_threads(threads)
    try:
        with distributed.start(member.run.train.device) as world, listening(speaks=False) as request:
            threading.Thread(target=_stop_after, args=(os.pidfd_open(parent),), daemon=True).start()
            _train(member, world, request)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report(error))


def _stop_after(process: int) -> None:
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def _failure(member: _Member, code: int) -> Stop | None:
    """Why a run's process did not end well. What it could say itself, it has said."""
    if code < 0:
        name = signal.Signals(-code).name
        return BadInput(f"{member} was killed by {name}, perhaps because memory ran out: lower --jobs, and run again")
    return _told(code) if code else None


def _told(code: int) -> Stop:
    stop = Stop()
    stop.exit_code, stop.reported = code, True
    return stop


def _work(run: Run) -> float:
    """Multiply-adds of an image, at a size that is the same for every network of its stem."""
    return complexity.network_complexity(run.network, *complexity.default_input(run.network)).macs
