"""docs/reproduce.md: each table and figure of the three papers, its command, its cost, and what we measured.

    python scripts/reproduce.py

The figures are those that the recipes expect. `ITEMS` lists all tables and figures, with what no recipe states: the
command that draws or counts it, or the reason why there is none.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from resnet_train.config import load, recipes
from resnet_train.config.expect import EXPECTED_ERRORS, ExpectConfig, FigureConfig, text
from resnet_train.config.schema import Experiment, TrainConfig
from resnet_train.config.yaml12 import read_yaml
from resnet_train.runtime.tables import percent

DOCS = Path(__file__).parents[1] / "docs"


class Item(NamedTuple):
    """A table or figure of a paper."""

    shows: str
    commands: tuple[str, ...] = ()
    """What draws or counts it, beside the trainings of the recipes whose `expect` names it."""
    reason: str = ""
    """Why there is neither a recipe nor a command."""
    cost: str = "seconds"
    """Of `commands`."""


_DRAWING = "a drawing"
_DETECTION = "object detection and localisation; this program classifies"
_DEPTH = ("resnet-train run cifar10-depth", "resnet-train compare runs/cifar10-depth")

ITEMS: dict[str, dict[str, Item]] = {
    "He et al. 2015": {
        "figure 1": Item(
            "training and test error of plain networks of 20 and 56 layers on CIFAR-10",
            ("resnet-train run cifar10-depth --only cifar-plain-20 --only cifar-plain-56", _DEPTH[1]),
            cost="2 x 64,000 steps of 128 images",
        ),
        "figure 2": Item("the residual unit", reason=_DRAWING),
        "figure 3": Item("VGG-19, plain-34, resnet-34", ("resnet-train summary vgg-19 plain-34 resnet-34",)),
        "figure 4": Item(
            "training and validation error of 18 and 34 layers on ImageNet",
            ("resnet-train run imagenet-depth", "resnet-train compare runs/imagenet-depth"),
            cost="4 x 600,000 steps of 256 images",
        ),
        "figure 5": Item("the bottleneck unit", reason=_DRAWING),
        "figure 6": Item(
            "training and test error on CIFAR-10: plain; the residual networks are those of table 6", (_DEPTH[1],)
        ),
        "figure 7": Item(
            "standard deviation of each layer's response",
            ("resnet-train probe responses CHECKPOINT",),
            cost="seconds, after the trainings of table 6",
        ),
        "table 1": Item(
            "stages and multiply-adds", ("resnet-train summary resnet-18 resnet-34 resnet-50 resnet-101 resnet-152",)
        ),
        "table 2": Item("plain and residual networks of 18 and 34 layers on ImageNet, ten crops"),
        "table 3": Item(
            "ImageNet, ten crops; VGG-16 by torchvision's weights",
            ("resnet-train eval vgg16.pth --network vgg-16 --data DATA --protocol ten-crop",),
        ),
        "table 4": Item("ImageNet, one network at five scales"),
        "table 5": Item(
            "ImageNet, ensembles; the test set has no public labels",
            ("resnet-train eval CHECKPOINT CHECKPOINT --protocol multi-scale-dense",),
            cost="minutes on the validation set",
        ),
        "table 6": Item("CIFAR-10"),
        "tables 7 to 14": Item("PASCAL VOC, COCO, ImageNet detection and localisation", reason=_DETECTION),
    },
    "He et al. 2016": {
        "figure 1": Item(
            "training loss and test error of 1001 layers on CIFAR-10, original and pre-activation",
            (
                "resnet-train run cifar10-preact --only cifar-resnet-1001 --only cifar-preact-1001",
                "resnet-train compare runs/cifar10-preact --loss",
            ),
            cost="2 x 64,000 steps of 128 images",
        ),
        "figure 2": Item("kinds of shortcut", reason=_DRAWING),
        "figure 3": Item(
            "training loss and test error with four kinds of shortcut, 110 layers",
            ("resnet-train run cifar10-shortcuts", "resnet-train compare runs/cifar10-shortcuts --loss"),
            cost="all of table 1",
        ),
        "figure 4": Item("orders of batch norm, ReLU and addition", reason=_DRAWING),
        "figure 5": Item("pre-activation as an asymmetric unit", reason=_DRAWING),
        "figure 6": Item(
            "training loss and test error: BN after addition, 110 layers; pre-activation, 164 layers",
            (
                "resnet-train run cifar10-orders --only cifar-resnet-110 --only bn-after-addition-110",
                "resnet-train run cifar10-preact --only cifar-resnet-164 --only cifar-preact-164",
                "resnet-train compare runs/cifar10-orders runs/cifar10-preact --loss",
            ),
            cost="4 x 64,000 steps of 128 images",
        ),
        "table 1": Item("kinds of shortcut on CIFAR-10, 110 layers"),
        "table 2": Item("orders of batch norm, ReLU and addition on CIFAR-10"),
        "table 3": Item("CIFAR, original and pre-activation"),
        "table 4": Item("CIFAR, beside other methods"),
        "table 5": Item("ImageNet, crops of 320 pixels"),
    },
    "Zagoruyko and Komodakis 2016": {
        "figure 1": Item("the units", reason=_DRAWING),
        "figure 2": Item(
            "training loss and test error of a thin and a wide network, CIFAR-10 and CIFAR-100",
            (
                "resnet-train run cifar10-wide --only cifar-preact-164 --only wrn-28-10",
                "resnet-train run cifar100-wide --only cifar-preact-164 --only wrn-28-10",
                "resnet-train compare runs/cifar10-wide runs/cifar100-wide --loss",
            ),
            cost="4 x 200 epochs",
        ),
        "figure 3": Item(
            "training loss and test error on SVHN: thin and wide, with and without dropout",
            (
                "resnet-train run svhn-wide --only wrn-52-1 --only wrn-16-4 --only wrn-16-4-dropout",
                "resnet-train compare runs/svhn-wide --loss",
            ),
            cost="3 x 160 epochs",
        ),
        "figure 4": Item(
            "time of a step with 32 images, thin (164 and 1001 layers) and wide",
            tuple(
                f'resnet-train bench cifar10-wide train.batch_size=32 "networks=[{network}]"'
                for network in ("cifar-preact-164", "cifar-preact-1001", "wrn-40-4", "wrn-16-10", "wrn-28-10")
            ),
        ),
        "section 3": Item("figures in the text"),
        "table 1": Item("stages", ("resnet-train summary wrn-28-10",)),
        "table 2": Item("kinds of convolution in a unit, CIFAR-10"),
        "table 3": Item("number of convolutions in a unit, CIFAR-10"),
        "table 4": Item("depth and width, CIFAR, ZCA whitening"),
        "table 5": Item("CIFAR, beside other methods"),
        "table 6": Item("dropout, CIFAR and SVHN"),
        "table 7": Item("ImageNet, wide networks of 18 and 34 layers"),
        "table 8": Item("ImageNet, wrn-50-2 and others"),
        "table 9": Item(
            "the best results on CIFAR; those on SVHN are of section 3, on ImageNet of table 8; on COCO none: detection"
        ),
    },
}

_TITLES = {
    "He et al. 2015": "Deep Residual Learning for Image Recognition",
    "He et al. 2016": "Identity Mappings in Deep Residual Networks",
    "Zagoruyko and Komodakis 2016": "Wide Residual Networks",
}

_HEAD = """# Reproduce the papers

