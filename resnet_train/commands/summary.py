"""`resnet-train summary`: the stages of networks and their costs; or networks set against a reference."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.commands import add_json, positive_int
from resnet_train.errors import BadInput, wrap

if TYPE_CHECKING:
    from resnet_train.config.network import AnyNet
    from resnet_train.models.complexity import Stage

EXAMPLE = "resnet-train summary resnet-50 resnet-152 --vs vgg-19"

PAPER_MACS = {
    "resnet-18": 1.8e9,
    "resnet-34": 3.6e9,
    "resnet-50": 3.8e9,
    "resnet-101": 7.6e9,
    "resnet-152": 11.3e9,
    "vgg-16": 15.3e9,
    "vgg-19": 19.6e9,
}
"""Multiply-adds at 224 px: He et al. 2015, table 1 and section 3.3. The paper truncates digits instead of rounding, and
leaves out VGG-16's fully connected layers, so these agree with ours to `_TOLERANCE`."""

_TOLERANCE = 0.2e9
_COSTS = {
    "depth": "depth",
    "params": "parameters",
    "macs": "multiply-adds",
    "activations": "activations",
    "memory_fp32": "memory an image, fp32",
    "memory_bf16": "memory an image, bf16 or fp16",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="networks")
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="such as resnet-50 or cifar-plain-56")
    parser.add_argument(
        "--size",
        type=positive_int,
        metavar="N",
        help="image height and width (default: 224, for CIFAR networks 32)",
    )
    parser.add_argument(
        "--classes", type=positive_int, metavar="N", help="number of classes (default: 1000, for CIFAR networks 10)"
    )
    parser.add_argument(
        "--vs",
        metavar="NETWORK",
        help="compare the networks with this one, in a table and a figure (default: print their stages)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the figure of --vs (default: summary.png)")
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Print the stages of each network, or the comparison with a reference."""
    from resnet_train.config import zoo

    networks = [zoo.network_config(name) for name in args.networks]
    if args.vs is not None:
        reference = zoo.network_config(args.vs)
        _compare(reference, networks, args.size, args.classes, args.out or Path("summary.png"), args.json)
    elif args.out is not None:
        raise BadInput("--out has no effect without --vs, which draws: remove it")
    else:
        _print_stages(networks, args.size, args.classes, args.json)


# --- stages -----------------------------------------------------------------------------------------------------------


def _print_stages(networks: Sequence["AnyNet"], size: int | None, classes: int | None, as_json: bool) -> None:
    from resnet_train.models import complexity

    records, tables = [], []
    for network in networks:
        default_size, default_classes = complexity.default_input(network)
        pixels, outputs = size or default_size, classes or default_classes
        stages = complexity.stage_table(network, pixels, outputs)
        total = complexity.total(stages)
        records.append(
            {
                "network": network.name,
                "depth": network.depth,
                "image_size": pixels,
                **asdict(total),
                "stages": [
                    {"name": s.name, "units": s.units, "shape": s.shape, **asdict(s.complexity)} for s in stages
                ],
            }
        )
        tables.append(f"{network.name}: depth {network.depth}, {pixels} px, {outputs} classes\n{_stage_table(stages)}")
    print(json.dumps(records, indent=2) if as_json else "\n\n".join(tables))


def _stage_table(stages: list["Stage"]) -> str:
    from resnet_train.models import complexity
    from resnet_train.runtime.tables import columns, terminal_width

    rows = [("stage", "units", "output", "parameters", "multiply-adds", "activations")]
    costs = [(s.name, str(s.units or ""), " x ".join(map(str, s.shape)), s.complexity) for s in stages]
    for name, units, shape, cost in [*costs, ("total", "", "", complexity.total(stages))]:
        rows.append((name, units, shape, f"{cost.params:,}", f"{cost.macs:,}", f"{cost.activations:,}"))
    return columns(rows, terminal_width())


# --- comparison with a reference --------------------------------------------------------------------------------------


def _compare(
    reference: "AnyNet",
    networks: Sequence["AnyNet"],
    size: int | None,
    classes: int | None,
    out: Path,
    as_json: bool,
) -> None:
    """Print the costs of networks beside those of a reference at one image size, and draw them."""
    from resnet_train.models import complexity
    from resnet_train.runtime.tables import columns, terminal_width

    default_size, default_classes = complexity.default_input(reference)
    pixels, outputs = size or default_size, classes or default_classes
    unique = {network.name: network for network in (reference, *networks)}
    records = [_costs(network, pixels, outputs) for network in unique.values()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _draw(records, f"{pixels} px, {outputs:,} classes", out)
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror or error}") from None
    except ValueError as error:  # matplotlib's, for the suffix of a file name
        raise BadInput(f"--out: cannot write {out}: {error}") from None
    if as_json:
        print(json.dumps(records, indent=2))
        return
    first = records[0]
    rows: list[tuple[str, ...]] = [("network", *_COSTS.values(), "paper")]
    for record in records:
        cells = [f"{_cost_text(record, key)} ({record[key] / first[key]:.2f})" for key in _COSTS]
        rows.append((record["network"], *cells, _agreement(record)))
    print(
        f"{pixels} px, {outputs} classes; in brackets the ratio to {first['network']}",
        columns(rows, terminal_width()),
        sep="\n",
    )
    for record in records[1:]:
        print(wrap(_complexity_sentence(record, first), terminal_width()))
    print(f"wrote {out}")


def _costs(network: "AnyNet", size: int, classes: int) -> dict[str, Any]:
    from resnet_train.models import complexity

    cost = complexity.network_complexity(network, size, classes)

    def memory_of_an_image(precision: str) -> int:
        with_image, without = (complexity.estimate_training_memory(cost, images, precision, False) for images in (1, 0))
        return with_image - without

    return {
        "network": network.name,
        "depth": network.depth,
        "params": cost.params,
        "macs": cost.macs,
        "activations": cost.activations,
        "memory_fp32": memory_of_an_image("fp32"),
        "memory_bf16": memory_of_an_image("bf16"),
        "paper_macs": PAPER_MACS.get(network.name) if (size, classes) == (224, 1000) else None,
    }


def _cost_text(record: dict[str, Any], key: str) -> str:
    from resnet_train.runtime.tables import short

    unit = "B" if key.startswith("memory") else ""
    return f"{short(record[key])}{unit}"


def _agreement(record: dict[str, Any]) -> str:
    """The paper's multiply-adds, and whether ours agree."""
    from resnet_train.runtime.tables import short

    if record["paper_macs"] is None:
        return "–"
    agrees = abs(record["macs"] - record["paper_macs"]) <= _TOLERANCE
    return f"{short(record['paper_macs'])}, {'agrees' if agrees else 'DIFFERS'}"


