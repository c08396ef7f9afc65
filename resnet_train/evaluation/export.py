"""The verb `export`: a network as a file for other programs, read back and compared before it is called done.

safetensors and torchvision hold bare weights. onnx and torch-export hold the whole way from uint8 images to logits, so
that nobody normalises wrongly.
"""

import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnet_train.config import zoo
from resnet_train.config.load import dump
from resnet_train.config.network import ANY_NET, NetConfig, VGGConfig
from resnet_train.data.batch import Batch
from resnet_train.data.normalize import Normalization
from resnet_train.errors import BadInput
from resnet_train.evaluation import pretrained
from resnet_train.evaluation.pretrained import PretrainedModel
from resnet_train.models.network import build_network
from resnet_train.runtime.atomic import atomic_write

_TOLERANCE = 1e-3
"""Of the largest logit: how far what was read back may be from the network. Other kernels add up in other orders."""


class Pipeline(nn.Module):
    """uint8 images [n, H, W, C] -> logits [n, classes]."""

    def __init__(self, net: nn.Module, normalization: Normalization) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", normalization.mean)
        self.register_buffer("std", normalization.std)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        normalization = Normalization(self.mean, self.std)  # type: ignore[arg-type]
        unshifted = Batch(images, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1))
        return self.net(normalization(unshifted))  # type: ignore[no-any-return]


Called = Callable[[Tensor], Tensor]
"""uint8 images [n, H, W, C] -> logits [n, classes], as the file that was read back gives them."""


class Format(NamedTuple):
    """How a network is written and read."""

    suffix: str
    encode: Callable[[PretrainedModel], bytes]
    """Raises `BadInput` where the format cannot hold the network."""
    decode: Callable[[PretrainedModel, Path], Called]
    """Takes from the network only what the file does not hold."""
    needs: tuple[str, ...] = ()
    """Modules that may be absent."""


def export(source: str, to: str, out: Path | None, network: str | None) -> None:
    """Write a network of `trained.load` in a format of `FORMATS`, whole or not at all. Raises `BadInput`."""
    form = FORMATS[to]
    for module in form.needs:
        if importlib.util.find_spec(module) is None:
            raise BadInput(f"export --to {to} needs {module}: pip install 'resnet-train[export]'")
    member = pretrained.load(source, network)
    path = out or Path(source).with_suffix(form.suffix)
    if path.resolve() == Path(source).resolve():
        raise BadInput(f"{path} is the file to export: choose another --out")
    data = form.encode(member)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)
            file.flush()
            difference, largest = _difference(member, form.decode(member, Path(file.name)))
            if not difference <= _TOLERANCE * largest:  # nor if it is not a number
                raise BadInput(
                    f"{path} is not written: read back, its logits are {difference:.2g} off, of {largest:.2g}"
                )
    except OSError as error:
        raise BadInput(f"--out: cannot write {path}: {error.strerror}") from None
    print(f"wrote {path}: read back, its logits differ by at most {difference:.2g}, the largest being {largest:.2g}")


@torch.no_grad()
def _difference(member: PretrainedModel, called: Called) -> tuple[float, float]:
    """The largest difference from the network, and the largest of its logits, over batches of one and three images."""
    pipeline = Pipeline(member.net, member.normalization)
    pairs = [(called(images), pipeline(images)) for images in (_images(member, 1), _images(member, 3))]
    theirs, ours = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    return float((theirs - ours).abs().max()), float(ours.abs().max())


def _images(member: PretrainedModel, count: int) -> Tensor:
    """Noise of the size that the network's evaluation sees."""
    size, channels = member.look.crop, member.normalization.std.numel()
    assert size is not None
    random = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, size, size, channels), dtype=torch.uint8, generator=random)


# --- the formats ------------------------------------------------------------------------------------------------------


def _safetensors(member: PretrainedModel) -> bytes:
    from safetensors.torch import save

    about = {
        "network": dump(member.run.network),
        "classes": member.classes,
        "mean": member.normalization.mean.tolist(),
        "std": member.normalization.std.tolist(),
    }
    metadata = {"format": "pt"} | {key: json.dumps(value) for key, value in about.items()}
    return save({key: value.contiguous() for key, value in member.net.state_dict().items()}, metadata)


