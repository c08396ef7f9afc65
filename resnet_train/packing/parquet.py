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
from resnet_train.packing.manifest import Listing


@dataclass(frozen=True)
class InParquet(Listing):
    """Rows of parquet files."""

    files: tuple[Path, ...]
    file: Ints
    """[n], which of them."""
    groups: Ints
    """[n], the row group."""
    rows: Ints
    """[n], the row in it."""

    def read(self, row: int) -> bytes:
        images = _group(self.files[self.file[row]], int(self.groups[row]))
        data: bytes | None = images[int(self.rows[row])]["bytes"].as_py()
        return data or b""

    def where(self, row: int) -> str:
        return f"{self.name(row)} in {self.files[self.file[row]]}"


def _library() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise BadInput("parquet files need pyarrow: pip install 'resnet-train[parquet]'") from None
    return pyarrow


def read(files: Sequence[Path]) -> tuple[InParquet, list[str] | None]:
    """The rows of some files, their names without a class, and the names of the classes, if any. Raises `BadInput`."""
    names: list[str] = []
    columns: list[list[Any]] = [[], [], [], []]
    classes: list[str] | None = None
    for number, path in enumerate(files):
        file = _open(path)
        classes = classes or _classes(file.schema_arrow.metadata)
        for group in range(file.num_row_groups):
            table = _rows(path, file, group, ["image.path", "label"])
            labels = table.column("label").to_pylist()
            for row, (image, label) in enumerate(zip(table.column("image").to_pylist(), labels, strict=True)):
                if not isinstance(label, int) or label < 0:
                    raise BadInput(f"{path}: row {len(names)} has label {label}: expected a number from 0 on")
                # A path may be one of the machine that made the file; only its last part names the image.
                given = Path((image or {}).get("path") or "").name
                names.append(given or f"{path.stem}-{group:04}-{row:06}")
            for column, values in zip(columns, (labels, number, group, range(len(labels))), strict=True):
                column += [values] * len(labels) if isinstance(values, int) else values
    label, *places = (np.array(column, np.int64) for column in columns)
    if classes is not None and label.max(initial=-1) >= len(classes):
        raise BadInput(f"{files[0]}: label {label.max()} is not one of its {len(classes)} class names")
    return InParquet(np.array([*map(os.fsencode, names)], np.bytes_), label, tuple(files), *places), classes


def _classes(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """The names of the `ClassLabel` column."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _open(path: Path) -> Any:
    library = _library()
    try:
        file = library.parquet.ParquetFile(path)
    except (OSError, library.ArrowException) as error:
        raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    paths = {file.schema.column(i).path for i in range(len(file.schema))}
    if not {"image.bytes", "image.path", "label"} <= paths:
        raise BadInput(
            f"{path} has the columns {', '.join(file.schema_arrow.names)}; expected image (bytes, path) and label"
        )
    return file


@functools.lru_cache(maxsize=1)
def _group(path: Path, number: int) -> Any:
    """The images of a row group; the last one is kept, since samples are packed in the order of their rows."""
    return _rows(path, _open(path), number, ["image"]).column("image")


def _rows(path: Path, file: Any, group: int, columns: list[str]) -> Any:
    library = _library()
    try:
        return file.read_row_group(group, columns=columns)
    except (OSError, library.ArrowException) as error:
        raise BadInput(f"cannot read {path}: {str(error).splitlines()[0]}") from None
