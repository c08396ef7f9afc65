"""Checkpoints: written whole or not at all, verified when read, the last good one used."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resnet_train.config.load import dump
from resnet_train.errors import BadInput
from resnet_train.models.batch_norm import averaged_running_stats, running_stats, set_running_stats
from resnet_train.runs.checkpoint import FORMAT, Checkpoint, CheckpointMeta, read_checkpoint
from resnet_train.runtime.atomic import atomic_write
from resnet_train.runtime.distributed import World, all_gather, broadcast_from_main
from resnet_train.training.step import TrainState


def save(state: TrainState, meta: CheckpointMeta, folder: Path, copies: Sequence[str], world: World) -> None:
    """Write `last.pt`, and copies of it under other names; the one before it stays as `previous.pt`. For every rank.

    Raises `BadInput` where a file cannot be written; the previous checkpoint is then intact.
    """
    ranks = {
        "statistics": all_gather(world, running_stats(state.net, state.ema)),
        "sums": all_gather(world, state.sums),
    }
    with averaged_running_stats(world, state.net, state.ema):
        if world.is_main:
            _write(state, meta, folder, copies, ranks)


def _write(
    state: TrainState, meta: CheckpointMeta, folder: Path, copies: Sequence[str], ranks: dict[str, Tensor]
) -> None:
    payload = {
        "format": FORMAT,
        "run": dump(meta.run),
        "classes": list(meta.classes),
        "train_images": meta.train_images,
        "normalization": list(meta.normalization),
        "image_size": meta.image_size,
        "changed": meta.changed,
        "step": state.step,
        "net": state.net.state_dict(),
        "ema": None if state.ema is None else state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "ranks": ranks,  # what each rank has of its own
        "best": state.best,
    }
    try:
        folder.mkdir(exist_ok=True)
        # `last.pt` comes last: killed before it, the run repeats this step and writes the others again. No links, so
        # that damage to one file is not damage to two.
        for name in (*copies, "last.pt"):
            # Killed between the two renames of `last.pt`, the run continues from `previous.pt`.
            with atomic_write(folder / name, folder / "previous.pt" if name == "last.pt" else None) as file:
                torch.save(payload, file)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's file writer
            raise
        reason = getattr(error, "strerror", None) or "the disk is full or over its quota"
        before = next(_newest_first(folder), None)  # `previous.pt`, where the last rename was refused
        kept = "there is none before it" if before is None else f"{before} is intact"
        raise BadInput(f"cannot save the checkpoint of step {state.step} in {folder}: {reason}; {kept}") from None


def load_latest(folder: Path, world: World) -> Checkpoint | None:
    """The last good checkpoint of a folder, if it has any; warns where a newer one is damaged, and moves that aside.

    Raises `BadInput` where there are checkpoints and none is good: training does not start over unasked.
    """
    path = broadcast_from_main(world, lambda: _latest_good(folder))
    return None if path is None else read_checkpoint(path)


def _latest_good(folder: Path) -> Path | None:
    damaged: list[Path] = []
    for path in _newest_first(folder):
        try:
            step = read_checkpoint(path).step
        except BadInput as error:
            damaged.append(path)
            print(f"warning: {error}", file=sys.stderr)
            continue
        for bad in damaged:  # or the next save would move it over `previous.pt`, which may be the good one
            bad.rename(bad.with_name(f"{bad.name}.damaged"))
            print(f"warning: continuing from {path}, step {step}; {bad} is now {bad.name}.damaged", file=sys.stderr)
        return path
    if damaged:
        raise BadInput(f"no checkpoint in {folder} is good: start anew with --fresh")
    return None


def restore(state: TrainState, saved: Checkpoint, world: World) -> None:
    """Bring a new state to where a checkpoint was made."""
    payload = saved.payload
    state.net.load_state_dict(payload["net"])
    if state.ema is not None:
        state.ema.load_state_dict(payload["ema"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.scaler.load_state_dict(payload["scaler"])
    ranks = payload["ranks"]
    if len(ranks["sums"]) == world.size:
        set_running_stats(ranks["statistics"][world.rank].to(world.device), state.net, state.ema)
        state.sums.copy_(ranks["sums"][world.rank])
    elif world.is_main:
        state.sums.copy_(ranks["sums"].sum(0))
    state.best, state.step = payload["best"], saved.step


def _newest_first(folder: Path) -> Iterator[Path]:
    named = [folder / "last.pt", folder / "previous.pt"]
    others = sorted(set(folder.glob("*.pt")) - set(named), key=lambda path: path.stat().st_mtime, reverse=True)
    return (path for path in [*named, *others] if path.exists())
