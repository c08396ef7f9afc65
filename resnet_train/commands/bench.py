"""`resnet-train bench`: what limits the speed of a training on this machine, and what would change it."""

import argparse
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.commands import add_config, add_json, positive_int, select_runs

if TYPE_CHECKING:
    from resnet_train.config.schema import Run
    from resnet_train.data.dataset import Dataset
    from resnet_train.training.throughput import Throughput

logger = logging.getLogger(__name__)

EXAMPLE = "resnet-train bench imagenet-depth data.path=/data --only resnet-34"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="overrides")
    add_config(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change a key, such as data.workers=16")
    parser.add_argument("--only", metavar="NETWORK", help="the network to train (default: the first)")
    parser.add_argument(
        "--seconds",
        type=positive_int,
        default=10,
        metavar="N",
        help="duration of each measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="write a trace for TensorBoard or Perfetto (default: no trace)"
    )
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Print the speed of each part, and advice."""
    from resnet_train.config import load

    only = [args.only] if args.only else []
    [run, *_] = select_runs(args.config, load.load(args.config, args.overrides), only)
    bench(run, args.seconds, args.profile, args.json)


def bench(run: "Run", seconds: float, trace: Path | None, as_json: bool) -> None:
    """Measure one run for `seconds` in each part, and print. Raises `BadInput`."""
    from resnet_train.config.batch import check_network
    from resnet_train.data import datasets, loader
    from resnet_train.runtime import distributed
    from resnet_train.runtime.precision import set_precision
    from resnet_train.training import throughput

    with distributed.start(run.train.device, run.train.timeout) as world:
        if world.is_main and (load := os.getloadavg()[0]) > 0.5:
            logger.info("other programs use %.1f of %s cores, so figures are noisy", load, os.cpu_count())
        set_precision(run.train.precision, world.device)
        train_set, _ = distributed.main_first(world, lambda: datasets.open_data(run.data))
        data = loader.training_data(run, train_set, run.seed, world.rank, world.size, world.device)
        check_network(run, world.size, train_set.size)
        result = throughput.measure_throughput(run, data, seconds, world)
        if world.is_main:
            print(json.dumps(asdict(result), indent=2) if as_json else _describe(result, run, train_set))
        if trace is not None:
            throughput.write_trace(run, data, trace, world)
            if world.is_main:
                logger.info("wrote %s, for TensorBoard or Perfetto", trace)


def _describe(result: "Throughput", run: "Run", dataset: "Dataset") -> str:
    from resnet_train.runtime.tables import columns
    from resnet_train.training.throughput import size_fractions

    slower = min(result.loader, result.step)
    fractions = size_fractions(run.augment.progressive_resizing or {})
    sizes = [
        (f"  at {size} px", f"{result.step_at[size]:,.0f}", f"{fraction:.0%} of the steps")
        for size, fraction in fractions.items()
    ]
    how = f"{run.data.decode_workers} workers" if dataset.size is None else "images cached on the device"
    rows = [
        ("", "images/s", "over the whole training" if fractions else ""),
        ("loader alone", f"{result.loader:,.0f}", how),
        ("step alone", f"{result.step:,.0f}", f"{result.step / result.roofline:.0%} of the roofline (an estimate)"),
        *sizes,
        *(
            (f"  in {name}", f"{speed:,.0f}", f"{speed / result.step:.2f} times")
            for name, speed in result.step_in.items()
        ),
        ("both together", f"{result.together:,.0f}", f"{result.together / slower:.0%} of the slower one"),
    ]
    lines = [
        f"{result.network}, {result.batch} images at once, {result.precision}, {result.ranks} x {result.device}",
        columns(rows),
    ]
    if result.largest_batch is not None:
        lines.append(f"memory: enough for {result.largest_batch} images at once, not for twice that")
    return "\n".join([*lines, *advice(result, run, dataset)])


def advice(result: "Throughput", run: "Run", dataset: "Dataset") -> list[str]:
    """What limits the speed, then what to change, the cheapest first."""
    any_size, cpu = dataset.size is None, result.device == "CPU"
    if cpu and any_size and result.together < 0.9 * min(result.loader, result.step):
        limit = "the CPU cores are the limit, which loader and step share:"
        changes = ["- fewer data.workers, or train.device=cuda", *_packing(run, dataset)]
    elif result.loader < result.step:
        limit = "the loader is the limit:"
        changes = []
        if any_size and run.data.decode_workers < result.cores - 1:
            changes.append(f"- data.workers={result.cores - 1}: there are {result.cores} cores for each rank")
        if any_size:
            changes += _packing(run, dataset)
    else:
        limit = "the step is the limit:"
        changes = _step_changes(result, run, any_size, cpu)
    return [limit, *(changes or ["- nothing that we know of would change that"])]


def _step_changes(result: "Throughput", run: "Run", any_size: bool, cpu: bool) -> list[str]:
    train, changes = run.train, []
    speed, fastest = max(((speed, precision) for precision, speed in result.step_in.items()), default=(0.0, ""))
    if (gain := speed / result.step) > 1.05:
        changes.append(f"- train.precision={fastest}: {gain:.2f} times as fast here")
    if not cpu and not train.compile:
        changes.append("- train.compile=true fuses what is between convolutions, after a minute of compiling")
    small = run.network.stem == "cifar" and train.grad_accum_steps == result.ranks == 1
    if not cpu and small and not train.cuda_graph:
        changes.append("- train.cuda_graph=true launches all kernels of a step at once; --jobs N trains N at a time")
    if result.largest_batch is not None and result.largest_batch > result.batch and train.grad_accum_steps > 1:
        passes = max(1, train.grad_accum_steps * result.batch // result.largest_batch)
        changes.append(f"- train.grad_accum_steps={passes}")
    if result.together < 0.95 * result.step and any_size:
        changes.append("- the loader takes time from the step: fewer data.workers, or packed images")
    return changes


def _packing(run: "Run", dataset: "Dataset") -> list[str]:
    """Forms of the same images that are read faster."""
    changes = []
    if run.data.kind == "imagefolder":
        changes.append("- resnet-train prepare --tiled packs the same images so that a crop is decoded alone")
    if not dataset.has_raw_images:
        changes.append("- resnet-train prepare --tiled --raw-fraction 0.5 trades disk for speed")
    return changes
