"""The verb `eval`: figures under their protocol, logits to keep, and what was confused with what."""

import csv
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from resnet_train.data import datasets
from resnet_train.data.dataset import Dataset
from resnet_train.errors import BadInput
from resnet_train.evaluation import confusion, evaluator, pretrained
from resnet_train.evaluation.evaluator import EnsembleMember, SampleResults
from resnet_train.evaluation.pretrained import PretrainedModel
from resnet_train.evaluation.protocols import describe
from resnet_train.runtime import distributed
from resnet_train.runtime.atomic import atomic_write
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import out_of_memory_hint, set_precision
from resnet_train.runtime.tables import columns


@dataclass(frozen=True)
class Logits:
    """The logits of some networks over a set, as a file holds them: enough for every average and any ensemble."""

    networks: list[dict[str, Any]]
    """Of each: source, network, seed, step."""
    protocol: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """[n]."""
    values: npt.NDArray[np.float16]
    """[networks, n, looks, classes], less the largest of each row."""

    def write(self, path: Path) -> None:
        """To a file, written whole. Raises `BadInput`."""
        about = json.dumps({"networks": self.networks, "protocol": self.protocol, "classes": self.classes})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez_compressed(file, about=about, labels=self.labels, values=self.values)
        except OSError as error:
            raise BadInput(f"--save-logits: cannot write {path}: {error.strerror}") from None

    @classmethod
    def read(cls, path: Path) -> "Logits":
        """From a file. Raises `BadInput`."""
        try:
            with path.open("rb") as raw, np.load(raw) as file:
                about = json.loads(str(file["about"]))
                about["classes"] = tuple(about["classes"])
                return cls(labels=file["labels"], values=file["values"], **about)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            raise BadInput(f"{path} holds no logits; expected a file of --save-logits") from None


