"""Probes during a training."""

import time
from pathlib import Path

from resnet_train.config.schema import Run
from resnet_train.errors import Interrupted
from resnet_train.evaluation.evaluator import EvalSets
from resnet_train.models import batch_norm
from resnet_train.probes import figures as probe_figures
from resnet_train.probes.measure import images_to_evaluate, run_probe
from resnet_train.runs import run_folder
from resnet_train.runtime.distributed import SignOfLife, World, broadcast_long_work
from resnet_train.runtime.signals import StopRequest
from resnet_train.training.log import Log
from resnet_train.training.step import TrainState


def probe(kind: str, state: TrainState, run: Run, sets: EvalSets, log: Log, world: World, request: StopRequest) -> None:
    """Probe the network and record the result. Every rank calls it; the main rank does the work.

    Raises `BadInput` and, if a signal comes to the main rank, `Interrupted`, on every rank.
    """

    # Lesions measure the validation error of the network that is evaluated; the other probes look at the training.
    net, dataset = (state.eval_net, sets.val) if kind == "lesion" else (state.net, sets.train)
    images = getattr(run.probes, kind).images

    def measure(sign_of_life: SignOfLife) -> bool:
        """Whether no signal came."""

        def stop_requested() -> bool:
            sign_of_life()
            return request.signal_name is not None

        begin = time.perf_counter()
        try:
            figures = run_probe(
                kind,
                net,
                run,
                dataset,
                images,
                sets.normalization,
                world.device,
                stop_requested,
                log.count_images,
            )
        except Interrupted:
            return False
        seconds = time.perf_counter() - begin
        log.clock.probe_seconds += seconds
        share = log.clock.probe_seconds / log.clock.seconds()
        log.write(kind, state.step, {**figures, "probe_seconds": seconds, "probe_share": share})
        return True

    log.begin(f"probing {kind}", images_to_evaluate(kind, net, dataset, images))
    with log.clock.paused(world), batch_norm.averaged_running_stats(world, state.net, state.ema):
        if not broadcast_long_work(world, measure):
            raise Interrupted("stopped within a probe")


def draw_heat_map(folder: Path, world: World) -> None:
    """Draw gradient norms by depth and time, if the run has recorded them: `gradients.png` and in TensorBoard."""
    if world.is_main:
        with run_folder.named_write_errors(folder):
            probe_figures.draw_heat_maps([run_folder.read(folder)], folder / "gradients.png", folder)
