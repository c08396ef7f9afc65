"""A grid of runs, one after the other or several at a time."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from resnet_train.config.batch import batch_complaints, network_complaints
from resnet_train.config.schema import Run, TrainConfig
from resnet_train.data import datasets
from resnet_train.errors import BadInput, Diverged, Interrupted, InvalidConfig
from resnet_train.models import complexity
from resnet_train.runs import run_folder
from resnet_train.runs.run_folder import RunRecord, folder_of, place_of
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import out_of_memory_hint
from resnet_train.runtime.processes import Child, Children
from resnet_train.runtime.progress import without_repetitions, write_line
from resnet_train.runtime.signals import StopRequest, catch_stop_signals
from resnet_train.training import finetune
from resnet_train.training.loop import train
from resnet_train.training.run_progress import GridProgress, LinesToParent, Parent, RunProgress, Show
from resnet_train.training.schedule import build_schedule

logger = logging.getLogger(__name__)


class RunJob(NamedTuple):
    """A run that is to be trained."""

    run: Run
    folder: Path
    fresh: bool
    queue: tuple[str, ...]
    """The runs that follow, such as cifar-resnet-20/seed-0."""

    def __str__(self) -> str:
        return self.run.title


def train_all(runs: Sequence[Run], output: str, settings: TrainConfig, fresh: bool, jobs: int) -> list[RunRecord]:
    """Train what is not finished, `jobs` runs at a time; the records of all runs, on ranks other than the first none.

    Raises what `train` raises, but not `Diverged` where that is to be recorded: the next run begins.
    """
    folders = [folder_of(output, run) for run in runs]
    with (
        distributed.start(settings.device, settings.timeout) as world,
        catch_stop_signals(announce=world.is_main) as request,
    ):
        if jobs > 1 and world.size > 1:
            raise BadInput(f"--jobs {jobs} is for one rank, and there are {world.size}: leave it out")
        distributed.broadcast_from_main(world, lambda: check_ranks(runs, world.size))
        pending: list[tuple[Run, Path]] = []
        ended: dict[str, list[Path]] = {}
        for run, folder in zip(runs, folders, strict=True):
            status = None if fresh else distributed.broadcast_from_main(world, partial(end_status, folder, run))
            if status is None:
                pending.append((run, folder))
            elif world.is_main:
                ended.setdefault(status, []).append(folder)
                run_folder.update_expected(folder, run)
        for status, places in ended.items():
            where = places[0] if len(places) == 1 else f"{len(places)} of {len(runs)} runs in {output}"
            logger.info("%s: %s already", where, status)
        distributed.broadcast_from_main(
            world, lambda: finetune.check_init_from((run for run, _ in pending), output, fresh)
        )
        names = [place_of(run) for run, _ in pending]
        queue = [RunJob(run, folder, fresh, tuple(names[i + 1 :])) for i, (run, folder) in enumerate(pending)]
        titles, work = [run.title for run, _ in pending], [_macs(run) for run, _ in pending]
        with closing(GridProgress(titles, work, jobs, shown=world.is_main)) as progress, without_repetitions():
            if jobs > 1:
                _train_several(queue, jobs, request, progress)
            else:
                for index, job in enumerate(queue):
                    progress.start(index)
                    _train(job, world, request, partial(progress.show, index))
                    progress.end(index)
        return [run_folder.read(folder) for folder in folders] if world.is_main else []


def end_status(folder: Path, run: Run) -> str | None:
    """How a run ended, if it has: finished or diverged. A finished run that is to be longer has not.

    Raises `BadInput` if its folder is another run's.
    """
    record = run_folder.read_earlier(folder, run)
    if record is None or record.end is None:
        return None
    length, earlier_length = ((r.train.epochs, r.train.steps) for r in (run, record.run))
    if record.end["status"] == "finished" and length != earlier_length:
        steps_per_epoch = record.records[0].get("train_images", 0) / run.train.batch_size
        if build_schedule(run, steps_per_epoch).total_steps != record.end["step"]:
            if run_folder.last_checkpoint(folder / "checkpoints") is None:
                raise BadInput(
                    f"{folder} holds a finished run, and there is no checkpoint to train it further from: choose a "
                    "name=… or --fresh"
                )
            return None
    return str(record.end["status"])


def check_ranks(runs: Sequence[Run], ranks: int) -> None:
    """Raise `InvalidConfig` if so many ranks cannot train a run, as far as that is known before its data is opened."""
    complaints = [
        complaint
        for run in runs
        for check in (batch_complaints, network_complaints)
        for complaint in check(run, ranks, run.data.image_size)
    ]
    if complaints:
        raise InvalidConfig(*dict.fromkeys(complaints))


def _train(job: RunJob, world: World, request: StopRequest, show: Show) -> None:
    run, folder, fresh, following = job
    hint = (
        f"train.batch_size {run.train.batch_size} is over {world.size} ranks x {run.train.grad_accum_steps} passes: "
        "raise train.grad_accum_steps, lower train.batch_size (or eval.batch_size, if it was evaluating; or "
        "data.device_cache_gb), or use train.precision=bf16"
    )
    if multiprocessing.parent_process() is not None:
        hint += ", or lower --jobs"
    try:
        with out_of_memory_hint(str(job), world.device, hint):
            train(run, folder, world, request, fresh, following, show)
    except Diverged as diverged:
        if run.train.on_divergence == "stop":
            raise
        if world.is_main:
            logger.info("recorded: %s", diverged)


def _train_several(queue: Sequence[RunJob], jobs: int, request: StopRequest, progress: GridProgress) -> None:
    """Train each run in a process of its own: a small network is bound by Python, and threads would share one.

    A signal to this process reaches all of them. If one fails, the others save and stop. Raises `BadInput` if one was
    killed, else a `Stop` with the exit code of the first that failed, or `Interrupted`.
    """
    for data in {repr(job.run.data): job.run.data for job in queue}.values():
        datasets.check_data(data)  # once, not in each process
    threads = max(1, torch.get_num_threads() // jobs)
    waiting = list(enumerate(queue))
    running: dict[Child, int] = {}
    said_by: dict[str, Child] = {}

    def show(child: Child, message: RunProgress | str) -> None:
        if isinstance(message, str):
            # The runs of an experiment have the same notes. One run may repeat itself: a traceback has equal lines.
            if said_by.setdefault(message, child) is child:
                write_line(message)
        else:
            progress.show(running[child], message)

    with Children(hint="lower --jobs, and run again", end_by=signal.SIGTERM, last_messages=show) as children:
        while waiting or children.running:
            while waiting and len(children.running) < jobs:
                index, job = waiting.pop(0)
                progress.start(index)
                running[children.start(str(job), _train_alone, job, threads)] = index
            for child, message in children.receive(timeout=0.2):
                show(child, message)
            for child in [child for child in running if child not in children.running]:
                progress.end(running.pop(child))
            if request.signal_name is not None:
                interrupted = Interrupted(f"{request.signal_name}: every run was asked to save and stop")
                interrupted.reported = True  # by each run
                raise interrupted


def _train_alone(connection: Connection, job: RunJob, threads: int) -> None:
    """The process of one run, whose progress and messages its parent shows. At SIGTERM it saves and stops."""
    torch.set_num_threads(threads)
    parent = Parent(connection, sys.stderr)
    sys.stderr = LinesToParent(parent)  # a line of another process would fall among those that are drawn over
    with distributed.start(job.run.train.device) as world, catch_stop_signals(announce=False) as request:
        _train(job, world, request, parent.send_progress)


def _macs(run: Run) -> float:
    """Multiply-adds of an image, at a size that is the same for every network of its stem."""
    return complexity.network_complexity(run.network, *complexity.default_input(run.network)).macs
