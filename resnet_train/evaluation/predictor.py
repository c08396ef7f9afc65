"""The verb `predict`: the classes that a network finds most probable for image files."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet_train.data import decoding
from resnet_train.data.batch import Batch
from resnet_train.data.decoding import ImageArray
from resnet_train.data.image_folder import IMAGE_SUFFIXES
from resnet_train.data.normalize import Normalization
from resnet_train.data.views import apply_views
from resnet_train.errors import BadInput
from resnet_train.evaluation import pretrained
from resnet_train.evaluation.pretrained import PretrainedModel
from resnet_train.runtime import distributed
from resnet_train.runtime.precision import set_precision

Found = list[tuple[int, float]]
"""The most probable classes of an image, the likeliest first, with their probabilities."""

_BATCH = 64


def predict_all(
    checkpoint: str, paths: Sequence[Path], network: str | None, classes: Path | None, top: int, as_json: bool
) -> None:
    """Print the `top` classes of each image file, in the order given; a folder stands for the images under it.

    What cannot be used is named on standard error; the rest is predicted, and then `BadInput` raised.
    """
    member = pretrained.load(checkpoint, network)
    names = member.classes if classes is None else _names(classes, len(member.classes))
    files = list(_files(paths))
    shown: list[dict[str, Any]] = []
    bad = 0
    with distributed.start("auto") as world:
        if not world.is_main:  # there is work for one
            return
        set_precision("fp32", world.device)
        for path, found in _predictions(member, files, min(top, len(names)), world.device):
            if isinstance(found, BadInput):
                bad += 1
                print(found, file=sys.stderr)
                continue
            best = [(names[number], probability) for number, probability in found]
            shown.append({"image": str(path), "predictions": [{"class": name, "probability": p} for name, p in best]})
            if not as_json:
                print("\n".join([str(path), *(f"{p:9.2%}  {name}" for name, p in best)]))
        if as_json:
            print(json.dumps(shown, indent=2))
        if bad:
            raise BadInput(f"{bad} of {bad + len(shown)} images could not be predicted: they are named above")


def _predictions(
    member: PretrainedModel, files: Sequence[Path], top: int, device: torch.device
) -> Iterator[tuple[Path, Found | BadInput]]:
    """Of each file in order."""
    net = member.net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalization = member.normalization.to(device)
    for start in range(0, len(files), _BATCH):
        part = files[start : start + _BATCH]
        read = [_seen(member, path) for path in part]
        good = [pixels for pixels in read if not isinstance(pixels, BadInput)]
        answers = iter(_most_probable(net, normalization, good, top, device) if good else ())
        for path, pixels in zip(part, read, strict=True):
            yield path, pixels if isinstance(pixels, BadInput) else next(answers)


@torch.inference_mode()
def _most_probable(
    net: nn.Module, normalization: Normalization, pixels: Sequence[ImageArray], top: int, device: torch.device
) -> list[Found]:
    images = torch.from_numpy(np.stack(pixels))
    batch = Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.zeros(len(images), images.shape[3]))
    best = net(normalization(batch.to(device))).softmax(1).topk(top)
    return [list(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _seen(member: PretrainedModel, path: Path) -> ImageArray | BadInput:
    """An image file as the network's evaluation would show it, uint8 [H, W, C], or what is wrong with it."""
    channels = member.normalization.std.numel()
    try:
        file = decoding.open_file(path)
        image = decoding.decode_with_pillow(file.data, file.name, "RGB" if channels == 3 else "L")
    except BadInput as error:
        return error
    [pixels] = apply_views(image, [member.look])
    return pixels.reshape(*pixels.shape[:2], channels)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        under = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not under:
            raise BadInput(f"{path}: no image in or under it, no name that ends in {', '.join(sorted(IMAGE_SUFFIXES))}")
        yield from under


def _names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--classes: cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if len(names) != count:
        raise BadInput(f"--classes: {path} has {len(names)} lines for {count} classes: give one name a line")
    return tuple(names)
