"""What the tests share: a tiny experiment, the program called in process, and the real images where they are."""

import contextlib
import gc
import json
import os

# Before torch is imported. These networks are too small for two threads to share, and on a busy machine torch's threads
# spend their time waiting for each other: ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zygote
from PIL import Image
from pydantic import TypeAdapter

from resnet_train import cli
from resnet_train.analysis.groups import Group, group_runs
from resnet_train.config import load
from resnet_train.config.data import DataConfig
from resnet_train.config.merge import merge
from resnet_train.config.schema import Run
from resnet_train.data import datasets
from resnet_train.data.decoding import ImageArray
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.packing import jpeg_restart
from resnet_train.runs import run_folder
from resnet_train.runs.records import Record
from resnet_train.runs.run_folder import TIMING_KEYS

# A shell lets what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A run unfreezes at its end what it found, and the next one would search all of torch's objects for garbage, which takes
# longer than a tiny run.
unfreeze = gc.unfreeze
gc.unfreeze = lambda: None
zygote.sync_nothing()

TINY: dict[str, Any] = {
    "name": "tiny",
    "networks": [{"base": "cifar-resnet-8", "stem": "cifar", "widths": [4, 8, 8]}],
    "data": {"kind": "synthetic", "size": 8, "classes": 4, "train_images": 40, "val_images": 14},
    "augment": {"crop": {"kind": "pad", "padding": 1}, "flip": True},
    "train": {"steps": 8, "batch_size": 16, "device": "cpu"},
    "eval": {"every": {"steps": 4}, "batch_size": 5, "clean_train_images": 10},
    "checkpoint": {"every": {"steps": 3}},
    "log": {"every": {"steps": 2}},
}
"""16 of 40 samples a step: every third step crosses an epoch. Saved between two log lines."""


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """A test may print names of files that are not UTF-8; xdist sends nothing but text."""
    return as_text((yield))


def as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list | tuple):
        return type(value)(map(as_text, value))
    return {name: as_text(item) for name, item in value.items()} if isinstance(value, dict) else value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: at the end one process would wait for the other."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what was skipped and why, one line for each reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped).most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Leave what is there to no later search for garbage: each run makes two, and among torch's objects they are slow."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, which is where `runs/` goes."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny experiment with changes, such as `config(train={"steps": 2})`; the path of the file."""

    def write(file: str = "tiny.yaml", **changes: Any) -> Path:
        path = tmp_path / file
        path.write_text(yaml.safe_dump(merge(TINY, changes)))
        return path

    return write


@pytest.fixture
def tiny_run(config: Callable[..., Path]) -> Callable[..., Run]:
    """The first run of the tiny experiment with changes."""
    return lambda **changes: next(load.runs(load.load(config(**changes))))


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `resnet-train` in this process: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


LAST = "runs/tiny/{}/seed-0/checkpoints/last.pt"


