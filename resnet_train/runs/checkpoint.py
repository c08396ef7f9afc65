"""The checkpoint file: its content, and how it is read and verified."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_train.config.load import read_run
from resnet_train.config.schema import Run
from resnet_train.data.normalize import Normalization
from resnet_train.errors import BadInput

FORMAT = 2


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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of this program and check every byte of it. Raises `BadInput`."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes a CRC for each record but does not check it
        if damaged is not None:
            raise BadInput(f"{path} is damaged: the CRC of {damaged} is wrong")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror or error}; expected a checkpoint such as checkpoints/last.pt"
        ) from None
    except zipfile.BadZipFile:
        raise BadInput(f"{path} is truncated or not a checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, UnicodeDecodeError):  # a zip file, but not ours
        raise BadInput(f"{path} is not a checkpoint of resnet-train") from None
    try:
        if payload["format"] != FORMAT:
            raise BadInput(f"{path} is of format {payload['format']}; this program reads format {FORMAT}")
        run = read_run(payload["run"], str(path))
        meta = CheckpointMeta(
            run,
            tuple(payload["classes"]),
            payload["train_images"],
            Normalization(*payload["normalization"]),
            payload.get("image_size"),
            payload.get("changed"),
        )
        return Checkpoint(path, meta, payload["step"], payload)
    except (KeyError, TypeError):
        raise BadInput(f"{path} is not a checkpoint of resnet-train") from None
