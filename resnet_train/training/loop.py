"""The training of one run: set up, loop, finish."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_train.config.batch import check_network, stem_note
from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader, normalize
from resnet_train.data.dataset import Dataset
from resnet_train.data.loader import TrainingData
from resnet_train.errors import BadInput, Diverged, Interrupted
from resnet_train.evaluation import evaluator, protocols
from resnet_train.evaluation.evaluator import EvalSets, StopRequested
from resnet_train.models import batch_norm, complexity
from resnet_train.runs import run_folder
from resnet_train.runs.checkpoint import Checkpoint, CheckpointMeta
from resnet_train.runs.records import Record
from resnet_train.runtime import distributed
from resnet_train.runtime.distributed import AnyRankFlag, World
from resnet_train.runtime.precision import set_precision
from resnet_train.runtime.signals import StopRequest
from resnet_train.training import checkpoint, cuda_graph, probing
from resnet_train.training.finetune import load_initial_weights
from resnet_train.training.log import Log, open_log, running_averages
from resnet_train.training.run_progress import Show
from resnet_train.training.schedule import TrainSchedule, build_schedule
from resnet_train.training.step import TrainState, create_train_state, train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """Everything that the training loop works with."""

    run: Run
    folder: Path
    world: World
    data: TrainingData
    """This rank's training batches."""
    sets: EvalSets
    schedule: TrainSchedule
    state: TrainState
    meta: CheckpointMeta
    """What every checkpoint of the run holds beside the state."""
    records: list[Record]
    """The records of the run up to `state.step`, from earlier sessions."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.run.title

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"


def train(
    run: Run,
    folder: Path,
    world: World,
    request: StopRequest,
    fresh: bool = False,
    queue: Sequence[str] = (),
    show: Show = lambda _: None,
) -> None:
    """Train one run, from its last good checkpoint if it has one, else (or if `fresh`) from the start. For every rank.

    queue: the experiment's later runs, such as cifar-resnet-20/seed-0. show: called with how far the run is.
    Raises `BadInput`; `Interrupted` if a signal came, after saving the state; `Diverged` if the loss is not finite.
    """
    with ExitStack() as locks:
        training = set_up(run, folder, world, fresh, locks)
        state, schedule = training.state, training.schedule
        with (
            cuda_graph.freed_at_end(state.launch),
            manual_garbage_collection(),
            open_log(folder, run, state.step, schedule.total_steps, training.records, queue, world, show) as log,
        ):
            if not training.records:
                log.write("start", 0, start_record(training))
                for kind in schedule.probes:
                    if kind != "lesion":  # an untrained network has nothing to lose
                        probing.probe(kind, state, run, training.sets, log, world, request)
            train_loop(training, request, log)
            is_finished = state.step == schedule.total_steps and not state.unmeasured
            if is_finished:
                log.flush()
                probing.draw_heat_map(folder, world)  # before the line that says that nothing is left to do
                log.write("end", state.step, {"status": "finished"})
                log.flush()
    if not is_finished:
        command = "run again without --fresh" if fresh else "run again"
        raise Interrupted(
            f"{training.name} stopped at step {state.step} of {schedule.total_steps}, saved; {command} to continue"
        )


def train_loop(training: Training, request: StopRequest, log: Log) -> None:
    """Train to the last step; or, if a signal came to any rank, to the next step, whose state is saved.

    A signal within an evaluation ends it. What is then unmeasured is measured first when the run is continued.
    """
    run, world, sets, state = training.run, training.world, training.sets, training.state
    schedule = training.schedule
    stop_flag = AnyRankFlag(world)

    def stop_requested() -> bool:
        return stop_flag.any(request.signal_name is not None)

    if state.unmeasured:
        is_best = measure(training, request, stop_requested, log)
        save_checkpoint(training, is_best, log)
        if state.unmeasured:
            stop_flag.settle()
            return

    with closing(training.data.from_step(state.step, schedule.total_steps, schedule.image_size_at)) as steps:
        for batches in steps:
            metrics = train_step(state, batches, sets.normalization, schedule.lr_at(state.step), run.train)
            log.note_loading(batches)
            stop = stop_requested()

            if stop or schedule.is_anything_due(state.step):
                gc.collect()
                check_not_diverged(training, log)

            if schedule.log.is_due(state.step):
                averages = running_averages(world, state.sums) | {"lr": schedule.lr_at(state.step - 1)}
                log.write("train", state.step, averages | metrics | log.clock.speed(state.step))

            state.unmeasured = schedule.measurements_due(state.step)
            is_best = measure(training, request, stop_requested, log)
            stop = stop or bool(state.unmeasured)

            if stop or is_best or schedule.checkpoint.is_due(state.step) or schedule.keep_checkpoint.is_due(state.step):
                save_checkpoint(training, is_best, log)
            if stop:
                break
        else:
            if state.step < schedule.total_steps:  # a signal came while the images of the next step did not
                check_not_diverged(training, log)
                save_checkpoint(training, False, log)
    stop_flag.settle()


# --- set-up -----------------------------------------------------------------------------------------------------------


def set_up(run: Run, folder: Path, world: World, fresh: bool, locks: ExitStack) -> Training:
    """Open the data, build the state, restore the last checkpoint, prepare the run folder. Raises `BadInput`.

    The run folder stays locked until `locks` is closed.
    """
    distributed.broadcast_from_main(world, lambda: run_folder.lock_run_folder(folder, locks))
    set_precision(run.train.precision, world.device)
    train_set, val_set = distributed.main_first(world, lambda: datasets.open_data(run.data))
    data = loader.training_data(run, train_set, run.seed, world.rank, world.size, world.device)
    check_network(run, world.size, train_set.size)
    train_set.check_device_memory(world.size)  # before any file is written
    schedule = build_schedule(run, data.steps_per_epoch)
    state = create_train_state(run, len(train_set.classes), train_set.channels, world)

    remeasured: set[tuple[int, str]] = set()
    saved = None if fresh else checkpoint.load_latest(folder / "checkpoints", world)
    if saved is None:
        meta = create_meta(run, train_set, world)
        if run.train.init_from is not None:
            load_initial_weights(run.train.init_from, run.network, state, world)
    else:
        check_same_run(saved, run, train_set)
        earlier = build_schedule(saved.meta.run, data.steps_per_epoch)
        if schedule.total_steps != earlier.total_steps and schedule.total_steps <= saved.step:
            raise BadInput(
                f"{saved.path} is at step {saved.step} already, and the training is to end at {schedule.total_steps}: "
                "raise train.steps or train.epochs, choose a name=… or --fresh"
            )
        meta = replace(saved.meta, run=run)
        checkpoint.restore(state, saved, world)
        remeasured = {(state.step, kind) for kind in state.unmeasured}
        state.unmeasured = tuple(kind for kind in schedule.measurements_due(state.step) if kind in state.unmeasured)
        if schedule.keep_checkpoint.is_due(state.step):
            checkpoint.save_missing_copy(state, meta, folder / "checkpoints", f"step-{state.step}.pt", world)

    records = distributed.broadcast_from_main(world, lambda: run_folder.open_run_folder(run, folder, fresh, locks))
    records = [record for record in records if 0 < state.step >= record["step"] and record["kind"] != "end"]
    records = [record for record in records if (record["step"], record["kind"]) not in remeasured]
    if records:
        records[0] |= {"steps": schedule.total_steps}  # of the start: the training may be longer now
    if world.is_main and (note := stem_note(run, data.image_size)):
        logger.info("%s", note)
    if world.is_main and (unreached := schedule.unreached()):
        logger.info("the run ends after %d steps, before %s", schedule.total_steps, unreached)
    clean_set = train_set.subset(datasets.evenly_spaced(len(train_set), run.eval.clean_train_images))
    sets = EvalSets(train_set, val_set, clean_set, meta.normalization.to(world.device))
    return Training(run, folder, world, data, sets, schedule, state, meta, records)


def create_meta(run: Run, train_set: Dataset, world: World) -> CheckpointMeta:
    """What every checkpoint of a new run holds beside the state. Measures the statistics of the training images."""
    statistics = distributed.broadcast_from_main(world, lambda: normalize.statistics(run, train_set))
    changes = datasets.describe_changes(run.data)
    return CheckpointMeta(run, tuple(train_set.classes), len(train_set), statistics, train_set.size, changes)


def check_same_run(saved: Checkpoint, run: Run, train_set: Dataset) -> None:
    """Raise `BadInput` if a checkpoint is of another run, or of a run that began with other data."""
    meta = saved.meta
    for difference in run_folder.differences_from_earlier(meta.run, run):
        raise BadInput(f"{saved.path} is of a run with {difference}: it belongs to another folder")
    if meta.train_images != len(train_set):
        raise BadInput(f"data: the run began with {meta.train_images} training images, and here are {len(train_set)}")
    old, new = meta.changed, datasets.describe_changes(run.data)
    if old != new:
        original = "as the source has them"
        raise BadInput(f"data: the run began with images {old or original}; here they are {new or original}")
    if meta.classes != tuple(train_set.classes):
        raise BadInput("data: the run began with classes of other names, or in another order, than are here")


def start_record(training: Training) -> Record:
    """The figures of a run that are known before its first step."""
    run, data, size = training.run, training.data, training.data.image_size
    cost = complexity.network_complexity(run.network, size, len(data.dataset.classes), data.dataset.channels)
    return {
        "params": cost.params,
        "macs": cost.macs,
        "activations": cost.activations,
        "image_size": size,
        "steps": training.schedule.total_steps,
        "train_images": len(training.sets.train),
        "val_images": len(training.sets.val),
        "protocol": protocols.describe(run, datasets.describe_changes(run.data)),
    }


@contextmanager
def manual_garbage_collection() -> Iterator[None]:
    """Within the block Python collects garbage only when the loop calls `gc.collect`: on all ranks at the same step.

    Automatic collection would pause each rank at another step, and the other ranks would wait for it each time. Objects
    that exist before the block are not searched.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