def _from_safetensors(member: PretrainedModel, path: Path) -> Called:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = {key: json.loads(value) for key, value in file.metadata().items() if key != "format"}
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no dict
    normalization = Normalization(torch.tensor(about["mean"]), torch.tensor(about["std"]))
    cfg = ANY_NET.validate_json(json.dumps(about["network"]))
    net = build_network(cfg, len(about["classes"]), len(about["std"]))
    net.load_state_dict(weights)
    return Pipeline(net, normalization)


def _torchvision(member: PretrainedModel) -> bytes:
    _empty_of_torchvision(member)
    buffer = io.BytesIO()
    torch.save(member.net.state_dict(), buffer)
    return buffer.getvalue()


def _from_torchvision(member: PretrainedModel, path: Path) -> Called:
    net = _empty_of_torchvision(member)
    net.load_state_dict(torch.load(path, weights_only=True), assign=True)
    return Pipeline(net, member.normalization)


def _empty_of_torchvision(member: PretrainedModel) -> nn.Module:
    return of_torchvision(member.run.network, len(member.classes), member.normalization.std.numel())


def of_torchvision(cfg: NetConfig | VGGConfig, classes: int, channels: int) -> nn.Module:
    """torchvision's own module for a network, without weights. Raises `BadInput` where it has none."""
    from torchvision import models

    if channels != 3:
        raise BadInput(f"{cfg.name} sees {channels} channel, and torchvision's networks 3: export it to safetensors")
    if isinstance(cfg, VGGConfig):
        name = f"vgg{cfg.depth}{'_bn' * cfg.batch_norm}"
    else:
        known = {zoo.network_config(key, name=cfg.name): name for key, name in TORCHVISION.items()}
        if cfg not in known:
            why = f"it has {', '.join(TORCHVISION)}"
            if cfg.model_copy(update={"stride_on": "3x3"}) in known:
                why = "torchvision halves on the 3x3, and this network on the 1x1"
            elif cfg.name in TORCHVISION:
                ours, theirs = dump(cfg), dump(zoo.network_config(cfg.name))
                differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
                why = f"the one that it has differs in {', '.join(differing)}"
            raise BadInput(f"torchvision has no such {cfg.name}: {why}; export it to safetensors")
        name = known[cfg]
    with torch.device("meta"):
        made: nn.Module = getattr(models, name)(num_classes=classes)
    return made


TORCHVISION = {
    "resnet-18": "resnet18",
    "resnet-34": "resnet34",
    "resnet-50-v1.5": "resnet50",
    "resnet-101-v1.5": "resnet101",
    "resnet-152-v1.5": "resnet152",
    "wrn-50-2": "wide_resnet50_2",
    "wrn-101-2": "wide_resnet101_2",
}
"""The zoo's name to torchvision's, but for VGG."""


def _exported(member: PretrainedModel) -> torch.export.ExportedProgram:
    pipeline = Pipeline(member.net, member.normalization)
    # Two images: of a batch of one, torch would take the one for a constant.
    return torch.export.export(
        pipeline, (_images(member, 2),), dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}}
    )


def _torch_export(member: PretrainedModel) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_exported(member), buffer)
    return buffer.getvalue()


def _from_torch_export(member: PretrainedModel, path: Path) -> Called:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _onnx(member: PretrainedModel) -> bytes:
    program = torch.onnx.export(
        _exported(member), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    assert program is not None
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


def _from_onnx(member: PretrainedModel, path: Path) -> Called:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


FORMATS = {
    "safetensors": Format(".safetensors", _safetensors, _from_safetensors, ("safetensors",)),
    "torchvision": Format(".pth", _torchvision, _from_torchvision),
    "torch-export": Format(".pt2", _torch_export, _from_torch_export),
    "onnx": Format(".onnx", _onnx, _from_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
