"""`resnet-train report`: one web page about run folders."""

import argparse
from pathlib import Path

EXAMPLE = """resnet-train report runs/quickstart

The page needs no network and no other file: it can be sent or kept as it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="folders")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or folders above them")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="the page (default: report.html in the first FOLDER)"
    )


def main(args: argparse.Namespace) -> None:
    """Write the page."""
    from resnet_train.analysis.groups import group_runs
    from resnet_train.analysis.report import write_report
    from resnet_train.runs import run_folder

    folders = [Path(folder) for folder in args.folders]
    out = args.out or folders[0] / "report.html"
    write_report(group_runs(run_folder.find(folders)), folders, out)
    print(f"wrote {out}")
