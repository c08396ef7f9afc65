"""The file of stored logits: enough to average them again, or in another ensemble, without a network."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, TypeAdapter

from resnet_train.errors import BadInput, one_line
from resnet_train.runs.records import check_shape
from resnet_train.runtime.atomic import atomic_write
from resnet_train.runtime.regular_file import open_regular


@dataclass(frozen=True)
class Logits:
    """The logits of one or more networks over a validation set."""

    networks: list[dict[str, Any]]
    """For each network its checkpoint, name, seed and step."""
    protocol: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """[n]."""
    values: npt.NDArray[np.float32]
    """[networks, n, views, classes], as the networks gave them: results from them are those of the live evaluation."""

    def write(self, path: Path) -> None:
        """Write an .npz file, atomically. Raises `BadInput`."""
        header = json.dumps({"networks": self.networks, "protocol": self.protocol, "classes": self.classes})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez(file, about=header, labels=self.labels, values=self.values)
        except OSError as error:
            raise BadInput(f"--save-logits: cannot write {path}: {error.strerror or error}") from None

    @classmethod
    def read(cls, path: Path) -> "Logits":
        """Read an .npz file that `write` wrote. Raises `BadInput`."""
        try:
            with open_regular(path) as raw, np.load(raw) as file:
                return _checked(file["about"], file["labels"], file["values"])
        except BadInput:
            raise
        except Exception as error:  # for a damaged file zipfile, zlib and numpy have a dozen of them
            raise BadInput(f"{path} holds no logits of --save-logits: {one_line(str(error))}") from None


class _Network(BaseModel):
    model_config = ConfigDict(strict=True)

    checkpoint: InstanceOf[str]  # a `str` would have to be text, which the name of a file or folder need not be
    network: str
    seed: int | None
    step: int | None


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    networks: Annotated[list[_Network], Field(min_length=1)]
    protocol: str
    classes: Annotated[list[InstanceOf[str]], Field(min_length=1)]


_HEADER = TypeAdapter(_Header)


def _checked(about: npt.NDArray[Any], labels: npt.NDArray[Any], values: npt.NDArray[Any]) -> Logits:
    """The logits that the arrays of a file are. Raises `ValueError`."""
    header = json.loads(str(about))
    check_shape(header, _HEADER)
    networks, classes = header["networks"], tuple(header["classes"])
    if labels.dtype != np.int64 or labels.ndim != 1 or not len(labels):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, not int64 [images]")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels are {labels.min()} to {labels.max()}, of {len(classes)} classes")
    shape = len(networks), len(labels), *values.shape[2:3], len(classes)
    if values.dtype != np.float32 or values.shape != shape or not values.size:
        expected = f"float32 [{len(networks)}, {len(labels)}, views, {len(classes)}]"
        raise ValueError(f"values are {values.dtype} {list(values.shape)}, not {expected}")
    return Logits(networks, header["protocol"], classes, labels, values)


def read_all(paths: Sequence[Path]) -> Logits:
    """Read several files of the same images and protocol as one. Raises `BadInput`."""
    parts = [Logits.read(path) for path in paths]
    first = parts[0]
    for path, part in zip(paths, parts, strict=True):
        if not np.array_equal(part.labels, first.labels) or part.classes != first.classes:
            raise BadInput(f"{path} is of other images than {paths[0]}")
        if part.protocol != first.protocol:
            raise BadInput(f"{path} was taken under another protocol ({part.protocol}) than {paths[0]}")
    networks = [network for part in parts for network in part.networks]
    values = np.concatenate([part.values for part in parts])
    return Logits(networks, first.protocol, first.classes, first.labels, values)