@pytest.fixture(scope="session")
def _two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-steps")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(merge(TINY, {"train": {"steps": 2}})))
    with contextlib.chdir(folder):
        assert cli.main(["run", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def checkpoint(_two_steps: Path) -> str:
    """The tiny network after two steps."""
    shutil.copytree(_two_steps / "runs", Path("runs"), dirs_exist_ok=True)
    return LAST.format("cifar-resnet-8")


def spawn(
    *arguments: object,
    ranks: int = 1,
    program: Sequence[object] = ("-m", "resnet_train"),
    kind: type[subprocess.Popen[str]] = zygote.Popen,
    **options: Any,
) -> subprocess.Popen[str]:
    """Start `resnet-train`, or another program, as a process, under torchrun if there are several ranks.

    kind: `subprocess.Popen` starts a new Python, which must import torch. `zygote` says what differs.
    """
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *launcher, *map(str, program), *map(str, arguments)]
    paths = [str(Path(cli.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return kind(command, env=environment, **(pipes | options))


def figures(folder: Path) -> list[Record]:
    """The records of a run but for the clock."""
    return [{k: v for k, v in record.items() if k not in TIMING_KEYS} for record in run_folder.read_metrics(folder)]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold bit-identical state."""
    a, b = (torch.load(path, weights_only=True) for path in (one, other))
    flat_a, flat_b = (
        torch.utils._pytree.tree_leaves(
            [p[key] for key in ("net", "ema", "optimizer", "scaler", "ranks", "step", "best")]
        )
        for p in (a, b)
    )
    assert any(isinstance(leaf, torch.Tensor) for leaf in flat_a)
    return len(flat_a) == len(flat_b) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(flat_a, flat_b, strict=True)
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Class folders of three photographs for each of two classes."""
    for part in ("train", "val"):
        for i, name in enumerate(("a", "b")):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for j in range(3):
                Image.new("RGB", (50 + j, 44), (80 * i, 40 * j, 90)).save(folder / f"{j}.JPEG")
    return tmp_path / "imagenet"


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Class folders of noise, 9 training images of 8 x 8 pixels for each of four classes, and one more of the last."""
    random = np.random.default_rng(0)
    for part, count in (("train", 37), ("val", 14)):
        for i in range(count):
            folder = tmp_path / "squares" / part / f"class-{min(i // (count // 4), 3)}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return tmp_path / "squares"


@pytest.fixture
def folders(tmp_path: Path) -> Callable[..., Path]:
    """Make an image folder: two classes of noise, with files of several sizes and kinds."""

    def make(train: int = 6, val: int = 3) -> Path:
        random = np.random.default_rng(0)
        for part, count in (("train", train), ("val", val)):
            for name in ("apple", "pear"):
                (tmp_path / "images" / part / name).mkdir(parents=True)
                for i in range(count):
                    shape = (40 + 3 * i, 60 - 4 * i, 3)
                    path = tmp_path / "images" / part / name / f"{i}.{'png' if i % 2 else 'jpg'}"
                    Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(path)
        return tmp_path / "images"

    return make


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real images that RESNET_TRAIN_DATA names."""
    folder = os.environ.get("RESNET_TRAIN_DATA")
    if not folder:
        pytest.skip("RESNET_TRAIN_DATA names no folder of real images")
    return Path(folder)


# --- packed images ----------------------------------------------------------------------------------------------------

needs_jpegtran = pytest.mark.skipif(not jpeg_restart.jpegtran_available(), reason="there is no jpegtran")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where jpegtran is installed, tests of packing run with it and without."""
    if metafunc.definition.path.parent.name == "packing" and jpeg_restart.jpegtran_available():
        metafunc.fixturenames.insert(0, "path_of_programs")
        metafunc.parametrize("path_of_programs", ["all", "none"], indirect=True)


@pytest.fixture
def path_of_programs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.param == "none":
        monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


CLASSES = ("n01", "n02", "n03")
SIZES = [(90, 60), (61, 83), (120, 120), (200, 77)]


def photo(width: int, height: int, seed: int = 0) -> ImageArray:
    """Something with edges and slopes in every channel, as photos have."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (1 + height // 9, 1 + width // 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int64)
    return (smooth + random.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def whole_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of generated photos: three classes, four sizes, JPEG of several kinds and PNG. Not to be changed."""
    root = tmp_path_factory.mktemp("whole") / "photos"
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


@pytest.fixture
def photos(whole_photos: Path, tmp_path: Path) -> Path:
    """The same, to change."""
    return shutil.copytree(whole_photos, tmp_path / "photos")


def unpack(path: Path, folder: Path = Path()) -> None:
    """Unpack a tar file that a test has written. Python 3.11.2, which Debian 12 has, knows no filter yet."""
    with tarfile.open(path) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)


def opened(path: Path, kind: str = "shards") -> tuple[ImageFileDataset, ImageFileDataset]:
    """The training and validation sets of a packed folder, or of class folders if `kind` is `imagefolder`."""
    train, val = datasets.open_data(TypeAdapter[Any](DataConfig).validate_python({"kind": kind, "path": str(path)}))
    assert isinstance(train, ImageFileDataset)
    assert isinstance(val, ImageFileDataset)
    return train, val


def key(name: str) -> str:
    """CLASS/STEM of a sample, whether its name is a path or that of a shard's member."""
    return "/".join(name.rpartition(":")[2].rsplit(".", 1)[0].split("/")[-2:])


def assert_same(one: ImageFileDataset, other: ImageFileDataset) -> None:
    """The same classes, samples, order and pixels."""
    assert one.classes == other.classes
    assert one.labels.tolist() == other.labels.tolist()
    assert [key(one.name(i)) for i in range(len(one))] == [key(other.name(i)) for i in range(len(other))]
    for i in range(len(one)):
        assert one.encoded(i).size == other.encoded(i).size
        assert np.array_equal(np.asarray(one.decoded(i)), np.asarray(other.decoded(i))), one.name(i)


def refusal(program: Callable[..., tuple[int, str, str]], *arguments: object, code: int = 2) -> str:
    """The one line by which `prepare` refuses."""
    actual, _, err = program("prepare", *arguments)
    lines = err.splitlines()
    assert (actual, len(lines)) == (code, 1), err
    return str(lines[0])


@pytest.fixture
def recorded(config: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder whose errors end at `clean`; running and validation errors follow from it.

    The clean one is of 10,000 images, as the validation error, the running one of the last 10 steps' 160.
    """

    def write(network: Any, seed: int, clean: float, status: str | None = "finished", **changes: Any) -> Path:
        path = config(
            **merge({"networks": [network], "seeds": [seed], "eval": {"clean_train_images": 10_000}}, changes)
        )
        [run] = load.runs(load.load(path))
        folder = run_folder.folder_of("runs", run)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(load.dump(run)))
        facts = {"params": 1000, "macs": 2_000_000, "steps": 20, "protocol": "whole image"}
        images = {"train_images": 50_000, "val_images": 10_000}
        records: list[dict[str, Any]] = [{"step": 0, "kind": "start", **facts, **images, "seconds": 0.0}]
        for step in (10, 20):
            more = 20 - step
            speed = {"images_per_second": 50.0 * step, "seconds": step * 36.0}
            running = {"error": clean + 2 + more, "loss": 0.5, "lr": 0.1}
            records.append({"step": step, "kind": "train", **running, **speed})
            errors = {"clean_train_error_top1": clean + more, "val_error_top5": 1.0, "val_loss": 0.5}
            records.append(
                {
                    "step": step,
                    "kind": "eval",
                    "val_error_top1": clean + 4 - more / 20,
                    **errors,
                    **speed,
                    "eval_seconds": 0.0,
                }
            )
        if status:
            records.append({"step": 20, "kind": "end", "status": status, "seconds": 720.0})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record | {"time": 0.0}) + "\n" for record in records))
        return folder

    return write


def groups() -> list[Group]:
    return group_runs(run_folder.find([Path("runs")]))
