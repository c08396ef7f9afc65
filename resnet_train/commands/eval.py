"""`resnet-train eval`: the error of checkpoints, and of their ensemble, under one protocol."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_train.commands import add_classes, add_json
from resnet_train.errors import BadInput, wrap

if TYPE_CHECKING:
    from resnet_train.analysis.published import Published
    from resnet_train.evaluation.ensemble import ErrorRecord, Evaluation
    from resnet_train.evaluation.pretrained import PretrainedModel

logger = logging.getLogger(__name__)

EXAMPLE = "resnet-train eval runs/imagenet-depth/resnet-34 --protocol ten-crop"

_CHANGEABLE = ("data.", "eval.", "train.device=", "train.precision=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(words="checkpoints")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="such as checkpoints/best.pt; the folder of a run or an experiment, for the last checkpoint of each run; "
        "foreign weights, with --network; or saved logits",
    )
    parser.add_argument("--data", metavar="PATH", help="folder of the data (default: data.path of the run)")
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="the network of foreign weights, such as resnet-50 (default: that of the checkpoint)",
    )
    parser.add_argument(
        "--protocol",
        choices=("one-crop", "ten-crop", "multi-scale", "multi-scale-dense"),
        metavar="NAME",
        help="the views of an image: one-crop, ten-crop, multi-scale or multi-scale-dense (default: eval.protocol of "
        "the run)",
    )
    add_classes(parser)
    parser.add_argument("--flip", action="store_true", help="add the mirror image of each view (eval.flip=true)")
    parser.add_argument(
        "--save-logits",
        type=Path,
        metavar="FILE.npz",
        help="save the logits; average them again with `eval FILE.npz` (default: not saved)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for confusions (default: evaluation/ in the run folder)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change a key of the run, such as eval.batch_size=64; may be repeated (default: no change)",
    )
    add_json(parser)


def main(args: argparse.Namespace) -> None:
    """Evaluate checkpoints, or stored logits, and print their errors."""
    overrides = _overrides(args)
    paths = [path for name in args.checkpoints for path in _files(Path(name))]  # before torch is imported
    stored = [path.suffix == ".npz" for path in paths]
    if all(stored):
        if args.classes is not None:
            raise BadInput("--classes has no effect on stored logits, of which only errors are printed: remove it")
        _evaluate_logits(paths, _average(overrides), args.json)
    elif any(stored):
        raise BadInput("logits and checkpoints do not mix: give files of --save-logits only, or checkpoints only")
    else:
        _evaluate_checkpoints(paths, args, overrides)


def _files(path: Path) -> list[Path]:
    """The file itself or, of the folder of a run or an experiment, the last checkpoint of each run."""
    from resnet_train.runs.run_folder import check_checkpoint_exists, last_checkpoints

    if path.is_dir():
        return last_checkpoints(path)
    check_checkpoint_exists(path)
    return [path]


def _evaluate_checkpoints(paths: Sequence[Path], args: argparse.Namespace, overrides: Sequence[str]) -> None:
    from resnet_train.evaluation import confusion, ensemble
    from resnet_train.runtime import distributed
    from resnet_train.runtime.tables import terminal_width

    members = ensemble.load_members([str(path) for path in paths], args.network, args.data, overrides)
    train = members[0].run.train
    with distributed.start(train.device, train.timeout) as world:
        evaluation = ensemble.evaluate(members, args.save_logits is not None, world, args.classes)
        if not world.is_main:
            return
        found, records = _published(paths, members, evaluation.records)
        _print_errors(records, args.json, found)  # first: a file that cannot be written loses no result
        if not args.json:
            print(wrap(confusion.worst(evaluation.results[-1], evaluation.class_names), terminal_width()))
        if evaluation.logits is not None:
            evaluation.logits.write(args.save_logits)
        folder = args.out or _default_folder(Path(args.checkpoints[0]))
        log = _run_folder(paths[0]) if len(paths) == 1 and args.out is None else None
        if _write_files(folder, members[0], evaluation, log) and not args.json:
            print(f"wrote {folder}")


def _evaluate_logits(paths: Sequence[Path], average: str | None, as_json: bool) -> None:
    from resnet_train.evaluation import ensemble, logits

    _print_errors(ensemble.evaluate_logits(logits.read_all(paths), average), as_json)


def _published(
    paths: Sequence[Path], members: Sequence["PretrainedModel"], records: Sequence["ErrorRecord"]
) -> tuple[list["Published"], list["ErrorRecord"]]:
    """What sources report of the checkpoints that lie in their run folders, which have the recipe and its end; and the
    records with it."""
    from resnet_train.analysis.evaluations import EvaluatedRun, published_evaluations, published_keys
    from resnet_train.runs import run_folder

    evaluated = []
    for path, member, record in zip(paths, members, records, strict=False):  # the last record may be the ensemble's
        folder = path.parent.parent
        if member.has_run and path.parent.name == "checkpoints" and (folder / "config.yaml").is_file():
            try:
                evaluated.append(EvaluatedRun(run_folder.read(folder), member.run, record))
            except BadInput as error:
                logger.warning("%s is compared with no published error: %s", path, error)
    published: list[Published] = []
    keys: dict[int, ErrorRecord] = {}
    for seeds, found in published_evaluations(evaluated):
        published += found
        keys |= {id(one.record): published_keys(found) for one in seeds}
    return published, [record | keys.get(id(record), {}) for record in records]


def _overrides(args: argparse.Namespace) -> list[str]:
    """The changes to the run: --set, and the options that are short for one."""
    overrides = list(args.overrides)
    if args.flip:
        overrides.insert(0, "eval.flip=true")
    if args.protocol is not None:
        overrides.insert(0, f"eval.protocol={args.protocol}")
    for override in overrides:
        if not override.startswith(_CHANGEABLE):
            raise BadInput(f"--set {override}: only data, eval, train.device and train.precision may change")
    return overrides


def _average(overrides: Sequence[str]) -> str | None:
    """The value of eval.average, which is all that may change for stored logits."""
    average = None
    for override in overrides:
        if override not in ("eval.average=softmax", "eval.average=logits"):
            raise BadInput(f"--set {override} has no effect on stored logits: only eval.average has")
        average = override.partition("=")[2]
    return average


def _default_folder(checkpoint: Path) -> Path:
    """`evaluation/` in the folder of the run or experiment, or beside another program's file."""
    if checkpoint.is_dir():
        return checkpoint / "evaluation"
    parent = checkpoint.parent
    return (parent.parent if parent.name == "checkpoints" else parent) / "evaluation"


