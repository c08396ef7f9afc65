"""The formats that `prepare` reads: each gives the samples of the class folders, in their order."""

import errno
import gzip
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, assert_same, key, opened, refusal
from PIL import Image

from resnet_train import cli
from resnet_train.packing.encode import PackOptions
from resnet_train.packing.formats import open_source
from resnet_train.packing.shard_writer import ShardJob, write_shard
from resnet_train.packing.tars import TarSample, tar_manifest

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


def packed_labels(split: int = 0) -> list[str]:
    """CLASS/FILE of each packed image, and the class that its label stands for."""
    data = opened(Path("packed"))[split]
    return [f"{key(data.name(i))} {data.classes[data.labels[i]]}" for i in range(len(data))]


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["gif", "jpe", "jfif", "JPG", "bmp"])
def test_webdataset_images_of_any_suffix_are_packed(suffix: str, program: Program) -> None:
    """All of these can be decoded, and half of the samples were left out without a word."""
    content = io.BytesIO()
    Image.new("RGB", (20, 20)).save(content, {"gif": "GIF", "bmp": "BMP"}.get(suffix, "JPEG"))
    files = {
        f"{i}.{end}": data
        for i in range(4)
        for end, data in ((suffix if i % 2 else "png", content.getvalue()), ("cls", b"01"[i % 2 : i % 2 + 1]))
    }
    Path("wds").mkdir()
    for split in ("train", "val"):
        tar_of(
            Path(f"wds/{split}-0.tar"), {name: png() if name.endswith("png") else data for name, data in files.items()}
        )
    code, _, err = program("prepare", "wds", "packed")
    assert (code, err) == (0, "")
    assert packed_labels() == ["0/0 0", "0/2 0", "1/1 1", "1/3 1"]


def test_webdataset_as_people_write_it(program: Program) -> None:
    """Keys with dots, several members of a sample, labels in JSON, macOS's files, gzip; what is left out is said."""
    Path("wds").mkdir()
    train = {
        "./v1.5.jpg": png(), "./v1.5.cls": b"1", "./v1.6.jpg": png(), "./v1.6.cls": b"2",
        "b.input.jpg": png(), "b.cls": b"2\n", "c.d/e.json": b'{"caption": "x", "label": 1}', "c.d/e.png": png(),
        "f.jpg": png(), "f.seg.png": png(), "f.cls": b"1", "f.txt": b"a caption", "._f.jpg": b"mac", "g.cls": b"1",
    }  # fmt: skip
    tar_of(Path("train.tar"), train)
    Path("wds/train-0.tar.gz").write_bytes(gzip.compress(Path("train.tar").read_bytes()))
    tar_of(Path("wds/val-0.tar"), {"a.jpg": png(), "a.cls": b"1", "b.jpg": png(), "b.json": b"2"})
    code, _, err = program("prepare", "wds", "packed")
    assert (code, err.splitlines()) == (
        0,
        [
            "warning: the labels are not 0 to 1: class 0 is label 1, and so on: class 1 is label 2",
            "warning: wds: left out 1 further image of a sample, 1 label without an image",
        ],
    )
    assert packed_labels() == ["1/c%2Ed_e 1", "1/f 1", "1/v1%2E5 1", "2/b 2", "2/v1%2E6 2"]
    assert packed_labels(1) == ["1/a 1", "2/b 2"]
    assert Path("packed/classes.txt").read_text() == "1\n2\n"
    assert program("prepare", "--verify", "packed")[0] == 0


