"""`prepare`: whatever form a data set has, its shards give the same samples, in the same order, to the same loss."""

import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import figures, spawn
from PIL import Image
from test_tiles import needs_jpegtran, photo

from resnet_train.config.assumed import data_of
from resnet_train.config.data import ImageFolder, Shards
from resnet_train.data import shards, sources
from resnet_train.data.files import Files
from resnet_train.data.shards import ENTRY
from resnet_train.errors import BadInput
from resnet_train.packing import matlab, pool, write
from resnet_train.packing.listing import InFolder
from resnet_train.packing.source import open_source
from resnet_train.packing.store import Options

Program = Callable[..., tuple[int, str, str]]
CLASSES = ("n01", "n02", "n03")
SIZES = [(90, 60), (61, 83), (120, 120), (200, 77)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of generated photos: three classes, four sizes, JPEG of several kinds and PNG."""
    root = tmp_path / "photos"
    for part, count in (("train", 6), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(photo(*SIZES[(i + label) % 4], seed=100 * label + i + (part == "val") * 50))
                stem = root / part / name / f"{name}_{i * 7 % 10}"
                if i == 1:
                    image.save(f"{stem}.png")
                elif i == 2:
                    image.convert("L").save(f"{stem}.JPEG")
                else:
                    image.save(f"{stem}.JPEG", subsampling=("4:4:4", "4:2:0", "4:2:2")[i % 3], quality=90)
    return root


def opened(path: Path, kind: Any = Shards) -> tuple[Files, Files]:
    train, val = sources.open_data(kind.model_validate({"kind": kind.__name__.lower(), "path": str(path)}))
    assert isinstance(train, Files)
    assert isinstance(val, Files)
    return train, val


def key(name: str) -> str:
    """CLASS/STEM of a sample, whether its name is a path or that of a shard's member."""
    return "/".join(name.rpartition(":")[2].rsplit(".", 1)[0].split("/")[-2:])


def assert_same(one: Files, other: Files) -> None:
    """The same classes, samples, order and pixels."""
    assert one.classes == other.classes
    assert one.labels.tolist() == other.labels.tolist()
    assert [key(one.name(i)) for i in range(len(one))] == [key(other.name(i)) for i in range(len(other))]
    for i in range(len(one)):
        assert one.picture(i).size == other.picture(i).size
        assert np.array_equal(np.asarray(one.read(i)), np.asarray(other.read(i))), one.name(i)


def refusal(program: Program, *arguments: object) -> str:
    code, _, err = program("prepare", *arguments)
    said = err.strip().splitlines()
    assert code == 2, err
    assert len(said) == 1, err
    return said[0]


# --- the packed form --------------------------------------------------------------------------------------------------

STORED = [[], ["--raw-fraction", 0.5], pytest.param(["--tiled", "--raw-fraction", 0.2], marks=needs_jpegtran)]


@pytest.mark.parametrize("options", STORED)
def test_shards_are_the_folders_they_were_made_of(options: list[Any], photos: Path, program: Program) -> None:
    code, out, err = program("prepare", photos, "packed", "--shard-images", 7, "--workers", 2, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    for one, other, part in zip(opened(Path("packed")), opened(photos, ImageFolder), ("train", "val"), strict=True):
        assert_same(one, other)
        assert_same(one.subset(np.array([5, 2])), other.subset(np.array([5, 2])))
        told = report["parts"][part]
        forms = np.bincount(one.entries["form"], minlength=3).tolist()
        assert [told["as_files"], told["tiled"], told["raw"]] == forms
        assert (told["images"], told["shards"], told["left_out"]) == (len(other), -(-len(other) // 7), 0)
        assert (forms[1] > 0) == ("--tiled" in options)
        assert (forms[2] > 0) == ("--raw-fraction" in options)
        for i in range(len(one)):  # and any part of it
            whole, (width, height) = np.asarray(other.read(i)), other.picture(i).size
            box = (width // 3, height // 4, width // 3 + 20, height // 4 + 31)
            found = one.picture(i).region(box)
            rows, columns = (
                slice(box[1] - found.top, box[3] - found.top),
                slice(box[0] - found.left, box[2] - found.left),
            )
            assert np.array_equal(found.pixels[rows, columns], whole[box[1] : box[3], box[0] : box[2]])
            assert found.pixels.flags.writeable
    assert report["odd"]["grey"] == 6
    code, out, err = program("prepare", "--verify", "packed", "--workers", 1)
    assert (code, "18 of train, 12 of val" in out) == (0, True), err
    assert not (Path("packed") / "unfinished").exists()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's
def test_other_programs_read_the_shards(photos: Path, program: Program) -> None:
    program("prepare", photos, "packed", "--shard-images", 100)
    shard = Path("packed/train/000000.tar")
    listed = subprocess.run(["tar", "tf", shard], capture_output=True, text=True, check=True).stdout.splitlines()
    assert (len(listed), listed[:2]) == (36, ["n01/n01_0.jpg", "n01/n01_0.cls"])
    import webdataset

    data = webdataset.WebDataset(str(shard), shardshuffle=False).decode("rgb8")
    train, _ = opened(photos, ImageFolder)
    samples = list(data)
    assert [sample["__key__"] for sample in samples] == [key(train.name(i)) for i in range(len(train))]
    for i, sample in enumerate(samples):
        assert sample["cls"] == train.labels[i]
        pixels = sample["png"] if "png" in sample else sample["jpg"]
        assert np.array_equal(pixels, np.asarray(train.read(i)))


def test_dots_and_long_names_survive(photos: Path, program: Program) -> None:
    """To WebDataset a dot ends a key; a tar header has room for 100 bytes."""
    folder = photos / "train" / "n01"
    (folder / "n01_0.JPEG").rename(folder / "a.b%c.JPEG")
    (folder / "n01_7.png").rename(folder / f"{'ü' * 80}.png")
    program("prepare", photos, "packed")
    assert program("prepare", "--verify", "packed")[0] == 0
    train, _ = opened(Path("packed"))
    assert train.name(0).endswith("packed/train/000000.tar:n01/a%2Eb%25c.jpg")
    with tarfile.open("packed/train/000000.tar") as tar:
        assert f"n01/{'ü' * 80}.png" in tar.getnames()
    wanted = opened(photos, ImageFolder)[0]
    assert all(np.array_equal(np.asarray(train.read(i)), np.asarray(wanted.read(i))) for i in range(len(train)))


def test_the_largest_files_of_a_shard_are_the_raw_ones(photos: Path, program: Program) -> None:
    """Their decoding takes the longest. The others stay as they are, and a file that is gone is told when it is due."""
    program("prepare", photos, "packed", "--raw-fraction", 0.5, "--shard-images", 6)
    train, files = opened(Path("packed"))[0], opened(photos, ImageFolder)[0]
    sizes = np.array([Path(files.name(i)).stat().st_size for i in range(len(files))]).reshape(-1, 6)
    raw = (train.entries["form"] == shards.RAW).reshape(-1, 6)
    assert raw.sum(1).tolist() == [3] * len(raw)
    assert (np.where(raw, sizes, 10**9).min(1) >= np.where(raw, 0, sizes).max(1)).all()


def test_smaller_images_are_said_to_be_another_recipe(photos: Path, program: Program) -> None:
    out = program("prepare", photos, "packed", "--short-side", 64)[1]
    assert "recipe: CHANGED: shorter sides over 64 px were reduced" in out
    train, _ = opened(Path("packed"))
    wanted = [min(64, min(opened(photos, ImageFolder)[0].picture(i).size)) for i in range(len(train))]
    assert [min(train.picture(i).size) for i in range(len(train))] == wanted
    assert "recipe: unchanged" in program("prepare", photos, "same")[1]


def test_a_shard_stays_open_while_it_is_read(photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another thread opens so many that this one's turn to be closed has come."""
    program("prepare", photos, "packed")
    train, files = opened(Path("packed"))[0], opened(photos, ImageFolder)[0]
    read = os.pread

    def crowded(*arguments: int) -> bytes:
        train._file.cache_clear()
        return read(*arguments)

    monkeypatch.setattr(os, "pread", crowded)
    assert np.array_equal(np.asarray(train.read(0)), np.asarray(files.read(0)))


def test_an_index_of_other_shards_is_told(photos: Path, config: Callable[..., Path], program: Program) -> None:
    program("prepare", photos, "packed", "--shard-images", 7)
    index = Path("packed/train/index.npy")
    entries = np.load(index)
    for column, value, said in (("shard", 9, "names shard 9 of 3"), ("offset", 700, "there is none")):
        changed = entries.copy()
        changed[column][::2] = value
        np.save(index, changed)
        data = {"kind": "shards", "path": "packed", "workers": 0}
        code, _, err = program("run", config(data=data, train={"steps": 2}, **SIZED))
        assert (code, len(err.splitlines())) == (2, 1)
        assert said in err
        code, _, err = program("prepare", "--verify", "packed")
        assert (code, said in err) == (2, True)


def test_what_a_jpeg_cannot_hold_is_left_out(photos: Path, program: Program) -> None:
    Image.new("L", (70_000, 200)).save(photos / "train/n01/long.png")
    assert "cannot encode n01/long.png, 69650 x 199 pixels" in refusal(program, photos, "x", "--short-side", 199)
    code, _, err = program("prepare", photos, "packed", "--short-side", 199, "--on-bad-image", "skip")
    assert code == 0, err


def test_squares_are_averages_of_areas(photos: Path, program: Program) -> None:
    code, out, err = program("prepare", photos, "packed", "--square", 16)
    assert code == 0, err
    assert "recipe: CHANGED: every image was made 16 pixels wide and high" in out
    train, files = opened(Path("packed"))[0], opened(photos, ImageFolder)[0]
    for i in range(len(train)):
        wanted = files.read(i).resize((16, 16), Image.Resampling.BOX)
        assert np.array_equal(np.asarray(train.read(i)), np.asarray(wanted))
    assert program("prepare", "--verify", "packed")[0] == 0
    assert "have no effect" in refusal(program, photos, "x", "--square", 16, "--tiled")


def test_an_index_of_many_entries_is_mapped_and_shared(tmp_path: Path) -> None:
    """What is sent to a worker is a path, and a subset is as cheap."""
    entries = np.zeros(100_000, ENTRY)
    entries["label"] = np.arange(100_000) // 100
    entries["offset"], entries["length"], entries["width"], entries["height"] = np.arange(100_000) * 2, 1, 3, 4
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "index.npy", entries)
    (tmp_path / "train" / "000000.tar").write_bytes(b"x")
    parts = {"train": {"images": 100_000, "shards": [["000000.tar", 1]]}}
    about = {"format": shards.FORMAT, "classes": [[str(i), str(i)] for i in range(1000)], "parts": parts}
    (tmp_path / "index.json").write_text(json.dumps(about))
    source = shards.open_shards(tmp_path, "train")
    sent = pickle.dumps(source)
    assert len(sent) < 20_000
    again = pickle.loads(sent)
    assert isinstance(again.entries.base, np.memmap)
    assert again.place(99_999) == (199_998, 999, 1, 0, 3, 4, 0, 0)
    rows = sources.evenly_spaced(len(source), 1000)
    few = pickle.loads(pickle.dumps(source.subset(rows))).subset(np.array([999]))
    assert (len(few), few.labels.tolist(), few.place(0).offset) == (1, [999], 2 * 99_900)


# --- training ---------------------------------------------------------------------------------------------------------


SIZED = {"augment": {"crop": {"kind": "random-resized", "size": 24}}, "eval": {"view": {"resize": 28, "crop": 24}}}


@needs_jpegtran
def test_training_from_shards_is_training_from_folders(
    photos: Path, config: Callable[..., Path], program: Program
) -> None:
    """On two ranks: the same samples in the same order to the same loss, the last digit included."""
    program("prepare", photos, "packed", "--tiled", "--raw-fraction", 0.3, "--shard-images", 5)
    for kind, path in (("imagefolder", photos), ("shards", "packed")):
        data = {"kind": kind, "path": str(path), "workers": 1}
        process = spawn("run", config(data=data, name=kind, train={"steps": 3, "batch_size": 8}, **SIZED), ranks=2)
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    one, other = (figures(next(Path("runs", kind).rglob("seed-0"))) for kind in ("imagefolder", "shards"))
    assert one == other
    assert [record["kind"] for record in other].count("train") > 0


@needs_jpegtran
def test_training_from_real_photos_in_shards(real_images: Path, config: Callable[..., Path], program: Program) -> None:
    """Packed in two ways, verified, and trained on."""
    natural, runs = real_images / "imagenet-natural-c100", []
    for name, options in (("folders", []), ("tiled", ["--tiled"]), ("raw", ["--raw-fraction", 0.5])):
        data = {"kind": "imagefolder", "path": str(natural), "workers": 0}
        if options:
            code, _, err = program("prepare", natural, name, "--shard-images", 128, *options)
            assert code == 0, err
            assert program("prepare", "--verify", name)[0] == 0
            data |= {"kind": "shards", "path": name}
        code, _, err = program("run", config(data=data, name=f"on-{name}", train={"steps": 2}, **SIZED))
        assert code == 0, err
        runs.append(figures(next(Path("runs", f"on-{name}").rglob("seed-0"))))
    assert runs[0] == runs[1] == runs[2]


def test_a_network_is_evaluated_on_folders_or_shards(
    photos: Path, config: Callable[..., Path], program: Program
) -> None:
    program("prepare", photos, "packed")
    assert data_of("packed")["kind"] == "shards"
    data = {"kind": "imagefolder", "path": str(photos), "workers": 0}
    assert program("run", config(data=data, train={"steps": 1}, **SIZED))[0] == 0
    last = next(Path("runs").rglob("last.pt"))
    errors = [program("eval", last, "--data", path, "--json")[1] for path in (photos, "packed")]
    one, other = (json.loads(text) for text in errors)
    assert one == other


# --- sources ----------------------------------------------------------------------------------------------------------


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


def as_ilsvrc(photos: Path, folder: Path) -> None:
    """Tars as ILSVRC2012's, val's images numbered, and a development kit whose numbers are not in alphabetical order."""
    from scipy.io import savemat

    train = {f"{name}.tar": tar_bytes(files_of(photos / "train" / name)) for name in reversed(CLASSES)}
    folder.mkdir()
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


def test_ilsvrc_tars_are_the_folders_that_people_make_of_them(photos: Path, program: Program) -> None:
    as_ilsvrc(photos, Path("ilsvrc"))
    code, _, err = program("prepare", "ilsvrc", "packed", "--shard-images", 5)
    assert code == 0, err
    for one, other in zip(opened(Path("packed")), opened(photos, ImageFolder), strict=True):
        assert_same(one, other)
    assert Path("packed/classes.txt").read_text() == "thing 2, Thüng\nthing 3, Thüng\nthing 1, Thüng\n"
    Path("ilsvrc/ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert "nothing says which classes the images of ilsvrc/ILSVRC2012_img_val.tar are of" in refusal(
        program, "ilsvrc", "other"
    )


def test_parquet_is_read_as_hugging_face_writes_it(photos: Path, program: Program) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    Path("hub/data").mkdir(parents=True)
    for part, name in (("train", "train"), ("val", "validation"), ("val", "test")):
        paths = sorted((photos / part).rglob("*.*"), key=lambda path: path.name[::-1])  # shuffled, as there
        images = [{"bytes": path.read_bytes(), "path": f"/home/me/{path.name}"} for path in paths]
        labels = [-1 if name == "test" else CLASSES.index(path.parent.name) for path in paths]
        table = pa.table({"image": images, "label": labels}).replace_schema_metadata(about)
        pq.write_table(table, f"hub/data/{name}-00000-of-00001.parquet", row_group_size=4)
    code, _, err = program("prepare", "hub", "packed", "--shard-images", 5)
    assert code == 0, err
    for one, other in zip(opened(Path("packed")), opened(photos, ImageFolder), strict=True):
        assert_same(one, other)
    table = pa.table({"picture": images, "label": labels, "hash": labels})
    pq.write_table(table, "hub/data/train-00000-of-00001.parquet")
    said = refusal(program, "hub", "other")
    assert "has the columns picture, label, hash; expected image (bytes, path) and label" in said


def test_webdataset_shards_are_read(photos: Path, program: Program) -> None:
    Path("wds").mkdir()
    for part in ("train", "validation"):
        files: dict[str, bytes] = {}
        for label, name in enumerate(CLASSES):
            for path in sorted((photos / part[:5].replace("valid", "val") / name).iterdir()):
                files |= {f"{path.stem}.cls": str(label).encode(), path.name: path.read_bytes()}
                files |= {f"{path.stem}.json": b"{}"}
        tar_of(Path(f"wds/imagenet-{part}-0000.tar"), files)
    Path("names.txt").write_text("n01 tench, Tinca tinca\nn02 goldfish\nn03 shark\n")
    code, _, err = program("prepare", "wds", "packed", "--class-names", "names.txt")
    assert code == 0, err
    for one, other in zip(opened(Path("packed")), opened(photos, ImageFolder), strict=True):
        assert_same(one, other)
    assert Path("packed/classes.txt").read_text().splitlines()[0] == "tench, Tinca tinca"
    assert program("prepare", "packed", "again", "--raw-fraction", 1)[0] == 0  # shards of our own, packed anew
    for one, other in zip(opened(Path("again")), opened(photos, ImageFolder), strict=True):
        assert_same(one, other)


def test_cifar_becomes_png_of_the_same_pixels(real_images: Path, tmp_path: Path) -> None:
    source = open_source(real_images)
    listing = source.parts["train"].part(np.array([0, 17, 49_999]))
    record = write.pack(
        write.Job(tmp_path / "0.tar", tmp_path / "0.json", listing, 0, Options(), False), lambda n: None
    )
    stored = sources._torchvision(sources.StoredImages(kind="cifar10", path=str(real_images)), train=True)
    assert source.classes == list(stored.classes)
    for entry, number in zip(record["entries"], (0, 17, 49_999), strict=True):
        data = (tmp_path / "0.tar").read_bytes()[entry[1] : entry[1] + entry[3]]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), stored.images[number])
        assert entry[2] == stored.labels[number]


def test_val_without_class_folders_needs_its_labels(photos: Path, program: Program) -> None:
    wanted = opened(photos, ImageFolder)[1]
    lines = ["ImageId,PredictionString"]
    for name in CLASSES:
        for path in sorted((photos / "val" / name).iterdir()):
            lines.append(f"{path.stem},{name} 85 1 499 272")  # as Kaggle's LOC_val_solution.csv
            path.rename(photos / "val" / path.name)
        (photos / "val" / name).rmdir()
    Path("val.csv").write_text("\n".join(lines))
    assert "nothing says which classes the images of" in refusal(program, photos, "packed")
    code, _, err = program("prepare", photos, "packed", "--val-labels", "val.csv")
    assert code == 0, err
    assert [key(opened(Path("packed"))[1].name(i)) for i in range(12)] == [key(wanted.name(i)) for i in range(12)]
    Path("val.csv").write_text("\n".join(lines[:-1]))
    assert "val.csv has no class for n03_7.png" in refusal(program, photos, "other", "--val-labels", "val.csv")
    Path("val.csv").write_text("\n".join(["x,y", *lines[1:-1], "n03_7,n9"]))
    assert "says that n03_7.png is of class n9" in refusal(program, photos, "other", "--val-labels", "val.csv")
    Path("val.csv").write_text("490\n361\n")
    assert "expected an image and its class" in refusal(program, photos, "other", "--val-labels", "val.csv")


def test_matlab_files_are_read_as_scipy_reads_them() -> None:
    from scipy.io import loadmat, savemat

    struct = np.array([[(1.5, "böse"), (np.arange(3, dtype=np.int32), "")]], [("a", "O"), ("b", "O")])
    cell = np.empty((1, 2), object)
    cell[0, 0], cell[0, 1] = "text", np.uint8(7)
    values = {"s": struct, "cell": cell, "m": np.arange(6.0).reshape(2, 3), "n": np.int8(-5)}
    for compressed in (False, True):
        savemat("x.mat", values, do_compression=compressed)
        found, theirs = matlab.read(Path("x.mat").read_bytes()), loadmat("x.mat")
        assert found["m"].tolist() == theirs["m"].T.ravel().tolist()  # MATLAB's order: columns first
        assert found["n"].tolist() == [-5]
        assert [one["b"] for one in found["s"]] == ["böse", ""]
        assert [one["a"].tolist() for one in found["s"]] == [[1.5], [0, 1, 2]]
        assert (found["cell"][0], found["cell"][1].tolist()) == ("text", [7])
    for bad in (b"", bytes(200), Path("x.mat").read_bytes()[:-9]):
        with pytest.raises(ValueError, match=r"not a MATLAB 5 file|cut short|damaged"):
            matlab.read(bad)


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_finished_shards_are_not_made_again(photos: Path, program: Program) -> None:
    bad = photos / "train" / "n02" / "n02_0.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    said = refusal(program, photos, "packed", "--shard-images", 2, "--workers", 1)
    assert (
        "cannot decode n02/n02_0.JPEG: it is empty; --on-bad-image skip leaves it out; finished shards are kept" in said
    )
    made = {path: path.stat().st_ino for path in Path("packed").rglob("*.tar")}
    assert len(made) == 3
    assert not (Path("packed") / "index.json").exists()
    for options, key in ((["--raw-fraction", 0.5], "--raw-fraction = 0.0, not 0.5"), (["--tiled"], "--tiled = False")):
        assert f"packed with {key}" in refusal(program, photos, "packed", "--shard-images", 2, *options)
    bad.write_bytes(good)
    code, _, err = program("prepare", photos, "packed", "--shard-images", 2)
    assert code == 0, err
    assert made.items() <= {path: path.stat().st_ino for path in Path("packed").rglob("*.tar")}.items()
    assert_same(opened(Path("packed"))[0], opened(photos, ImageFolder)[0])
    index = Path("packed/index.json").stat().st_mtime_ns
    assert program("prepare", photos, "packed", "--shard-images", 2)[0] == 0  # all done: nothing is
    assert Path("packed/index.json").stat().st_mtime_ns == index
    shutil.copy(bad, photos / "train" / "n02" / "another.JPEG")
    assert "packed from another source" in refusal(program, photos, "packed", "--shard-images", 2)


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    listing = open_source(photos).parts["train"]
    job = write.Job(tmp_path / "000000.tar", tmp_path / "record.json", listing, 0, Options(), False)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"cannot write .*000000.tar: No space left on device; finished shards are kept"):
        write.pack(job, lambda number: None)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_cannot_be_written_is_said_by_the_program(photos: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    prepare = [sys.executable, "-m", "resnet_train", "prepare", photos, "packed", "--shard-images", "9"]
    environment = os.environ | {"PYTHONPATH": str(Path(shards.__file__).parents[2])}
    command = ["bash", "-c", 'ulimit -f 60; exec "$@"', "limited", *prepare]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cannot write packed/train/00000" in done.stderr
    assert "File too large; finished shards are kept" in done.stderr
    assert not list(Path("packed").rglob("*.tmp"))


def test_a_killed_worker_is_noticed(photos: Path, tmp_path: Path) -> None:
    """It stands still at the last file, a pipe that nobody writes to, until it is killed."""
    os.mkfifo(tmp_path / "pipe")
    good = b"photos/train/n01/n01_0.JPEG"
    paths = np.array([*[good] * 40, b"pipe"])
    listing = InFolder(np.array([f"c/{i}.jpg".encode() for i in range(41)]), np.zeros(41, np.int64), tmp_path, paths)
    job = write.Job(tmp_path / "0.tar", tmp_path / "0.json", listing, 0, Options(), False)

    def kill(number: int) -> None:
        [worker] = multiprocessing.active_children()
        os.kill(int(worker.pid or 0), signal.SIGKILL)

    with pytest.raises(BadInput, match=r"a worker process ended with -9 \(-9: killed, .*; it stays"):
        list(pool.each(write.pack, [job], 2, kill, "it stays"))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_images_stop_or_are_left_out_and_listed(photos: Path, program: Program) -> None:
    folder = photos / "train" / "n02"
    (folder / "n02_0.JPEG").write_bytes(b"")
    (folder / "n02_7.png").write_bytes((folder / "n02_7.png").read_bytes()[:900])
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    (folder / "n02_4.JPEG").write_bytes(bomb.getvalue())
    Image.fromarray(photo(50, 50)).convert("CMYK").save(folder / "n02_1.JPEG")
    Image.fromarray(photo(50, 50)).save(folder / "n02_8.JPEG", "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo(50, 50)).save(folder / "n02_5.JPEG", exif=exif)
    assert "cannot decode n02/n02_0.JPEG: it is empty" in refusal(program, photos, "packed", "--workers", 1)
    code, out, err = program("prepare", photos, "packed", "--on-bad-image", "skip")
    assert code == 0, err
    for line in ("3 left out", "1 CMYK", "1 PNG named .jpeg", "1 EXIF orientation 6, which is ignored"):
        assert f"  {line}\n" in out
    table = Path("packed/odd.csv").read_text()
    assert "train,n02/n02_4.JPEG," in table
    assert "30000 x 30000 pixels" in table or "decompression bomb" in table
    train, _ = opened(Path("packed"))
    assert train.labels.tolist() == [0] * 6 + [1] * 3 + [2] * 6
    assert program("prepare", "--verify", "packed")[0] == 0


def test_damage_is_named(photos: Path, program: Program) -> None:
    program("prepare", photos, "packed", "--shard-images", 10)
    shard = Path("packed/train/000001.tar")
    whole = shard.read_bytes()
    train, _ = opened(Path("packed"))
    place = train.place(12)
    cases = [(place.offset + 90, b"\xff"), (place.offset + -(-place.length // 512) * 512 + 512, b"7")]
    for at, byte in cases:  # in the pixels; in the label
        shard.write_bytes(whole[:at] + byte + whole[at + 1 :])
        code, _, err = program("prepare", "--verify", "packed")
        lines = err.splitlines()
        assert (code, len(lines)) == (2, 2), err
        assert f"{shard}:{key(train.name(12))}." in lines[0]
        assert "1 of 30 images are not as they were packed" in lines[1]
    shard.write_bytes(whole[:-5000])
    said = r"1.tar has .* bytes, and .* by the index; pack it again"
    with pytest.raises(BadInput, match=said):
        opened(Path("packed"))
    with pytest.raises(BadInput, match=r"cannot read .*000001.tar: it is cut short"):
        train.picture(17)
    shard.unlink()
    with pytest.raises(BadInput, match=r"the index of packed names .*: No such file or directory; pack it again"):
        opened(Path("packed"))
    shard.write_bytes(whole)
    index = Path("packed/train/index.npy")
    np.save(index, np.load(index)[:-1])
    with pytest.raises(BadInput, match=r"lists 17 images, and packed/index.json 18"):
        opened(Path("packed"))
    index.write_bytes(index.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"index.npy is damaged"):
        opened(Path("packed"))
    Path("packed/index.json").write_text("{")
    with pytest.raises(BadInput, match=r"index.json is damaged"):
        opened(Path("packed"))


def test_what_cannot_be_packed_is_refused(photos: Path, program: Program) -> None:
    Path("empty").mkdir()
    assert "cannot read nowhere: No such file or directory; expected a folder that holds" in refusal(
        program, "nowhere", "x"
    )
    assert "empty holds nothing that can be packed; expected train/CLASS/IMAGE" in refusal(program, "empty", "x")
    assert "photos is not empty" in refusal(program, photos, photos)
    assert "give the packed folder alone with --verify" in refusal(program, photos)
    assert "--tiled has no effect" in refusal(program, photos, "x", "--tiled", "--raw-fraction", 1)
    assert "only --workers and --json" in refusal(program, photos, "--verify", "--tiled")
    assert "empty/index.json: No such file" in refusal(program, "empty", "--verify")
    assert "--val-labels has no effect" in refusal(program, photos, "x", "--val-labels", "val.csv")
    (photos / "train" / "n01" / "n01_0.png").write_bytes((photos / "train" / "n01" / "n01_0.JPEG").read_bytes())
    assert "n01/n01_0.JPEG and n01/n01_0.png would have the same name" in refusal(program, photos, "x")
    (photos / "train" / "n01" / "n01_0.png").unlink()
    shutil.rmtree(photos / "val" / "n02")
    assert "train and val have different classes: n02 is only in" in refusal(program, photos, "x")
    shutil.rmtree(photos / "train" / "n01")
    (photos / "train" / "n01").write_text("")  # a file where a folder belongs
    assert "different classes" in refusal(program, photos, "x")
    shutil.rmtree(photos / "train")
    (photos / "train").write_text("")
    assert "train: Not a directory" in refusal(program, photos, "x")
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"../a.jpg": b"x", "../a.cls": b"1"}, "member ../a.jpg leads outside: refused"),
        ({"/etc/a.jpg": b"x"}, "member /etc/a.jpg leads outside: refused"),
        ({"a.jpg": b"x", "b.cls": b"0"}, "a.jpg has no a.cls beside it"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "a.cls is no label: expected a number, found b'cat'"),
        ({"a.jpg": b"x", "a.cls": b"0", "d/a.jpg": b"x", "d/a.cls": b"0", "d_a.jpg": b"x", "d_a.cls": b"0"}, "0/d_a.jpg and 0/d_a.jpg would have the same name"),
        ({"readme.txt": b"x"}, "holds no image of its train part"),
    ],
)  # fmt: skip
def test_bad_tars_are_refused(files: dict[str, bytes], said: str, program: Program) -> None:
    Path("wds").mkdir()
    tar_of(Path("wds/train-0.tar"), files)
    assert said in refusal(program, "wds", "packed")


def test_links_and_cut_tars_are_refused(photos: Path, program: Program) -> None:
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
    assert "cannot read wds/train-0.tar: it is cut short" in refusal(program, "wds", "packed")
    tar.write_text("text")
    assert "cannot read wds/train-0.tar: it is cut short, or no tar file" in refusal(program, "wds", "packed")
