"""A network and what is needed to use it: from a checkpoint, a state dict of torchvision's, or fresh from the zoo."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_train.config import zoo
from resnet_train.config.data import DigitsConfig, SyntheticConfig, TorchvisionConfig
from resnet_train.config.default_run import default_run
from resnet_train.config.load import override_run
from resnet_train.config.schema import Run, ViewConfig
from resnet_train.data import datasets, detect, normalize
from resnet_train.data.normalize import Normalization
from resnet_train.data.views import View
from resnet_train.errors import BadInput
from resnet_train.models.network import build_network, initialise
from resnet_train.runs.checkpoint import read_checkpoint


@dataclass(frozen=True)
class PretrainedModel:
    """A network with its weights, on the CPU."""

    label: str
    """What the user called it: a path or a name."""
    run: Run
    """Of another program's weights, what stands in for it (`config/default_run.py`)."""
    classes: tuple[str, ...]
    normalization: Normalization
    step: int | None
    """None: unknown, or not trained."""
    net: nn.Module
    image_size: int | None = None
    """Of images of one size, where the run does not tell."""

    @property
    def name(self) -> str:
        """The network's, for tables and figures."""
        return self.run.network.name

    @property
    def look(self) -> View:
        """How it sees an image file: as its evaluation did, or, where images are of one size, at that size."""
        view, data = self.run.view, self.run.data
        if self.step is None and self.run.network.stem == "imagenet":  # another program's; its data is a stand-in
            view = ViewConfig()
        if view is not None:
            return View(view.resize, view.crop)
        size = data.size if isinstance(data, (TorchvisionConfig, DigitsConfig, SyntheticConfig)) else self.image_size
        return View(size, size)


def load(
    source: str, network: str | None = None, data: str | None = None, overrides: Sequence[str] = ()
) -> PretrainedModel:
    """A checkpoint; or, with the zoo's name of its `network`, a bare state dict. Raises `BadInput`.

    `data` stands in for the path of the run's data; `overrides` are `key=value` changes to the run.
    """
    path = Path(source)
    if path.is_dir():
        raise BadInput(f"{path} is a folder: give a file, such as {path / 'checkpoints' / 'best.pt'}")
    if not path.is_file():
        raise BadInput(f"{path}: no such checkpoint; expected a file such as RUN/checkpoints/best.pt")
    if network is not None:
        return _bare(path, network, data, overrides)
    try:
        saved = read_checkpoint(path)
    except BadInput:
        if not _is_bare(path):
            raise
        raise BadInput(f"{path} is a bare state dict: eval, predict and export take its --network NAME") from None
    paths = [] if data is None else detect.path_overrides(saved.meta.run, data)
    run = override_run(saved.meta.run, [*paths, *overrides])
    net = build_network(run.network, len(saved.meta.classes), saved.meta.channels)
    net.load_state_dict(saved.payload["net"] if saved.payload["ema"] is None else saved.payload["ema"])
    return PretrainedModel(
        source, run, saved.meta.classes, saved.meta.normalization, saved.step, net.eval(), saved.meta.image_size
    )


def fresh(network: str, data: str, overrides: Sequence[str] = (), seed: int = 0) -> PretrainedModel:
    """A network of the zoo before its first step, for the classes of some data. Raises `BadInput`."""
    run = override_run(default_run(network, detect.data_section(data)), [f"seed={seed}", *overrides])
    train_set, _ = datasets.open_data(run.data)
    net = build_network(run.network, len(train_set.classes), train_set.channels)
    initialise(net, seed)
    return PretrainedModel(network, run, tuple(train_set.classes), normalize.statistics(run, train_set), 0, net.eval())


def _bare(path: Path, network: str, data: str | None, overrides: Sequence[str]) -> PretrainedModel:
    """torchvision's file: a state dict alone, of a network that saw ImageNet normalised as torchvision does.

    torchvision's bottlenecks halve the image on their 3x3; weights do not tell, so its files are taken for that.
    """
    fields = zoo.network_fields(network)
    if fields.get("stride_on") == "1x1" and not network.endswith("-v1"):
        network += "-v1.5"
    run = override_run(default_run(network, detect.data_section(data or "synthetic")), overrides)
    weights = state_dict(path)
    head = [value for key, value in weights.items() if key.endswith("weight")][-1]
    net = build_network(run.network, len(head))
    theirs, ours = weights.keys(), net.state_dict().keys()
    for key in sorted(key for key in theirs ^ ours if not key.endswith("num_batches_tracked")):  # old files have none
        raise BadInput(f"{path}: weight {key} is {'not of' if key in theirs else 'missing for'} a {network}")
    try:
        net.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise BadInput(f"{path} is not of a {network}: {str(error).splitlines()[1].strip()}") from None
    mean, std = (torch.tensor(values) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    classes = tuple(f"class {i}" for i in range(len(head)))
    return PretrainedModel(str(path), run, classes, Normalization(mean[None, None], std), None, net.eval())


def _is_bare(path: Path) -> bool:
    try:
        return bool(state_dict(path))
    except BadInput:
        return False


def state_dict(path: Path) -> dict[str, Tensor]:
    """The weights of a file that holds nothing else. Raises `BadInput`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # which are of bytes that are no pickle
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever another program's bytes lead the unpickler to
        raise BadInput(f"{path} is not a file of weights") from None
    if isinstance(weights, dict) and "format" in weights and "run" in weights:
        raise BadInput(f"{path} is a checkpoint of resnet-train, which knows its network: leave --network out")
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise BadInput(f"{path} is not a state dict: expected names and tensors")
    return weights
