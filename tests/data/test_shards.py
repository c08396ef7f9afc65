"""Packed images: the samples of the folders they were made of, or an error that names the damage."""

import json
import os
import pickle
import random
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSES, assert_same, figures, key, needs_jpegtran, opened, refusal
from loading import copied_batches, equal, training_data
from PIL import Image

from resnet_train import cli
from resnet_train.config.schema import Run
from resnet_train.data import datasets, detect, shards
from resnet_train.data.shard_index import ENTRY, FORMAT, RAW
from resnet_train.errors import BadInput

Program = Callable[..., tuple[int, str, str]]
SIZED = {"augment": {"crop": {"kind": "random-resized", "size": 24}}, "eval": {"view": {"resize": 28, "crop": 24}}}


@pytest.fixture(scope="module")
def packed_once(whole_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos in shards of seven. Read only."""
    packed = tmp_path_factory.mktemp("shards") / "packed"
    assert cli.main(["prepare", str(whole_photos), str(packed), "--shard-images", "7"]) == 0
    return packed


@pytest.fixture
def packed(packed_once: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    shutil.copytree(packed_once, tmp_path / "packed")
    return Path("packed")


# --- packing ---------------------------------------------------------------------------------------------------------

OPTIONS = [[], ["--raw-fraction", 0.5], pytest.param(["--tiled", "--raw-fraction", 0.2], marks=needs_jpegtran)]


@pytest.mark.parametrize("options", OPTIONS)
def test_shards_equal_the_folders_that_they_were_made_of(options: list[Any], photos: Path, program: Program) -> None:
    code, out, err = program("prepare", photos, "packed", "--shard-images", 7, "--workers", 2, *options, "--json")
    assert code == 0, err
    report = json.loads(out)
    for packed, files, part in zip(
        opened(Path("packed")), opened(photos, "imagefolder"), ("train", "val"), strict=True
    ):
        assert_same(packed, files)
        assert_same(packed.subset(np.array([5, 2])), files.subset(np.array([5, 2])))
        counts = report["parts"][part]
        forms = np.bincount(packed.entries["form"], minlength=3).tolist()
        assert [counts["as_files"], counts["tiled"], counts["raw"]] == forms
        assert (counts["images"], counts["shards"], counts["left_out"]) == (len(files), -(-len(files) // 7), 0)
        assert (forms[1] > 0) == ("--tiled" in options)
        assert (forms[2] > 0) == ("--raw-fraction" in options)
        for i in range(len(packed)):  # any part of it is equal, too
            whole, (width, height) = np.asarray(files.decoded(i)), files.encoded(i).size
            box = (width // 3, height // 4, width // 3 + 20, height // 4 + 31)
            region = packed.encoded(i).region(box)
            rows, columns = (
                slice(box[1] - region.top, box[3] - region.top),
                slice(box[0] - region.left, box[2] - region.left),
            )
            assert np.array_equal(region.pixels[rows, columns], whole[box[1] : box[3], box[0] : box[2]])
            assert region.pixels.flags.writeable
    assert report["odd"]["grey"] == 6
    code, out, err = program("prepare", "--verify", "packed", "--workers", 1)
    assert (code, "18 of train, 12 of val" in out) == (0, True), err
    assert not (Path("packed") / "unfinished").exists()


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset's
def test_other_programs_read_the_shards(whole_photos: Path, packed_once: Path) -> None:
    tar = ["tar", "tf", packed_once / "train/000000.tar"]
    listed = subprocess.run(tar, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (len(listed), listed[:2]) == (14, ["n01/n01_0.jpg", "n01/n01_0.cls"])
    import webdataset

    data = webdataset.WebDataset(f"{packed_once}/train/{{000000..000002}}.tar", shardshuffle=False).decode("rgb8")
    train, _ = opened(whole_photos, "imagefolder")
    samples = list(data)
    assert [sample["__key__"] for sample in samples] == [key(train.name(i)) for i in range(len(train))]
    for i, sample in enumerate(samples):
        assert sample["cls"] == train.labels[i]
        pixels = sample["png"] if "png" in sample else sample["jpg"]
        assert np.array_equal(pixels, np.asarray(train.decoded(i)))


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
    wanted = opened(photos, "imagefolder")[0]
    assert all(np.array_equal(np.asarray(train.decoded(i)), np.asarray(wanted.decoded(i))) for i in range(len(train)))


def test_the_largest_files_of_a_shard_become_raw(photos: Path, program: Program) -> None:
    """Their decoding takes the longest. The other files are copied unchanged."""
    program("prepare", photos, "packed", "--raw-fraction", 0.5, "--shard-images", 6)
    train, files = opened(Path("packed"))[0], opened(photos, "imagefolder")[0]
    sizes = np.array([Path(files.name(i)).stat().st_size for i in range(len(files))]).reshape(-1, 6)
    raw = (train.entries["form"] == RAW).reshape(-1, 6)
    assert raw.sum(1).tolist() == [3] * len(raw)
    assert (np.where(raw, sizes, 10**9).min(1) >= np.where(raw, 0, sizes).max(1)).all()


def test_smaller_images_are_reported_as_another_recipe(photos: Path, program: Program) -> None:
    out = program("prepare", photos, "packed", "--short-side", 64)[1]
    assert "recipe: CHANGED: shorter sides over 64 px were reduced" in out
    train, _ = opened(Path("packed"))
    wanted = [min(64, min(opened(photos, "imagefolder")[0].encoded(i).size)) for i in range(len(train))]
    assert [min(train.encoded(i).size) for i in range(len(train))] == wanted
    assert "recipe: unchanged" in program("prepare", photos, "same")[1]


def test_an_image_too_large_for_jpeg_is_left_out(photos: Path, program: Program) -> None:
    Image.new("L", (70_000, 200)).save(photos / "train/n01/long.png")
    assert f"cannot encode {photos}/train/n01/long.png, 69650 x 199 pixels" in refusal(
        program, photos, "x", "--short-side", 199
    )
    code, _, err = program("prepare", photos, "packed", "--short-side", 199, "--on-bad-image", "skip")
    assert code == 0, err


def test_squares_are_resized_by_averaging_areas(photos: Path, program: Program) -> None:
    code, out, err = program("prepare", photos, "packed", "--square", 16)
    assert code == 0, err
    assert "recipe: CHANGED: every image was resized to 16 x 16 pixels" in out
    train, files = opened(Path("packed"))[0], opened(photos, "imagefolder")[0]
    for i in range(len(train)):
        wanted = files.decoded(i).resize((16, 16), Image.Resampling.BOX)
        assert np.array_equal(np.asarray(train.decoded(i)), np.asarray(wanted))
    assert program("prepare", "--verify", "packed")[0] == 0
    assert "have no effect" in refusal(program, photos, "x", "--square", 16, "--tiled")


def write_index(packed: Path, entries: Any) -> None:
    """Replace the index of the training images, with its checksum."""
    np.save(packed / "train/index.npy", entries)
    index = json.loads((packed / "index.json").read_text())
    index["parts"]["train"]["crc32"] = zlib.crc32(entries.tobytes())
    (packed / "index.json").write_text(json.dumps(index))


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_shard_stays_open_while_it_is_read(
    whole_photos: Path, packed_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may drop it from the cache of open shards meanwhile."""
    train, files = opened(packed_once)[0], opened(whole_photos, "imagefolder")[0]
    pread = os.pread

    def drop_from_cache(*arguments: int) -> bytes:
        train._file.cache_clear()
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", drop_from_cache)
    assert np.array_equal(np.asarray(train.decoded(0)), np.asarray(files.decoded(0)))


def test_an_index_of_many_entries_is_sent_as_its_path(tmp_path: Path) -> None:
    """To a worker, and for a subset its rows. Of the index a process keeps the labels alone."""
    entries = np.zeros(100_000, ENTRY)
    entries["label"] = np.arange(100_000) // 100
    offsets = 512 + np.arange(100_000) * 2
    entries["offset"], entries["length"], entries["width"], entries["height"] = offsets, 1, 3, 4
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "index.npy", entries)
    (tmp_path / "train" / "000000.tar").write_bytes(bytes(300_000))
    parts = {"train": {"images": 100_000, "shards": [["000000.tar", 300_000]]}}
    index = {"format": FORMAT, "classes": [[str(i), str(i)] for i in range(1000)], "parts": parts, "plan": {}}
    report = {"options": {"short_side": None, "square": None}}
    (tmp_path / "index.json").write_text(json.dumps(index | {"report": report}))
    dataset = shards.open_shards(tmp_path, "train")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 20_000
    unpickled = pickle.loads(pickled)
    assert unpickled.labels.base is None
    assert unpickled.entry(99_999) == (200_510, 999, 1, 0, 3, 4, 0, 0)
    rows = datasets.evenly_spaced(len(dataset), 1000)
    few = pickle.loads(pickle.dumps(dataset.subset(rows))).subset(np.array([999]))
    assert (len(few), few.labels.tolist(), few.entry(0).offset) == (1, [999], 512 + 2 * 99_900)


