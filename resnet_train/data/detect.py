"""Which kind of data set a folder holds, and the `data` section that reads it."""

import json
import os
from pathlib import Path
from typing import Any

from resnet_train.config.data import ImageFilesConfig
from resnet_train.config.load import dump
from resnet_train.config.schema import Run
from resnet_train.data import torchvision_files
from resnet_train.data.shard_index import INDEX
from resnet_train.errors import BadInput


def data_section(data: str) -> dict[str, Any]:
    """The `data` section for the value of `--data`: `digits`, `synthetic` or a folder. Raises `BadInput`."""
    if data in ("digits", "synthetic"):
        return {"kind": data}
    folder = Path(data)
    if not folder.is_dir():
        raise BadInput(f"--data {data}: no such folder; give a folder, digits or synthetic")
    if kind := torchvision_files.kind_of(folder):
        return {"kind": kind, "path": data}
    return {"kind": image_files_kind(folder), "path": data, "workers": min(8, os.cpu_count() or 1)}


def image_files_kind(folder: Path) -> str:
    """`shards` for a folder that `prepare` packed, else `imagefolder`."""
    return "shards" if (folder / INDEX).is_file() else "imagefolder"


def path_overrides(run: Run, path: str) -> list[str]:
    """The overrides that make a run read its data from another path. Class folders may stand in for shards, and shards
    for class folders."""
    if not isinstance(run.data, ImageFilesConfig):
        return [f"data.path={json.dumps(path)}"]
    kind = image_files_kind(Path(path))
    section = dump(run)["data"] | {"kind": kind, "path": path}
    if kind == "shards":
        section.pop("val_labels", None)
    return [f"data={json.dumps(section)}"]
