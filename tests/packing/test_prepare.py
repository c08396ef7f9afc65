"""`prepare` when things go wrong: interruptions, bad images, and what cannot be packed at all."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same, opened, photo, refusal
from PIL import Image

from resnet_train.errors import BadInput
from resnet_train.packing.encode import PackOptions
from resnet_train.packing.formats import open_source
from resnet_train.packing.shard_writer import ShardJob, write_shard

Program = Callable[..., tuple[int, str, str]]


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_finished_shards_are_not_written_again(photos: Path, program: Program) -> None:
    bad = photos / "train" / "n02" / "n02_0.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    message = refusal(program, photos, "packed", "--shard-images", 2, "--workers", 1)
    assert f"cannot decode {bad}: it is empty; replace the file" in message
    assert "or leave it out with --on-bad-image skip; finished shards are kept" in message
    finished = {path: path.stat().st_ino for path in Path("packed").rglob("*.tar")}
    assert len(finished) == 3
    assert not (Path("packed") / "index.json").exists()
    for option, value, before in (("--raw-fraction", 0.5, 0.0), ("--short-side", 30, None)):
        message = refusal(program, photos, "packed", "--shard-images", 2, option, value)
        assert f"packed with {option} = {before}, not {value}" in message
    bad.write_bytes(good)
    code, _, err = program("prepare", photos, "packed", "--shard-images", 2)
    assert code == 0, err
    assert finished.items() <= {path: path.stat().st_ino for path in Path("packed").rglob("*.tar")}.items()
    assert_same(opened(Path("packed"))[0], opened(photos, "imagefolder")[0])
    index = Path("packed/index.json").stat().st_mtime_ns
    assert program("prepare", photos, "packed", "--shard-images", 2)[0] == 0  # nothing is left to do
    assert Path("packed/index.json").stat().st_mtime_ns == index
    shutil.copy(bad, photos / "train" / "n02" / "another.JPEG")
    assert "packed from another source" in refusal(program, photos, "packed", "--shard-images", 2)


def test_a_full_disk_is_one_line_and_leaves_no_half_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    manifest = open_source(photos).manifests["train"]
    job = ShardJob(tmp_path / "000000.tar", tmp_path / "record.json", manifest, 0, PackOptions(), False)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"cannot write .*000000.tar: No space left on device; finished shards are kept"):
        write_shard(job, lambda number: None)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_full_disk_under_the_index_is_one_line(
    photos: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NumPy reports it, without the system's message."""

    def full(*_: object) -> None:
        raise OSError("18 requested and 0 written")

    monkeypatch.setattr(np, "save", full)
    message = refusal(program, photos, "packed", "--workers", 1)
    assert "cannot write packed: 18 requested and 0 written; finished shards are kept" in message


def test_a_failing_disk_met_by_a_worker_is_one_line(photos: Path, program: Program) -> None:
    """A folder lies where the shard belongs, which fails as late as a full disk does."""
    bad = photos / "train" / "n01" / "n01_0.JPEG"
    good = bad.read_bytes()
    bad.write_bytes(b"")
    refusal(program, photos, "packed", "--shard-images", 9, "--workers", 1)  # no other shard is begun
    bad.write_bytes(good)
    Path("packed/train/000001.tar").mkdir()
    for name in ("train/000001.tar", "unfinished/train-000001.json"):
        Path(f"packed/{name}.0123456789abcdef.tmp").touch()  # left by a process that was killed
    message = refusal(program, photos, "packed", "--shard-images", 9)
    assert "cannot write packed/train/000001.tar: Is a directory; finished shards are kept" in message
    assert not list(Path("packed").rglob("*.tmp"))
    Path("packed/train/000001.tar").rmdir()
    assert program("prepare", photos, "packed", "--shard-images", 9)[0] == 0


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
    assert f"cannot decode {photos}/train/n02/n02_0.JPEG: it is empty" in refusal(
        program, photos, "packed", "--workers", 1
    )
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


def test_16_bits_are_scaled_and_listed_and_what_has_no_range_is_left_out(photos: Path, program: Program) -> None:
    folder = photos / "train" / "n02"
    ramp = np.linspace(0, 65535, 50 * 40).astype(np.uint16).reshape(40, 50)
    for suffix in ("png", "tif", "pgm"):
        Image.fromarray(ramp).save(folder / f"n02_a-{suffix}.{suffix}")
    (folder / "n02_b.ppm").write_bytes(b"P6\n# a comment\n50 40\n65535\n" + ramp.repeat(3).astype(">u2").tobytes())
    for name, dtype in (("floats", np.float32), ("integers", np.int32)):
        Image.fromarray(ramp.astype(dtype)).save(folder / f"n02_{name}.tif")
    assert "its pixels are floats (mode F), which have no fixed range" in refusal(program, photos, "packed")
    code, out, err = program("prepare", photos, "packed", "--on-bad-image", "skip")
    assert code == 0, err
    assert "  4 16 bits a channel, of which the higher 8 are used\n" in out
    assert "  2 left out\n" in out
    table = Path("packed/odd.csv").read_text()
    assert "n02/n02_integers.tif" in table
    assert "32-bit integers (mode I)" in table
    train, _ = opened(Path("packed"))
    for i in range(len(train)):
        if "n02_a" in train.name(i):
            assert np.array_equal(np.asarray(train.decoded(i))[:, :, 0], ramp >> 8), train.name(i)


def test_tiled_without_jpegtran_is_refused_before_anything_is_written(
    photos: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = refusal(program, photos, "packed", "--tiled")
    assert "--tiled needs the program jpegtran, which is not installed: install the package libjpeg-turbo" in message
    assert not Path("packed").exists()


@pytest.mark.parametrize("script", ["#!/no/such/interpreter\n", "#!/bin/sh\nexit 127\n", "#!/bin/sh\nkill -9 $$\n"])
def test_a_jpegtran_that_cannot_be_run_is_refused(
    script: str, photos: Path, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/jpegtran").write_text(script)
    (tmp_path / "bin/jpegtran").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    message = refusal(program, photos, "packed", "--tiled")
    assert "--tiled needs the program jpegtran, which cannot be run: install" in message
    assert not Path("packed").exists()


def test_a_jpegtran_that_is_lost_during_the_packing_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves no image out."""
    manifest = open_source(photos).manifests["train"]
    job = ShardJob(tmp_path / "0.tar", tmp_path / "0.json", manifest, 0, PackOptions(tiled=True), True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"cannot write .*0.tar: cannot run jpegtran \(No such file or directory\); "):
        write_shard(job, lambda number: None)


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
