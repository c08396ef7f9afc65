"""The checkpoint file: its content, and how it is read and verified."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.config.section import Pixels
from resnet_train.data.normalize import Normalization, check_normalization
from resnet_train.errors import BadInput
from resnet_train.models.network import find_misfit
from resnet_train.runs.torch_file import read_torch_file

FORMAT = 2
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint holds beside the state: enough to use the network without the training set."""

    run: Run
    classes: tuple[str, ...]
    train_images: int
    normalization: Normalization
    image_size: int | None = None
    """Height and width of the training images in pixels; None if they may have any size."""
    changed: str | None = None
    """How packing changed their pixels, in words; None if it did not."""

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.normalization.std.numel()


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    meta: CheckpointMeta
    step: int
    payload: dict[str, Any]
    """All of the file. Among others the state dicts `net`, `ema` (or None), `optimizer` and `scaler`."""


class _Ranks(BaseModel):
    """Of each rank, batch norm's running statistics and the sums since the last log line."""

    model_config = _STRICT
    statistics: Tensor
    sums: Tensor


class _Payload(BaseModel):
    """The types of what a checkpoint holds; `read_checkpoint` compares the tensors with the network."""

    model_config = _STRICT
    run: dict[str, JsonValue]
    classes: Annotated[list[str], Field(min_length=1)]
    train_images: Annotated[int, Field(ge=0)]
    normalization: Annotated[list[Tensor], Field(min_length=2, max_length=2)]
    image_size: Pixels | None = None
    changed: str | None = None
    step: Annotated[int, Field(ge=0, lt=2**63)]
    net: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, float | int]
    ranks: _Ranks
    best: float
    unmeasured: list[str] = Field(default_factory=list)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this program; check every byte of it, and that its weights are of its network.

    Raises `BadInput`.
    """
    payload = read_torch_file(path)
    foreign = f"{path} is not a checkpoint of resnet-train"
    if not isinstance(payload, dict) or type(payload.get("format")) is not int:
        raise BadInput(foreign)
    if payload["format"] != FORMAT:
        raise BadInput(f"{path} is of format {payload['format']}; this program reads format {FORMAT}")
    try:
        content = _Payload.model_validate(payload)
    except ValidationError as error:
        raise BadInput(f"{foreign}: {error.errors()[0]['loc'][0]} is missing or of another type") from None
    meta = CheckpointMeta(
        read_run(content.run, str(path)),
        tuple(content.classes),
        content.train_images,
        Normalization(*content.normalization),
        content.image_size,
        content.changed,
    )
    check_normalization(meta.normalization, str(path))
    for name, weights in (("net", content.net), ("ema", content.ema)):
        if weights is not None:
            misfit = find_misfit(meta.run.network, len(meta.classes), meta.channels, weights)
            if misfit is not None:
                raise BadInput(f"{path} is damaged: {name} is not of {meta.run.network.name}: {misfit}")
    return Checkpoint(path, meta, content.step, payload)
