"""`prepare` killed, or failing, at each of its calls to the file system: the same command finishes the packing."""

import errno
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resnet_train.errors import BadInput
from resnet_train.packing import prepare
from resnet_train.packing.encode import PackOptions
from resnet_train.packing.formats import open_source
from resnet_train.packing.shard_writer import ShardJob, write_shard

_TOO_FEW = 5
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")


def pack() -> None:
    prepare.prepare(Path("images"), Path("packed"), PackOptions(), shard_images=3, workers=1, skip_bad=False)


@pytest.fixture(autouse=True)
def _source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard to train on and one to validate on, which are packed in this process."""
    for name in ("train/a/0", "train/a/1", "train/b/0", "val/a/0", "val/b/0"):
        path = Path("images", name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 9), (len(name), 0, 0)).save(path)

    def run_jobs(function: Callable[..., Any], jobs: Iterable[Any], *_: object) -> Iterator[Any]:
        return (function(job, lambda number: None) for job in jobs)

    monkeypatch.setattr(prepare, "run_jobs", run_jobs)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a disk takes its time


def interrupted(number: int, fault: str) -> int:
    """Pack in a copy of this process that suffers a fault at a call; its exit code, _TOO_FEW if it makes fewer calls."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    calls = 0

    def reach(file: int | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == number and fault == "kill":
            if file is not None and stat.S_ISREG(os.fstat(file).st_mode):
                os.truncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if calls == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        # Removing a tree names files by its descriptor and their last part.
        if (event == "open" and path.startswith("packed")) or (event in _CHANGES and not path.startswith("/")):
            reach()

    def fsync(file: int) -> None:  # Python has no event for it, nor for writing
        reach(file)

    code = 3
    try:
        monkey = pytest.MonkeyPatch()
        monkey.setattr(os, "fsync", fsync)
        sys.addaudithook(watch)
        pack()
        code = 0 if calls >= number else _TOO_FEW
    except BadInput as error:
        code = 2 if "\n" not in str(error) else 4
    finally:
        os._exit(code)


def left(root: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in sorted(root.rglob("*"))}


@pytest.mark.parametrize(("fault", "lost"), [("kill", None), ("fail", None), ("kill", "packed/train/000000.tar")])
def test_a_packing_continues_after_a_fault_at_any_call(fault: str, lost: str | None) -> None:
    """Also one that only writes a lost shard again."""
    pack()
    whole = left(Path("packed"))
    number = 0
    while True:
        number += 1
        if lost is None:
            Path("packed").rename(f"before-{number}")
        else:
            Path(lost).unlink()
        code = interrupted(number, fault)
        if code == _TOO_FEW:
            break
        # A record that cannot be read is that of a shard that is not finished.
        assert code in ((-signal.SIGKILL,) if fault == "kill" else (0, 2)), number
        pack()
        assert left(Path("packed")) == whole, number
    assert number > (45 if lost is None else 20)
    assert left(Path("packed")) == whole


def begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack all shards, and stop before the index."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            pack()


def test_a_damaged_record_is_that_of_an_unfinished_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    pack()
    whole = left(Path("packed"))
    shutil.rmtree("packed")
    begin(monkeypatch)
    begun = shutil.copytree("packed", "begun")
    record = Path("packed/unfinished/train-000000.json")
    good = record.read_text()
    texts = [
        "",
        "null",
        "[" * 100_000,
        "{}",
        good.replace(" 8, 9,", " 9, 8,", 1),
        good.replace("[[", "[[[7], "),
        good[:-9],
    ]
    for text in texts:
        assert text != good
        record.write_text(text)
        pack()
        assert left(Path("packed")) == whole, text
        shutil.rmtree("packed")
        shutil.copytree(begun, "packed")


def test_a_damaged_plan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    begin(monkeypatch)
    plan = Path("packed/unfinished/plan.json")
    for text in ("", "[]", "7", "[" * 100_000):
        plan.write_text(text)
        with pytest.raises(BadInput, match=r"^packed/unfinished/plan.json is damaged: delete packed, and run the same"):
            pack()
    plan.write_text("{}")
    with pytest.raises(BadInput, match="packed was packed with --tiled = None, not False"):
        pack()
    plan.unlink()
    os.mkfifo(plan)
    with pytest.raises(BadInput, match=r"cannot read packed/unfinished/plan.json: it is a pipe, not a file"):
        pack()


def test_a_worker_that_outlives_its_command_leaves_the_file_of_the_next_alone(tmp_path: Path) -> None:
    """One that hung at a disk fails while the same command writes the same shard again."""
    manifest = open_source(Path("images")).manifests["train"]
    job = ShardJob(tmp_path / "0.tar", tmp_path / "record.json", manifest, 0, PackOptions(), False)

    def next_command(number: int) -> None:
        write_shard(job, late)

    def late(number: int) -> None:
        assert len([*tmp_path.glob("0.tar*.tmp")]) == 2
        raise BadInput("the disk is back")

    with pytest.raises(BadInput, match="the disk is back"):
        write_shard(job, next_command)
    assert not [*tmp_path.glob("0.tar*")]
