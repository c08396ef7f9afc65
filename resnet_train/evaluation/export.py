"""Files for other programs: each is read back and compared with the network before it takes its name.

safetensors and torchvision hold weights. onnx and torch-export hold everything from uint8 images to logits, so that no
user can normalise images wrongly.
"""

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_train.config import zoo
from resnet_train.config.load import dump
from resnet_train.config.network import KEYS_OF_TRAINING, NetConfig, VGGConfig
from resnet_train.errors import BadInput
from resnet_train.evaluation.pretrained import Pipeline, PretrainedModel, load_safetensors
from resnet_train.models.network import build_network
from resnet_train.runtime.atomic import atomic_write

_TOLERANCE = 1e-3
"""How far a logit read back may differ, relative to the largest logit: other kernels add in another order."""

Predictor = Callable[[Tensor], Tensor]
"""uint8 images [n, H, W, C] -> logits [n, classes], as computed by a file that was read back."""


class Format(NamedTuple):
    """How a network is written and read back."""

    suffix: str
    encode: Callable[[PretrainedModel], bytes]
    """Raises `BadInput` where the format cannot hold the network."""
    decode: Callable[[PretrainedModel, Path], Predictor]
    """Uses of the model only what the file does not hold."""
    packages: tuple[str, ...] = ()
    """Optional packages that it needs."""


@dataclass(frozen=True)
class ExportReport:
    """A file that was written, and how its logits compare with those of the network."""

    path: Path
    difference: float
    """The largest absolute difference of a logit."""
    largest: float
    """The largest absolute logit."""


def check_format(name: str) -> None:
    """Raise `BadInput` where a format of `FORMATS` needs a package that is not installed."""
    for package in FORMATS[name].packages:
        if importlib.util.find_spec(package) is None:
            raise BadInput(f"export --to {name} needs {package}: pip install 'resnet-train[export]'")


def export(model: PretrainedModel, name: str, path: Path | None = None) -> ExportReport:
    """Write a model that is on the CPU in a format of `FORMATS`, atomically; by default beside its file.

    Raises `BadInput` where the format cannot hold it, its logits differ when read back, or `path` cannot be written.
    """
    check_format(name)
    form = FORMATS[name]
    path = path or Path(model.label).with_suffix(form.suffix)
    if path.resolve() == Path(model.label).resolve():
        raise BadInput(f"{path} is the file to export: choose another --out")
    data = form.encode(model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)
            file.flush()
            report = _compare(model, form.decode(model, Path(file.name)), path)
    except OSError as error:
        raise BadInput(f"--out: cannot write {path}: {error.strerror or error}") from None
    return report


@torch.no_grad()
def _compare(model: PretrainedModel, predictor: Predictor, path: Path) -> ExportReport:
    """Compare logits over batches of one and of three images. Raises `BadInput` where they differ."""
    pipeline = Pipeline(model.network, model.normalization)
    batches = [_noise(model, 1), _noise(model, 3)]
    expected = torch.cat([pipeline(images) for images in batches])
    actual = torch.cat([predictor(images) for images in batches])
    report = ExportReport(path, float((actual - expected).abs().max()), float(expected.abs().max()))
    if not report.difference <= _TOLERANCE * report.largest:  # `not <=`: either may be nan
        raise BadInput(
            f"{path} is not written: read back, its logits are {report.difference:.2g} off, of {report.largest:.2g}"
        )
    return report


def _noise(model: PretrainedModel, count: int) -> Tensor:
    """uint8 [count, H, W, C], of the size that the network sees."""
    size = model.view.crop
    assert size is not None
    random = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, size, size, model.channels), dtype=torch.uint8, generator=random)


# --- safetensors ------------------------------------------------------------------------------------------------------


def _encode_safetensors(model: PretrainedModel) -> bytes:
    from safetensors.torch import save

    weights = {key: value.contiguous() for key, value in model.network.state_dict().items()}
    return save(weights, model.metadata)