def test_an_index_that_does_not_fit_its_shards_is_refused(
    packed: Path, config: Callable[..., Path], program: Program
) -> None:
    index = packed / "train/index.npy"
    entries = np.load(index)
    for column, value, message in (("shard", 9, "names shard 9 of 3"), ("offset", 700, "there is none")):
        changed = entries.copy()
        changed[column][::2] = value
        write_index(packed, changed)
        data = {"kind": "shards", "path": "packed", "workers": 0}
        code, _, err = program("run", config(data=data, train={"steps": 2}, **SIZED))
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err
        code, _, err = program("prepare", "--verify", "packed")
        assert (code, message in err) == (2, True)


def test_an_index_with_any_damaged_byte_is_refused(packed: Path) -> None:
    """NumPy would evaluate the header: errors of a dozen kinds."""
    path = packed / "train/index.npy"
    whole, generator = path.read_bytes(), random.Random(0)
    entries = opened(packed)[0].entries
    for place in [*range(128), *generator.sample(range(128, len(whole)), 200)]:
        for byte in {whole[place] ^ 1, ord("(")} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            with pytest.raises(
                BadInput, match=r"^data.path: .*(index.npy|lists).*; delete the folder and pack it again"
            ):
                opened(packed)
    for length in (0, 7, 100, 128, 140, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(BadInput, match=r"^data.path: .*; delete the folder and pack it again"):
            opened(packed)
    path.write_bytes(whole)
    assert np.array_equal(opened(packed)[0].entries, entries)


def test_an_index_with_any_changed_number_is_refused_or_changes_no_pixel(packed: Path) -> None:
    """Where its checksum is right."""
    train = opened(packed)[0]
    entries, row = train.entries, 3
    pixels = np.asarray(train.decoded(row))
    for name in sorted(set(ENTRY.names or ()) - {"crc32"}):
        limits, value = np.iinfo(ENTRY[name]), int(entries[name][row])
        for number in {limits.min, limits.max, 0, 1, 2, 511, 512, value - 1, value + 1, 2**31, 2 * value} - {value}:
            if not limits.min <= number <= limits.max or (name == "label" and 0 <= number < len(CLASSES)):
                continue
            changed = entries.copy()
            changed[name][row] = number
            write_index(packed, changed)
            try:
                same = np.array_equal(np.asarray(opened(packed)[0].decoded(row)), pixels)
                assert same or name == "shard", (name, number)
            except BadInput:
                pass


def test_an_index_cut_while_it_is_open_is_an_error(packed: Path) -> None:
    """Of a file that is mapped it would be SIGBUS."""
    train = opened(packed)[0]
    os.truncate(packed / "train/index.npy", 300)
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    train.entry(0)
    with pytest.raises(BadInput, match=r"train/index.npy is cut short; delete the folder"):
        train.entry(17)


def test_an_index_json_of_another_shape_is_refused(packed: Path, program: Program) -> None:
    path = packed / "index.json"
    whole = path.read_text()
    refusals = []
    for tree in changed_trees(json.loads(whole)):
        path.write_text(json.dumps(tree))
        try:
            train = opened(packed)[0]
            assert (len(train), train.shards[0]) == (18, "000000.tar")
            shards.describe_changes(packed)
        except BadInput as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert max(map(len, refusals)) < 400
    for text in ("", "[" * 100_000, "null", "7", "1" * 5000, '{"format": 1}', "\xff"):
        path.write_text(text, "latin-1")
        assert "index.json is damaged; delete the folder" in refusal(program, "--verify", packed)
    path.unlink()
    os.mkfifo(path)
    assert "it is a pipe, not a file" in refusal(program, "--verify", packed)


def changed_trees(tree: Any) -> Iterator[Any]:
    """JSON values that differ from this one in one place."""
    yield from (None, -1, 2**70, "../000000.tar", [], {"a": 1})
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield {name: other for name, other in tree.items() if name != key}
            yield from ({**tree, key: changed} for changed in changed_trees(value))
    elif isinstance(tree, list):
        yield tree[:-1]
        for i, value in enumerate(tree):
            yield from ([*tree[:i], changed, *tree[i + 1 :]] for changed in changed_trees(value))


def test_damage_is_named(packed: Path, program: Program) -> None:
    shard = packed / "train/000001.tar"
    whole = shard.read_bytes()
    train, _ = opened(packed)
    entry = train.entry(12)
    cases = [(entry.offset + 90, b"\xff"), (entry.offset + -(-entry.length // 512) * 512 + 512, b"7")]
    for at, byte in cases:  # in the pixels; in the label
        shard.write_bytes(whole[:at] + byte + whole[at + 1 :])
        code, _, err = program("prepare", "--verify", "packed")
        lines = err.splitlines()
        assert (code, len(lines)) == (2, 2), err
        assert f"{shard}:{key(train.name(12))}." in lines[0]
        assert "1 of 30 images differ from the index" in lines[1]
    shard.write_bytes(whole[:-5000])
    message = r"1.tar has .* bytes, and .* by the index; pack it again"
    with pytest.raises(BadInput, match=message):
        opened(Path("packed"))
    with pytest.raises(BadInput, match=r"cannot read .*000001.tar: it is cut short"):
        train.encoded(13)
    shard.unlink()
    with pytest.raises(BadInput, match=r"the index of packed names .*: No such file or directory; pack it again"):
        opened(Path("packed"))
    shard.write_bytes(whole)
    index = Path("packed/train/index.npy")
    np.save(index, np.load(index)[:-1])
    with pytest.raises(BadInput, match=r"lists 17 images, and index.json 18"):
        opened(Path("packed"))
    index.write_bytes(index.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"index.npy is damaged"):
        opened(Path("packed"))
    Path("packed/index.json").write_text("{")
    with pytest.raises(BadInput, match=r"index.json is damaged"):
        opened(Path("packed"))


@needs_jpegtran
@pytest.mark.parametrize("rank", [0, 1])
def test_batches_from_shards_equal_those_from_folders(
    photos: Path, tiny_run: Callable[..., Run], program: Program, rank: int
) -> None:
    """Also across the end of an epoch."""
    program("prepare", photos, "packed", "--tiled", "--raw-fraction", 0.3, "--shard-images", 5)
    by_kind = []
    for kind, path in (("imagefolder", str(photos)), ("shards", "packed")):
        run = tiny_run(data={"kind": kind, "path": path, "workers": 1}, train={"batch_size": 8}, **SIZED)
        by_kind.append(copied_batches(training_data(run, rank=rank, ranks=2), 0, 3))
    assert equal(*by_kind)
    assert by_kind[0][0].images.shape == (4, 24, 24, 3)


@needs_jpegtran
def test_training_from_real_photos_in_shards(real_images: Path, config: Callable[..., Path], program: Program) -> None:
    """One photo of each class, packed in two ways, verified and trained on: the losses are equal to the last digit."""
    natural, runs = Path("natural").absolute(), []
    for folder in (real_images / "imagenet-natural-c100").glob("*/*"):
        (natural / folder.parent.name / folder.name).mkdir(parents=True)
        image = min(folder.iterdir())
        (natural / folder.parent.name / folder.name / image.name).symlink_to(image.absolute())
    for name, options in (("folders", []), ("tiled", ["--tiled"]), ("raw", ["--raw-fraction", 0.5])):
        data = {"kind": "imagefolder", "path": str(natural), "workers": 0}
        if options:
            code, _, err = program("prepare", natural, name, "--shard-images", 32, *options)
            assert code == 0, err
            assert program("prepare", "--verify", name)[0] == 0
            data |= {"kind": "shards", "path": name}
        code, _, err = program("run", config(data=data, name=f"on-{name}", train={"steps": 2}, **SIZED))
        assert code == 0, err
        runs.append(figures(next(Path("runs", f"on-{name}").rglob("seed-0"))))
    assert runs[0] == runs[1] == runs[2]


def test_a_network_is_evaluated_on_folders_or_shards(
    whole_photos: Path, packed_once: Path, config: Callable[..., Path], program: Program
) -> None:
    assert detect.data_section(str(packed_once))["kind"] == "shards"
    data = {"kind": "imagefolder", "path": str(whole_photos), "workers": 0}
    assert program("run", config(data=data, train={"steps": 1}, **SIZED))[0] == 0
    last = next(Path("runs").rglob("last.pt"))
    errors = [program("eval", last, "--data", path, "--json")[1] for path in (whole_photos, packed_once)]
    one, other = (json.loads(text) for text in errors)
    assert one == other
