"""torchvision's small data sets against torchvision's own readers, wherever their files are."""

import gzip
import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets as theirs

from resnet_train.config.data import TorchvisionConfig
from resnet_train.data import datasets, detect, torchvision_files
from resnet_train.errors import BadInput
from resnet_train.packing.formats import open_source

READERS = {
    "cifar10": theirs.CIFAR10,
    "cifar100": theirs.CIFAR100,
    "mnist": theirs.MNIST,
    "fashion-mnist": theirs.FashionMNIST,
}


def write_cifar(kind: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a few images as CIFAR's, whose checksums torchvision's class then has."""
    reader, random = READERS[kind], np.random.default_rng(0)
    folder = Path("root", reader.base_folder)  # type: ignore[attr-defined]
    folder.mkdir(parents=True)
    key = "labels" if kind == "cifar10" else "fine_labels"

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    for field in ("train_list", "test_list"):
        lists = []
        for name, _ in getattr(reader, field):
            data = random.integers(0, 256, (4, 3072), dtype=np.uint8)
            lists.append(write(name, {"data": data, key: random.integers(0, 10, 4).tolist()}))
        monkeypatch.setattr(reader, field, lists)
    meta = reader.meta  # type: ignore[attr-defined]
    _, checksum = write(meta["filename"], {meta["key"]: [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(reader, "meta", meta | {"md5": checksum})
    return folder


def write_mnist(kind: str) -> Path:
    folder, random = Path("root", READERS[kind].__name__, "raw"), np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 5), ("t10k", 3)):
        images, labels = random.integers(0, 256, (count, 28, 28)), random.integers(0, 10, count)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())
    return folder.parent


def assert_read(kind: str, path: Path | str, expected: list[Any]) -> None:
    """The data set in `path` is that of torchvision; so it is where its kind is detected."""
    opened = datasets.open_data(TorchvisionConfig(kind=kind, path=str(path)))  # type: ignore[arg-type]
    for ours, split in zip(opened, expected, strict=True):
        assert isinstance(ours, datasets.InMemoryDataset)
        images = np.asarray(split.data)
        assert np.array_equal(ours.images, images.reshape(*images.shape[:3], -1))
        assert ours.labels.tolist() == np.asarray(split.targets).tolist()
        assert list(ours.classes) == split.classes
    assert len(open_source(Path(path)).manifests["val"]) == len(expected[1])
    assert detect.data_section(str(path)) == {"kind": kind, "path": str(path)}


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar_unpacked_or_not_a_folder_up_or_down(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(kind, monkeypatch)
    expected = [READERS[kind]("root", train=train) for train in (True, False)]
    for path in ("root", folder, "."):
        assert_read(kind, path, expected)

    Path("up/packed").mkdir(parents=True)
    archive = Path("up/packed", READERS[kind].filename)  # type: ignore[attr-defined]
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    for path in ("up/packed", "up"):
        assert_read(kind, path, expected)
    assert len(datasets.open_data(TorchvisionConfig(kind=kind, path=str(archive)))[1]) == len(expected[1])  # type: ignore[arg-type]
    Path("other").mkdir()
    shutil.move(folder, "other/my cifar")
    for path in ("other/my cifar", "other"):
        assert_read(kind, path, expected)


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist"])
def test_mnist_unpacked_or_not_a_folder_up_or_down(kind: str) -> None:
    folder = write_mnist(kind)
    expected = [READERS[kind]("root", train=train) for train in (True, False)]
    for path in ("root", folder, folder / "raw", "."):
        assert_read(kind, path, expected)
    for path in (folder / "raw").iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert_read(kind, "root", expected)


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few images as SVHN's, whose checksums torchvision's class then has."""
    random, lists = np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("test", 3), ("extra", 4)):
        url, name, _ = theirs.SVHN.split_list[split]
        labels = random.integers(1, 11, (count, 1), dtype=np.uint8)
        labels[0] = 10  # the digit 0
        savemat(folder / name, {"X": random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels})
        lists[split] = [url, name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(theirs.SVHN, "split_list", lists)


@pytest.mark.parametrize("folder", ["root", "root/SVHN", "root/mine"])
def test_svhn_is_torchvisions_with_or_without_the_extra_images(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(Path(folder), monkeypatch)
    expected = {split: theirs.SVHN(folder, split=split) for split in ("train", "test", "extra")}
    for kind, splits in (("svhn", ["train"]), ("svhn-extra", ["train", "extra"])):
        for path in {"root", folder}:
            opened = datasets.open_data(TorchvisionConfig(kind=kind, path=path))  # type: ignore[arg-type]
            for ours, names in zip(opened, (splits, ["test"]), strict=True):
                assert isinstance(ours, datasets.InMemoryDataset)
                images = np.concatenate([expected[name].data for name in names]).transpose(0, 2, 3, 1)
                assert np.array_equal(ours.images, images)
                assert ours.images.flags.c_contiguous
                assert np.array_equal(ours.labels, np.concatenate([expected[name].labels for name in names]))
                assert ours.classes == tuple("0123456789")
    assert detect.data_section("root") == {"kind": "svhn", "path": "root"}
    assert len(open_source(Path(folder)).manifests["val"]) == 3
    Path(folder, "extra_32x32.mat").unlink()
    assert len(datasets.open_data(TorchvisionConfig(kind="svhn", path="root"))[0]) == 12
    with pytest.raises(BadInput, match=r"no complete svhn-extra in root; .*data.download=true"):
        datasets.open_data(TorchvisionConfig(kind="svhn-extra", path="root"))
    Path(folder, "test_32x32.mat").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"no complete svhn in root; .*\(test_32x32.mat is damaged\)"):
        datasets.open_data(TorchvisionConfig(kind="svhn", path="root"))


def test_svhn_downloads_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(Path("theirs"), monkeypatch)
    asked: list[str] = []

    def fetch(self: theirs.SVHN) -> None:
        asked.append(self.split)
        shutil.copy(Path("theirs", self.filename), Path(self.root).mkdir(exist_ok=True) or self.root)

    monkeypatch.setattr(theirs.SVHN, "download", fetch)
    train, val = datasets.open_data(TorchvisionConfig(kind="svhn-extra", path="new", download=True))
    assert (asked, len(train), len(val)) == (["train", "extra", "test"], 16, 3)


def test_mnist_and_fashion_are_not_taken_for_each_other() -> None:
    write_mnist("fashion-mnist")
    for path in ("root", "root/FashionMNIST", "root/FashionMNIST/raw"):
        with pytest.raises(BadInput, match="no complete mnist in"):
            datasets.open_data(TorchvisionConfig(kind="mnist", path=path))
    shutil.move("root/FashionMNIST/raw", "bare")
    assert torchvision_files.kind_of(Path("bare")) is None
    assert len(datasets.open_data(TorchvisionConfig(kind="mnist", path="bare"))[0]) == 5  # the user says so


def test_damaged_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose checksum is another is not unpickled, which could run any code."""
    folder = write_cifar("cifar10", monkeypatch)
    (folder / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    message = r"^data.path: no complete cifar10 in root; .*data.download=true to fetch it \(data_batch_3 is damaged\)$"
    with pytest.raises(BadInput, match=message):
        datasets.open_data(TorchvisionConfig(kind="cifar10", path="root"))
    assert not Path("executed").exists()

    archive = Path("packed", "cifar-10-python.tar.gz")
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    whole = archive.read_bytes()
    for content, reason in (
        (whole[:9000], "unexpected end"),
        (b"", "cannot read"),
        (gzip.compress(b"x"), "cannot read"),
    ):
        archive.write_bytes(content)
        with pytest.raises(BadInput, match=f"no complete cifar10 in packed; .*{reason}"):
            datasets.open_data(TorchvisionConfig(kind="cifar10", path="packed"))

    raw = write_mnist("mnist") / "raw"
    labels = raw / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for content in (b"", whole[:-1], whole + b"x", b"x" + whole[1:], whole[:4] + b"\xff" * 4 + whole[8:]):
        labels.write_bytes(content)
        with pytest.raises(BadInput, match=r"train-labels-idx1-ubyte is damaged"):
            datasets.open_data(TorchvisionConfig(kind="mnist", path="root"))
    for content in (whole[:-1] + b"\x0a", whole[:7] + b"\x04" + whole[8:-1]):
        labels.write_bytes(content)
        with pytest.raises(BadInput, match=r"images and labels of root/MNIST/raw do not fit together"):
            datasets.open_data(TorchvisionConfig(kind="mnist", path="root"))
