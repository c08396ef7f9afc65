"""Errors of several networks and of their ensemble: from checkpoints, or from stored logits."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_train.data import datasets
from resnet_train.data.dataset import Dataset
from resnet_train.errors import BadInput
from resnet_train.evaluation import evaluator, pretrained
from resnet_train.evaluation.class_names import class_names
from resnet_train.evaluation.evaluator import EnsembleMember, SampleResults
from resnet_train.evaluation.logits import Logits
from resnet_train.evaluation.pretrained import PretrainedModel
from resnet_train.evaluation.protocols import describe
from resnet_train.runtime.atomic import append_lines
from resnet_train.runtime.distributed import World, main_first
from resnet_train.runtime.precision import out_of_memory_hint, set_precision
from resnet_train.runtime.progress import Progress

logger = logging.getLogger(__name__)

ErrorRecord = dict[str, Any]
"""One network or ensemble: checkpoint, network, seed, step, error_top1, error_top5, loss, images, protocol.

The loss is None where it is not finite; seed and step where there is none."""

_IMAGES_AT_ONCE = 1024
"""Stored logits are converted to float64 in chunks of so many images."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measures: per-sample results of some networks, and of their ensemble where there are several."""

    results: list[SampleResults]
    """For each network, then for the ensemble; in dataset order."""
    records: list[ErrorRecord]
    """One for each of `results`."""
    val_set: Dataset
    class_names: tuple[str, ...]
    """Of its classes, for people."""
    logits: Logits | None
    """Where they were asked for."""


def load_members(
    paths: Sequence[str], network: str | None, data: str | None, overrides: Sequence[str]
) -> list[PretrainedModel]:
    """Load checkpoints whose errors may be averaged: all have one protocol. Raises `BadInput`."""
    members = [pretrained.load(path, network, data, overrides) for path in paths]
    for member in members:
        if not member.has_run and data is None:
            raise BadInput(f"{member.label} is a state dict, which knows no data: give --data PATH")
    protocols = {member.label: _protocol(member) for member in members}
    if len(set(protocols.values())) > 1:
        each = "; ".join(f"{label}: {protocol}" for label, protocol in protocols.items())
        raise BadInput(f"networks are averaged under one protocol; evaluate these one by one, or --set it: {each}")
    return members


def evaluate(
    members: Sequence[PretrainedModel], keep_logits: bool, world: World, class_file: Path | None = None
) -> Evaluation:
    """Measure the members of `load_members` on their validation set; the same on every rank. Raises `BadInput`.

    class_file: names of the classes (`class_names.read_class_names`).
    """
    run, protocol = members[0].run, _protocol(members[0])
    val_set = main_first(world, lambda: datasets.open_validation(run.data))
    if world.is_main and not members[0].has_run:
        _warn_of_numbers(val_set.classes)
    names = class_names(val_set.classes, run.data, class_file)  # before the work, since a file may be wrong
    ensemble = [_prepared(member, tuple(val_set.classes), world) for member in members]
    data = evaluator.evaluation_data(run, val_set, world)
    local_logits: list[torch.Tensor] = []
    hint = f"lower eval.batch_size, now {run.eval.batch_size}: --set eval.batch_size=N"
    stored = local_logits if keep_logits else None
    with (
        out_of_memory_hint(members[0].label, world.device, hint),
        Progress("evaluating", len(data), "img", shown=world.is_main, keep=False) as bar,
    ):
        results = evaluator.evaluate(ensemble, data, run.eval.average, world, stored, count=bar.update)
    networks = [_identity(member) for member in members]
    logits = None
    if keep_logits:
        # A rank may have no batch at all.
        empty = torch.zeros(len(members), 0, len(data.views), len(val_set.classes))
        rows = torch.cat([empty, *local_logits], dim=1).transpose(0, 1).contiguous()  # [n of this rank, networks, …]
        values = evaluator.gather_in_dataset_order(world, rows, data).transpose(0, 1).numpy()
        logits = Logits(networks, protocol, tuple(val_set.classes), results[0].label.long().numpy(), values)
    return Evaluation(results, error_records(networks, results, protocol), val_set, names, logits)


