"""`prepare` and damage: it repairs its own shards, and packs nothing of an incomplete source."""

import fcntl
import io
import json
import os
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
from conftest import opened, refusal
from PIL import Image

import resnet_train
from resnet_train.data.shard_index import ENTRY
from resnet_train.errors import BadInput
from resnet_train.packing import prepare

Program = Callable[..., tuple[int, str, str]]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(resnet_train.__file__).parents[1])}
"""Of a child process that imports this package."""


def prepared(program: Program, *arguments: object) -> str:
    code, out, err = program("prepare", *arguments)
    assert (code, err) == (0, "")
    return out


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- packed sets ------------------------------------------------------------------------------------------------------


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-700])


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_lost_shard_is_packed_again(damage: Callable[[Path], Any], images: Path, program: Program) -> None:
    command = images, "packed", "--shard-images", 2
    prepared(program, *command)
    whole = files(Path("packed"))
    for path in whole:
        os.utime(path, (0, 0))
    lost = {Path("packed/train/000001.tar"), Path("packed/val/000002.tar")}
    for shard in lost:
        damage(shard)
    with pytest.raises(BadInput, match=r"train/000001.tar.*; pack it again by the same resnet-train prepare command"):
        opened(Path("packed"))
    assert prepared(program, *command).startswith("packed again: train/000001.tar, val/000002.tar\npacked: 2 classes")
    assert files(Path("packed")) == whole
    assert {path for path in whole if path.stat().st_mtime > 0} == lost
    assert prepared(program, *command).startswith("nothing to do: packed before\n")
    assert json.loads(prepared(program, *command, "--json"))["packed_again"] == []


def test_a_flipped_bit_is_reported_with_a_hint(images: Path, program: Program) -> None:
    command = images, "packed", "--shard-images", 2
    prepared(program, *command)
    whole = files(Path("packed"))
    for shard in (Path("packed/val/000000.tar"), Path("packed/train/000001.tar")):
        damaged = bytearray(shard.read_bytes())
        damaged[700] ^= 1
        shard.write_bytes(damaged)
    code, _, err = program("prepare", "--verify", "packed")
    hint = "delete packed/train/000001.tar, packed/val/000000.tar and run the same resnet-train prepare command again"
    assert (code, len(err.splitlines())) == (2, 3)
    assert hint in err
    Path("packed/train/000001.tar").unlink()
    Path("packed/val/000000.tar").unlink()
    prepared(program, *command)
    assert files(Path("packed")) == whole
    prepared(program, "--verify", "packed")


def test_a_shard_is_not_repaired_with_other_images(images: Path, program: Program) -> None:
    command = images, "packed", "--shard-images", 2
    prepared(program, *command)
    whole, shard, image = files(Path("packed")), Path("packed/train/000001.tar"), images / "train/b/0.JPEG"
    good = image.read_bytes()
    shard.unlink()
    shutil.copy(images / "train/a/0.JPEG", image)  # the same size in pixels, another colour
    assert f"cannot write {shard} again: {image} has changed, or the program that encodes it" in refusal(
        program, *command
    )
    image.write_bytes(b"")
    message = refusal(program, *command, "--on-bad-image", "skip")
    assert f"cannot write {shard} again: it would have 1 images, and had 2" in message
    assert not [*shard.parent.glob("000001.*")]
    image.write_bytes(good)
    prepared(program, *command)
    assert files(Path("packed")) == whole


def test_a_damaged_index_is_refused(images: Path, program: Program) -> None:
    prepared(program, images, "packed")
    index = Path("packed/train/index.npy")
    index.write_bytes(index.read_bytes()[:-40])
    assert "index.npy is damaged; delete the folder and pack it again" in refusal(program, images, "packed")
    np.save(index, np.zeros(5, ENTRY))
    assert "lists 5 images, and index.json 6" in refusal(program, images, "packed")


