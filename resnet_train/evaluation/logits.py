"""The file of stored logits: enough to average them again, or in another ensemble, without a network."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_train.errors import BadInput
from resnet_train.runtime.atomic import atomic_write


@dataclass(frozen=True)
class Logits:
    """The logits of one or more networks over a validation set."""

    networks: list[dict[str, Any]]
    """For each network its checkpoint, name, seed and step."""
    protocol: str
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """[n]."""
    values: npt.NDArray[np.float16]
    """[networks, n, views, classes], less the largest of each row."""

    def write(self, path: Path) -> None:
        """Write an .npz file, atomically. Raises `BadInput`."""
        header = json.dumps({"networks": self.networks, "protocol": self.protocol, "classes": self.classes})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez_compressed(file, about=header, labels=self.labels, values=self.values)
        except OSError as error:
            raise BadInput(f"--save-logits: cannot write {path}: {error.strerror or error}") from None

    @classmethod
    def read(cls, path: Path) -> "Logits":
        """Read an .npz file. Raises `BadInput`."""
        try:
            with path.open("rb") as raw, np.load(raw) as file:
                header = json.loads(str(file["about"]))
                header["classes"] = tuple(header["classes"])
                return cls(labels=file["labels"], values=file["values"], **header)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            raise BadInput(f"{path} holds no logits; expected a file of --save-logits") from None


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