def evaluate_logits(logits: Logits, average: str | None = None) -> list[ErrorRecord]:
    """Errors from stored logits: of each network, then of the ensemble.

    average: "softmax" or "logits"; None: as when they were stored.
    """
    stored_average = "logits" if "mean of logits" in logits.protocol else "softmax"
    average = average or stored_average
    scores = []
    for begin in range(0, len(logits.labels), _IMAGES_AT_ONCE):
        chunk = slice(begin, begin + _IMAGES_AT_ONCE)
        values = torch.from_numpy(np.ascontiguousarray(logits.values[:, chunk]))
        scores.append(evaluator.score_logits(torch.from_numpy(logits.labels[chunk]), values, average))
    protocol = logits.protocol.replace(f"mean of {stored_average}", f"mean of {average}")
    return error_records(logits.networks, evaluator.results_of(torch.cat(scores)), protocol)


def error_records(
    networks: Sequence[dict[str, Any]], results: Sequence[SampleResults], protocol: str
) -> list[ErrorRecord]:
    """A record for each of `results`: those of the networks, and that of their ensemble where there is one."""
    identities = list(networks)
    if len(results) > len(networks):
        label = f"ensemble of {len(networks)}"
        identities.append({"checkpoint": label, "network": "ensemble", "seed": None, "step": None})
    records = []
    for identity, result in zip(identities, results, strict=True):
        errors: dict[str, Any] = result.errors()
        if not math.isfinite(errors["loss"]):  # of weights that diverged; JSON has no NaN
            errors["loss"] = None
        records.append({**identity, **errors, "protocol": protocol})
    return records


def append_records(records: Sequence[ErrorRecord], path: Path, data: str) -> None:
    """Append records to a file, one JSON object a line; `data` is the path or the kind of the data set."""
    append_lines(path, [json.dumps({**record, "data": data}) for record in records])


def _prepared(member: PretrainedModel, classes: tuple[str, ...], world: World) -> EnsembleMember:
    """The network on the device, with batch norm's statistics recomputed where the run asks for it."""
    check_classes(member, classes)
    run = member.run
    set_precision(run.train.precision, world.device)
    member = member.to(world.device)
    network = member.network
    if run.eval.recompute_bn:
        train_set, _ = datasets.open_data(run.data)
        network = evaluator.recompute_bn_statistics(network, run, train_set, member.normalization, world)
    return EnsembleMember(evaluator.as_evaluated(network, run), member.normalization, run.train.precision)


def check_classes(member: PretrainedModel, classes: tuple[str, ...]) -> None:
    """Raise `BadInput` if a network was trained on other classes than those of the data."""
    # The files of other programs do not name their classes.
    if len(member.classes) == len(classes) and (member.classes == classes or not member.has_run):
        return
    message = f"{member.label} was trained on {len(member.classes)} classes, and the data has {len(classes)}"
    if len(member.classes) == len(classes):
        theirs, ours = next(pair for pair in zip(member.classes, classes, strict=True) if pair[0] != pair[1])
        message += f" of other names: {ours} for its {theirs}"
    raise BadInput(message)


def _warn_of_numbers(classes: Sequence[str]) -> None:
    """Warn where classes are numbers in the order of their names: the files of other programs may count them."""
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        logger.warning(
            "the classes are in the order of their names, %s: if the network counts them as numbers, name them in that "
            "order, one a line, in a file for --set data.class_map=FILE",
            ", ".join(classes[:4]),
        )


def _protocol(member: PretrainedModel) -> str:
    return describe(member.run, datasets.describe_changes(member.run.data))


def _identity(member: PretrainedModel) -> dict[str, Any]:
    seed = member.run.seed if member.has_run else None
    return {"checkpoint": member.label, "network": member.name, "seed": seed, "step": member.step}