def _run_folder(checkpoint: Path) -> Path | None:
    """The run folder of a checkpoint, if it lies in one."""
    folder = checkpoint.absolute().parent.parent
    return folder if checkpoint.absolute().parent.name == "checkpoints" and (folder / "config.yaml").is_file() else None


def _write_files(folder: Path, first: "PretrainedModel", evaluation: "Evaluation", log: Path | None) -> bool:
    """Write the records, and the confusions of the ensemble, or of the network where there is only one.

    log: the run folder whose TensorBoard log receives the picture too.
    Returns whether all was written; if not, a warning says why.
    """
    from resnet_train.evaluation import confusion, ensemble

    label, results, val_set = evaluation.records[-1]["checkpoint"], evaluation.results[-1], evaluation.val_set
    run = first.run
    stem = f"{Path(label).stem.replace(' ', '-')}-{run.eval.protocol}"
    if run.eval.flip:
        stem += "-flip"
    name = first.name if len(evaluation.records) == 1 else label
    picture = folder / f"{stem}-mistakes.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ensemble.append_records(evaluation.records, folder / "results.jsonl", getattr(run.data, "path", run.data.kind))
        confusion.write_classes(results, evaluation.class_names, folder / f"{stem}-classes.csv")
        confusion.draw(name, results, evaluation.class_names, val_set, first, picture, log)
    except OSError as error:
        logger.warning("--out: cannot write %s: %s", folder, error.strerror or error)
        return False
    return True


def _print_errors(records: Sequence["ErrorRecord"], as_json: bool, found: Sequence["Published"] = ()) -> None:
    from resnet_train.analysis.published import published_table
    from resnet_train.runtime.tables import columns, terminal_width

    if as_json:
        print(json.dumps(records, indent=2))
        return
    width = terminal_width()
    print(wrap(f"{records[0]['images']} images: {records[0]['protocol']}", width))
    rows = [("checkpoint", "network", "seed", "step", "top-1 error", "top-5 error", "loss")]
    for record in records:
        seed, step = ("–" if record[key] is None else str(record[key]) for key in ("seed", "step"))
        loss = "–" if record["loss"] is None else f"{record['loss']:.4f}"
        errors = (f"{record['error_top1']:.2f} %", f"{record['error_top5']:.2f} %", loss)
        rows.append((record["checkpoint"], record["network"], seed, step, *errors))
    print(columns(rows, width))
    if found:
        print("", published_table(found, width), "", sep="\n")
