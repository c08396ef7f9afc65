"""Probes during a training, and the verb `probe`, which sets networks side by side."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet_train import evaluate, run_folder
from resnet_train.config.schema import Lesion, Probe, Run
from resnet_train.data import augment, sources
from resnet_train.data.normalize import Normalization
from resnet_train.data.sources import AnySource, evenly_spaced
from resnet_train.data.views import EvaluationData
from resnet_train.engine import batch_norm, dist, trained
from resnet_train.engine.dist import World
from resnet_train.engine.step import TrainState, set_precision, untuned, within_memory
from resnet_train.errors import BadInput
from resnet_train.evaluate import Member
from resnet_train.observe import probe_figures, probes
from resnet_train.observe.metrics import Log
from resnet_train.observe.probes import Figures
from resnet_train.tables import columns


def measure(
    kind: str,
    state: TrainState,
    run: Run,
    train_set: AnySource,
    val_set: AnySource,
    normalization: Normalization,
    log: Log,
    world: World,
) -> None:
    """Probe a network in training and write down what was found. Every rank calls it, the first one works."""
    with log.clock.stopped(world), batch_norm.averaged_statistics(world, state.net, state.ema):
        if not world.first:
            return
        begin = time.perf_counter()
        section = getattr(run.probes, kind)
        source = val_set if kind == "lesion" else train_set
        # What is trained, not its average, has gradients; what is evaluated is cut.
        net = state.averaged() if kind == "lesion" else state.net
        found = figures(kind, net, run, source, section.images, normalization, world.device)
        seconds = time.perf_counter() - begin
        log.clock.probed += seconds
        share = log.clock.probed / log.clock.seconds()
        log.write(kind, state.step, {**found, "probe_seconds": seconds, "probe_share": share})


def figures(
    kind: str,
    net: nn.Module,
    run: Run,
    source: AnySource,
    images: int,
    normalization: Normalization,
    device: torch.device,
) -> Figures:
    """What a probe finds on `images` evenly spaced samples of a source, as evaluation sees them in its first look.

    Raises `BadInput` where they are too many for the device.
    """
    chosen = source.subset(evenly_spaced(len(source), images))
    looks = augment.looks(run.view, run.eval)[:1]

    def error(harmed: nn.Module) -> float:
        data = EvaluationData(chosen, looks, run.eval.batch_size, device)
        members = [Member(harmed, normalization, run.train.precision)]
        return evaluate.outcomes(members, data, "softmax", World(device))[0].errors()["error_top1"]

    cure = f"lower probes.{kind}.images (of the verb: --images), now {images}"
    # On the CPU a DataLoader draws when it begins; nothing else draws.
    with within_memory(f"{run.network.name}, {kind}", device, cure), torch.random.fork_rng(devices=[]), untuned():
        if kind == "lesion":
            return probes.lesion(net, error)
        [batch] = EvaluationData(chosen, looks, len(chosen), device, skip_bad=run.data.skips_bad_images).batches()
        seen = normalization(batch)
        return probes.gradients(net, seen, batch.labels) if kind == "gradients" else probes.responses(net, seen)


def finish(folder: Path, world: World) -> None:
    """Draw the depth-by-time heat map of a run that has probed gradients: `gradients.png` and in TensorBoard."""
    if world.first:
        probe_figures.heat_maps([run_folder.read(folder)], folder / "gradients.png", folder / "tensorboard")


def compare(
    kind: str, names: Sequence[str], data: str | None, images: int | None, seed: int, out: Path | None, as_json: bool
) -> None:
    """Probe checkpoints and fresh networks of the zoo; a table, and a picture with plain left and residual right.

    Run folders give the heat maps of the gradients that they recorded. Raises `BadInput`.
    """
    folders = [Path(name) for name in names if Path(name).is_dir()]
    out = out or Path(f"{kind}.png")
    if folders:
        if kind != "gradients" or len(folders) < len(names):
            raise BadInput(f"{folders[0]} is a folder: run folders are for `probe gradients`, by themselves")
        recorded = run_folder.find(folders)
        if not probe_figures.heat_maps(recorded, out, None):
            raise BadInput(f"{folders[0]} has no gradients on record: train with probes.gradients={{}}")
        print(f"wrote {out}")
        return
    with dist.start("auto") as world:
        found: dict[str, Figures] = {}
        plain: dict[str, bool] = {}
        for name in names:
            one = _load(name, data, seed)
            train_set, val_set = sources.open_data(one.run.data)
            source = val_set if kind == "lesion" else train_set
            count = images or (Lesion() if kind == "lesion" else Probe()).images
            # A CPU, which has no tf32, may yet probe a run of it.
            set_precision("fp32" if world.device.type == "cpu" else one.run.train.precision, world.device)
            net = one.net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            normalization = one.normalization.to(world.device)
            label = one.name if one.name not in found else name
            found[label] = figures(kind, net, one.run, source, count, normalization, world.device)
            plain[label] = one.run.network.plain
        if not world.first:
            return
        try:
            probe_figures.side_by_side(kind, found, plain, out)
        except OSError as error:
            raise BadInput(f"--out: cannot write {out}: {error.strerror}") from None
        print(json.dumps(found, indent=2) if as_json else f"{_table(found)}\nwrote {out}")


def _load(name: str, data: str | None, seed: int) -> trained.Trained:
    if Path(name).is_file():
        return trained.load(name, data=None if data in ("digits", "synthetic") else data)
    if Path(name).suffix in (".pt", ".pth"):
        raise BadInput(f"{name}: no such checkpoint; expected a file such as RUN/checkpoints/best.pt")
    if data is None:
        raise BadInput(f"{name} is untrained and knows no data: give --data digits, synthetic or a folder")
    return trained.fresh(name, data, seed=seed)


def _table(found: Mapping[str, Figures]) -> str:
    """A row for each unit or layer, a column for each network."""
    told = []
    for what in dict.fromkeys(what for figures in found.values() for what in figures):
        by_network = {name: figures.get(what, {}) for name, figures in found.items()}
        places = sorted({place for figures in by_network.values() for place in figures}, key=_in_order)
        rows: list[Any] = [(what, *by_network)]
        for place in places:
            rows.append((place, *(_number(values.get(place)) for values in by_network.values())))
        for summary, of in (("median", np.median), ("largest / smallest", lambda x: max(x) / max(min(x), 1e-30))):
            values = [[v for v in one.values() if v is not None] for one in by_network.values()]
            rows.append((summary, *(_number(float(of(v))) if v else "–" for v in values)))
        told.append(columns(rows))
    return "\n\n".join(told)


def _in_order(place: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in place.replace(" ", ".").split(".")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
