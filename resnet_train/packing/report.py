"""What `prepare` tells when it is done."""

import math
from collections.abc import Iterator
from pathlib import Path

from resnet_train.packing.encode import QUALITY
from resnet_train.packing.prepare import Report
from resnet_train.runtime.tables import columns


def text(report: Report, dest: Path) -> str:
    """The report in words: what was packed, what was odd, and what the options did to disk and recipe."""
    return "\n".join(_lines(report, dest))


def _lines(report: Report, dest: Path) -> Iterator[str]:
    rows = [["", "images", "left out", "shards", "MB", "of the source", "as they are", "tiled", "raw"]]
    for part, one in report["parts"].items():
        counts = [f"{one[key]:,}" for key in ("images", "left_out", "shards")]
        disk = [f"{one['bytes'] / 1e6:,.1f}", f"{one['bytes'] / max(one['source_bytes'], 1):.2f}"]
        rows.append([part, *counts, *disk, *(f"{one[key]:,}" for key in ("as_files", "tiled", "raw"))])
    again = report.get("packed_again")
    if again is not None:
        yield f"packed again: {', '.join(again)}" if again else "nothing to do: packed before"
    yield f"{dest}: {report['classes']} classes, from {report['source']}"
    yield columns(rows)
    if report["odd"]:
        yield f"odd files, named in {dest / 'odd.csv'}:"
        yield from (f"  {count:,} {what}" for what, count in report["odd"].items())
    options = report["options"]
    if options["short_side"]:
        yield (
            f"recipe: CHANGED: shorter sides over {options['short_side']} px were reduced to it and compressed anew "
            f"(quality {QUALITY}); say so beside any error"
        )
    elif options["square"]:
        yield f"recipe: CHANGED: every image was made {options['square']} pixels wide and high; say so beside any error"
    elif left_out := sum(one["left_out"] for one in report["parts"].values()):
        yield f"recipe: unchanged, but for {left_out:,} image{'s' * (left_out > 1)} left out"
    else:
        yield "recipe: unchanged: every pixel is the source's"
    held = ""
    if options["square"]:
        size = report["parts"].get("train", {"images": 0})["images"] * options["square"] ** 2 * 3 / 1e9
        held = f" data.device_cache_gb={math.ceil(100 * size) / 100:g} augment.crop.kind=pad"
    yield f"train on it with data.kind=shards data.path={dest}{held}"
