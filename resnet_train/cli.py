"""The verbs. Nothing heavy is imported before a verb needs it, so that help and complaints come at once."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train import __version__
from resnet_train.errors import BadInput, report
from resnet_train.runtime.progress import show_messages

if TYPE_CHECKING:
    from resnet_train.config.schema import Experiment, Run

_EPILOG = """exit codes:
  0    done
  1    training failed: the loss is no longer finite, or another rank stopped
  2    bad input: one line on standard error says what and how to mend it
  75   stopped by SIGTERM, SIGINT or SIGUSR1 after saving: run the same command again to continue
  130  stopped at once, by a second SIGINT
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; the exit code."""

    args = parse(arguments)
    show_messages()
    try:
        args.verb(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The verb and its arguments; options may stand between the words of a list."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-") or not hasattr(args, "words"):
            parser.error(f"unrecognized argument: {word}")
        getattr(args, args.words).append(Path(word) if args.words == "folders" else word)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-train",
        description="Train plain and residual networks across depths, and see the difference.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function: Any, text: str, **defaults: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(verb=function, **defaults)
        return made

    run = verb("run", _run, "train every network of an experiment, continuing what is unfinished", words="overrides")
    run.add_argument("config", type=Path, metavar="CONFIG.yaml")
    run.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as train.epochs=5")
    run.add_argument("--only", action="append", metavar="NETWORK", help="train this network only; may be repeated")
    run.add_argument("--dry-run", action="store_true", help="print the resolved experiment and what it costs")
    run.add_argument("--fresh", action="store_true", help="start anew; older run folders are moved aside")
    run.add_argument(
        "--jobs", type=_count, default=1, metavar="N", help="train so many networks at a time on one device"
    )
    _json(run)

    bench = verb("bench", _bench, "tell where the time of a training goes here, and what to change", words="overrides")
    bench.add_argument("config", type=Path, metavar="CONFIG.yaml")
    bench.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.workers=16")
    bench.add_argument("--only", metavar="NETWORK", help="the network to train (default: the first)")
    bench.add_argument("--seconds", type=_count, default=10, help="for each measurement (default: 10)")
    bench.add_argument("--profile", type=Path, metavar="FOLDER", help="write a trace for TensorBoard or Perfetto")
    _json(bench)

    evaluate = verb("eval", _eval, "print the error of checkpoints, and of their ensemble", words="checkpoints")
    evaluate.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="such as checkpoints/best.pt; a state dict of torchvision's, with --network; or files of --save-logits",
    )
    evaluate.add_argument("--data", metavar="PATH", help="where the data lies here (data.path)")
    evaluate.add_argument("--network", metavar="NAME", help="the network of a state dict, such as resnet-50")
    evaluate.add_argument(
        "--protocol", choices=("one-crop", "ten-crop", "multi-scale"), help="what is seen of an image (eval.protocol)"
    )
    evaluate.add_argument("--flip", action="store_true", help="add each view's mirror image (eval.flip)")
    evaluate.add_argument("--save-logits", type=Path, metavar="FILE.npz", help="keep what every average is made of")
    evaluate.add_argument("--out", type=Path, help="where confusions go (default: evaluation/ in the run's folder)")
    evaluate.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="such as eval.batch_size=64"
    )
    _json(evaluate)

    probe = verb("probe", _probe, "print and draw why: gradients and responses by depth, lesions", words="networks")
    probe.add_argument("kind", choices=("gradients", "responses", "lesion"))
    probe.add_argument(
        "networks", nargs="+", metavar="NETWORK", help="a checkpoint, a name of the zoo, or (gradients) run folders"
    )
    probe.add_argument(
        "--data", metavar="DATA", help="digits, synthetic, or a folder of images or of torchvision's files"
    )
    probe.add_argument("--images", type=_count, help="images to look at (default: 128, for lesions 1000)")
    probe.add_argument("--seed", type=int, default=0, help="of an untrained network's weights (default: 0)")
    probe.add_argument("--out", type=Path, metavar="FILE.png", help="the picture (default: KIND.png)")
    _json(probe)

    compare = verb("compare", _compare, "draw and tabulate error across depths from run folders", words="folders")
    compare.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folders, or folders above them")
    compare.add_argument("--out", type=Path, help="where compare.png, .md and .csv go (default: the first FOLDER)")
    compare.epilog = (
        "Errors are called different if chance alone would set them so far apart in less than 1 of 20 cases: over "
        "seeds by Student's t-test; of a single seed by two standard errors of the images that they were measured on, "
        "which says nothing of other seeds."
    )
    _json(compare)

    predict = verb("predict", _predict, "print the most probable classes of image files", words="images")
    predict.add_argument("checkpoint", metavar="CHECKPOINT", help="as for eval")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    predict.add_argument("--network", metavar="NAME", help="the network of a state dict, such as resnet-50")
    predict.add_argument("--classes", type=Path, metavar="FILE", help="names of the classes, one a line")
    predict.add_argument("--top", type=_count, default=5, metavar="K", help="how many classes (default: 5)")
    _json(predict)

    export = verb("export", _export, "write a network for other programs, read back and compared")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="as for eval")
    export.add_argument("--to", required=True, choices=("safetensors", "onnx", "torch-export", "torchvision"))
    export.add_argument("--out", type=Path, metavar="FILE", help="(default: beside the checkpoint)")
    export.add_argument("--network", metavar="NAME", help="the network of a state dict, such as resnet-50")

    summary = verb("summary", _summary, "print the stages of networks with their costs", words="networks")
    summary.add_argument("networks", nargs="+", metavar="NETWORK", help="such as resnet-50 or cifar-plain-56")
    summary.add_argument("--size", type=_count, help="image height and width (default: 224, of CIFAR networks 32)")
    summary.add_argument("--classes", type=_count, help="classes (default: 1000, of CIFAR networks 10)")
    summary.add_argument("--vs", metavar="NETWORK", help="set them against this one, in one table and a picture")
    summary.add_argument("--out", type=Path, metavar="FILE.png", help="the picture of --vs (default: summary.png)")
    _json(summary)

    prepare = verb(
        "prepare", _prepare, "pack a data set into shards, whatever form it has, to train on faster", words="paths"
    )
    prepare.usage = "%(prog)s [options] SOURCE DEST\n       %(prog)s --verify DEST"
    prepare.add_argument(
        "paths",
        nargs="+",
        metavar="SOURCE DEST",
        help="class folders, ILSVRC2012's tar files, parquet files, WebDataset shards or torchvision's files, all with "
        "a train and a val part; and a new folder (with --verify the packed folder alone)",
    )
    prepare.add_argument(
        "--tiled",
        action="store_true",
        help="JPEGs whose crops are decoded without the rest, same pixels; needs jpegtran (libjpeg-turbo-progs)",
    )
    prepare.add_argument(
        "--raw-fraction", type=_share, default=0.0, metavar="P", help="raw pixels for this fraction: the largest files"
    )
    prepare.add_argument("--short-side", type=_count, metavar="N", help="reduce images: another recipe, less disk")
    prepare.add_argument(
        "--square", type=_count, metavar="N", help="make them N x N, for data.device_cache_gb: likewise"
    )
    prepare.add_argument("--val-labels", type=Path, metavar="FILE", help="IMAGE,CLASS lines, or the development kit")
    prepare.add_argument("--class-names", type=Path, metavar="FILE", help="lines such as `n01440764 tench`")
    prepare.add_argument("--on-bad-image", choices=("stop", "skip"), help="skip: leave out and list it (default: stop)")
    prepare.add_argument("--shard-images", type=_count, metavar="N", help="images of a shard (default: 2048)")
    prepare.add_argument("--workers", type=_count, metavar="N", help="processes (default: one for each processor)")
    prepare.add_argument("--verify", action="store_true", help="check every byte, pixel and label of what was packed")
    _json(prepare)

    schema = verb("schema", _schema, "print the JSON Schema of experiment files, for editors")
    schema.add_argument("--markdown", action="store_true", help="print docs/config.md, the table of keys, instead")
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print figures as JSON")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share


def _run(args: argparse.Namespace) -> None:
    from resnet_train.config import load

    experiment = load.load(args.config, args.overrides)
    members = _members(args.config, experiment, args.only or [])
    if args.dry_run:
        from resnet_train.commands import dry_run

        print(dry_run.report(experiment, members, args.fresh, args.json))
    else:
        from resnet_train.training import grid

        grid.train_all(members, experiment.output, experiment.train.device, args.fresh, args.jobs, args.json)


def _members(config: Path, experiment: "Experiment", only: Sequence[str]) -> list["Run"]:
    """The runs of an experiment, or of some of its networks. Raises `BadInput`."""
    from resnet_train.config import load

    names = [network.name for network in experiment.networks]
    for name in only:
        if name not in names:
            raise BadInput(f"--only {name}: the networks of {config} are {', '.join(names)}")
    return [run for run in load.runs(experiment) if not only or run.network.name in only]


def _bench(args: argparse.Namespace) -> None:
    from resnet_train.config import load

    [run, *_] = _members(args.config, load.load(args.config, args.overrides), [args.only] if args.only else [])
    from resnet_train.commands import bench

    bench.bench(run, args.seconds, args.profile, args.json)


def _eval(args: argparse.Namespace) -> None:
    from resnet_train.commands import eval

    eval.main(args)


def _probe(args: argparse.Namespace) -> None:
    from resnet_train.commands import probe

    probe.compare(args.kind, args.networks, args.data, args.images, args.seed, args.out, args.json)


def _predict(args: argparse.Namespace) -> None:
    from resnet_train.commands import predict

    predict.main(args)


def _export(args: argparse.Namespace) -> None:
    from resnet_train.commands import export

    export.main(args)


def _compare(args: argparse.Namespace) -> None:
    from resnet_train.analysis import findings, tables
    from resnet_train.analysis.groups import group_runs, rows
    from resnet_train.runs import run_folder

    made = group_runs(run_folder.find(args.folders))
    paths = tables.write_comparison(made, args.out or args.folders[0])
    if args.json:
        print(json.dumps(rows(made), indent=2))
    else:
        print("\n".join([f"wrote {', '.join(map(str, paths))}", "", tables.text_table(made), ""]))
        print("\n".join([*findings.warnings(made), *findings.findings(made)]))


def _summary(args: argparse.Namespace) -> None:
    from resnet_train.config import zoo

    networks = [zoo.network_config(name) for name in args.networks]

    if args.vs is not None:
        from resnet_train.commands import summary

        reference = zoo.network_config(args.vs)
        out = args.out or Path("summary.png")
        print(summary.against(reference, networks, args.size, args.classes, out, args.json))
        return
    if args.out is not None:
        raise BadInput("--out has no effect without --vs, which draws: remove it")

    from resnet_train.commands import dry_run

    print(dry_run.summary(networks, args.size, args.classes, args.json))


def _prepare(args: argparse.Namespace) -> None:
    from resnet_train.commands import prepare

    prepare.main(args)


def _schema(args: argparse.Namespace) -> None:
    from resnet_train.config import reference

    if args.markdown:
        print(reference.markdown(), end="")
    else:
        print(json.dumps(reference.json_schema(), indent=2))
