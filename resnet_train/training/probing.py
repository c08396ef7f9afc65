"""Probes during a training."""

import time
from pathlib import Path

from resnet_train.config.schema import Run
from resnet_train.evaluation.evaluator import EvalSets
from resnet_train.models import batch_norm
from resnet_train.probes import figures as probe_figures
from resnet_train.probes.measure import run_probe
from resnet_train.runs import run_folder
from resnet_train.runtime.distributed import World
from resnet_train.training.log import Log
from resnet_train.training.step import TrainState


def measure(kind: str, state: TrainState, run: Run, sets: EvalSets, log: Log, world: World) -> None:
    """Probe a network in training and write down what was found. Every rank calls it, the first one works."""
    with log.clock.stopped(world), batch_norm.averaged_running_stats(world, state.net, state.ema):
        if not world.is_main:
            return
        begin = time.perf_counter()
        section = getattr(run.probes, kind)
        source = sets.val if kind == "lesion" else sets.train
        # What is trained, not its average, has gradients; what is evaluated is cut.
        net = state.averaged() if kind == "lesion" else state.net
        found = run_probe(kind, net, run, source, section.images, sets.normalization, world.device)
        seconds = time.perf_counter() - begin
        log.clock.probed += seconds
        share = log.clock.probed / log.clock.seconds()
        log.write(kind, state.step, {**found, "probe_seconds": seconds, "probe_share": share})


def finish(folder: Path, world: World) -> None:
    """Draw the depth-by-time heat map of a run that has probed gradients: `gradients.png` and in TensorBoard."""
    if world.is_main:
        probe_figures.draw_heat_maps([run_folder.read(folder)], folder / "gradients.png", folder / "tensorboard")