# --- in the loop ------------------------------------------------------------------------------------------------------


def check_not_diverged(training: Training, log: Log) -> None:
    """Raise `Diverged` if a loss or gradient was not finite; first record it, if the recipe says so.

    Waits for the device, so it is called only where the loop waits anyway.
    """
    run, world, data = training.run, training.world, training.data
    step = distributed.first_step(world, training.state.diverged_at)
    if step is None:
        return
    if run.train.on_divergence == "record":
        log.write("end", step, {"status": "diverged"})
        log.flush()
    samples = data.sample_names(step)
    sample_list = training.folder / f"diverged-at-step-{step}.txt"
    if world.is_main:
        with run_folder.named_write_errors(training.folder):
            sample_list.write_text("\n".join(samples) + "\n", "utf-8", "surrogateescape")
    raise Diverged(
        f"{training.name}: the loss or its gradient is not finite at step {step}, of samples "
        f"{', '.join(samples[:4])}, … ({len(samples)}, listed in {sample_list}); "
        + run_folder.describe_last_checkpoint(training.checkpoints)
    )


def measure(training: Training, request: StopRequest, stop_requested: StopRequested, log: Log) -> bool:
    """Evaluate and probe as `state.unmeasured` lists, until a signal comes; it then lists what is left.

    Returns whether the validation error is the lowest so far.
    """
    run, world, sets, state = training.run, training.world, training.sets, training.state
    is_best = False
    try:
        for kind in state.unmeasured:
            if kind == "eval":
                log.begin("evaluating", len(sets.val) + len(sets.clean_train))
                averaged_stats = batch_norm.averaged_running_stats(world, state.net, state.ema)
                with log.clock.paused(world) as pause, averaged_stats:
                    errors = evaluator.errors(state.eval_net, run, sets, world, stop_requested, log.count_images)
                is_best = state.update_best(errors["val_error_top1"])
                log.write("eval", state.step, errors | {"eval_seconds": pause.seconds})
            else:
                probing.probe(kind, state, run, sets, log, world, request)
            state.unmeasured = state.unmeasured[1:]
    except Interrupted as interrupted:
        if world.size > 1 and not interrupted.on_all_ranks:  # the others are within the evaluation
            raise
    return is_best


def save_checkpoint(training: Training, is_best: bool, log: Log) -> None:
    """Save the state as `last.pt`; if it is the best so far as `best.pt`; if it is to be kept as `step-N.pt`."""
    state, copies = training.state, list[str]()
    if is_best:
        copies.append("best.pt")
    if training.schedule.keep_checkpoint.is_due(state.step):
        copies.append(f"step-{state.step}.pt")
    with log.clock.paused(training.world):
        log.flush()
        checkpoint.save(state, training.meta, training.checkpoints, copies, training.world)
