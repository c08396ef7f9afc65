"""The run of a network that has none: weights of another program, or no training yet."""

import os
from pathlib import Path
from typing import Any

from resnet_train.config import zoo
from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput

_MARKS = {
    "cifar-10-batches-py": "cifar10",
    "cifar-100-python": "cifar100",
    "MNIST": "mnist",
    "FashionMNIST": "fashion-mnist",
}
"""What torchvision calls the folder of a data set."""


def run_of(network: str, data: str) -> Run:
    """A run of a network of the zoo on `digits`, `synthetic`, or a folder of images or of torchvision's files.

    Raises `BadInput`.
    """
    fields = zoo.network(network)
    section = data_of(data)
    tree: dict[str, Any] = {"experiment": "none", "network": fields, "seed": 0, "data": section, "train": {"epochs": 1}}
    if section["kind"] == "imagefolder":
        tree["augment"] = {"crop": {"kind": "random-resized", "size": 32 if fields.get("stem") == "cifar" else 224}}
    return read_run(tree, f"{network} on {data}")


def data_of(data: str) -> dict[str, Any]:
    """The data section that a word or a folder stands for."""
    if data in ("digits", "synthetic"):
        return {"kind": data}
    if not Path(data).is_dir():
        raise BadInput(f"--data {data}: no such folder; digits and synthetic need none")
    kinds = [kind for mark, kind in _MARKS.items() if (Path(data) / mark).is_dir()]
    if kinds:
        return {"kind": kinds[0], "path": data}
    return {"kind": "imagefolder", "path": data, "workers": min(8, os.cpu_count() or 1)}