def _complexity_sentence(record: dict[str, Any], reference: dict[str, Any]) -> str:
    relation = "the complexity of"
    if record["macs"] != reference["macs"]:
        relation = "lower complexity than" if record["macs"] < reference["macs"] else "higher complexity than"
    ratio = f"{record['macs'] / reference['macs']:.2f} of its multiply-adds"
    return f"{record['network']}: {record['depth']} layers, {relation} {reference['network']} ({ratio})"


def _draw(records: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    from resnet_train.analysis.style import add_title, colours
    from resnet_train.config import zoo

    titles = {key: _COSTS[key] for key in ("depth", "params", "macs", "activations")}
    shades = colours([zoo.network_config(record["network"]) for record in records])
    titles["activations"] += " (memory an image: fp32, bf16)"  # proportional to them
    figure = Figure(figsize=(4 * len(titles), 1.2 + 0.4 * len(records)), layout="constrained")
    names = [record["network"] for record in records]
    for ax, (key, title) in zip(figure.subplots(1, len(titles), sharey=True), titles.items(), strict=True):
        labels = [_cost_text(record, key) for record in records]
        if key == "activations":
            memory = [f"({_cost_text(r, 'memory_fp32')}, {_cost_text(r, 'memory_bf16')})" for r in records]
            labels = [f"{label} {text}" for label, text in zip(labels, memory, strict=True)]
        bars = ax.barh(names, [record[key] for record in records], color=shades)
        ax.bar_label(bars, labels, fontsize=8, padding=2)
        ax.set_title(title, fontsize=10)
        ax.set_xticks([])
        ax.margins(x=0.7 if key == "activations" else 0.25)
    ax.invert_yaxis()  # shared by all panels: the reference is on top
    add_title(figure, title)
    figure.savefig(path, dpi=130)
