"""The hall: one run, from config to final checkpoint, top to bottom."""

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader, normalize
from resnet_train.data.dataset import Dataset
from resnet_train.data.loader import TrainingData
from resnet_train.errors import BadInput, Diverged, Interrupted
from resnet_train.evaluation import evaluator, protocols
from resnet_train.evaluation.evaluator import EvalSets
from resnet_train.models import batch_norm, complexity
from resnet_train.runs import run_folder
from resnet_train.runs.checkpoint import Checkpoint, CheckpointMeta
from resnet_train.runs.run_folder import Record
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import AnyRankFlag, World
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.signals import StopRequest
from resnet_train.training import checkpoint, probing
from resnet_train.training.finetune import load_initial_weights
from resnet_train.training.log import Log, open_log, running_averages
from resnet_train.training.schedule import TrainSchedule, build_schedule
from resnet_train.training.step import TrainState, create_train_state, train_step


def train(run: Run, folder: Path, world: World, request: StopRequest, fresh: bool = False, later: float = 0.0) -> None:
    """One run, from the last good checkpoint of its folder if there is one, unless it is to start afresh.

    `later` is the work of the experiment's other runs, in units of this one's.
    Raises `BadInput`; `Interrupted`, once the state is saved, if a signal came; `Diverged`, recorded if so configured.
    """
    locks = ExitStack()
    distributed.broadcast_from_main(world, lambda: run_folder.lock_run_folder(folder, locks))
    set_precision(run.train.precision, world.device)
    train_set, val_set = distributed.main_first(world, lambda: datasets.open_data(run.data))
    data = loader.training_data(run, train_set, run.seed, world.rank, world.size, world.device)
    train_set.check_device_memory(world.size)  # now, before any file is written
    clean_set = train_set.subset(datasets.evenly_spaced(len(train_set), run.eval.clean_train_images))
    plan = build_schedule(run, data.steps_per_epoch)

    state = create_train_state(run, len(train_set.classes), train_set.channels, world)
    checkpoints = folder / "checkpoints"
    saved = None if fresh else checkpoint.load_latest(checkpoints, world)
    if saved is None:
        statistics = distributed.broadcast_from_main(world, lambda: normalize.statistics(run, train_set))
        changed = datasets.describe_changes(run.data)
        meta = CheckpointMeta(run, tuple(train_set.classes), len(train_set), statistics, train_set.size, changed)
        if run.train.init_from is not None:
            load_initial_weights(run.train.init_from, run.network, state, world)
    else:
        meta = saved.meta
        same_run(saved, run, train_set)
        checkpoint.restore(state, saved, world)
        copy = f"step-{state.step}.pt"
        if plan.keep.is_due(state.step) and distributed.broadcast_from_main(
            world, lambda: not (checkpoints / copy).exists()
        ):
            checkpoint.save(state, meta, checkpoints, [copy], world)  # the save that a kill cut short
    sets = EvalSets(train_set, val_set, clean_set, meta.normalization.to(world.device))
    held = distributed.broadcast_from_main(world, lambda: run_folder.open_run_folder(run, folder, fresh, locks))
    kept = [record for record in held if 0 < state.step >= record["step"] and record["kind"] != "end"]

    if world.is_main and (beyond := plan.beyond_the_end()):
        print(f"note: the run ends after {plan.total} steps, before {beyond}", file=sys.stderr)
    agreement, stop = AnyRankFlag(world), False
    shares = data.from_step(state.step, plan.total, plan.size_at)
    with (
        locks,
        garbage_kept(),
        closing(shares),
        open_log(folder, run, state.step, plan.total, kept, later, world) as log,
    ):
        if not kept:
            log.write("start", 0, facts(run, data, len(val_set), plan))
            for kind in (kind for kind in plan.probes if kind != "lesion"):
                probing.measure(kind, state, run, sets, log, world)
        for share in shares:
            measured = train_step(state, share, sets.normalization, plan.lr_at(state.step), run.train)
            log.received(share)
            stop = agreement.any(request.signal_name is not None)
            improved = False

            if stop or plan.anything_is_due(state.step):
                gc.collect()
                stop_if_diverged(state, run, data, checkpoints, log, world)
            if plan.log.is_due(state.step):
                averages = running_averages(world, state.sums) | {"lr": plan.lr_at(state.step - 1)}
                log.write("train", state.step, averages | measured | log.clock.speed(state.step))
            if plan.eval.is_due(state.step):
                with log.clock.stopped(world), batch_norm.averaged_running_stats(world, state.net, state.ema):
                    errors = evaluator.errors(state.averaged(), run, sets, world)
                improved = state.improves(errors["val_error_top1"])
                log.write("eval", state.step, errors)
            for kind, every in plan.probes.items():
                if every.is_due(state.step):
                    probing.measure(kind, state, run, sets, log, world)
            if stop or improved or plan.save.is_due(state.step) or plan.keep.is_due(state.step):
                with log.clock.stopped(world):
                    log.flush()
                    names = ["best.pt"] * improved + [f"step-{state.step}.pt"] * plan.keep.is_due(state.step)
                    checkpoint.save(state, meta, checkpoints, names, world)
            if stop and state.step < plan.total:
                break
        else:
            log.write("end", state.step, {"status": "finished"})
            log.flush()
            probing.finish(folder, world)
    agreement.settle()
    if stop and state.step < plan.total:
        name, again = f"{run.network.name} seed {run.seed}", "run again" + " without --fresh" * fresh
        raise Interrupted(f"{name} stopped at step {state.step} of {plan.total}, saved; {again} to continue")


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Within the block garbage is collected when the loop says so, which is on all ranks at the same step.

    Else each rank would stop at a step of its own, and the others wait for it. What was made before is not searched.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def facts(run: Run, data: TrainingData, val_images: int, plan: TrainSchedule) -> Record:
    """What is known of a run before its first step."""
    size = data.image_size
    cost = complexity.network_complexity(run.network, size, len(data.dataset.classes), data.dataset.channels)
    return {
        "params": cost.params,
        "macs": cost.macs,
        "activations": cost.activations,
        "image_size": size,
        "steps": plan.total,
        "train_images": len(data.dataset),
        "val_images": val_images,
        "protocol": protocols.describe(run, datasets.describe_changes(run.data)),
    }


