"""Folders as people have them: links in circles, hidden files, other layouts, a file of labels, an order of their own."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_same, opened
from torchvision.datasets import ImageFolder

from resnet_train.config.data import ImageFolderConfig, ShardsConfig
from resnet_train.data import datasets
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.image_paths import as_text
from resnet_train.errors import BadInput
from resnet_train.packing.formats import open_source

Folders = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]


def open_folders(path: Path | str, **fields: Any) -> tuple[ImageFileDataset, ImageFileDataset]:
    train, val = datasets.open_data(ImageFolderConfig(kind="imagefolder", path=str(path), **fields))
    assert isinstance(train, ImageFileDataset)
    assert isinstance(val, ImageFileDataset)
    return train, val


def refusal(path: Path | str, **fields: Any) -> str:
    with pytest.raises(BadInput) as caught:
        open_folders(path, **fields)
    return str(caught.value)


def samples(dataset: ImageFileDataset) -> list[tuple[str, str]]:
    """Path and class name of each sample."""
    return [(dataset.name(i), dataset.classes[dataset.labels[i]]) for i in range(len(dataset))]


# --- class folders ----------------------------------------------------------------------------------------------------


def test_samples_and_order_are_those_of_torchvision(folders: Folders) -> None:
    root = folders() / "train"
    for folder in ("apple/x", "apple/x/y", "apple/x-y", "apple/X"):
        (root / folder).mkdir()
        shutil.copy(root / "apple/0.jpg", root / folder / "b.JPG")
    (root / "apple/more").symlink_to(shutil.copytree(root / "pear", root.parent / "elsewhere"))
    train, _ = open_folders(root.parent)
    theirs = ImageFolder(root)
    assert samples(train) == [(path, theirs.classes[label]) for path, label in theirs.samples]
    assert len(train) == 12 + 4 + 6


def test_of_a_folder_and_links_to_it_the_folder_is_read(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever their names, and in whatever class: the folder says to which class its images belong."""
    path = folders()
    shutil.copytree(path / "train/apple", path / "train/pear/m/deep")
    before = samples(open_folders(path)[0])
    for link in ("train/apple/a", "train/pear/a", "train/pear/z", "train/pear/m/a", "train/pear/m/z"):
        (path / link).symlink_to(path / "train/pear/m/deep")
        assert samples(open_folders(path)[0]) == before
        assert f"left out {path / link}: a link to a folder that is read elsewhere" in caplog.text
        (path / link).unlink()
    (path / "train/apple/link").symlink_to(shutil.copytree(path / "train/apple", path / "elsewhere"))
    assert len(open_folders(path)[0]) == len(before) + 6


