"""The verb `run`: a grid of runs, one after the other."""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resnet_train import compare, run_folder
from resnet_train.config.schema import Run
from resnet_train.engine import dist, transfer
from resnet_train.engine.dist import World
from resnet_train.engine.interrupt import listening
from resnet_train.errors import BadInput, Diverged
from resnet_train.groups import groups_of
from resnet_train.observe import complexity
from resnet_train.run_folder import folder_of
from resnet_train.train import train


def train_all(runs: Sequence[Run], output: str, device: str, fresh: bool, as_json: bool) -> None:
    """Train what is unfinished, one run after the other, then print the comparison of all.

    Raises what `train` raises; a divergence that is to be recorded is, and the next run begins.
    """
    folders = [folder_of(output, run) for run in runs]
    with dist.start(device) as world, listening() as request:
        pending = []
        for run, folder in zip(runs, folders, strict=True):
            over = None if fresh else dist.decide(world, partial(run_folder.status, folder, run))
            if over is None:
                pending.append((run, folder, _work(run)))
            elif world.first:
                print(f"{folder}: {over} already", file=sys.stderr)
        dist.decide(world, lambda: transfer.check((run for run, _, _ in pending), output, fresh))
        for i, (run, folder, work) in enumerate(pending):
            later = sum(other for _, _, other in pending[i + 1 :]) / work
            try:
                _train(run, folder, world, request, fresh, later)
            except Diverged as diverged:
                if run.train.on_divergence == "stop":
                    raise
                if world.first:
                    print(f"recorded: {diverged}", file=sys.stderr)
        if world.first:
            made = groups_of(run_folder.read(folder) for folder in folders)
            if as_json:
                print(json.dumps([group.row() for group in made], indent=2))
            else:
                print("\n".join([compare.table(made), *compare.warnings(made), *compare.findings(made)]))


def _train(run: Run, folder: Path, world: World, *rest: Any) -> None:
    try:
        train(run, folder, world, *rest)
    except torch.OutOfMemoryError:
        raise BadInput(
            f"{run.network.name}: out of memory on {world.device} with train.batch_size {run.train.batch_size} over "
            f"{world.size} ranks x {run.train.accumulate} passes: raise train.accumulate, lower train.batch_size (or "
            "eval.batch_size, if it was evaluating), or use train.precision=bf16"
        ) from None


def _work(run: Run) -> float:
    """Multiply-adds of an image, at a size that is the same for every network of its stem."""
    return complexity.of_network(run.network, *complexity.usual_input(run.network)).macs
