"""A run configuration for a network that has none: weights of another program, or no training yet."""

from typing import Any

from resnet_train.config import zoo
from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.config.yaml12 import Tree


def default_run(entry: str | Tree, data: Tree) -> Run:
    """The run of a network, with every key at its default. `entry` is as in `networks`; `data` is the data section.

    Image files need a crop: 32 pixels for a CIFAR network, else 224. Raises `BadInput`.
    """
    network: Any = zoo.resolve(entry)
    name = entry if isinstance(entry, str) else entry.get("name", "network")
    tree: dict[str, Any] = {"experiment": "none", "network": network, "seed": 0, "data": data, "train": {"epochs": 1}}
    if data["kind"] in ("imagefolder", "shards"):
        size = 32 if network.get("stem") == "cifar" else 224
        tree["augment"] = {"crop": {"kind": "random-resized", "size": size}}
    return read_run(tree, f"{name} on {data.get('path', data['kind'])}")
