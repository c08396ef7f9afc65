"""Hugging Face's parquet files: a column of images (bytes, path) and one of labels, class names in the metadata."""

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_train.data.rng import Ints
from resnet_train.errors import BadInput, exhausted
from resnet_train.packing.class_names import Label
from resnet_train.packing.manifest import Manifest, Names
from resnet_train.runtime.regular_file import open_regular

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")
"""In the order in which they are looked for. CIFAR-100 has `fine_label` and `coarse_label`."""


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
        with _reading(self._file(row)):
            images = _read_images(self._file(row), int(self.row_groups[row]))
            data: bytes | None = images[int(self.rows[row])].as_py()
        return data or b""

    def location(self, row: int) -> str:
        return f"{self.name(row)} in {self._file(row)}"

    def _file(self, row: int) -> Path:
        return self.files[int(self.file_indices[row])]


@dataclass(frozen=True)
class ParquetTable:
    """The rows of some files."""

    files: tuple[Path, ...]
    locations: Ints
    """[3, n]: the file, the row group in it, the row in that."""
    names: list[str]
    """Names of the files that the images were, without a class."""
    labels: list[Label]
    classes: list[str] | None
    """Names of the classes, if the files give them."""

    def manifest(self, names: Names, labels: Ints) -> ParquetManifest:
        """The samples. names: CLASS/FILE, [n]. labels: indices of classes, int64 [n]."""
        return ParquetManifest(names, labels, self.files, *self.locations)


def read_parquet(files: Sequence[Path]) -> ParquetTable:
    """The names and labels of the rows of some files. Raises BadInput."""
    names: list[str] = []
    labels: list[Label] = []
    locations = [np.zeros((3, 0), np.int64)]
    classes: list[str] | None = None
    for file_index, path in enumerate(files):
        file, first = _open(path), len(names)
        columns = _find_columns(path, file.schema_arrow)
        classes = classes or _class_names(file.schema_arrow.metadata, columns.label)
        for group in range(file.num_row_groups):
            with _reading(path):
                table = file.read_row_group(group, columns=list(filter(None, (columns.path, columns.label))))
                group_labels = table.column(columns.label).to_pylist()
                paths = [None] * len(group_labels)
                if columns.path:
                    paths = [(image or {}).get("path") for image in table.column(columns.image).to_pylist()]
            for row, (label, image_path) in enumerate(zip(group_labels, paths, strict=True)):
                if not _is_label(label):
                    raise BadInput(
                        f"{path}: row {len(names) - first} has label {label!r}: expected a number from 0 on, or a name"
                    )
                # A path may belong to the machine that wrote the file: only its last part names the image.
                file_name = Path(image_path or "").name
                names.append(file_name or f"{path.stem}-{group:04}-{row:06}")
            labels += group_labels
            rows = np.arange(len(group_labels))
            locations.append(np.stack([np.full_like(rows, file_index), np.full_like(rows, group), rows]))
    return ParquetTable(tuple(files), np.concatenate(locations, axis=1), names, labels, classes)


def _is_label(label: object) -> bool:
    if isinstance(label, int) and not isinstance(label, bool):
        return 0 <= label < 2**62
    return isinstance(label, str) and label != ""


class _Columns(NamedTuple):
    """The names of the columns that are read."""

    image: str
    """Of the images: a struct that has `bytes`, or bytes themselves."""
    path: str | None
    """`IMAGE.path`, if there is one."""
    label: str


def _find_columns(path: Path, schema: Any) -> _Columns:
    """Raises BadInput if the file has no column of images and of labels, or several."""
    types = _import_pyarrow().types
    images: dict[str, str | None] = {}
    labels: list[str] = []
    for column in schema:
        kind = column.type
        if types.is_struct(kind):
            parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
            if _is_binary(parts.get("bytes")):
                text = parts.get("path")
                images[column.name] = f"{column.name}.path" if text and types.is_string(text) else None
        elif _is_binary(kind) and column.name in _IMAGE_COLUMNS:
            images[column.name] = None
        label_kind = kind.value_type if types.is_dictionary(kind) else kind
        is_label = types.is_integer(label_kind) or types.is_string(label_kind) or types.is_large_string(label_kind)
        if column.name in _LABEL_COLUMNS and is_label:
            labels.append(column.name)
    image = next((name for name in _IMAGE_COLUMNS if name in images), None)
    if image is None and len(images) == 1:
        [image] = images
    if image is None or not labels:
        raise BadInput(
            f"{path} has the columns {', '.join(schema.names)}; expected image or img (bytes, path), and label or "
            "fine_label (a number or a name)"
        )
    return _Columns(image, images[image], min(labels, key=_LABEL_COLUMNS.index))


def _is_binary(kind: Any) -> bool:
    types = _import_pyarrow().types
    return kind is not None and (types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names of the `ClassLabel` column, if there is one."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _open(path: Path) -> Any:
    pyarrow = _import_pyarrow()
    with open_regular(path):
        pass
    with _reading(path):
        return pyarrow.parquet.ParquetFile(path)


@functools.lru_cache(maxsize=1)  # samples are packed in the order of their rows: the last row group is enough
def _read_images(path: Path, row_group: int) -> Any:
    """The bytes of the images of a row group; null of those that have none."""
    pyarrow, file = _import_pyarrow(), _open(path)
    column = _find_columns(path, file.schema_arrow).image
    images = file.read_row_group(row_group, columns=[column]).column(column)
    return pyarrow.compute.struct_field(images, "bytes") if pyarrow.types.is_struct(images.type) else images


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises at a damaged file into a `BadInput` of one line: names that are no UTF-8, lengths that
    contradict each other."""
    try:
        yield
    except (OSError, _import_pyarrow().ArrowException, ValueError, IndexError) as error:
        if exhausted(error):
            raise
        raise BadInput(f"cannot read {path}: {(str(error).splitlines() or [''])[0]}") from None


def _import_pyarrow() -> Any:
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise BadInput("parquet files need pyarrow: pip install 'resnet-train[parquet]'") from None
    return pyarrow