def test_labels_are_classes_that_have_images_or_names(program: Program) -> None:
    def pack(labels: list[bytes], names: str | None, val: bytes = b"") -> tuple[int, str]:
        shutil.rmtree("wds", ignore_errors=True)
        shutil.rmtree("packed", ignore_errors=True)
        Path("wds").mkdir()
        for split, column in (("train", labels), ("val", [val or labels[0]])):
            members = {
                f"{i}.{end}": data for i, label in enumerate(column) for end, data in (("jpg", png()), ("json", label))
            }
            tar_of(Path(f"wds/{split}-0.tar"), members)
        options = []
        if names is not None:
            Path("names.txt").write_text(names)
            options = ["--class-names", "names.txt"]
        code, _, err = program("prepare", "wds", "packed", *options)
        return code, err

    def classes() -> list[list[str]]:
        return [list(pair) for pair in json.loads(Path("packed/index.json").read_text())["classes"]]

    assert pack([b"1000000000", b"7"], None)[0] == 0  # a list of all numbers up to it would end the memory
    assert classes() == [["7", "7"], ["1000000000", "1000000000"]]
    assert pack([b"1", b"2"], "x tench\ny shark") == (
        0,
        "warning: the labels are not 0 to 1: class 0 is label 1, and so on: class 1 is label 2\n",
    )
    assert classes() == [["x", "tench"], ["y", "shark"]]
    for labels, warning in (
        ((b"0", b"1", b"3", b"5"), "0 to 3: class 2 is label 3, and so on: class 3 is label 5"),
        ((b"0", b"7"), "0 to 1: class 1 is label 7"),
    ):
        assert pack([*labels], None) == (0, f"warning: the labels are not {warning}\n")
    assert pack([b"1", b"2"], "x tench\ny shark\nz ray") == (0, "")  # no image has label 0
    assert classes() == [["x", "tench"], ["y", "shark"], ["z", "ray"]]
    assert opened(Path("packed"))[0].labels.tolist() == [1, 2]
    assert pack([b'"tench"', b'"ray"'], None) == (0, "")
    assert classes() == [["ray", "ray"], ["tench", "tench"]]
    assert pack([b'"n1"', b'"n2"'], "n1 tench\nn2 shark") == (0, "")
    assert classes() == [["n1", "tench"], ["n2", "shark"]]
    code, err = pack([b"0", b"1"], None, b"2")
    assert (code, err.splitlines()) == (
        2,
        ["resnet-train: validation images have the label 2, and no training image has it"],
    )


def test_a_source_of_which_a_part_would_be_passed_over_is_refused(photos: Path, program: Program) -> None:
    Path("wds/sub").mkdir(parents=True)
    tar = tar_of(Path("wds/val-0.tar"), {"a.jpg": png(), "a.cls": b"0"})
    for name in ("train-0.tar.xz", "train.zip", "train-0.tar.zst", "sub/train-00000-of-00001.arrow", "train"):
        path = Path("wds", name)
        path.write_bytes(b"") if path.suffix else shutil.copytree(photos / "train", path)
        message = f"wds is packed from its WebDataset shards, and {path} would be left out: move it away, or convert it"
        assert message in refusal(program, "wds", "packed")
        path.unlink() if path.suffix else shutil.rmtree(path)
    shutil.copy(tar, photos / "train-0.tar")
    assert "photos/val would be left out" in refusal(program, photos, "packed")
    (photos / "val").rename(photos / "validation")
    assert "photos/validation would be left out" in refusal(program, photos, "packed")
    (photos / "train-0.tar").unlink()
    (photos / "train.zip").write_bytes(b"")  # from which the folder was made
    assert program("prepare", photos, "packed")[0] == 0


