"""Save and restore a training's state. A file is written whole or not at all, and verified when it is read."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils._pytree import tree_map

from resnet_train.config.load import dump
from resnet_train.errors import BadInput
from resnet_train.models.batch_norm import averaged_running_stats, running_stats, set_running_stats
from resnet_train.models.network import build_network
from resnet_train.runs.checkpoint import FORMAT, Checkpoint, CheckpointMeta, read_checkpoint
from resnet_train.runs.run_folder import describe_last_checkpoint
from resnet_train.runtime.atomic import atomic_write
from resnet_train.runtime.distributed import World, all_gather, broadcast_from_main
from resnet_train.runtime.regular_file import exists
from resnet_train.training.optim import build_optimizer
from resnet_train.training.step import TrainState

logger = logging.getLogger(__name__)


def save(state: TrainState, meta: CheckpointMeta, folder: Path, copies: Sequence[str], world: World) -> None:
    """Write `last.pt`, and copies of it under other names; the older `last.pt` becomes `previous.pt`. For every rank.

    Raises `BadInput` if a file cannot be written; the older checkpoint is then intact.
    """
    per_rank = {
        "statistics": all_gather(world, running_stats(state.net, state.ema)),
        "sums": all_gather(world, state.sums).cpu().double(),
    }
    with averaged_running_stats(world, state.net, state.ema):
        if world.is_main:
            _write(state, meta, folder, copies, per_rank)


def save_missing_copy(state: TrainState, meta: CheckpointMeta, folder: Path, name: str, world: World) -> None:
    """Save a restored state under `name` if that file is missing: the process may have been killed while it saved."""
    if broadcast_from_main(world, lambda: not exists(folder / name)):
        save(state, meta, folder, [name], world)


def _write(
    state: TrainState, meta: CheckpointMeta, folder: Path, copies: Sequence[str], per_rank: dict[str, Tensor]
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
        "ranks": per_rank,
        "best": state.best_val_error,
        "unmeasured": list(state.unmeasured),
    }
    try:
        folder.mkdir(exist_ok=True)
        # `last.pt` is written last: a run that is killed before it repeats this step and writes the copies again. They
        # are no links, so that damage to one file is not damage to two.
        for name in (*copies, "last.pt"):
            # If the run is killed between the two renames of `last.pt`, it continues from `previous.pt`.
            with atomic_write(folder / name, folder / "previous.pt" if name == "last.pt" else None) as file:
                torch.save(payload, file)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's file writer
            raise
        cause = error if isinstance(error, OSError) else error.__context__
        reason = getattr(cause, "strerror", None) or "the disk is full or over its quota"
        last = describe_last_checkpoint(folder)  # `previous.pt`, if the second rename was refused
        raise BadInput(f"cannot save the checkpoint of step {state.step} in {folder}: {reason}; {last}") from None


def load_latest(folder: Path, world: World) -> Checkpoint | None:
    """The newest good checkpoint of a folder, None if it has none. Damaged ones are moved aside with a warning.

    Raises `BadInput` if there are checkpoints and all are damaged: a training never starts over unasked.
    """
    path = broadcast_from_main(world, lambda: _find_latest(folder))
    return None if path is None else read_checkpoint(path)


def _find_latest(folder: Path) -> Path | None:
    damaged: list[Path] = []
    for path in _newest_first(folder):
        try:
            saved = read_checkpoint(path)
            check_training_state(saved)
        except BadInput as error:
            damaged.append(path)
            logger.warning("%s", error)
            continue
        for bad in damaged:  # else the next save would move it over `previous.pt`, which may be the good one
            bad.rename(bad.with_name(f"{bad.name}.damaged"))
            logger.warning("continuing from %s, step %d; %s is now %s.damaged", path, saved.step, bad, bad.name)
        return path
    if damaged:
        raise BadInput(f"no checkpoint in {folder} is good: start anew with --fresh")
    return None


def check_training_state(saved: Checkpoint) -> None:
    """Raise `BadInput` if what a checkpoint holds beside the weights is not of its run: `restore` would fail."""
    run, payload = saved.meta.run, saved.payload
    with torch.device("meta"):
        net = build_network(run.network, len(saved.meta.classes), saved.meta.channels)
    optimizer = build_optimizer(net, run.optimizer)
    ema = net if run.train.ema_decay else None
    ranks, numbers = len(payload["ranks"]["sums"]), running_stats(net, ema).numel()
    expected = {
        "optimizer": optimizer.state_dict()["state"],
        "scaler": GradScaler("cpu", enabled=run.train.precision == "fp16").state_dict(),
        "ranks": {"statistics": torch.empty(ranks, numbers), "sums": torch.empty(ranks, 3, dtype=torch.float64)},
    }
    actual = payload | {"optimizer": payload["optimizer"].get("state")}
    damaged = [key for key in expected if tree_map(_describe, actual[key]) != tree_map(_describe, expected[key])]
    if (payload["ema"] is None) != (ema is None):
        damaged.append("ema")
    if ranks == 0 or damaged:
        raise BadInput(f"{saved.path} is damaged: {damaged[0] if damaged else 'ranks'} is not of its run")


def _describe(value: object) -> object:
    """Of a tensor type and shape; of any other value its class."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value.dtype, value.shape
    return type(value)


def restore(state: TrainState, saved: Checkpoint, world: World) -> None:
    """Bring a new state to where a checkpoint was saved, on any number of ranks.

    On as many ranks as before each has its own running statistics again, else the mean of all.
    """
    payload = saved.payload
    state.net.load_state_dict(payload["net"])
    if state.ema is not None:
        state.ema.load_state_dict(payload["ema"])
    # The hyperparameters are those of the configuration, which `train` compares with the checkpoint's.
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": payload["optimizer"]["state"]})
    state.scaler.load_state_dict(payload["scaler"])
    per_rank = payload["ranks"]
    if len(per_rank["sums"]) == world.size:
        set_running_stats(per_rank["statistics"][world.rank].to(world.device), state.net, state.ema)
        state.sums.copy_(per_rank["sums"][world.rank].to(state.sums.dtype))
    elif world.is_main:
        state.sums.copy_(per_rank["sums"].sum(0).to(state.sums.dtype))
    state.best_val_error, state.step = payload["best"], saved.step
    state.unmeasured = tuple(payload.get("unmeasured", ()))  # earlier versions measured all before they saved


def _newest_first(folder: Path) -> Iterator[Path]:
    regular = [folder / "last.pt", folder / "previous.pt"]
    others = sorted(set(folder.glob("*.pt")) - set(regular), key=lambda path: path.stat().st_mtime, reverse=True)
    return (path for path in [*regular, *others] if exists(path))
