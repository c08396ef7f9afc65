"""The formats that `prepare` reads: each gives the samples of the class folders, in their order."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, assert_same, opened, refusal
from PIL import Image

from resnet_train import cli
from resnet_train.packing.encode import PackOptions
from resnet_train.packing.formats import open_source
from resnet_train.packing.shard_writer import ShardJob, write_shard

Program = Callable[..., tuple[int, str, str]]
Source = tuple[Path, list[str], tuple[str, ...]]
"""A folder, the options to pack it with, and the names of its classes."""


# --- the formats ------------------------------------------------------------------------------------------------------


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def tar_bytes(files: dict[str, bytes]) -> bytes:
    return tar_of(Path("inner.tar"), files).read_bytes()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}  # in no order: as the real ones


def class_folders(photos: Path) -> Source:
    return photos, [], CLASSES


def ilsvrc_tars(photos: Path) -> Source:
    """As ILSVRC2012's: val's images numbered, and a development kit whose numbers are not in alphabetical order."""
    from scipy.io import savemat

    folder = Path("ilsvrc")
    folder.mkdir()
    train = {f"{name}.tar": tar_bytes(files_of(photos / "train" / name)) for name in reversed(CLASSES)}
    tar_of(folder / "ILSVRC2012_img_train.tar", train)
    numbers = {"n01": 2, "n02": 3, "n03": 1}
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("children", "O")]
    synsets = np.zeros((4, 1), fields)
    for row, (wnid, number) in enumerate([*numbers.items(), ("n99", 1001)]):
        synsets[row, 0] = (float(number), wnid, f"thing {number}, Thüng", np.arange(row, dtype=np.uint16))
    savemat("meta.mat", {"synsets": synsets}, do_compression=True)
    truth = []
    for name in CLASSES:
        for path in sorted((photos / "val" / name).iterdir()):
            truth.append(numbers[name])
            path.rename(path.with_name(f"ILSVRC2012_val_{len(truth):08}.JPEG"))
    val = {k: v for name in CLASSES for k, v in files_of(photos / "val" / name).items()}
    tar_of(folder / "ILSVRC2012_img_val.tar", val)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, data in (
            ("meta.mat", Path("meta.mat").read_bytes()),
            ("ILSVRC2012_validation_ground_truth.txt", "".join(f"{n}\n" for n in truth).encode()),
        ):
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return folder, [], ("thing 2, Thüng", "thing 3, Thüng", "thing 1, Thüng")


def parquet_files(photos: Path) -> Source:
    """As Hugging Face writes them: shuffled, and a test split without labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    Path("hub/data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation"), ("val", "test")):
        paths = sorted((photos / split).rglob("*.*"), key=lambda path: path.name[::-1])
        images = [{"bytes": path.read_bytes(), "path": f"/home/me/{path.name}"} for path in paths]
        labels = [-1 if name == "test" else CLASSES.index(path.parent.name) for path in paths]
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(metadata)
        pq.write_table(table, f"hub/data/{name}-00000-of-00001.parquet", row_group_size=4)
    return Path("hub"), [], CLASSES


def webdataset_tars(photos: Path) -> Source:
    Path("wds").mkdir()
    for split, word in (("train", "train"), ("val", "validation")):
        files: dict[str, bytes] = {}
        for label, name in enumerate(CLASSES):
            for path in sorted((photos / split / name).iterdir()):
                files |= {f"{path.stem}.cls": str(label).encode(), path.name: path.read_bytes()}
                files |= {f"{path.stem}.json": b"{}"}
        tar_of(Path(f"wds/imagenet-{word}-0000.tar"), files)
    Path("names.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\nn03 shark\n")
    return Path("wds"), ["--class-names", "names.txt"], ("tench, Tinca tinca", "goldfish", "shark")


def own_shards(photos: Path) -> Source:
    """Packed again in another way."""
    folder, options, names = webdataset_tars(photos)
    assert cli.main(["prepare", str(folder), "shards", *options]) == 0
    return Path("shards"), ["--raw-fraction", "1"], names


def val_without_folders(photos: Path) -> Source:
    """With a table of classes as in Kaggle's LOC_val_solution.csv."""
    shutil.copytree(photos, "kaggle")
    lines = ["ImageId,PredictionString"]
    for name in CLASSES:
        for path in sorted(Path("kaggle/val", name).iterdir()):
            lines.append(f"{path.stem},{name} 85 1 499 272")
            path.rename(Path("kaggle/val", path.name))
        Path("kaggle/val", name).rmdir()
    Path("val.csv").write_text("\n".join(lines))
    return Path("kaggle"), ["--val-labels", "val.csv"], CLASSES


@pytest.mark.parametrize(
    "make_source", [class_folders, ilsvrc_tars, parquet_files, webdataset_tars, own_shards, val_without_folders]
)
def test_every_format_gives_the_samples_of_the_class_folders(
    make_source: Callable[[Path], Source], photos: Path, program: Program
) -> None:
    folder, options, names = make_source(photos)
    code, _, err = program("prepare", folder, "packed", "--shard-images", 5, *options)
    assert code == 0, err
    for one, other in zip(opened(Path("packed")), opened(photos, "imagefolder"), strict=True):
        assert_same(one, other)
    assert tuple(Path("packed/classes.txt").read_text().splitlines()) == names


