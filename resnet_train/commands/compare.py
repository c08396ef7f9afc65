"""`resnet-train compare`: errors across depths, from run folders."""

import argparse
import json
from pathlib import Path

from resnet_train.commands import add_figure_options, add_json, figure_output
from resnet_train.errors import wrap

EXAMPLE = """resnet-train compare runs/quickstart

Two errors are called different if chance alone would make such a difference in less than 1 of 20 cases: over several
seeds by a t-test, paired where both networks have the same seeds, else Welch's. With a single seed each, the difference
must exceed two standard errors of the images that the errors were measured on; this does not account for seed-to-seed
variation.

What the recipe's sources report (`expect`) stands beside what was measured. They agree if they do not differ by more
than chance, although a difference of a tenth of the published error, at least half a point, would have been seen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="folders")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or folders above them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder for compare.png, compare-cost.png, compare-sweep.png (of a sweep), compare.md, .csv and .json "
        "(default: the first FOLDER)",
    )
    parser.add_argument(
        "--loss",
        action="store_true",
        help="also draw the training loss beside the validation error, as He et al. 2016 do: compare-loss.png",
    )
    add_figure_options(parser)
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Write the figures and tables, and print a table, warnings and findings."""
    from resnet_train.analysis import tables
    from resnet_train.analysis.groups import group_runs
    from resnet_train.analysis.published import add_published
    from resnet_train.analysis.sweeps import rows
    from resnet_train.runs import run_folder
    from resnet_train.runtime.tables import terminal_width

    folders = [Path(folder) for folder in args.folders]
    groups = group_runs(run_folder.find(folders))
    paths = tables.write_comparison(groups, args.out or folders[0], figure_output(args), args.loss)
    if args.json:
        print(json.dumps(add_published(rows(groups), groups), indent=2))
        return
    width = terminal_width()
    print(wrap(f"wrote {', '.join(map(str, paths))}", width), "", tables.text(groups, width), sep="\n")
