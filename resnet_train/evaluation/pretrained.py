"""A trained network ready to use: from a checkpoint, an exported file, or the weights of another program."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError
from torch import Tensor, nn

from resnet_train.config import zoo
from resnet_train.config.default_run import default_run
from resnet_train.config.load import dump, override_run, read_run
from resnet_train.config.schema import Run, ViewConfig
from resnet_train.config.section import Pixels
from resnet_train.data import datasets, detect, normalize
from resnet_train.data.batch import Batch
from resnet_train.data.decoding import to_8_bits
from resnet_train.data.normalize import Normalization, check_normalization
from resnet_train.data.views import View, apply_views
from resnet_train.errors import BadInput
from resnet_train.evaluation import protocols
from resnet_train.evaluation import weights as weight_files
from resnet_train.models.network import build_network, find_misfit, initialise
from resnet_train.runs import run_folder
from resnet_train.runs.checkpoint import read_checkpoint
from resnet_train.runs.run_folder import check_checkpoint_exists

logger = logging.getLogger(__name__)

Images = Image.Image | Sequence[Image.Image] | Tensor
"""PIL images of any size and mode, or uint8 pixels [H, W, C] or [n, H, W, C] of the size of the network's view."""

_BATCH = 64
"""Images that go through the network at once."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pipeline(nn.Module):
    """Normalisation and network: uint8 images [n, H, W, C] -> logits [n, classes]. In evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", normalization.mean)
        self.register_buffer("std", normalization.std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.normalized(images))  # type: ignore[no-any-return]

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 [n, H, W, C] -> float32 [n, C, H, W]."""
        normalization = Normalization(self.mean, self.std)
        no_shift = images.new_zeros(1, 1, dtype=torch.float32)
        return normalization(Batch(images, images.new_zeros(1, dtype=torch.int64), no_shift))


@dataclass(frozen=True)
class PretrainedModel:
    """A network with its weights and all that is needed to use it. `load` makes one."""

    label: str
    """The file, or the name of an untrained network."""
    run: Run
    """Its run. For the weights of another program a default run stands in (`config/default_run.py`)."""
    classes: tuple[str, ...]
    normalization: Normalization
    step: int | None
    """Training steps so far; None for the weights of another program."""
    network: nn.Module
    """The bare network: float32 [n, C, H, W], normalised -> logits [n, classes]."""
    image_size: int | None = None
    """Height and width of the training images, where all have one size that the run does not give."""
    changed: str | None = None
    """What `prepare` did to the pixels of the training images, in words."""

    def __call__(self, images: Images) -> Tensor:
        """Logits, float32 [n, classes], on the device of the network, which is put into evaluation mode.

        PIL images are resized and cropped as in evaluation, and become grey where the network was trained on grey
        images. Pixels are used as they are. A single image is a batch of one. Raises `BadInput` for anything else.
        """
        pipeline = Pipeline(self.network, self.normalization)
        with torch.no_grad():
            return torch.cat([pipeline(batch.to(pipeline.mean.device)) for batch in self._batches(images)])

    def predict(self, images: Images, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each image its `k` most probable classes with their probabilities, the most probable first."""
        top = self(images).softmax(1).topk(min(k, len(self.classes)))
        names = [[self.classes[index] for index in row] for row in top.indices.tolist()]
        return [list(zip(*row, strict=True)) for row in zip(names, top.values.tolist(), strict=True)]

    def preprocess(self, image: Image.Image) -> Tensor:
        """The input of `network` for an image: float32 [C, H, W], resized, cropped and normalised, on the CPU.

        It serves as the `transform` of a torchvision data set.
        """
        pipeline = Pipeline(nn.Identity(), self.normalization.to(torch.device("cpu")))
        return pipeline(self._pixels(image)[None])[0]  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> "PretrainedModel":
        """The same model on another device. The network is moved, not copied."""
        device = torch.device(device)
        network = self.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, network=network, normalization=self.normalization.to(device))

    @property
    def name(self) -> str:
        """The name of the network."""
        return self.run.network.name

    @property
    def channels(self) -> int:
        """Of an image: 3, or 1 where it is grey."""
        return self.normalization.std.numel()

    @property
    def mode(self) -> str:
        """Pillow's mode of an image: RGB, or L where it is grey."""
        return "RGB" if self.channels == 3 else "L"

    @property
    def has_run(self) -> bool:
        """False for the weights of another program, whose data and recipe are unknown."""
        return self.step is not None

    @property
    def view(self) -> View:
        """The one view that predictions use: the first of evaluation; of images of one size, the whole image."""
        view = self.run.view
        if not self.has_run and self.run.network.stem == "imagenet":
            view = ViewConfig()
        if view is not None:
            return View(view.resize, view.crop)
        size = self.run.data.image_size or self.image_size
        return View(size, size)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from: file, network and, where known, seed, step, run, protocol and environment.

        run: the configuration, as in config.yaml. protocol: of evaluation, in words. environment: versions, machine
        and commit of the last session, from the run folder of the checkpoint.
        """
        provenance: dict[str, Any] = {"file": self.label, "network": self.name}
        if not self.has_run:
            return provenance
        sessions = run_folder.sessions(Path(self.label).parent.parent)
        return provenance | {
            "seed": self.run.seed,
            "step": self.step,
            "run": dump(self.run),
            "protocol": protocols.describe(self.run, self.changed),
            "environment": sessions[-1] if sessions else None,
        }

    @property
    def metadata(self) -> dict[str, str]:
        """What a safetensors file says beside the weights, so that `load` can read it: a JSON value for each key."""
        fields = {
            "network": dump(self.run.network),
            "classes": self.classes,
            "mean": self.normalization.mean.tolist(),
            "std": self.normalization.std.tolist(),
            "run": dump(self.run) if self.has_run else None,
            "step": self.step,
            "image_size": self.image_size,
            "changed": self.changed,
        }
        return {"format": "pt"} | {key: json.dumps(value) for key, value in fields.items()}

    def _batches(self, images: Images) -> Iterator[Tensor]:
        """uint8 [n, H, W, C], for n up to `_BATCH`."""
        if isinstance(images, Image.Image):
            images = [images]
        elif isinstance(images, Tensor):
            images = self._checked(images)
        if len(images) == 0:
            raise BadInput("there are no images to predict")
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            yield batch if isinstance(batch, Tensor) else torch.stack([self._pixels(image) for image in batch])

    def _pixels(self, image: Image.Image) -> Tensor:
        """uint8 [H, W, C] of an image as evaluation sees it."""
        if not isinstance(image, Image.Image):
            raise BadInput(f"expected PIL images, or one uint8 tensor of pixels, not {type(image).__name__}")
        try:
            image = to_8_bits(image).convert(self.mode)
        except ValueError as error:
            raise BadInput(f"cannot use the image: {error}") from None
        [pixels] = apply_views(image, [self.view])
        return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], self.channels)

    def _checked(self, pixels: Tensor) -> Tensor:
        """Pixels as a batch [n, H, W, C]. Raises `BadInput` where type or shape differ from what the network sees."""
        batch = pixels[None] if pixels.dim() == 3 else pixels
        size = self.view.crop
        if batch.dtype != torch.uint8 or batch.shape[1:] != (size, size, self.channels):
            expected = f"uint8 [n, {size}, {size}, {self.channels}]"
            given = f"{str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
            raise BadInput(f"expected pixels as {expected}, not {given}; PIL images are resized and cropped")
        return batch


def load(
    source: str, network: str | None = None, data: str | None = None, overrides: Sequence[str] = ()
) -> PretrainedModel:
    """Load a checkpoint, an exported safetensors file, or, given the name of its `network`, another program's weights.

    data: read the run's data from this path. overrides: `key=value` changes to the run. The network is on the CPU, in
    evaluation mode; of a run with `train.ema_decay` it has the average of the weights. Raises `BadInput`.
    """
    path = Path(source)
    check_checkpoint_exists(path)
    if network is not None:
        return _load_weights(path, network, data, overrides)
    model = load_safetensors(path, data) if path.suffix == ".safetensors" else _load_checkpoint(path)
    elsewhere = detect.path_overrides(model.run, data) if data is not None and model.has_run else []
    return replace(model, run=override_run(model.run, [*elsewhere, *overrides]))


def untrained(network: str, data: str, overrides: Sequence[str] = (), seed: int = 0) -> PretrainedModel:
    """A network of the zoo before its first step, with the classes and statistics of some data. Raises `BadInput`."""
    run = override_run(default_run(network, detect.data_section(data)), [f"seed={seed}", *overrides])
    train_set, _ = datasets.open_data(run.data)
    net = build_network(run.network, len(train_set.classes), train_set.channels)
    initialise(net, seed)
    statistics = normalize.statistics(run, train_set)
    return PretrainedModel(network, run, tuple(train_set.classes), statistics, 0, net.eval())


def _load_checkpoint(path: Path) -> PretrainedModel:
    try:
        checkpoint = read_checkpoint(path)
    except BadInput:
        if _holds_other_weights(path):
            raise _unnamed(path) from None
        raise
    meta = checkpoint.meta
    net = build_network(meta.run.network, len(meta.classes), meta.channels)
    ema = checkpoint.payload["ema"]
    net.load_state_dict(checkpoint.payload["net"] if ema is None else ema)
    return PretrainedModel(
        label=str(path),
        run=meta.run,
        classes=meta.classes,
        normalization=meta.normalization,
        step=checkpoint.step,
        network=net.eval(),
        image_size=meta.image_size,
        changed=meta.changed,
    )


class _ExportMetadata(BaseModel):
    """What `PretrainedModel.metadata` writes: JSON texts."""

    model_config = ConfigDict(strict=True)
    network: Json[dict[str, Any]]
    classes: Json[Annotated[list[str], Field(min_length=1)]]
    mean: Json[list[list[list[float]]]]
    std: Json[list[float]]
    run: Json[dict[str, Any] | None]
    step: Json[int | None]
    image_size: Json[Pixels | None]
    changed: Json[str | None]


def load_safetensors(path: Path, data: str | None = None) -> PretrainedModel:
    """Load a file that `export` wrote: the inverse of `PretrainedModel.metadata`. Raises `BadInput`.

    data: of a network that has no run, the folder whose data a default run reads.
    """
    weights, metadata = weight_files.read_safetensors(path)
    if "network" not in metadata:
        raise _unnamed(path)
    try:
        fields = _ExportMetadata.model_validate(metadata)
        normalization = Normalization(torch.tensor(fields.mean), torch.tensor(fields.std))
    except ValidationError as error:
        raise BadInput(f"{path} is not an export of resnet-train: {error.errors()[0]['loc'][0]} is wrong") from None
    except ValueError:  # rows of different lengths
        raise BadInput(f"{path} is not an export of resnet-train: mean is wrong") from None
    check_normalization(normalization, str(path))
    if fields.run is None:
        run = default_run(fields.network, detect.data_section(data or "synthetic"))
    else:
        run = read_run(fields.run, str(path))
    net = _with_weights(run, len(fields.classes), len(normalization.std), weights, f"{path} is damaged")
    kept = fields.step, net, fields.image_size, fields.changed
    return PretrainedModel(str(path), run, tuple(fields.classes), normalization, *kept)


def _load_weights(path: Path, network: str, data: str | None, overrides: Sequence[str]) -> PretrainedModel:
    """The weights of another program, for images that are normalised as torchvision does it.

    Its bottlenecks have the stride on the 3x3 convolution, as torchvision's and timm's. The weights do not show it, so
    `resnet-50` is read as `resnet-50-v1.5`; `resnet-50-v1` is not.
    """
    fields = zoo.network_fields(network)
    if fields.get("stride_on") == "1x1" and not network.endswith("-v1"):
        network += "-v1.5"
    run = override_run(default_run(network, detect.data_section(data or "synthetic")), overrides)
    tensors = weight_files.read_tensors(path)
    if tensors is None:
        raise BadInput(f"{path} is of resnet-train: it knows its network: leave --network out")
    with torch.device("meta"):
        expected = build_network(run.network, classes=1).state_dict()
    misfit = f"{path} is not of a {network}"
    weights = weight_files.find_network(tensors, expected, misfit)
    bias = weights.get([*expected][-1])
    if bias is None or bias.numel() == 0:
        raise BadInput(f"{path} has no linear head, so no classes: train one with train.init_from={path}")
    net = _with_weights(run, bias.numel(), 3, weights, misfit)
    if getattr(run.network, "shortcut", None) == "A":
        logger.warning("%s: its shortcuts must append channels of zeros; weights do not show where zeros are", path)
    mean, std = 255 * torch.tensor(_IMAGENET_MEAN), 255 * torch.tensor(_IMAGENET_STD)
    names = tuple(f"class {i}" for i in range(bias.numel()))
    return PretrainedModel(str(path), run, names, Normalization(mean[None, None], std), None, net)


def _with_weights(run: Run, classes: int, channels: int, weights: Mapping[str, Tensor], source: str) -> nn.Module:
    """The network of a run with a file's weights, in evaluation mode. Raises `BadInput`, which begins with `source`."""
    misfit = find_misfit(run.network, classes, channels, weights)
    if misfit is not None:
        raise BadInput(f"{source}: {misfit}")
    net = build_network(run.network, classes, channels)
    net.load_state_dict(weights, strict=False)  # old files do not count batches
    return net.eval()


def _holds_other_weights(path: Path) -> bool:
    try:
        return weight_files.read_tensors(path) is not None
    except BadInput:
        return False


def _unnamed(path: Path) -> BadInput:
    return BadInput(f"{path} holds weights and does not name their network: give --network NAME")
