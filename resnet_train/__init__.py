"""Train plain and residual networks across depths, and measure the difference.

The Python interface: `load` a trained network, `create_model`, `read_runs`. Importing this package imports no torch.
Whatever is wrong with an argument is a `BadInput`, whose message is one line.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_train.errors import BadInput
from resnet_train.runtime.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from resnet_train.evaluation.pretrained import PretrainedModel

__all__ = ["BadInput", "__version__", "create_model", "load", "read_runs"]


def load(file: str | os.PathLike[str], network: str | None = None) -> "PretrainedModel":
    """Load a trained network: `load("runs/quickstart/cifar-resnet-20/seed-0/checkpoints/best.pt")`.

    file: a checkpoint; a safetensors file of `resnet-train export`; or the weights of torchvision or timm (a state dict
    or safetensors), which do not name their `network`, such as `resnet-50`.

    The model is on the CPU, in evaluation mode; of a run with `train.ema_decay` it has the average of the weights.

    - `model(images)`: logits, float32 [n, classes]
    - `model.predict(images, k=5)`: for each image the `k` most probable (class, probability) pairs
    - `model.preprocess(image)`: the input of `model.network` for a PIL image, float32 [C, H, W]
    - `model.classes`, `model.network` (the bare `nn.Module`), `model.provenance`, `model.to(device)`

    images: a PIL image or a list of them, or uint8 pixels [n, H, W, C] of the size that the network sees.
    """
    from resnet_train.evaluation import pretrained

    return pretrained.load(os.fspath(file), network)


def create_model(
    network: str | Mapping[str, Any], num_classes: int, seed: int = 0, in_channels: int = 3
) -> "nn.Module":
    """An untrained network, initialised as `resnet-train run` does it with this seed.

    network: a name, or a mapping as in an experiment file: `{"base": "resnet-34", "name": "narrow", "widths": [32, 64,
    128, 256]}`. It takes float32 images [n, in_channels, H, W] and gives logits [n, num_classes].
    """
    from resnet_train.config.default_run import default_run
    from resnet_train.models.network import build_network, initialise

    spec = network if isinstance(network, str) else dict(network)
    net = build_network(default_run(spec, {"kind": "synthetic"}).network, num_classes, in_channels)
    initialise(net, seed)
    return net


def read_runs(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read every run folder in or under `folder`, as plain dicts: `pandas.DataFrame(read_runs("runs"))`.

    Of each run: `folder`, `experiment`, `network`, `sweep` (its values by key), `seed`, `status` (finished, diverged or
    unfinished), `config` (as in config.yaml) and `records` (the lines of metrics.jsonl:
    `pandas.DataFrame(run["records"])`). It needs no torch.
    """
    from resnet_train.config.load import dump
    from resnet_train.runs import run_folder

    return [
        {
            "folder": str(record.folder),
            "experiment": record.run.experiment,
            "network": record.run.network.name,
            "sweep": record.run.sweep,
            "seed": record.run.seed,
            "status": record.end["status"] if record.end else "unfinished",
            "config": dump(record.run),
            "records": record.records,
        }
        for record in run_folder.find([Path(folder)])
    ]
