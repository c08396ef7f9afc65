"""The commands: one file for each, the only code that prints results.

Each has `EXAMPLE`, `add_arguments(parser)` and `main(args)`. Nothing heavy is imported before `main`. What several
commands share is here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.errors import BadInput

if TYPE_CHECKING:
    from resnet_train.analysis.style import Output
    from resnet_train.config.schema import Experiment, Run


def add_config(parser: argparse.ArgumentParser) -> None:
    """The argument CONFIG."""
    text = "the experiment: a YAML file, or the name of a shipped one (resnet-train configs)"
    parser.add_argument("config", type=Path, metavar="CONFIG", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option `--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_classes(parser: argparse.ArgumentParser) -> None:
    """The option `--classes`."""
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line, or lines CLASS NAME (default: those of packed data or of ImageNet, "
        "else the classes of the data)",
    )


def add_figure_options(parser: argparse.ArgumentParser) -> None:
    """The options `--format` and `--width`."""
    parser.add_argument(
        "--format",
        type=_formats,
        default=("png",),
        metavar="LIST",
        help="formats of the figures, such as png,svg,pdf (default: png)",
    )
    parser.add_argument(
        "--width",
        type=_inches,
        metavar="INCHES",
        help="width of the figures, such as 3.3 for a column of a paper (default: that of their panels)",
    )


def figure_output(args: argparse.Namespace) -> "Output":
    """What `--format` and `--width` ask for."""
    from resnet_train.analysis.style import Output

    return Output(args.format, args.width)


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    known = ("png", "svg", "pdf")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def _inches(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 2 <= number <= 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of inches from 2 to 40")
    return number


def positive_int(text: str) -> int:
    """The type of an option that is a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def fraction(text: str) -> float:
    """The type of an option that is a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return number


def positive_numbers(text: str) -> list[float]:
    """The type of an option that is one or more numbers above 0, separated by commas."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(0 < number < float("inf") for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers above 0, such as 1,0.1")
    return numbers


def select_runs(config: Path, experiment: "Experiment", only: Sequence[str]) -> list["Run"]:
    """The runs of an experiment, or of some of its networks and swept values. Raises `BadInput`."""
    from resnet_train.config import load, sweep

    names = [network.name for network in experiment.networks]
    swept = {key: [sweep.label({key: value}) for value in values] for key, values in experiment.sweep.items()}
    dimensions = [chosen for group in (names, *swept.values()) if (chosen := set(group) & set(only))]
    for name in only:
        if not any(name in chosen for chosen in dimensions):
            values = "".join(f", and of its sweep {', '.join(texts)}" for texts in swept.values())
            raise BadInput(f"--only {name}: the networks of {config} are {', '.join(names)}{values}")
    return [run for run in load.runs(experiment) if all(chosen & _places(run) for chosen in dimensions)]


def _places(run: "Run") -> set[str]:
    """What `--only` can name a run by: its network, and its value of each swept key."""
    from resnet_train.config import sweep

    return {run.network.name, *(sweep.label({key: value}) for key, value in run.sweep.items())}