@pytest.mark.parametrize("kind", ["cifar", "texts", "bytes", "uint64", "categories"])
def test_parquet_columns_as_people_write_them(kind: str, program: Program) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [{"bytes": png(i), "path": f"x/{i}.png"} for i in range(4)]
    texts = ["dog", "cat", "dog", "cat"]
    features = {"fine_label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    numbers = pa.array([1, 0, 1, 0], pa.int64())
    table = {
        "cifar": lambda: pa.table(
            {"img": data, "fine_label": numbers, "coarse_label": numbers}
        ).replace_schema_metadata(metadata),
        "texts": lambda: pa.table({"image": data, "label": texts}),
        "bytes": lambda: pa.table({"image": [row["bytes"] for row in data], "label": texts}),
        "uint64": lambda: pa.table(
            {
                "image": [{"bytes": row["bytes"], "path": i} for i, row in enumerate(data)],
                "label": numbers.cast(pa.uint64()),
            }
        ),
        "categories": lambda: pa.table({"image": data, "label": pa.array(texts).dictionary_encode()}),
    }[kind]()
    Path("hub").mkdir()
    for split in ("train", "validation"):
        pq.write_table(table, f"hub/{split}-00000-of-00001.parquet")
    code, _, err = program("prepare", "hub", "packed")
    assert (code, err) == (0, "")
    train = opened(Path("packed"))[0]
    assert train.classes == (("0", "1") if kind == "uint64" else ("cat", "dog"))
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert [train.decoded(i).getpixel((0, 0)) for i in range(4)] == [(i, 0, 0) for i in (1, 3, 0, 2)]


def test_parquet_without_an_image_or_a_label_is_one_line(program: Program) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path("hub").mkdir()
    good = {"bytes": png(), "path": "a.png"}
    for table, message in (
        ({"image": [good, None], "label": [0, 0]}, "train.parquet: it is empty; leave it out with --on-bad-image skip"),
        ({"image": [good, {"bytes": None, "path": "x"}], "label": [0, 0]}, "0/x in hub/train.parquet: it is empty"),
        (
            {"image": [good], "label": pa.array([None], pa.int64())},
            "row 0 has label None: expected a number from 0 on, or a name",
        ),
        ({"image": [good], "label": pa.array([2**63], pa.uint64())}, "row 0 has label 9223372036854775808"),
        ({"image": [good], "label": [0.5]}, "has the columns image, label; expected image or img (bytes, path)"),
        ({"image": [{"bytes": "text", "path": "x"}], "label": [0]}, "has the columns image, label; expected"),
    ):
        pq.write_table(pa.table(table), "hub/train.parquet")
        assert message in refusal(program, "hub", "packed")
        shutil.rmtree("packed", ignore_errors=True)
    Path("hub/train.parquet").unlink()
    for number, labels in enumerate(([0, 0], [0, None])):
        table = pa.table({"image": [good, good], "label": pa.array(labels, pa.int64())})
        pq.write_table(table, f"hub/train-0000{number}-of-00002.parquet")
    assert "hub/train-00001-of-00002.parquet: row 1 has label None" in refusal(program, "hub", "packed")
    for path in Path("hub").iterdir():
        path.unlink()
    os.mkfifo("hub/train.parquet")
    assert "cannot read hub/train.parquet: it is a pipe, not a file" in refusal(program, "hub", "packed")


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
    message = "has the columns picture, label, hash; expected image or img (bytes, path), and label or fine_label"
    assert message in refusal(program, "hub", "packed")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../a.jpg": b"x", "../a.cls": b"1"}, "member ../a.jpg leads outside of the archive: refused"),
        ({"/etc/a.jpg": b"x"}, "member /etc/a.jpg leads outside of the archive: refused"),
        ({"a.jpg": b"x", "b.cls": b"0"}, "a.jpg has no label: expected a.cls, or a label in a.json, beside it"),
        ({"a.jpg": b"x", "a.json": b"{}"}, "a.jpg has no label: expected a.cls, or a label in a.json, beside it"),
        ({"a.jpg": b"x", "a.cls": b"1" * 5000}, "a.cls is no label: expected a number, found b'1111"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "a.cls is no label: expected a number"),
        ({"a.input.jpg": b"x", "a.mask.png": b"x", "a.cls": b"0"}, "a.input.jpg and a.mask.png are images of one sample"),
        ({"a.jpg": b"x", "a.cls": b"0", "b.jpg": b"x", "b.json": b'"cat"'}, "some labels are numbers and some are texts, such as 0 and 'cat'"),
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
    with tarfile.open(tar, "w") as file:
        sparse = tarfile.TarInfo("a.jpg")
        sparse.size, sparse.type = 512, tarfile.GNUTYPE_SPARSE
        header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"00000000000 00000001000 "  # one piece, of 512 bytes
        header[483:495] = b"00000002000 "  # of 1,024
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        file.fileobj.write(bytes(header) + bytes(512))
    assert "a.jpg is stored with holes, as tar --sparse does: refused" in refusal(program, "wds", "packed")
    tar.unlink()
    os.mkfifo(tar)
    assert "cannot read wds/train-0.tar: it is a pipe, not a file" in refusal(program, "wds", "packed")


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


def test_what_this_machine_lacks_is_no_fault_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--on-bad-image skip` must not leave out what could not be read because too many files are open."""
    tar = tar_of(Path("0.tar"), {"a.jpg": png()})
    manifest = tar_manifest([tar], [TarSample("0/a.jpg", 0, 0, 512, len(png()))])
    assert manifest.read(0) == png()

    def fail(*_: object) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match="Too many open files"):
        manifest.read(0)
    job = ShardJob(Path("000000.tar"), Path("record.json"), manifest, 0, PackOptions(), skip_bad=True)
    with pytest.raises(OSError, match="Too many open files"):  # nor of the shard
        write_shard(job, int)