def _decode_safetensors(_: PretrainedModel, path: Path) -> Predictor:
    model = load_safetensors(path)
    return Pipeline(model.network, model.normalization)


# --- torchvision ------------------------------------------------------------------------------------------------------

TORCHVISION = {
    "resnet-18": "resnet18",
    "resnet-34": "resnet34",
    "resnet-50-v1.5": "resnet50",
    "resnet-101-v1.5": "resnet101",
    "resnet-152-v1.5": "resnet152",
    "wrn-50-2": "wide_resnet50_2",
    "wrn-101-2": "wide_resnet101_2",
}
"""Names of residual networks: ours, and torchvision's."""


def _encode_torchvision(model: PretrainedModel) -> bytes:
    _empty_torchvision(model)
    buffer = io.BytesIO()
    torch.save(model.network.state_dict(), buffer)
    return buffer.getvalue()


def _decode_torchvision(model: PretrainedModel, path: Path) -> Predictor:
    network = _empty_torchvision(model)
    network.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return Pipeline(network, model.normalization)


def _empty_torchvision(model: PretrainedModel) -> nn.Module:
    return torchvision_module(model.run.network, len(model.classes), model.channels)


def torchvision_module(cfg: NetConfig | VGGConfig, classes: int, channels: int) -> nn.Module:
    """torchvision's own module for a network, on the meta device. Raises `BadInput` where it has none."""
    from torchvision import models

    if channels != 3:
        raise BadInput(f"{cfg.name} sees {channels} channel, and torchvision's networks 3: export it to safetensors")
    with torch.device("meta"):
        if isinstance(cfg, VGGConfig):
            return build_network(cfg, classes)  # it is torchvision's own module
        network: nn.Module = getattr(models, _torchvision_name(cfg))(num_classes=classes)
    return network


def _torchvision_name(cfg: NetConfig) -> str:
    names = {zoo.network_config(ours, name=cfg.name): theirs for ours, theirs in TORCHVISION.items()}
    cfg = cfg.model_copy(update={key: NetConfig.model_fields[key].default for key in KEYS_OF_TRAINING})
    if cfg in names:
        return names[cfg]
    reason = f"it has {', '.join(TORCHVISION)}"
    if cfg.model_copy(update={"stride_on": "3x3"}) in names:
        reason = "torchvision halves on the 3x3, and this network on the 1x1"
    elif cfg.name in TORCHVISION:
        ours, theirs = dump(cfg), dump(zoo.network_config(cfg.name))
        differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        reason = f"the one that it has differs in {', '.join(differing)}"
    raise BadInput(f"torchvision has no such {cfg.name}: {reason}; export it to safetensors")


# --- torch-export and ONNX --------------------------------------------------------------------------------------------


def _exported_program(model: PretrainedModel) -> torch.export.ExportedProgram:
    pipeline = Pipeline(model.network, model.normalization)
    # Two images: torch would take the batch size of one image for a constant.
    dynamic_shapes = {"images": {0: torch.export.Dim("n", min=1)}}
    return torch.export.export(pipeline, (_noise(model, 2),), dynamic_shapes=dynamic_shapes)


def _encode_torch_export(model: PretrainedModel) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_exported_program(model), buffer)
    return buffer.getvalue()


def _decode_torch_export(_: PretrainedModel, path: Path) -> Predictor:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _encode_onnx(model: PretrainedModel) -> bytes:
    program = torch.onnx.export(
        _exported_program(model), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


def _decode_onnx(_: PretrainedModel, path: Path) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


FORMATS = {
    "safetensors": Format(".safetensors", _encode_safetensors, _decode_safetensors, ("safetensors",)),
    "torchvision": Format(".pth", _encode_torchvision, _decode_torchvision),
    "torch-export": Format(".pt2", _encode_torch_export, _decode_torch_export),
    "onnx": Format(".onnx", _encode_onnx, _decode_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
