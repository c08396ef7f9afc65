"""`resnet-train run`: train the networks of an experiment."""

import argparse
import dataclasses
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnet_train.commands import add_config, add_json, positive_int, select_runs

if TYPE_CHECKING:
    from resnet_train.analysis.groups import Group
    from resnet_train.config.schema import Experiment, Run
    from resnet_train.runs.run_folder import RunRecord
    from resnet_train.training.estimate import TrainingEstimate

logger = logging.getLogger(__name__)

EXAMPLE = "resnet-train run configs/cifar10-depth.yaml data.path=/data train.epochs=5 --only cifar-resnet-20"


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
    parser.add_argument("--dry-run", action="store_true", help="print the complete experiment and its cost, then stop")
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
    if args.dry_run:
        _print_plan(experiment, runs, args.fresh, args.json)
    else:
        _train(experiment, runs, args.fresh, args.jobs, args.json)


def _announce(experiment: "Experiment", runs: Sequence["Run"]) -> None:
    """Say what begins, before the seconds in which torch is imported and data opened. For people: on a terminal."""
    from resnet_train.analysis.data_sets import data_name
    from resnet_train.runtime import progress, rank_environment

    if progress.is_terminal() and rank_environment.is_main():
        data = ", ".join(dict.fromkeys(data_name(run.data) for run in runs))
        progress.write_line(f"{experiment.name}: opening {data}, {_count_runs(runs)}, results in {experiment.output}")


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


def _print_plan(experiment: "Experiment", runs: Sequence["Run"], fresh: bool, as_json: bool) -> None:
    """The complete experiment, and for each network its parameters, multiply-adds, steps and memory."""
    from resnet_train.config.load import dump
    from resnet_train.config.yaml12 import to_yaml
    from resnet_train.runtime.tables import columns
    from resnet_train.training import finetune
    from resnet_train.training.estimate import estimate_training

    finetune.check_init_from(runs, experiment.output, fresh)
    estimates = _per_network([estimate_training(run) for run in runs if run.seed == experiment.seeds[0]])
    if as_json:
        networks = [dataclasses.asdict(estimate) for estimate in estimates]
        print(json.dumps({"experiment": dump(experiment), "networks": networks}, indent=2))
        return
    rows = [("network", "depth", "parameters", "multiply-adds", "steps", "memory, all on one device")]
    for e in estimates:
        steps = "–" if e.steps is None else f"{e.steps:,}"
        rows.append((e.network, f"{e.depth:,}", f"{e.params:,}", f"{e.macs:,}", steps, f"{e.memory / 1e9:.2f} GB"))
    print(to_yaml(dump(experiment)), columns(rows), sep="\n")
    if expected := _expected(runs):
        print("", columns(expected), sep="\n")


def _expected(runs: Sequence["Run"]) -> list[tuple[str, ...]]:
    """What sources report of the networks, as rows of a table, the first of headings; none if they report nothing."""
    from resnet_train.analysis.groups import ERRORS
    from resnet_train.config.expect import EXPECTED_ERRORS, text

    lines: dict[tuple[str, ...], None] = {}
    for run in runs:
        name = run.network.name
        for entry in run.expect:
            about = "; ".join((entry.differs or {}).get(name, ()))
            source = f"{entry.source}{f', another protocol: {about}' if about else ''}"
            for error in EXPECTED_ERRORS:
                if (figure := entry.figures(error).get(name)) is not None:
                    lines[name, ERRORS[error][1], f"{text(figure)} %", entry.protocol, source] = None
    return [("expected", "error", "figure", "protocol", "source"), *lines] if lines else []


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
