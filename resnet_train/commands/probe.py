"""`resnet-train probe`: gradients, responses or lesions by depth, plain networks beside residual ones."""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.commands import add_figure_options, add_json, figure_output, positive_int, positive_numbers
from resnet_train.errors import BadInput

if TYPE_CHECKING:
    from resnet_train.analysis.style import Output
    from resnet_train.config.network import AnyNet
    from resnet_train.evaluation.pretrained import PretrainedModel
    from resnet_train.probes.hooks import ProbeResult

_TITLES = {
    "gradients": "gradients of the loss of {} training images",
    "responses": "responses to {} training images",
    "lesion": "networks without a unit, {} validation images",
}
"""Of the figures, after the names of the data sets."""

EXAMPLE = "resnet-train probe gradients cifar-plain-56 cifar-resnet-56 --data digits"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="networks")
    parser.add_argument(
        "kind",
        choices=("gradients", "responses", "lesion"),
        help="norms of the loss's gradient; standard deviations of layer responses; error without each unit",
    )
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help="checkpoints, names of untrained networks, or (gradients) run folders",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="digits, synthetic, or a folder of images or of torchvision's files (default: the data of the checkpoint)",
    )
    parser.add_argument(
        "--images", type=positive_int, metavar="N", help="number of images (default: 128, for lesions 1000)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of untrained weights (default: %(default)s)"
    )
    parser.add_argument(
        "--weight-scale",
        type=positive_numbers,
        metavar="S,...",
        help="gradients of networks without batch norm, such as cifar-plain-56-nobn, for weights S times as large "
        "(default: 1)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="the figure (default: KIND.png)")
    add_figure_options(parser)
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Print a table and write a figure."""
    out = args.out or Path(f"{args.kind}.png")
    if args.weight_scale and args.kind != "gradients":
        raise BadInput(f"--weight-scale is for `probe gradients`, not for `probe {args.kind}`: remove it")
    folders = [Path(name) for name in args.networks if Path(name).is_dir()]
    if folders:
        if args.kind != "gradients" or len(folders) < len(args.networks):
            raise BadInput(f"{folders[0]} is a folder: run folders are for `probe gradients`, by themselves")
        if args.weight_scale:
            raise BadInput("--weight-scale is for networks, and run folders hold what was measured: remove it")
        _draw_recorded_gradients(folders, out, figure_output(args))
    else:
        _probe_networks(args, out)


def _draw_recorded_gradients(folders: Sequence[Path], out: Path, output: "Output") -> None:
    """The heat maps of the gradients that runs recorded."""
    from resnet_train.probes import figures
    from resnet_train.runs import run_folder

    try:
        paths = figures.draw_heat_maps(run_folder.find(folders), out, None, output)
    except OSError as error:
        raise BadInput(f"--out: cannot write {out}: {error.strerror or error}") from None
    if not paths:
        raise BadInput(f"{folders[0]} has no gradients on record: train with probes.gradients={{}}")
    print(f"wrote {', '.join(map(str, paths))}")


def _probe_networks(args: argparse.Namespace, out: Path) -> None:
    from resnet_train.analysis.data_sets import data_name
    from resnet_train.config.schema import LesionConfig, ProbeConfig
    from resnet_train.data import datasets
    from resnet_train.probes import figures
    from resnet_train.probes.gradients import scale_weights
    from resnet_train.probes.measure import images_to_evaluate, run_probe
    from resnet_train.runtime import distributed
    from resnet_train.runtime.precision import set_precision
    from resnet_train.runtime.progress import Progress

    lesion = args.kind == "lesion"
    images = args.images or (LesionConfig() if lesion else ProbeConfig()).images
    with distributed.start("auto") as world:
        results: dict[str, ProbeResult] = {}
        networks: dict[str, AnyNet] = {}
        data: dict[str, None] = {}
        labels: set[str] = set()
        for name in args.networks:
            model = _load(name, args.data, args.seed)
            train_set, val_set = datasets.open_data(model.run.data)
            # A network that was trained with tf32 can be probed on a CPU, which has none.
            set_precision("fp32" if world.device.type == "cpu" else model.run.train.precision, world.device)
            model = model.to(world.device)
            label = name if model.name in labels else model.name
            labels.add(label)
            scaled = {label: model.network}
            if args.weight_scale:
                scaled = {f"{label} x {s:g}": scale_weights(model.network, s) for s in args.weight_scale}
            dataset = val_set if lesion else train_set
            arguments = model.run, dataset, images, model.normalization, world.device
            for key, network in scaled.items():
                total = images_to_evaluate(args.kind, network, dataset, images)
                with Progress(f"{args.kind} of {key}", total, "img", shown=world.is_main and lesion, keep=False) as bar:
                    results[key] = run_probe(args.kind, network, *arguments, count=bar.update)
                networks[key] = model.run.network
            data[data_name(model.run.data)] = None
        if not world.is_main:
            return
        try:
            title = f"{', '.join(data)}; {_TITLES[args.kind].format(images)}"
            if args.weight_scale:
                title += f", weights x {', '.join(f'{s:g}' for s in args.weight_scale)}"
            paths = figures.draw_side_by_side(args.kind, results, networks, out, title, figure_output(args))
        except OSError as error:
            raise BadInput(f"--out: cannot write {out}: {error.strerror or error}") from None
        print(
            json.dumps(results, indent=2)
            if args.json
            else f"{_table(args.kind, results)}\nwrote {', '.join(map(str, paths))}"
        )


def _load(name: str, data: str | None, seed: int) -> "PretrainedModel":
    from resnet_train.evaluation import pretrained
    from resnet_train.runs.run_folder import check_checkpoint_exists

    if Path(name).is_file():
        return pretrained.load(name, data=None if data in ("digits", "synthetic") else data)
    if Path(name).suffix in (".pt", ".pth"):
        check_checkpoint_exists(Path(name))
    if data is None:
        raise BadInput(f"{name} is untrained and has no data: give --data digits, synthetic or a folder")
    return pretrained.untrained(name, data, seed=seed)


def _table(kind: str, results: Mapping[str, "ProbeResult"]) -> str:
    """For each quantity a table: a row for each unit or layer, a column for each network, then summaries of several.

    A ratio says something of norms and deviations, and nothing of the errors of lesions.
    """
    from resnet_train.runtime.tables import columns, terminal_width

    summaries: dict[str, Callable[[list[float]], float]] = {
        "median": statistics.median,
        "largest / smallest": lambda values: max(values) / min(values) if min(values) else math.inf,
    }
    if kind == "lesion":
        del summaries["largest / smallest"]
    tables = []
    for quantity in dict.fromkeys(quantity for result in results.values() for quantity in result):
        by_network = {name: result.get(quantity, {}) for name, result in results.items()}
        places = sorted({place for values in by_network.values() for place in values}, key=_depth_order)
        rows: list[Any] = [(f"{quantity} (error %)" if kind == "lesion" else quantity, *by_network)]
        for place in places:
            rows.append((place, *(_number(values.get(place)) for values in by_network.values())))
        finite = [[value for value in values.values() if value is not None] for values in by_network.values()]
        for summary, function in summaries.items() if len(places) > 1 else ():
            rows.append((summary, *(_number(function(values) if values else None) for values in finite)))
        tables.append(columns(rows, terminal_width()))
    return "\n\n".join(tables)


def _depth_order(place: str) -> list[tuple[int, int | str]]:
    """Sorts `layer1.9` before `layer1.10`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in place.replace(" ", ".").split(".")]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
