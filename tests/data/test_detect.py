"""The data section for what a folder holds, and the run of a network that has none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.config import load
from resnet_train.config.default_run import default_run
from resnet_train.data import detect
from resnet_train.data.shard_index import INDEX
from resnet_train.errors import BadInput


def test_section_is_of_the_kind_that_the_folder_holds(tmp_path: Path) -> None:
    assert detect.data_section("digits") == {"kind": "digits"}
    for folder, kind in (("cifar-10-batches-py", "cifar10"), ("FashionMNIST", "fashion-mnist")):
        root = tmp_path / kind
        (root / folder).mkdir(parents=True)
        assert detect.data_section(str(root)) == {"kind": kind, "path": str(root)}
    files = tmp_path / "files"
    files.mkdir()
    assert detect.data_section(str(files))["kind"] == "imagefolder"
    (files / INDEX).touch()
    assert detect.data_section(str(files))["kind"] == "shards"
    with pytest.raises(BadInput, match="no such folder"):
        detect.data_section("nowhere")


def test_another_path_keeps_the_section_and_fits_its_kind(tmp_path: Path, config: Callable[..., Path]) -> None:
    files = {"kind": "imagefolder", "path": "x", "workers": 3}
    path = config(data=files, augment={"crop": {"kind": "random-resized", "size": 8}})
    run = next(load.runs(load.load(path)))
    (tmp_path / INDEX).touch()
    moved = load.override_run(run, detect.path_overrides(run, str(tmp_path)))
    assert moved.data.model_dump() | {"kind": "shards", "path": str(tmp_path), "workers": 3} == moved.data.model_dump()


def test_default_run_has_the_crop_that_image_files_need() -> None:
    for name, size in (("cifar-resnet-20", 32), ("resnet-18", 224)):
        crop = default_run(name, {"kind": "imagefolder", "path": "x"}).augment.crop
        assert crop is not None
        assert (crop.kind, getattr(crop, "size", None)) == ("random-resized", size)
    assert default_run("resnet-18", {"kind": "synthetic"}).augment.crop is None
