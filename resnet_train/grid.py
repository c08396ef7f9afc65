"""The verbs that train and evaluate: a grid of runs, a list of checkpoints."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from resnet_train import compare, evaluate, run_folder
from resnet_train.config.load import override_run
from resnet_train.config.schema import Run
from resnet_train.data import sources
from resnet_train.engine import checkpoint, dist
from resnet_train.engine.dist import World
from resnet_train.engine.interrupt import listening
from resnet_train.engine.step import set_precision
from resnet_train.errors import BadInput, Diverged
from resnet_train.models.network import build
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
            made = compare.groups(run_folder.read(folder) for folder in folders)
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


def evaluate_all(paths: Sequence[Path], overrides: Sequence[str], as_json: bool) -> None:
    """Print the validation error of each checkpoint with the protocol that it is taken under. Raises `BadInput`."""
    for override in overrides:
        if not override.startswith(("data.", "eval.", "train.device=", "train.precision=")):
            raise BadInput(f"--set {override}: only data, eval, train.device and train.precision may change")
    saved = [checkpoint.read(path) for path in paths]
    saved = [replace(s, about=replace(s.about, run=override_run(s.about.run, overrides))) for s in saved]
    figures: list[dict[str, Any]] = []
    with dist.start(saved[0].about.run.train.device) as world:
        for one in saved:
            run, about = one.about.run, one.about
            val_set = sources.open_validation(run.data)
            if about.classes != tuple(val_set.classes):
                raise BadInput(f"{one.path} was trained on {len(about.classes)} classes that are not those of the data")
            set_precision(run.train.precision, world.device)
            net = build(run.network, len(about.classes), about.channels)
            net.load_state_dict(one.payload["net"] if one.payload["ema"] is None else one.payload["ema"])
            net = net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            over = evaluate.data_of(run, val_set, world)
            try:
                found = evaluate.error(net, over, about.normalization.to(world.device), run.train.precision, world)
            except torch.OutOfMemoryError:
                cure = f"lower eval.batch_size, now {run.eval.batch_size}: --set eval.batch_size=N"
                raise BadInput(f"{one.path}: out of memory on {world.device}: {cure}") from None
            named = {"checkpoint": str(one.path), "network": run.network.name, "seed": run.seed, "step": one.step}
            figures.append({**named, **found, "protocol": evaluate.protocol(run)})
        if world.first:
            print(json.dumps(figures, indent=2) if as_json else "\n".join(map(_line, figures)))


def _line(found: dict[str, Any]) -> str:
    return (
        f"{found['checkpoint']}: {found['network']} seed {found['seed']}, step {found['step']}: "
        f"top-1 error {found['error_top1']:.2f} %, top-5 error {found['error_top5']:.2f} % "
        f"on {found['images']:.0f} images ({found['protocol']})"
    )
