"""`resnet-train prepare`: pack a data set into shards, or verify what was packed."""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.commands import add_json, fraction, positive_int
from resnet_train.errors import BadInput, wrap
from resnet_train.runtime.processes import available_cores
from resnet_train.runtime.tables import columns, terminal_width

if TYPE_CHECKING:
    from resnet_train.packing.report import PackReport

_LARGEST_SQUARE = 1024

EXAMPLE = "resnet-train prepare /data/imagenet /fast/imagenet --tiled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="paths")
    parser.usage = "%(prog)s [options] SOURCE DEST\n       %(prog)s --verify DEST"
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="SOURCE DEST",
        help="class folders, ILSVRC2012's tar files, parquet files, WebDataset shards or torchvision's files, all with "
        "a train and a val part; and a new folder (with --verify the packed folder alone). By default each file is "
        "copied unchanged",
    )
    parser.add_argument(
        "--tiled",
        action="store_true",
        help="store JPEGs so that a crop is decoded alone, same pixels; needs jpegtran (libjpeg-turbo-progs)",
    )
    parser.add_argument(
        "--raw-fraction",
        type=fraction,
        default=0.0,
        metavar="P",
        help="store this fraction of the images, the largest files, as raw pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--short-side",
        type=positive_int,
        metavar="N",
        help="reduce images whose shorter side is over N pixels; this changes the recipe (default: sizes unchanged)",
    )
    parser.add_argument(
        "--square",
        type=positive_int,
        metavar="N",
        help="resize to N x N raw pixels, for data.device_cache_gb; this changes the recipe (default: sizes unchanged)",
    )
    parser.add_argument(
        "--val-labels",
        type=Path,
        metavar="FILE",
        help="validation labels: IMAGE,CLASS lines, or ILSVRC2012's development kit (default: those of SOURCE)",
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the classes: lines such as `n01440764 tench` (default: those of SOURCE)",
    )
    parser.add_argument(
        "--on-bad-image",
        choices=("stop", "skip"),
        help="skip: leave out an image that cannot be decoded, and list it (default: stop)",
    )
    parser.add_argument("--shard-images", type=positive_int, metavar="N", help="images of a shard (default: 2048)")
    parser.add_argument(
        "--workers", type=positive_int, metavar="N", help="worker processes (default: one for each processor)"
    )
    parser.add_argument("--verify", action="store_true", help="compare every byte, pixel and label with the index")
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Pack or verify, and print a report."""
    workers = args.workers or available_cores()
    paths = [Path(path) for path in args.paths]
    if len(paths) != (1 if args.verify else 2):
        raise BadInput("give the packed folder alone with --verify, else SOURCE and DEST")
    if args.verify:
        _check_verify_options(args)
        _verify(paths[0], workers, args.json)
    else:
        _check_pack_options(args)
        _pack(paths[0], paths[1], workers, args)


def _pack(source: Path, dest: Path, workers: int, args: argparse.Namespace) -> None:
    from resnet_train.packing.encode import PackOptions
    from resnet_train.packing.prepare import prepare

    options = PackOptions(args.tiled, args.short_side, args.square, args.raw_fraction)
    skip_bad = args.on_bad_image == "skip"
    report = prepare(
        source, dest, options, args.shard_images or 2048, workers, skip_bad, args.val_labels, args.class_names
    )
    print(
        json.dumps(report.to_json(), indent=2)
        if args.json
        else wrap("\n".join(_describe(report, dest)), terminal_width())
    )


def _verify(folder: Path, workers: int, as_json: bool) -> None:
    from resnet_train.packing.verify import verify

    report = verify(folder, workers)
    if report.errors:
        print("\n".join(report.errors), file=sys.stderr)
        raise BadInput(
            f"{folder}: {len(report.errors)} of {sum(report.images.values())} images differ from the index, as listed "
            f"above; delete {', '.join(map(str, report.damaged_shards))} and run the same resnet-train prepare command "
            "again to pack them again"
        )
    counts = ", ".join(f"{count:,} of {split}" for split, count in report.images.items())
    message = f"{folder}: the checksum, pixels and label of every image are those of the index ({counts})"
    print(json.dumps(report.images) if as_json else wrap(message, terminal_width()))


def _check_verify_options(args: argparse.Namespace) -> None:
    options = args.tiled, args.raw_fraction, args.short_side, args.square, args.shard_images
    if any([*options, args.val_labels, args.class_names, args.on_bad_image]):
        raise BadInput("--verify reads what was packed: of the other options only --workers and --json have an effect")


def _check_pack_options(args: argparse.Namespace) -> None:
    if args.tiled and args.raw_fraction == 1:
        raise BadInput("--tiled has no effect with --raw-fraction 1, which leaves no JPEG: remove one of them")
    if args.square and (args.tiled or args.raw_fraction or args.short_side):
        raise BadInput(
            "--square stores small raw images: --tiled, --raw-fraction and --short-side have no effect with it"
        )
    if (args.square or 0) > _LARGEST_SQUARE:
        raise BadInput(f"--square {args.square}: it is for small images, up to {_LARGEST_SQUARE} pixels wide and high")


def _describe(report: "PackReport", dest: Path) -> Iterator[str]:
    """The report in words: what was packed, which files are unusual, and what it means for disk space and recipe."""
    rows = [["", "images", "left out", "shards", "MB", "of the source", "as files", "tiled", "raw"]]
    for name, split in report.parts.items():
        counts = [f"{count:,}" for count in (split.images, split.left_out, split.shards)]
        disk = [f"{split.bytes / 1e6:,.1f}", f"{split.bytes / max(split.source_bytes, 1):.2f}"]
        forms = [f"{count:,}" for count in (split.as_files, split.tiled, split.raw)]
        rows.append([name, *counts, *disk, *forms])
    if report.packed_again:
        yield f"packed again: {', '.join(report.packed_again)}"
    elif report.packed_again is not None:
        yield "nothing to do: packed before"
    yield f"{dest}: {report.classes} classes, from {report.source}"
    yield from columns(rows, terminal_width()).split("\n")
    if report.odd:
        yield f"unusual files, listed in {dest / 'odd.csv'}:"
        yield from (f"  {count:,} {what}" for what, count in report.odd.items())
    yield f"recipe: {_describe_recipe(report)}"
    yield f"train on it with {' '.join(_train_options(report, dest))}"


def _describe_recipe(report: "PackReport") -> str:
    """How the packed pixels differ from those of the source."""
    short_side, square = report.options.short_side, report.options.square
    if short_side:
        from resnet_train.packing.encode import QUALITY

        return (
            f"CHANGED: shorter sides over {short_side} px were reduced to it and compressed again (quality {QUALITY}); "
            "report this with any error"
        )
    if square:
        return f"CHANGED: every image was resized to {square} x {square} pixels; report this with any error"
    left_out = sum(split.left_out for split in report.parts.values())
    if left_out:
        return f"unchanged, except for {left_out:,} {'image' if left_out == 1 else 'images'} left out"
    return "unchanged: every pixel is the source's"


def _train_options(report: "PackReport", dest: Path) -> Iterator[str]:
    yield f"data.kind=shards data.path={dest}"
    if report.options.square and "train" in report.parts:
        gigabytes = report.parts["train"].images * report.options.square**2 * 3 / 1e9
        yield f"data.device_cache_gb={math.ceil(100 * gigabytes) / 100:g} augment.crop.kind=pad"