def test_an_unfinished_packing_is_refused_as_a_source(images: Path, program: Program) -> None:
    (images / "val/b/2.JPEG").write_bytes(b"")
    refusal(program, images, "packed")
    for command in (("--verify", "packed"), ("packed", "again")):
        message = refusal(program, *command)
        assert "packed is not packed to its end: run the same resnet-train prepare command again" in message


# --- incomplete sources -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "train-00001-of-00003.parquet is missing: 2 of 3"),
        (["train-00000-of-00002-e6aa2d8f.parquet"], "train-00001-of-00002.parquet is missing"),
        (["train-00001-of-00002.tar"], "train-00000-of-00002.tar is missing"),
        (["a-train-0000.tar", "a-train-0002.tar"], "a-train-0001.tar is missing: 2 of 3"),
        (["train/000002.tar", "train/000003.tar"], "train/000001.tar is missing"),
        (["train/000001.tar", "train/000002.tar", "val/1.tar"], "truncated, or no tar file (empty file)"),
        (["train-9.tar", "train-11.tar", *(f"train-{i}.tar" for i in range(9))], "train-10.tar is missing"),
        (["train-00001-of-00002.tar", "train-00002-of-00002.tar", "val-0.tar"], "truncated, or no tar file (empty file)"),
        (["train-64.tar", "val-0.tar", "val-1.tar"], "truncated, or no tar file (empty file)"),
        (["train-64.tar", "val.tar", "test-00003-of-00009.tar"], "truncated, or no tar file (empty file)"),
    ],
)  # fmt: skip
def test_a_source_with_a_missing_file_is_refused(names: list[str], message: str, program: Program) -> None:
    for name in names:
        path = Path("hub", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert message in refusal(program, "hub", "packed")
    assert not Path("packed").exists()


def test_a_packed_source_with_a_missing_shard_is_refused(images: Path, program: Program) -> None:
    prepared(program, images, "packed", "--shard-images", 2)
    Path("packed/train/000002.tar").unlink()
    assert "packed/train/000002.tar: No such file or directory" in refusal(program, "packed", "other")


def test_a_tar_that_ends_between_two_members_is_truncated(images: Path, program: Program) -> None:
    tar = Path("wds/train-0.tar")
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as file:
        for i in range(3):
            for name, data in ((f"{i}.jpg", (images / f"train/a/{i}.JPEG").read_bytes()), (f"{i}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
        end = file.offset
    whole = tar.read_bytes()
    for data in (whole[:end], whole[: end - 1024], whole[: end - 1024 + 100], whole[:end] + b"\xff" * 1024):
        tar.write_bytes(data)
        message = refusal(program, "wds", "packed")
        truncated = "cannot read wds/train-0.tar: it is truncated or damaged after" in message
        assert truncated or "2.jpg has no label: expected 2.cls" in message
    tar.write_bytes(whole[: end + 512])  # some writers end with a single block
    prepared(program, "wds", "packed")


@pytest.mark.parametrize("column", ["label", "image.bytes"])
def test_a_damaged_page_is_one_line(column: str, images: Path, program: Program) -> None:
    """A page of labels is read when the source is listed, a page of images by the process that packs it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images_column = [
        {"bytes": path.read_bytes(), "path": path.name} for path in sorted((images / "train").rglob("*.JPEG"))
    ]
    path = Path("hub/train-00000-of-00001.parquet")
    path.parent.mkdir()
    pq.write_table(pa.table({"image": images_column, "label": [0, 0, 0, 1, 1, 1]}), path, use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(0)
    [at] = [c.data_page_offset for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column]
    data = bytearray(path.read_bytes())
    data[at : at + 16] = bytes(byte ^ 255 for byte in data[at : at + 16])
    path.write_bytes(data)
    assert f"cannot read {path}: " in refusal(program, "hub", "packed")


# --- bad images -------------------------------------------------------------------------------------------------------


def test_a_bad_image_is_named_by_its_path_with_a_hint(images: Path, program: Program) -> None:
    bad, good = images / "val/b/1.JPEG", (images / "val/b/1.JPEG").read_bytes()
    hint = "; replace the file (do not delete it, which would change the source), or leave it out with --on-bad-image"
    bad.write_bytes(b"")
    assert f"cannot decode {bad}: it is empty{hint}" in refusal(program, images, "packed")
    bad.unlink()
    bad.symlink_to("nowhere")
    assert f"cannot read {bad}: No such file or directory{hint}" in refusal(program, images, "packed")
    bad.unlink()
    os.mkfifo(bad)
    assert f"cannot read {bad}: it is a pipe, not a file{hint}" in refusal(program, images, "packed")
    bad.unlink()
    assert "packed from another source" in refusal(program, images, "packed")
    bad.write_bytes(good)
    prepared(program, images, "packed")


def test_the_recipe_names_images_that_were_left_out(images: Path, program: Program) -> None:
    (images / "val/b/1.JPEG").write_bytes(b"")
    out = prepared(program, images, "packed", "--on-bad-image", "skip")
    assert "recipe: unchanged, except for 1 image left out\n" in out


def test_folders_in_class_folders_are_read_as_torchvision_reads_them(images: Path, program: Program) -> None:
    from torchvision.datasets import ImageFolder

    for number, name in enumerate(("a/1.d/x.JPEG", "a/1/z.png", "a/1/y/w.JPEG", "b/Z/v.JPEG")):
        path = images / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
    reference = ImageFolder(str(images / "train"))
    folders, _ = opened(images, "imagefolder")
    assert [(folders.name(i), int(folders.labels[i])) for i in range(len(folders))] == reference.samples
    prepared(program, images, "packed", "--shard-images", 3, "--raw-fraction", 1)
    packed, _ = opened(Path("packed"))
    assert packed.labels.tolist() == folders.labels.tolist()
    assert all(
        np.array_equal(np.asarray(packed.decoded(i)), np.asarray(reference[i][0])) for i in range(len(reference))
    )


# --- destinations, and Ctrl-C -----------------------------------------------------------------------------------------


def test_an_error_before_the_first_write_mentions_no_finished_shards(images: Path, program: Program) -> None:
    Path("file").write_text("")
    assert refusal(program, images, "file/x").endswith("cannot write file/x: Not a directory")


def test_a_destination_within_the_source_is_refused(images: Path, program: Program) -> None:
    shutil.rmtree(images / "val")
    for dest in (images / "train/packed", images / "val", images / "val/packed", images / "validation/packed"):
        assert f"{dest} lies in {images}" in refusal(program, images, dest)
    prepared(program, images, images / "packed")
    assert prepared(program, images, images / "packed").startswith("nothing to do")


def test_a_destination_in_use_is_refused(images: Path, program: Program) -> None:
    Path("packed/unfinished").mkdir(parents=True)
    with Path("packed/unfinished/lock").open("w") as lock:  # as another process holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another resnet-train prepare is at work on packed" in refusal(program, images, "packed", code=73)
    prepared(program, images, "packed")


def test_ctrl_c_reports_what_is_kept(images: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    for name, message in (
        ("open_source", "run the same command again"),
        ("run_jobs", "finished shards are kept: run the same command again to continue"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(prepare, name, stop)
            code, _, err = program("prepare", images, "packed")
        assert (code, err.splitlines()[-1]) == (130, f"resnet-train: interrupted; {message}")
    prepared(program, images, "packed")


def test_ctrl_c_while_the_fork_server_starts_is_one_line(images: Path, tmp_path: Path) -> None:
    """The signal reaches the fork server before it has run a line of multiprocessing."""
    os.mkfifo(tmp_path / "pipe")
    meet = f"import sys\nif any('forkserver' in word for word in sys.orig_argv):\n    open({str(tmp_path / 'pipe')!r}).read()\n"
    (tmp_path / "sitecustomize.py").write_text(meet)
    command = [sys.executable, "-m", "resnet_train", "prepare", images, "packed"]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with (tmp_path / "pipe").open("wb"):  # waits until it is read
        os.killpg(process.pid, signal.SIGINT)
        process.wait(300)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, len(err.splitlines())) == (130, 1), err
    assert err.startswith("resnet-train: interrupted; finished shards are kept")