def test_cifar_becomes_png_files_of_the_same_pixels(real_images: Path, tmp_path: Path) -> None:
    """Compared with the rows of its files: all red values, then green, then blue."""
    source, folder = open_source(real_images), real_images / "cifar-10-batches-py"
    for split, file, first, rows in (("train", "data_batch_5", 40_000, [0, 17, 9_999]), ("val", "test_batch", 0, [4])):
        batch = pickle.loads((folder / file).read_bytes(), encoding="bytes")
        manifest = source.manifests[split].subset(np.array(rows) + first)
        job = ShardJob(tmp_path / "0.tar", tmp_path / "0.json", manifest, 0, PackOptions(), False)
        record = write_shard(job, lambda number: None)
        for (_, offset, label, length, *_), row in zip(record.entries, rows, strict=True):
            data = (tmp_path / "0.tar").read_bytes()[offset : offset + length]
            pixels = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
            assert pixels.ravel().tolist() == batch[b"data"][row].tolist()
            assert label == batch[b"labels"][row]
    names = pickle.loads((folder / "batches.meta").read_bytes())["label_names"]
    assert source.classes == names


# --- what is refused --------------------------------------------------------------------------------------------------


def test_val_needs_the_class_of_each_image(photos: Path, program: Program) -> None:
    folder, options, _ = val_without_folders(photos)
    labels = Path("val.csv")
    head, *lines = labels.read_text().splitlines()
    assert "the classes of the images in kaggle/val are unknown" in refusal(program, folder, "packed")
    for text, message in (
        ([head, *lines[:-1]], "val.csv has no class for n03_7.png"),
        ([head, *lines[:-1], "n03_7,n9"], "gives n03_7.png the class n9"),
        (["490", "361"], "expected an image and its class"),
    ):
        labels.write_text("\n".join(text))
        assert message in refusal(program, folder, "packed", *options)


def test_a_missing_development_kit_is_named(photos: Path, program: Program) -> None:
    folder, _, _ = ilsvrc_tars(photos)
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    message = "the classes of the images in ilsvrc/ILSVRC2012_img_val.tar are unknown: put ILSVRC2012_devkit_t12.tar.gz"
    assert message in refusal(program, folder, "packed")


def test_parquet_of_other_columns_is_refused(program: Program) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path("hub").mkdir()
    pq.write_table(pa.table({"picture": [b""], "label": [0], "hash": [0]}), "hub/train.parquet")
    message = "has the columns picture, label, hash; expected image (bytes, path) and label"
    assert message in refusal(program, "hub", "packed")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../a.jpg": b"x", "../a.cls": b"1"}, "member ../a.jpg leads outside of the archive: refused"),
        ({"/etc/a.jpg": b"x"}, "member /etc/a.jpg leads outside of the archive: refused"),
        ({"a.jpg": b"x", "b.cls": b"0"}, "a.jpg has no label: expected a.cls beside it"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "a.cls is no label: expected a number, found b'cat'"),
        ({"a.jpg": b"x", "a.cls": b"0", "d/a.jpg": b"x", "d/a.cls": b"0", "d_a.jpg": b"x", "d_a.cls": b"0"}, "0/d_a.jpg and 0/d_a.jpg would have the same name"),
        ({"readme.txt": b"x"}, "has no image in its train split"),
    ],
)  # fmt: skip
def test_bad_tars_are_refused(files: dict[str, bytes], message: str, program: Program) -> None:
    Path("wds").mkdir()
    tar_of(Path("wds/train-0.tar"), files)
    assert message in refusal(program, "wds", "packed")


def test_links_and_truncated_tars_are_refused(photos: Path, program: Program) -> None:
    Path("wds").mkdir()
    tar = Path("wds/train-0.tar")
    with tarfile.open(tar, "w") as file:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    assert "a.jpg is a link or a device: refused" in refusal(program, "wds", "packed")
    data = (photos / "train" / "n01" / "n01_0.JPEG").read_bytes()
    tar_of(tar, {"a.jpg": data, "a.cls": b"0", "b.jpg": data, "b.cls": b"0"})
    tar.write_bytes(tar.read_bytes()[: 1536 + len(data)])
    assert "cannot read wds/train-0.tar: it is truncated" in refusal(program, "wds", "packed")
    tar.write_text("text")
    assert "cannot read wds/train-0.tar: it is truncated, or no tar file" in refusal(program, "wds", "packed")


def test_a_truncated_tar_of_tars_is_refused(photos: Path, program: Program) -> None:
    """Cut in the header of a class, in an image of it, between two images, and at the end."""
    folder, _, _ = ilsvrc_tars(photos)
    tar = folder / "ILSVRC2012_img_train.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as file:
        second = file.getmembers()[1]
    begin = second.offset_data
    for length in (
        second.offset + 100,
        begin + 100,
        begin + 600,
        begin + 4096,
        begin + second.size,
        len(whole) - 10240,
    ):
        tar.write_bytes(whole[:length])
        assert f"cannot read {tar}: it is truncated" in refusal(program, folder, "packed")