@pytest.mark.parametrize("target", [".", "..", "../..", "../../pear", "../pear"])
def test_a_link_in_circles_adds_no_sample(target: str, folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    """Before, `ln -s ..` gave the images of each class to the others, many times."""
    path = folders()
    train, _ = open_folders(path)
    before = samples(train)
    (path / "train/apple/deep").mkdir()
    link = path / "train/apple/loop"
    link.symlink_to(target.replace("../../pear", str(path / "train/pear")))
    train, _ = open_folders(path)
    assert samples(train) == before
    assert f"left out {link}: a link to a folder that is read elsewhere" in caplog.text


def test_a_link_that_leads_nowhere_is_named(folders: Folders) -> None:
    path = folders()
    for split in ("train", "val"):
        (path / split / "quince").symlink_to("/nowhere/quince")
    assert refusal(path) == f"data.path: cannot read {path}/train/quince: No such file or directory"
    for split in ("train", "val"):
        (path / split / "quince").unlink()
        (path / split / "quince").symlink_to("quince")
    assert refusal(path) == f"data.path: cannot read {path}/train/quince: Too many levels of symbolic links"
    for split in ("train", "val"):
        (path / split / "quince").unlink()
    (path / "train/pear/more").symlink_to("/nowhere")
    assert refusal(path) == f"data.path: cannot read {path}/train/pear/more: No such file or directory"


def test_two_classes_are_not_one_folder(folders: Folders) -> None:
    path = folders()
    (path / "train/quince").symlink_to("pear")
    assert (
        refusal(path) == f"data.path: class folder {path}/train/quince links to another class, or to a folder above it"
    )


def test_what_programs_leave_in_folders_is_no_class_and_no_image(folders: Folders) -> None:
    path = folders()
    train, val = open_folders(path)
    before = samples(train), samples(val)
    for folder in ("train", "train/apple", "val", "val/pear"):
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git"):
            (path / folder / name).mkdir()
            (path / folder / name / "0.jpg").touch()
        (path / folder / "._0.jpg").touch()
    train, val = open_folders(path)
    assert (samples(train), samples(val)) == before


def test_files_that_are_left_out_are_counted_once(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    path = folders()
    for name in ("a.jfif", "b.JFIF", "c.gif", "README"):
        (path / "train/apple" / name).touch()
    for _ in range(2):
        open_folders(path)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"left out 4 files in {path}/train without the name of an image (.bmp, .jpeg," in record.getMessage()
    assert record.getMessage().endswith("): 1 .gif, 2 .jfif, 1 without an end")


def test_images_beside_class_folders_are_counted(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    path = folders()
    for name in ("0.jpg", "1.JPG", "labels.csv"):
        (path / "train" / name).touch()
    (path / "val/0.png").touch()
    open_folders(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"data.path: left out 2 images in {path}/train, beside its class folders and in none of them",
        f"data.path: left out 1 image in {path}/val, beside its class folders and in none of them",
    ]


def test_a_single_class_is_refused_with_the_layout(folders: Folders) -> None:
    path = folders()
    shutil.move(path / "train", path / "images")
    (path / "train").mkdir()
    shutil.move(path / "images", path / "train/images")
    message = f"data.path: {path}/train holds a single class folder, images; expected {path}/train/CLASS/IMAGE.jpg"
    assert refusal(path) == f"{message}, so move the folders in {path}/train/images up into {path}/train"
    shutil.rmtree(path / "train/images/pear")
    shutil.move(path / "train/images/apple", path / "train/apple")
    shutil.rmtree(path / "train/images")
    assert refusal(path) == message.replace("images;", "apple;")


# --- validation images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_val_has_other_names(name: str, folders: Folders) -> None:
    path = folders()
    _, val = open_folders(path)
    expected = [Path(name).name for name, _ in samples(val)]
    shutil.move(path / "val", path / name)
    _, val = open_folders(path)
    assert [Path(name).name for name, _ in samples(val)] == expected
    assert len(open_source(path).manifests["val"]) == len(val)
    (path / "val").symlink_to(name)
    assert len(open_folders(path)[1]) == len(val)
    (path / "val").unlink()
    shutil.copytree(path / name, path / "val")
    message = f"data.path: {path} holds val and {name}: move one of them away"
    assert refusal(path) == message
    with pytest.raises(BadInput, match=f"^{message}$"):
        open_source(path)


def flatten_val(path: Path, folder: str, separator: str = ",") -> list[str]:
    """Move the validation images into one folder; lines of their labels, sorted by name."""
    lines = []
    (path / folder).mkdir(exist_ok=True)
    for image in sorted((path / "val").glob("*/*")):
        if image.parent.name in ("apple", "pear"):
            new = f"val_{len(lines) * 7 % 6}{image.suffix}"
            lines.append(separator.join([new, image.parent.name, "0", "62"]))
            image.rename(path / folder / new)
    for name in ("apple", "pear"):
        (path / "val" / name).rmdir()
    return sorted(lines)


def test_a_file_labels_validation_images_in_one_folder(folders: Folders, program: Program) -> None:
    path = folders()
    _, val = open_folders(path)
    expected = [(np.asarray(val.decoded(i)).tobytes(), int(val.labels[i])) for i in range(len(val))]
    Path("labels.csv").write_text("\n".join(["image,class", *flatten_val(path, "val")]))
    assert f"the classes of the images in {path}/val are unknown: put ILSVRC2012_devkit_t12" in refusal(path)
    _, val = open_folders(path, val_labels="labels.csv")
    assert val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(expected) == sorted((np.asarray(val.decoded(i)).tobytes(), int(val.labels[i])) for i in range(6))

    assert program("prepare", path, "packed", "--val-labels", "labels.csv")[0] == 0
    _, packed = opened(Path("packed"))
    for i in range(6):
        assert np.array_equal(np.asarray(packed.decoded(i)), np.asarray(val.decoded(i)))
    assert packed.labels.tolist() == val.labels.tolist()

    alone = datasets.open_validation(ImageFolderConfig(kind="imagefolder", path=str(path), val_labels="labels.csv"))
    assert (alone.labels.tolist(), alone.classes) == (val.labels.tolist(), val.classes)
    shutil.rmtree(path / "train")
    alone = datasets.open_validation(ImageFolderConfig(kind="imagefolder", path=str(path), val_labels="labels.csv"))
    assert (alone.labels.tolist(), alone.classes) == (val.labels.tolist(), val.classes)


def test_labels_that_do_not_fit_are_refused(folders: Folders) -> None:
    path = folders()
    Path("labels.csv").touch()
    assert refusal(path, val_labels="labels.csv") == (
        f"data.val_labels has no effect: {path}/val holds class folders, so remove it"
    )
    lines = flatten_val(path, "val")
    Path("labels.csv").write_text("\n".join(lines[1:]))
    message = (
        f"data.val_labels: labels.csv has no class for {lines[0].partition(',')[0]}: it must name every validation"
    )
    assert message in refusal(path, val_labels="labels.csv")
    for class_name in ("1000000000", "\udce9"):
        Path("labels.csv").write_bytes(
            os.fsencode("\n".join([*lines[1:], f"{lines[0].partition(',')[0]},{class_name}"]))
        )
        assert f"the class {class_name}: expected a class of the training split" in refusal(
            path, val_labels="labels.csv"
        )
    for file, reason in (("none", "No such file or directory"), ("/dev/zero", "it is a device, not a file")):
        assert refusal(path, val_labels=file) == f"data.val_labels: cannot read {file}: {reason}"


def test_tiny_imagenet_is_read_as_it_comes(folders: Folders) -> None:
    """train/CLASS/images/IMAGE, train/CLASS/CLASS_boxes.txt, val/images/IMAGE and val/val_annotations.txt."""
    path = folders()
    for name in ("apple", "pear"):
        shutil.move(path / "train" / name, path / "images")
        (path / "train" / name).mkdir()
        shutil.move(path / "images", path / "train" / name / "images")
        (path / "train" / name / f"{name}_boxes.txt").touch()
    (path / "test/images").mkdir(parents=True)
    lines = flatten_val(path, "val/images", "\t")
    (path / "val/val_annotations.txt").write_text("\n".join(lines))
    train, val = open_folders(path)
    assert (len(train), train.classes, val.classes) == (12, ("apple", "pear"), ("apple", "pear"))
    assert samples(val) == [
        (f"{path}/val/images/{image}", name) for name, image in sorted(line.split("\t")[1::-1] for line in lines)
    ]
    manifest = open_source(path).manifests["val"]
    assert [manifest.name(i) for i in range(6)] == [
        f"{name}/{image}" for image, name, *_ in (line.split("\t") for line in lines)
    ]


def test_a_run_and_its_evaluation_read_the_labels_from_a_file(
    folders: Folders, config: Callable[..., Path], program: Program
) -> None:
    path = folders()
    crop = {"kind": "random-resized", "size": 8}
    experiment = config(
        data={"kind": "imagefolder", "path": str(path), "workers": 0},
        augment={"crop": crop},
        train={"steps": 2, "batch_size": 4},
    )
    flat = shutil.copytree(path, Path("flat"))
    Path("labels.csv").write_text("\n".join(flatten_val(flat, "val")))
    errors = []
    for folder, options in ((path, ()), (flat, ("--set", "data.val_labels=labels.csv"))):
        if not errors:
            assert program("run", experiment)[0] == 0
        checkpoint = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
        code, out, err = program("eval", checkpoint, "--data", folder, "--json", *options)
        assert code == 0, err
        errors.append([line for line in out.splitlines() if '"error_top1"' in line or '"images"' in line])
    assert errors[0] == errors[1]


# --- the order of classes ---------------------------------------------------------------------------------------------


def test_a_class_map_orders_the_labels_and_not_the_samples(folders: Folders, program: Program) -> None:
    path = folders()
    Path("order.txt").write_text("pear\napple\n")
    train, val = open_folders(path)
    mapped, mapped_val = open_folders(path, class_map="order.txt")
    assert mapped.classes == mapped_val.classes == ("pear", "apple")
    assert samples(mapped) == samples(train)
    assert samples(mapped_val) == samples(val)
    assert mapped.labels.tolist() == [1] * 6 + [0] * 6

    assert program("prepare", path, "packed")[0] == 0
    shards = datasets.open_data(ShardsConfig(kind="shards", path="packed", class_map="order.txt"))[0]
    assert isinstance(shards, ImageFileDataset)
    assert_same(shards, mapped)
    some = pickle.loads(pickle.dumps(shards.subset(np.array([11, 0]))))
    assert (some.labels.tolist(), some.classes) == ([0, 1], ("pear", "apple"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pear\n", "order.txt has no line for class apple: it must name each class once, one a line"),
        ("pear\napple\nplum\n", "order.txt names plum, which is no class of the data, such as apple"),
        ("pear\napple\npear\n", "order.txt names pear twice"),
    ],
)
def test_a_class_map_names_each_class_once(text: str, message: str, folders: Folders) -> None:
    Path("order.txt").write_text(text)
    assert refusal(folders(), class_map="order.txt") == f"data.class_map: {message}"


def test_a_class_map_may_have_other_names_beside(folders: Folders) -> None:
    Path("order.txt").write_text("pear Pyrus communis\napple Malus domestica\n")
    assert open_folders(folders(), class_map="order.txt")[0].classes == ("pear", "apple")
    os.mkfifo("pipe")
    assert refusal("images", class_map="pipe") == "data.class_map: cannot read pipe: it is a pipe, not a file"


# --- names that are not ASCII -----------------------------------------------------------------------------------------


def test_class_names_are_the_same_text_in_every_locale(
    folders: Folders, config: Callable[..., Path], program: Program
) -> None:
    """In one of ASCII, paths decode in another way."""
    path = folders()
    for split in ("train", "val"):
        (path / split / "apple").rename(path / split / "日本")
        (path / split / "pear").rename(path / split / "\udce9")
        (path / split / "日本/0.jpg").rename(path / split / "日本/\udcff.jpg")
    train, _ = open_folders(path)
    assert (
        train.classes
        == ("日本", "\udce9")
        == tuple(as_text(name) for name in ("\udce6\udc97\udca5\udce6\udc9c\udcac", "\udce9"))
    )
    experiment = config(
        data={"kind": "imagefolder", "path": str(path), "workers": 0},
        augment={"crop": {"kind": "random-resized", "size": 8}},
        train={"steps": 1, "batch_size": 4},
    )
    assert program("run", experiment)[0] == 0
    checkpoint = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
    code, out, err = program("eval", checkpoint, "--out", "here", "--json")
    assert code == 0, err
    code, out, _ = program("predict", checkpoint, path / "val", "--json")
    assert code == 0
    assert {row["class"] for record in json.loads(out) for row in record["predictions"]} == {"日本", "\udce9"}

    assert b"\xe9," in Path("here/last-one-crop-classes.csv").read_bytes()
    assert [name.partition(b"/")[0] for name in open_source(path).manifests["val"].names[::3]] == [
        "日本".encode(),
        b"\xe9",
    ]

    root = str(Path(datasets.__file__).parents[2])
    ascii_only = os.environ | {"PYTHONPATH": root, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "from resnet_train.data.image_paths import *; print(*(ascii(as_text(n)) for n in list_folder('images/val', '')[0]))"
    done = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [ascii(name) for name in train.classes]
