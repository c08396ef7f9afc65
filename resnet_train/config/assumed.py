"""The run of a network that has none: weights of another program, or no training yet."""

import json
import os
from pathlib import Path
from typing import Any

from resnet_train.config import zoo
from resnet_train.config.data import ImageFilesConfig
from resnet_train.config.load import dump, read_run
from resnet_train.config.schema import Run
from resnet_train.errors import BadInput

_MARKS = {
    "cifar-10-batches-py": "cifar10",
    "cifar-100-python": "cifar100",
    "MNIST": "mnist",
    "FashionMNIST": "fashion-mnist",
}
"""What torchvision calls the folder of a data set."""
PACKED = "index.json"
"""What `prepare` writes into a folder of shards, last of all."""


def run_of(network: str, data: str) -> Run:
    """A run of a network of the zoo on `digits`, `synthetic`, or a folder of images or of torchvision's files.

    Raises `BadInput`.
    """
    fields = zoo.network(network)
    section = data_of(data)
    tree: dict[str, Any] = {"experiment": "none", "network": fields, "seed": 0, "data": section, "train": {"epochs": 1}}
    if section["kind"] in ("imagefolder", "shards"):
        tree["augment"] = {"crop": {"kind": "random-resized", "size": 32 if fields.get("stem") == "cifar" else 224}}
    return read_run(tree, f"{network} on {data}")


def data_of(data: str) -> dict[str, Any]:
    """The data section that a word or a folder stands for."""
    if data in ("digits", "synthetic"):
        return {"kind": data}
    if not Path(data).is_dir():
        raise BadInput(f"--data {data}: no such folder; digits and synthetic need none")
    if kind := stored_kind(Path(data)):
        return {"kind": kind, "path": data}
    return {"kind": _files_kind(data), "path": data, "workers": min(8, os.cpu_count() or 1)}


def stored_kind(folder: Path) -> str | None:
    """The kind of data that torchvision's files in a folder are, if it holds any."""
    return next((kind for mark, kind in _MARKS.items() if (folder / mark).is_dir()), None)


def elsewhere(run: Run, data: str) -> list[str]:
    """Changes that let a run read its data from another place; class folders and shards stand for each other."""
    if not isinstance(run.data, ImageFilesConfig):
        return [f"data.path={json.dumps(data)}"]
    return [f"data={json.dumps({**dump(run)['data'], 'kind': _files_kind(data), 'path': data})}"]


def _files_kind(data: str) -> str:
    return "shards" if (Path(data) / PACKED).is_file() else "imagefolder"