Each table and figure of the three papers: the command that reproduces it, its cost, what the paper reports, and what we
measured. `python scripts/reproduce.py` generates this page from `expect` of the recipes and from
[results](results/README.md).

- `data.path=PATH` names the data, `data.download=true` downloads CIFAR or SVHN. `--dry-run` prints parameters,
  multiply-adds and memory of each network.
- `resnet-train compare` sets the published figures beside the measured ones
  ([what the verdicts mean](metrics.md#published-beside-measured)).
- Rows that a paper quotes of other people's networks, such as GoogLeNet, Highway or Inception, are left out: they are
  not of plain or residual networks.
- Ten crops and several scales are measured after the training, by `resnet-train eval` of all its runs, which prints the
  same table.
"""


@dataclass(frozen=True)
class Stated:
    """An entry of `expect` in a recipe."""

    recipe: str
    experiment: Experiment
    entry: ExpectConfig


def stated() -> list[Stated]:
    """Every entry of every recipe. One that is inherited by a recipe that changes its subject is left out."""
    experiments = {name: load.load(recipes.find(name)) for name in recipes.names()}
    return [
        Stated(name, experiment, entry)
        for name, experiment in experiments.items()
        for entry in experiment.expect
        if not entry.differs or "expect" in read_yaml(recipes.find(name))
    ]


def page(results: Path = DOCS / "results") -> str:
    """The text of docs/reproduce.md. Raises `ValueError` for an item with neither command nor reason, and for a figure
    whose table is not listed."""
    entries, measured = stated(), _measured(results)
    blocks = [_HEAD]
    for paper, items in ITEMS.items():
        of_paper = [one for one in entries if one.entry.source.startswith(f"{paper}, ")]
        for one in of_paper:
            if one.entry.source.removeprefix(f"{paper}, ") not in items:
                raise ValueError(f"{one.recipe}: {one.entry.source} is not listed in ITEMS")
        blocks.append(f"## {paper}: {_TITLES[paper]}\n")
        rows = [_row(item, items[item], [one for one in of_paper if _item(one) == item]) for item in items]
        blocks.append(_table(("item", "shows", "commands", "cost"), rows))
        in_order = sorted(of_paper, key=lambda one: list(items).index(_item(one)))
        blocks.append(_figures([(_item(one), one) for one in in_order], measured))
    others = [one for one in entries if not any(one.entry.source.startswith(f"{paper}, ") for paper in ITEMS)]
    blocks += ["## Other sources\n", _figures([(one.entry.source, one) for one in others], measured)]
    return "\n".join(blocks)


def _item(one: Stated) -> str:
    return one.entry.source.partition(", ")[2]


def _row(name: str, item: Item, entries: list[Stated]) -> tuple[str, ...]:
    """Name, content, commands and cost of a table or figure."""
    commands: dict[str, str] = {}  # with their costs, if they train
    for one in entries:
        commands |= dict(_trainings(one))
        if one.entry.protocol != "one-crop":
            commands[f"resnet-train eval runs/{one.recipe} --protocol {one.entry.protocol}"] = ""
    costs = [cost for cost in commands.values() if cost] or ([item.cost] if item.commands else [])
    commands |= dict.fromkeys(item.commands, "")
    if not commands and not item.reason:
        raise ValueError(f"{name} ({item.shows}) has neither a recipe, nor a command, nor a reason")
    cells = "<br>".join(f"`{command}`" for command in commands)
    return name, item.shows, cells or f"none: {item.reason}", "<br>".join(costs) or "–"


def _trainings(one: Stated) -> Iterator[tuple[str, str]]:
    """The commands that train the networks of an entry, with their costs; one for networks of equal length."""
    trains = {run.network.name: run.train for run in load.runs(one.experiment)}
    seeds = max((figure.n or 1 for figure in _all_figures(one.entry)), default=1)
    overrides = f' "seeds={list(range(seeds))}"'.replace(", ", ",") if seeds > 1 else ""
    by_length: dict[tuple[bool, str], list[str]] = {}
    for name in one.entry.networks:
        key = (name in trains, _length(trains.get(name, one.experiment.train)))
        by_length.setdefault(key, []).append(name)
    for (listed, length), names in sorted(by_length.items(), reverse=True):
        cost = f"{len(names)}{f' x {seeds} seeds' if seeds > 1 else ''} x {length}"
        if listed:
            only = "".join(f" --only {name}" for name in names) if len(names) < len(trains) else ""
            yield f"resnet-train run {one.recipe}{only}{overrides}", cost
        else:
            yield f'resnet-train run {one.recipe} "networks=[{", ".join(names)}]"{overrides}', cost


def _length(train: TrainConfig) -> str:
    return f"{train.epochs:g} epochs" if train.epochs else f"{train.steps:,} steps of {train.batch_size} images"


def _all_figures(entry: ExpectConfig) -> Iterator[FigureConfig]:
    for error in EXPECTED_ERRORS:
        yield from (figure for figure in entry.figures(error).values() if isinstance(figure, FigureConfig))


def _figures(entries: list[tuple[str, Stated]], measured: dict[tuple[str, ...], str]) -> str:
    """A table of published errors and ours, a row for each network and entry, which stand under a name."""
    rows = []
    for source, one in entries:
        for network in one.entry.networks:
            errors = [error for error in EXPECTED_ERRORS if network in one.entry.figures(error)]
            differs = (one.entry.differs or {}).get(network, ())
            ours = [measured.get((one.recipe, one.entry.source, network, error)) for error in errors]
            rows.append(
                (
                    source,
                    f"`{one.recipe}`",
                    network,
                    f"{' / '.join(map(_short, errors))}, {one.entry.protocol}",
                    "; ".join([" / ".join(text(one.entry.figures(error)[network]) for error in errors), *differs]),
                    " / ".join(cell or "–" for cell in ours) if any(ours) else "–",
                )
            )
    return _table(("of", "recipe", "network", "error", "published", "ours"), rows)


def _short(error: str) -> str:
    return {"val_error_top1": "top-1", "val_error_top5": "top-5"}.get(error, error.replace("_", " "))


def _measured(results: Path) -> dict[tuple[str, ...], str]:
    """What the studies measured under the protocol of a source, by recipe, source, network and error."""
    cells: dict[tuple[str, ...], str] = {}
    for folder in sorted(path.parent for path in results.glob("*/study.json")):
        name = json.loads((folder / "study.json").read_text())["experiment"]
        for row in json.loads((folder / "compare.json").read_text()):
            for error in EXPECTED_ERRORS:
                if row.get(f"source_{error}") and row[f"verdict_{error}"] != "another protocol":
                    key = (name, row[f"source_{error}"], row["network"], error)
                    cells[key] = f"{_text(row, error)}, [{row[f'verdict_{error}']}](results/{folder.name}/README.md)"
    return cells


def _text(row: dict[str, Any], error: str) -> str:
    """What was measured, in the form of the published figure. A row of several protocols has columns of its own."""
    own = (name.removeprefix(error) for name in row if name.partition(" [")[0] == error and row[name] is not None)
    suffix = next(own, "")
    median, std = row.get(f"{error}_median{suffix}"), row.get(f"{error}_std{suffix}")
    if "median" in row[f"published_{error}"] and median is not None:  # of one seed there is none
        return f"{median:.2f} (median of {row['seeds']})"
    return percent(row[error + suffix], std) + (f" ({row['seeds']})" if row["seeds"] > 1 else "")


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    (DOCS / "reproduce.md").write_text(page())
