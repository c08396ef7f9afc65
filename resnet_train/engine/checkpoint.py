"""Checkpoints: written whole or not at all, verified when read, the last good one used."""

import pickle
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_train.config.load import dump, read_run
from resnet_train.config.schema import Run
from resnet_train.data.normalize import Normalization
from resnet_train.engine.batch_norm import averaged_statistics, set_statistics, statistics
from resnet_train.engine.dist import World, decide, gather
from resnet_train.engine.step import TrainState
from resnet_train.errors import BadInput
from resnet_train.whole import whole

_FORMAT = 1


@dataclass(frozen=True)
class About:
    """What every checkpoint of a run says beside its state: enough to use the network without the training set."""

    run: Run
    classes: tuple[str, ...]
    train_images: int
    normalization: Normalization
    image_size: int | None = None
    """Height and width of the training images, where they are of one size that the run itself does not tell."""
    changed: str | None = None
    """What packing did to their pixels, in words."""

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.normalization.std.numel()


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read."""

    path: Path
    about: About
    step: int
    payload: dict[str, Any]
    """Among others the state dicts `net`, `ema` (or None), `optimizer` and `scaler`."""


def save(state: TrainState, about: About, folder: Path, copies: Sequence[str], world: World) -> None:
    """Write `last.pt`, and copies of it under other names; the one before it stays as `previous.pt`. For every rank.

    Raises `BadInput` where a file cannot be written; the previous checkpoint is then intact.
    """
    ranks = {"statistics": gather(world, statistics(state.net, state.ema)), "sums": gather(world, state.sums)}
    with averaged_statistics(world, state.net, state.ema):
        if world.first:
            _write(state, about, folder, copies, ranks)


def _write(state: TrainState, about: About, folder: Path, copies: Sequence[str], ranks: dict[str, Tensor]) -> None:
    payload = {
        "format": _FORMAT,
        "run": dump(about.run),
        "classes": list(about.classes),
        "train_images": about.train_images,
        "normalization": list(about.normalization),
        "image_size": about.image_size,
        "changed": about.changed,
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
            with whole(folder / name, folder / "previous.pt" if name == "last.pt" else None) as file:
                torch.save(payload, file)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's file writer
            raise
        reason = getattr(error, "strerror", None) or "the disk is full or over its quota"
        before = next(_newest_first(folder), None)  # `previous.pt`, where the last rename was refused
        kept = "there is none before it" if before is None else f"{before} is intact"
        raise BadInput(f"cannot save the checkpoint of step {state.step} in {folder}: {reason}; {kept}") from None


def latest(folder: Path, world: World) -> Saved | None:
    """The last good checkpoint of a folder, if it has any; warns where a newer one is damaged, and moves that aside.

    Raises `BadInput` where there are checkpoints and none is good: training does not start over unasked.
    """
    path = decide(world, lambda: _latest_good(folder))
    return None if path is None else read(path)


def _latest_good(folder: Path) -> Path | None:
    damaged: list[Path] = []
    for path in _newest_first(folder):
        try:
            step = read(path).step
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


def read(path: Path) -> Saved:
    """A checkpoint of this program, every byte of it checked. Raises `BadInput`."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch writes a CRC for each record and does not read it back
        if broken is not None:
            raise BadInput(f"{path} is damaged: the CRC of {broken} is wrong")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; expected a checkpoint such as checkpoints/last.pt") from None
    except zipfile.BadZipFile:
        raise BadInput(f"{path} is truncated or not a checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, UnicodeDecodeError):  # a zip file, but not ours
        raise BadInput(f"{path} is not a checkpoint of resnet-train") from None
    try:
        if payload["format"] != _FORMAT:
            raise BadInput(f"{path} is of format {payload['format']}; this program reads format {_FORMAT}")
        run = read_run(payload["run"], str(path))
        about = About(
            run,
            tuple(payload["classes"]),
            payload["train_images"],
            Normalization(*payload["normalization"]),
            payload.get("image_size"),
            payload.get("changed"),
        )
        return Saved(path, about, payload["step"], payload)
    except (KeyError, TypeError):
        raise BadInput(f"{path} is not a checkpoint of resnet-train") from None


def restore(state: TrainState, saved: Saved, world: World) -> None:
    """Bring a new state to where a checkpoint was made."""
    payload = saved.payload
    state.net.load_state_dict(payload["net"])
    if state.ema is not None:
        state.ema.load_state_dict(payload["ema"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.scaler.load_state_dict(payload["scaler"])
    ranks = payload["ranks"]
    if len(ranks["sums"]) == world.size:
        set_statistics(ranks["statistics"][world.rank].to(world.device), state.net, state.ema)
        state.sums.copy_(ranks["sums"][world.rank])
    elif world.first:
        state.sums.copy_(ranks["sums"].sum(0))
    state.best, state.step = payload["best"], saved.step


def _newest_first(folder: Path) -> Iterator[Path]:
    named = [folder / "last.pt", folder / "previous.pt"]
    others = sorted(set(folder.glob("*.pt")) - set(named), key=lambda path: path.stat().st_mtime, reverse=True)
    return (path for path in [*named, *others] if path.exists())