def evaluate_all(
    paths: Sequence[str],
    network: str | None,
    data: str | None,
    overrides: Sequence[str],
    save_logits: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the error of each network, and of their ensemble, with the protocol. Raises `BadInput`."""
    for override in overrides:
        if not override.startswith(("data.", "eval.", "train.device=", "train.precision=")):
            raise BadInput(f"--set {override}: only data, eval, train.device and train.precision may change")
    if all(path.endswith(".npz") for path in paths):
        _from_files([Path(path) for path in paths], overrides, as_json)
        return
    if any(path.endswith(".npz") for path in paths):
        raise BadInput("logits and checkpoints do not mix: give files of --save-logits only, or checkpoints only")
    members = [pretrained.load(path, network, data, overrides) for path in paths]
    for member in members:
        if member.step is None and data is None:
            raise BadInput(f"{member.label} is a state dict, which knows no data: give --data PATH")
    by_label = {m.label: describe(m.run, datasets.describe_changes(m.run.data)) for m in members}
    protocols = set(by_label.values())
    if len(protocols) > 1:
        told = "; ".join(f"{label}: {protocol}" for label, protocol in by_label.items())
        raise BadInput(f"networks are averaged under one protocol; evaluate these one by one, or --set it: {told}")
    with distributed.start(members[0].run.train.device) as world:
        found, kept, classes, val_set = _measure(members, save_logits is not None, world)
        if not world.is_main:
            return
        networks = [_named(member) for member in members]
        [protocol] = protocols
        if save_logits is not None:
            labels = found[0].label.long().numpy()
            Logits(networks, protocol, classes, labels, kept).write(save_logits)
        figures = _figures(networks, found, protocol)
        folder = out or _folder(Path(paths[0]))
        _write(folder, members[0], figures, found, classes, val_set)
        _print(figures, as_json)
        if not as_json:
            print(confusion.worst(found[-1], classes))
            print(f"wrote {folder}")


def _measure(
    members: Sequence[PretrainedModel], keep: bool, world: World
) -> tuple[list[SampleResults], npt.NDArray[np.float16], tuple[str, ...], Dataset]:
    run = members[0].run
    val_set = datasets.open_validation(run.data)
    classes = tuple(val_set.classes)
    called = []
    for member in members:
        known = member.step is not None  # other programs' files do not name their classes
        if (known and member.classes != classes) or len(member.classes) != len(classes):
            said = f"{member.label} was trained on {len(member.classes)} classes, and the data has {len(classes)}"
            if len(member.classes) == len(classes):
                theirs, ours = next(pair for pair in zip(member.classes, classes, strict=True) if len({*pair}) == 2)
                said += f" of other names: {ours} for its {theirs}"
            raise BadInput(said)
        set_precision(member.run.train.precision, world.device)
        net = member.net.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        normalization = member.normalization.to(world.device)
        if member.run.eval.recompute_bn:
            net = evaluator.recomputed_bn(net, member.run, datasets.open_data(run.data)[0], normalization, world)
        called.append(EnsembleMember(net, normalization, member.run.train.precision))
    kept: list[torch.Tensor] = []
    over = evaluator.data_of(run, val_set, world)
    cure = f"lower eval.batch_size, now {run.eval.batch_size}: --set eval.batch_size=N"
    with out_of_memory_hint(members[0].label, world.device, cure):
        found = evaluator.evaluate(called, over, run.eval.average, world, kept if keep else None)
    if not keep:
        return found, np.zeros(0, np.float16), classes, val_set
    none = torch.zeros(len(members), 0, len(over.views), len(classes), dtype=torch.float16)
    local = torch.cat([none, *kept], dim=1).transpose(0, 1).contiguous()  # [n of this rank, networks, looks, classes]
    return found, evaluator.gather_in_dataset_order(world, local, over).transpose(0, 1).numpy(), classes, val_set


def _from_files(paths: Sequence[Path], overrides: Sequence[str], as_json: bool) -> None:
    """The same figures from stored logits, without a network."""
    average = {"eval.average=softmax": "softmax", "eval.average=logits": "logits"}
    for override in overrides:
        if override not in average:
            raise BadInput(f"--set {override} has no effect on stored logits: only eval.average has")
    stored = [Logits.read(path) for path in paths]
    first = stored[0]
    for path, other in zip(paths, stored, strict=True):
        if not np.array_equal(other.labels, first.labels) or other.classes != first.classes:
            raise BadInput(f"{path} is of other images than {paths[0]}")
        if other.protocol != first.protocol:
            raise BadInput(f"{path} was taken under another protocol ({other.protocol}) than {paths[0]}")
    how = average[overrides[-1]] if overrides else "logits" if "mean of logits" in first.protocol else "softmax"
    labels = torch.from_numpy(first.labels)
    rows = []
    for begin in range(0, len(labels), 1024):
        part = slice(begin, begin + 1024)
        values = torch.cat([torch.from_numpy(one.values[:, part]) for one in stored]).float()
        rows.append(evaluator.score_logits(labels[part], values, how))
    networks = [named for one in stored for named in one.networks]
    protocol = first.protocol.replace("mean of softmax", f"mean of {how}").replace("mean of logits", f"mean of {how}")
    _print(_figures(networks, evaluator.told(torch.cat(rows)), protocol), as_json)


def _named(member: PretrainedModel) -> dict[str, Any]:
    seed = None if member.step is None else member.run.seed
    return {"checkpoint": member.label, "network": member.name, "seed": seed, "step": member.step}


def _figures(networks: Sequence[dict[str, Any]], found: Sequence[SampleResults], protocol: str) -> list[dict[str, Any]]:
    whole = {"checkpoint": f"ensemble of {len(networks)}", "network": "ensemble", "seed": None, "step": None}
    named = [*networks, *([whole] if len(found) > len(networks) else [])]
    return [{**name, **one.errors(), "protocol": protocol} for name, one in zip(named, found, strict=True)]


def _print(figures: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{figures[0]['images']} images: {figures[0]['protocol']}")
    rows = [("checkpoint", "network", "seed", "step", "top-1 error", "top-5 error", "loss")]
    for one in figures:
        place = ("–" if one[key] is None else str(one[key]) for key in ("seed", "step"))
        errors = (f"{one['error_top1']:.2f} %", f"{one['error_top5']:.2f} %", f"{one['loss']:.4f}")
        rows.append((one["checkpoint"], one["network"], *place, *errors))
    print(columns(rows))


def _folder(path: Path) -> Path:
    """Where results go: into the run's folder, or beside another program's file."""
    return (path.parent.parent if path.parent.name == "checkpoints" else path.parent) / "evaluation"


def _write(
    folder: Path,
    first: PretrainedModel,
    figures: Sequence[dict[str, Any]],
    found: Sequence[SampleResults],
    classes: Sequence[str],
    val_set: Dataset,
) -> None:
    """Each figure with its protocol, one a line, and of the last (the ensemble, if there is one) what was confused."""
    name = "-".join([Path(figures[-1]["checkpoint"]).stem.replace(" ", "-"), first.run.eval.protocol])
    name += "-flip" * first.run.eval.flip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "results.jsonl").open("a") as file:
            data = getattr(first.run.data, "path", first.run.data.kind)
            file.writelines(json.dumps({**one, "data": data}) + "\n" for one in figures)
        with (folder / f"{name}-classes.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "images", "error", "most often taken for", "times"])
            writer.writerows(confusion.by_class(found[-1], classes))
        of = first.name if len(found) == 1 else figures[-1]["checkpoint"]
        picture = folder / f"{name}-mistakes.png"
        confusion.draw(of, found[-1], classes, val_set, first, picture, folder / "tensorboard")
    except OSError as error:
        print(f"note: --out: cannot write {folder}: {error.strerror}", file=sys.stderr)
