"""The checkpoint file: what it holds, and how it is read and verified."""

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
    """What every checkpoint of a run says beside its state: enough to use the network without the training set."""

    run: Run
    classes: tuple[str, ...]
    train_images: int
    normalization: Normalization
    image_size: int | None = None
    """Height and width of the training images in pixels; None where they may have any size."""
    changed: str | None = None
    """What packing did to their pixels, in words."""

    @property
    def channels(self) -> int:
        """Of an image."""
        return self.normalization.std.numel()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    path: Path
    about: CheckpointMeta
    step: int
    payload: dict[str, Any]
    """Among others the state dicts `net`, `ema` (or None), `optimizer` and `scaler`."""


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of this program, every byte of it checked. Raises `BadInput`."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch writes a CRC for each record and does not read it back
        if broken is not None:
            raise BadInput(f"{path} is damaged: the CRC of {broken} is wrong")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; expected a checkpoint such as checkpoints/last.pt") from None
    except zipfile.BadZipFile:
        raise BadInput(f"{path} is truncated or not a checkpoint") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, UnicodeDecodeError):  # a zip file, but not ours
        raise BadInput(f"{path} is not a checkpoint of resnet-train") from None
    try:
        if payload["format"] != FORMAT:
            raise BadInput(f"{path} is of format {payload['format']}; this program reads format {FORMAT}")
        run = read_run(payload["run"], str(path))
        about = CheckpointMeta(
            run,
            tuple(payload["classes"]),
            payload["train_images"],
            Normalization(*payload["normalization"]),
            payload.get("image_size"),
            payload.get("changed"),
        )
        return Checkpoint(path, about, payload["step"], payload)
    except (KeyError, TypeError):
        raise BadInput(f"{path} is not a checkpoint of resnet-train") from None
