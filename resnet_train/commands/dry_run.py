"""What can be said of networks and experiments before anything is trained."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from resnet_train.config.data import DataConfig
from resnet_train.config.load import dump
from resnet_train.config.network import AnyNet
from resnet_train.config.schema import Experiment, Run
from resnet_train.config.yaml12 import to_yaml
from resnet_train.data import datasets, loader
from resnet_train.data.dataset import Dataset
from resnet_train.errors import BadInput
from resnet_train.models import complexity
from resnet_train.runtime.tables import columns
from resnet_train.training import finetune
from resnet_train.training.schedule import build_schedule


def summary(networks: Sequence[AnyNet], size: int | None, classes: int | None, as_json: bool) -> str:
    """The stage table of each network."""
    told: list[dict[str, Any]] = []
    lines: list[str] = []
    for network in networks:
        usual_size, usual_classes = complexity.default_input(network)
        pixels, outputs = size or usual_size, classes or usual_classes
        stages = complexity.stage_table(network, pixels, outputs)
        whole = complexity.total(stages)
        told.append({"network": network.name, "depth": network.depth, "image_size": pixels, **asdict(whole)})
        told[-1]["stages"] = [
            {"name": s.name, "units": s.units, "shape": s.shape, **asdict(s.complexity)} for s in stages
        ]
        rows = [(s.name, str(s.units or ""), " x ".join(map(str, s.shape)), s.complexity) for s in stages]
        lines.append(f"{network.name}: depth {network.depth}, {pixels} px, {outputs} classes")
        table = [(*row[:3], *_costs(row[3])) for row in [*rows, ("total", "", "", whole)]]
        lines += [columns([("stage", "units", "output", "parameters", "multiply-adds", "activations"), *table]), ""]
    return json.dumps(told, indent=2) if as_json else "\n".join(lines).rstrip()


def report(experiment: Experiment, runs: Sequence[Run], fresh: bool, as_json: bool) -> str:
    """The resolved experiment, and each of its networks with parameters, multiply-adds, steps and memory.

    Raises `BadInput` where a run could not begin with the weights that it names.
    """
    finetune.check_init_from(runs, experiment.output, fresh)
    told = [_cost(run) for run in runs if run.seed == experiment.seeds[0]]
    if as_json:
        return json.dumps({"experiment": dump(experiment), "networks": told}, indent=2)
    heads = ("network", "depth", "parameters", "multiply-adds", "steps", "memory, all on one device")
    keys = ("depth", "params", "macs", "steps")
    rows = [(t["network"], *(_number(t[key]) for key in keys), f"{t['memory'] / 1e9:.2f} GB") for t in told]
    return to_yaml(dump(experiment)) + "\n" + columns([heads, *rows])


def _cost(run: Run) -> dict[str, Any]:
    (size, classes), channels, steps = complexity.default_input(run.network), 3, run.train.steps
    source = _training_set(run.data)
    if source is not None:
        data = loader.training_data(run, source, run.seed, 0, 1, torch.device("cpu"))
        size, classes, channels = data.image_size, len(source.classes), source.channels
        steps = build_schedule(run, data.steps_per_epoch).total_steps
    cost = complexity.network_complexity(run.network, size, classes, channels)
    images = run.train.batch_size // run.train.grad_accum_steps
    memory = complexity.estimate_training_memory(cost, images, run.train.precision, run.train.ema_decay is not None)
    return {"network": run.network.name, "depth": run.network.depth, **asdict(cost), "steps": steps, "memory": memory}


@cache
def _training_set(data: DataConfig) -> Dataset | None:
    """The training images, or a note that they are not here: a login node need not have them."""
    try:
        return datasets.open_data(data)[0]
    except BadInput as error:
        print(f"note: {error}; costs are for the images that such networks usually see", file=sys.stderr)
        return None


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _costs(cost: complexity.Complexity) -> tuple[str, str, str]:
    return f"{cost.params:,}", f"{cost.macs:,}", f"{cost.activations:,}"
