"""Hugging Face's parquet files: columns `image` (bytes, path) and `label`, class names in the schema's metadata."""

import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput
from resnet_train.packing.manifest import Manifest


@dataclass(frozen=True)
class ParquetManifest(Manifest):
    """Rows of parquet files."""

    files: tuple[Path, ...]
    file_indices: Ints
    """[n], an index into `files`."""
    row_groups: Ints
    """[n], the row group in the file."""
    rows: Ints
    """[n], the row in the row group."""

    def read(self, row: int) -> bytes:
        images = _read_images(self._file(row), int(self.row_groups[row]))
        data: bytes | None = images[int(self.rows[row])]["bytes"].as_py()
        return data or b""

    def location(self, row: int) -> str:
        return f"{self.name(row)} in {self._file(row)}"

    def _file(self, row: int) -> Path:
        return self.files[int(self.file_indices[row])]


def read_parquet(files: Sequence[Path]) -> tuple[ParquetManifest, list[str] | None]:
    """The rows of some files, named without a class, and the names of the classes if the files give them.

    Raises BadInput.
    """
    names: list[str] = []
    labels: list[int] = []
    locations = [np.zeros((3, 0), np.int64)]
    classes: list[str] | None = None
    for file_index, path in enumerate(files):
        file = _open(path)
        classes = classes or _class_names(file.schema_arrow.metadata)
        for group in range(file.num_row_groups):
            table = _read_row_group(path, file, group, ["image.path", "label"])
            images, image_labels = table.column("image").to_pylist(), table.column("label").to_pylist()
            for row, (image, label) in enumerate(zip(images, image_labels, strict=True)):
                if not isinstance(label, int) or label < 0:
                    raise BadInput(f"{path}: row {len(names)} has label {label}: expected a number from 0 on")
                # A path may belong to the machine that wrote the file: only its last part names the image.
                file_name = Path((image or {}).get("path") or "").name
                names.append(file_name or f"{path.stem}-{group:04}-{row:06}")
            labels += image_labels
            rows = np.arange(len(image_labels))
            locations.append(np.stack([np.full_like(rows, file_index), np.full_like(rows, group), rows]))
    if classes is not None and max(labels, default=-1) >= len(classes):
        raise BadInput(f"{files[0]}: label {max(labels)} is not one of its {len(classes)} class names")
    encoded_names = np.array([os.fsencode(name) for name in names], np.bytes_)
    columns = np.concatenate(locations, axis=1)
    return ParquetManifest(encoded_names, np.array(labels, np.int64), tuple(files), *columns), classes


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """The names of the `ClassLabel` column, if there is one."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _open(path: Path) -> Any:
    pyarrow = _import_pyarrow()
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    columns = {file.schema.column(i).path for i in range(len(file.schema))}
    if not {"image.bytes", "image.path", "label"} <= columns:
        raise BadInput(
            f"{path} has the columns {', '.join(file.schema_arrow.names)}; expected image (bytes, path) and label"
        )
    return file


@functools.lru_cache(maxsize=1)  # samples are packed in the order of their rows: the last row group is enough
def _read_images(path: Path, row_group: int) -> Any:
    """The column `image` of a row group."""
    return _read_row_group(path, _open(path), row_group, ["image"]).column("image")


def _read_row_group(path: Path, file: Any, row_group: int, columns: list[str]) -> Any:
    pyarrow = _import_pyarrow()
    try:
        return file.read_row_group(row_group, columns=columns)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None


def _import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise BadInput("parquet files need pyarrow: pip install 'resnet-train[parquet]'") from None
    return pyarrow
