"""Opening data sets, and the messages for those that cannot be opened."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from resnet_train.config.data import DataConfig, DigitsConfig, ImageFolderConfig, SyntheticConfig, TorchvisionConfig
from resnet_train.data import datasets, image_folder, image_paths
from resnet_train.errors import BadInput

Folders = Callable[..., Path]


def refusal(cfg: DataConfig) -> str:
    with pytest.raises(BadInput) as caught:
        datasets.open_data(cfg)
    return str(caught.value)


@pytest.mark.parametrize("file", [datasets._DIGITS_FILE, "moved.csv.gz"])
def test_digits_are_those_of_scikit_learn(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_DIGITS_FILE", file)
    train, val = datasets.open_data(DigitsConfig(kind="digits"))
    assert (len(train), len(val), train.channels, train.classes) == (1438, 359, 1, tuple("0123456789"))
    assert isinstance(train, datasets.InMemoryDataset)
    assert isinstance(val, datasets.InMemoryDataset)
    digits = load_digits()
    images, val_rows = np.rint(digits.images * (255 / 16))[..., None], np.arange(1797) % 5 == 4
    for data, rows in ((train, ~val_rows), (val, val_rows)):
        assert data.images.dtype == np.uint8
        assert np.array_equal(data.images, images[rows])
        assert np.array_equal(data.labels, digits.target[rows])


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert refusal(DigitsConfig(kind="digits")).endswith("needs scikit-learn: pip install 'resnet-train[digits]'")


def test_holdout_is_evenly_spaced_training_images() -> None:
    cfg = SyntheticConfig(kind="synthetic", size=4, train_images=100, classes=4, holdout=20)
    train, val = datasets.open_data(cfg)
    assert (len(train), len(val)) == (80, 20)
    assert isinstance(train, datasets.SyntheticDataset)
    assert isinstance(val, datasets.SyntheticDataset)
    assert not set(train.numbers) & set(val.numbers)
    assert "only 100 training images" in refusal(cfg.model_copy(update={"holdout": 100}))


def test_a_synthetic_image_depends_on_its_number_alone() -> None:
    train, val = datasets.open_data(SyntheticConfig(kind="synthetic", size=6))
    assert isinstance(train, datasets.SyntheticDataset)
    assert np.array_equal(train.generate(np.array([5, 9]))[1], train.generate(np.array([9]))[0])
    assert len(val) == 256
    assert not np.array_equal(train.generate(np.array([0])), train.generate(np.array([10])))  # of the same class


def test_folders_are_sorted_by_name(folders: Folders) -> None:
    train, val = datasets.open_data(ImageFolderConfig(kind="imagefolder", path=str(folders())))
    assert isinstance(train, image_folder.ImageFolderDataset)
    assert (len(train), len(val), train.classes) == (12, 6, ("apple", "pear"))
    assert train.labels.tolist() == [0] * 6 + [1] * 6
    assert train.decoded(0).size == (60, 40)


def test_bad_folders_are_named(folders: Folders) -> None:
    path = folders()
    cfg = ImageFolderConfig(kind="imagefolder", path=str(path))
    assert "cannot read" in refusal(cfg.model_copy(update={"path": "nowhere"}))
    shutil.move(path / "val" / "pear", path / "val" / "plum")
    assert "train and val have different classes: pear is only in" in refusal(cfg)
    shutil.rmtree(path / "val" / "plum")
    (path / "val" / "pear").mkdir()
    assert "pear holds no image" in refusal(cfg)
    shutil.rmtree(path / "val" / "pear")
    shutil.move(path / "val" / "apple" / "0.jpg", path / "val" / "0.jpg")
    shutil.rmtree(path / "val" / "apple")
    assert f"the classes of the images in {path}/val are unknown: " in refusal(cfg)
    shutil.rmtree(path / "train" / "apple")
    shutil.move(path / "train" / "pear" / "0.jpg", path / "train" / "0.jpg")
    shutil.rmtree(path / "train" / "pear")
    assert "train holds images but no class folders" in refusal(cfg)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "mnist", "fashion-mnist", "svhn", "svhn-extra"])
def test_a_missing_data_set_is_not_downloaded_unless_requested(kind: Any, tmp_path: Path) -> None:
    message = refusal(TorchvisionConfig(kind=kind, path=str(tmp_path)))
    assert f"no complete {kind} in {tmp_path}" in message
    assert "download=true" in message


def test_real_cifar10(real_images: Path) -> None:
    train, val = datasets.open_data(TorchvisionConfig(kind="cifar10", path=str(real_images)))
    assert (len(train), len(val), train.channels) == (50000, 10000, 3)
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert isinstance(train, datasets.InMemoryDataset)
    # The per-channel means that every CIFAR-10 recipe quotes.
    assert np.allclose(train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)


def test_real_unusual_images_are_decoded(real_images: Path) -> None:
    root = real_images / "imagenet-odd"
    files = sorted(
        path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in image_paths.IMAGE_SUFFIXES
    )
    names = np.array([str(file).encode() for file in files])
    folder = image_folder.ImageFolderDataset(root, names, np.zeros(len(files), np.int64), ["odd"])
    assert len(folder) > 100
    assert all(folder.decoded(i).mode == "RGB" for i in range(len(folder)))


def test_cmyk_png_in_jpeg_and_truncated_files(tmp_path: Path) -> None:
    """ImageNet has CMYK files and a PNG named .JPEG; a bad disk leaves half a file."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.JPEG")
    Image.fromarray(pixels).save(tmp_path / "png.JPEG", format="png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.JPEG")
    Image.fromarray(pixels).save(tmp_path / "half.JPEG")
    (tmp_path / "half.JPEG").write_bytes((tmp_path / "half.JPEG").read_bytes()[:500])
    (tmp_path / "text.JPEG").write_text("not an image")
    names = ["cmyk.JPEG", "png.JPEG", "grey.JPEG", "half.JPEG", "text.JPEG"]
    folder = image_folder.ImageFolderDataset(tmp_path, np.array(names, "S"), np.zeros(5, np.int64), ["odd"])
    assert [folder.decoded(i).size for i in range(3)] == [(20, 30)] * 3
    assert np.array_equal(np.asarray(folder.decoded(1)), pixels)
    for i in (3, 4):
        with pytest.raises(BadInput, match=f"cannot decode {folder.name(i)}"):
            folder.decoded(i)