def same_run(saved: Checkpoint, run: Run, train_set: Dataset) -> None:
    """Raise `BadInput` where a checkpoint is another run's, or began on other data."""
    meta = saved.meta
    for key, old, new in run_folder.differences(meta.run, run):
        raise BadInput(f"{saved.path} is of a run with {key} = {old}, not {new}: it belongs to another folder")
    if meta.train_images != len(train_set):
        raise BadInput(f"data: the run began with {meta.train_images} training images, and here are {len(train_set)}")
    if meta.changed != (changed := datasets.describe_changes(run.data)):
        whole = "as the source has them"
        raise BadInput(f"data: the run began with images {meta.changed or whole}; here they are {changed or whole}")
    if meta.classes != tuple(train_set.classes):
        raise BadInput("data: the run began with classes of other names than are here")


def stop_if_diverged(
    state: TrainState, run: Run, data: TrainingData, checkpoints: Path, log: Log, world: World
) -> None:
    """Raise `Diverged` if any loss was not finite. Waits for the device, so only where something is due anyway."""
    step = distributed.first_step(world, state.diverged_at)
    if step is None:
        return
    if run.train.on_divergence == "record":
        log.write("end", step, {"status": "diverged"})
        log.flush()
    last, listed = checkpoints / "last.pt", checkpoints.with_name(f"diverged-at-step-{step}.txt")
    samples = data.sample_names(step)
    if world.is_main:
        listed.write_text("\n".join(samples) + "\n")
    raise Diverged(
        f"{run.network.name} seed {run.seed}: the loss or its gradient is not finite at step {step}, of samples "
        f"{', '.join(samples[:4])}, … ({len(samples)}, listed in {listed}); "
        + (f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint before it")
    )
