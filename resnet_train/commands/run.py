"""`resnet-train run`: train the networks of an experiment."""

import argparse
import dataclasses
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.commands import add_config, add_json, positive_int, select_runs
from resnet_train.errors import BadInput, wrap

if TYPE_CHECKING:
    from resnet_train.analysis.groups import Group
    from resnet_train.config.schema import Experiment, Run
    from resnet_train.runs.run_folder import RunRecord
    from resnet_train.training.estimate import TrainingEstimate

logger = logging.getLogger(__name__)

EXAMPLE = "resnet-train run cifar10-depth data.path=/data --only cifar-resnet-20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="overrides")
    add_config(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change a key, such as train.epochs=5")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NETWORK",
        help="train only this network, or value of a sweep, such as optimizer.lr=0.1; may be repeated (default: all)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs, their cost and what to expect, then stop"
    )
    parser.add_argument("--measure", action="store_true", help="with --dry-run: take some steps, and print the hours")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="with --dry-run: print the complete experiment, too, as a file that `run` takes",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew; existing run folders are moved aside")
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of runs to train at a time on one device (default: %(default)s)",
    )
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Train, then print the comparison of all runs; or print what would be trained."""
    from resnet_train.config import load

    experiment = load.load(args.config, args.overrides)
    runs = select_runs(args.config, experiment, args.only or [])
    for option in ("measure", "verbose"):
        if getattr(args, option) and not args.dry_run:
            raise BadInput(f"--{option} is for --dry-run: add that, or leave --{option} out")
    if args.dry_run:
        _print_plan(experiment, runs, args)
    else:
        _train(experiment, runs, args.fresh, args.jobs, args.json)


def _announce(experiment: "Experiment", runs: Sequence["Run"]) -> None:
    """Say what begins, before the seconds in which torch is imported and data opened. For people: on a terminal."""
    from resnet_train.analysis.data_sets import data_name
    from resnet_train.runtime import progress, rank_environment

    if progress.is_terminal() and rank_environment.is_main():
        data = ", ".join(dict.fromkeys(data_name(run.data) for run in runs))
        results = Path(experiment.output, experiment.name)
        progress.write_line(f"{experiment.name}: opening {data}, {_count_runs(runs)}, results in {results}")


def _count_runs(runs: Sequence["Run"]) -> str:
    """Such as `4 networks x 2 seeds`; of a sweep `2 networks x 3 values x 2 seeds`."""
    networks, seeds = ({run.network.name for run in runs}, {run.seed for run in runs})
    values = {run.cell.partition(" ")[2] for run in runs}
    counts = [(len(networks), "network"), (len(values), "value"), (len(seeds), "seed")]
    return " x ".join(
        f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts if count > 1 or word != "value"
    )


def _train(experiment: "Experiment", runs: Sequence["Run"], fresh: bool, jobs: int, as_json: bool) -> None:
    _announce(experiment, runs)
    from resnet_train.analysis import tables
    from resnet_train.analysis.groups import group_runs
    from resnet_train.analysis.sweeps import rows
    from resnet_train.runtime import progress
    from resnet_train.runtime.tables import terminal_width
    from resnet_train.training import grid

    records = grid.train_all(runs, experiment.output, experiment.train, fresh, jobs)
    if not records:  # on every rank but the first
        return
    groups = group_runs(records)
    if as_json:
        print(json.dumps(rows(groups), indent=2))
    else:
        print(tables.text(groups, terminal_width()))
        if progress.is_terminal():
            folder = shlex.quote(str(Path(experiment.output, experiment.name)))
            progress.write_line(f"figures and findings: resnet-train compare {folder}")
    _add_to_tensorboard(groups, records[0])


def _add_to_tensorboard(groups: Sequence["Group"], first: "RunRecord") -> None:
    """Add the comparison of all runs, as texts, to the log of the first."""
    from resnet_train.analysis import tables
    from resnet_train.runs import tensorboard

    step = first.records[-1]["step"]
    for name, text in tables.markdown_texts(groups).items():
        try:
            tensorboard.attach(first.folder, name, tensorboard.text(f"experiment/{name}", text), step)
        except OSError as error:
            logger.warning("cannot write in %s: %s", first.folder, error.strerror or error)


def _print_plan(experiment: "Experiment", runs: Sequence["Run"], args: argparse.Namespace) -> None:
    """The runs with their cost and what to expect; with `--verbose` the complete experiment, and these as comments."""
    from resnet_train.config.load import dump
    from resnet_train.config.yaml12 import to_yaml
    from resnet_train.runtime.tables import terminal_width
    from resnet_train.training import finetune

    finetune.check_init_from(runs, experiment.output, args.fresh)
    estimates = _estimates([run for run in runs if run.seed == experiment.seeds[0]], args.measure)
    if not estimates:  # on every rank but the first
        return
    seeds = len({run.seed for run in runs})
    networks = [dataclasses.asdict(estimate) for estimate in _per_network(estimates)]
    if args.json:
        plan = {"runs": len(runs), "disk": _sum(seeds, estimates, "disk"), "seconds": _sum(seeds, estimates, "seconds")}
        print(json.dumps({"experiment": dump(experiment), "networks": networks, **plan}, indent=2))
        return
    text = "\n\n".join([_costs(experiment, runs, estimates), *_expected(runs, terminal_width())])
    if args.verbose:
        commented = "\n".join(f"# {line}".rstrip() for line in text.splitlines())
        text = f"{commented}\n\n{to_yaml(dump(experiment)).rstrip()}"
    print(text)


def _estimates(runs: Sequence["Run"], measure: bool) -> list["TrainingEstimate"]:
    """An estimate for each run, with the time if it is to be measured; then none on ranks other than the first."""
    from resnet_train.training.estimate import estimate_training

    if not measure:
        return [estimate_training(run) for run in runs]
    from resnet_train.runtime import distributed
    from resnet_train.runtime.progress import Progress
    from resnet_train.training import throughput

    train = runs[0].train
    with distributed.start(train.device, train.timeout) as world:
        estimates = []
        with Progress("measuring", len(runs), "network", shown=world.is_main, keep=False) as bar:
            for run in runs:
                seconds = throughput.measure_run(run, world)
                estimates.append(dataclasses.replace(estimate_training(run), seconds=seconds))
                bar.update(1)
        return estimates if world.is_main else []


def _costs(experiment: "Experiment", runs: Sequence["Run"], estimates: Sequence["TrainingEstimate"]) -> str:
    """A row for each network, and what all runs take."""
    from resnet_train.runtime.tables import columns, duration, file_size, short, terminal_width

    rows: list[tuple[str, ...]] = [("network", "depth", "parameters", "multiply-adds", "steps", "memory", "time")]
    for e in _per_network(estimates):
        steps = "–" if e.steps is None else f"{e.steps:,}"
        size = f"{e.depth:,}", short(e.params), short(e.macs)
        rows.append((e.network, *size, steps, file_size(e.memory), duration(e.seconds)))
    seeds = len({run.seed for run in runs})
    seconds, disk, steps_in_all = (_sum(seeds, estimates, name) for name in ("seconds", "disk", "steps"))
    lines = [f"{len(runs)} run{'s' * (len(runs) > 1)}: {_count_runs(runs)}"]
    if steps_in_all is not None:
        lines[0] += f", {steps_in_all:,} steps"
    if disk is not None:
        lines.append(f"disk: {file_size(disk)} of checkpoints in {experiment.output}")
    if seconds is None:
        rows = [row[:-1] for row in rows]
        lines.append("time: add --measure, which takes some steps of each network")
    else:
        lines.append(f"time: {duration(seconds)} one after the other, without probes")
    return "\n".join([columns(rows, terminal_width()), "", *lines])


def _sum(seeds: int, estimates: Sequence["TrainingEstimate"], name: str) -> Any:
    """Of a figure over all runs; None if it is not known of one. estimates: of one seed."""
    values = [getattr(estimate, name) for estimate in estimates]
    return None if None in values else seeds * sum(values)


def _expected(runs: Sequence["Run"], width: int | None) -> list[str]:
    """What each source reports of the networks under one protocol, as a text with a table."""
    from resnet_train.analysis.groups import ERRORS
    from resnet_train.config.expect import EXPECTED_ERRORS, text
    from resnet_train.runtime.tables import columns

    sources: dict[str, dict[str, dict[str, str]]] = {}
    for run in runs:
        name = run.network.name
        for entry in run.expect:
            figures = {error: entry.figures(error).get(name) for error in EXPECTED_ERRORS}
            about = "; ".join((entry.differs or {}).get(name, ()))
            source = f"expected, {entry.source}, {entry.protocol}{f', another protocol: {about}' if about else ''}:"
            if row := {error: f"{text(figure)} %" for error, figure in figures.items() if figure is not None}:
                sources.setdefault(source, {})[name] = row
    texts = []
    for source, networks in sources.items():
        errors = [error for error in EXPECTED_ERRORS if any(error in row for row in networks.values())]
        rows = [(name, *(row.get(error, "–") for error in errors)) for name, row in networks.items()]
        table = columns([("network", *(ERRORS[error][1] for error in errors)), *rows], width)
        texts.append(f"{wrap(source, width)}\n{table}")
    return texts


def _per_network(estimates: Sequence["TrainingEstimate"]) -> list["TrainingEstimate"]:
    """One estimate for each network; of a sweep that changes it, one for each value."""
    by_network: dict[str, list[TrainingEstimate]] = {}
    for estimate in estimates:
        by_network.setdefault(estimate.network.partition(" ")[0], []).append(estimate)
    chosen: list[TrainingEstimate] = []
    for network, members in by_network.items():
        same = {dataclasses.replace(member, network=network) for member in members}
        chosen += same if len(same) == 1 else members
    return chosen
