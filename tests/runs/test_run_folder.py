"""The run folder: one process at a time trains in it, and what is read of it."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from resnet_train.config.schema import Run
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder
from resnet_train.runtime import file_lock

OTHER = """
import sys
from contextlib import ExitStack
from pathlib import Path
from resnet_train.errors import BadInput
from resnet_train.runs import run_folder
try:
    run_folder.lock_run_folder(Path(sys.argv[1]), ExitStack())
except BadInput as error:
    print(error)
"""


def refusal_of_another_process(folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(run_folder.__file__).parents[2])}
    command = [sys.executable, "-c", OTHER, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_a_lock_that_is_taken_twice_is_held_until_both_are_released(tmp_path: Path) -> None:
    with ExitStack() as outer:
        run_folder.lock_run_folder(tmp_path, outer)
        with ExitStack() as inner:
            run_folder.lock_run_folder(tmp_path, inner)
        assert refusal_of_another_process(tmp_path) == f"{tmp_path}: another process trains in it; stop that first\n"
    assert refusal_of_another_process(tmp_path) == ""


def test_a_run_that_starts_afresh_holds_its_new_folder(tiny_run: Callable[..., Run], tmp_path: Path) -> None:
    run, folder = tiny_run(), tmp_path / "seed-0"
    with ExitStack() as locks:
        run_folder.open_run_folder(run, folder, fresh=False, stack=locks)
        run_folder.open_run_folder(run, folder, fresh=True, stack=locks)
        [old] = tmp_path.glob("seed-0.*.old")
        assert "another process trains in it" in refusal_of_another_process(folder)
        assert refusal_of_another_process(old) == ""
    assert refusal_of_another_process(folder) == ""


def test_without_locks_a_warning_is_logged_and_nobody_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with file_lock.locked(tmp_path / "lock", "another process has it"):
        assert "this file system has no locks" in caplog.text


def test_damaged_sessions_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run_folder.sessions(tmp_path) == []
    (tmp_path / "env.json").write_text('{"sessions"')
    assert run_folder.sessions(tmp_path) == []
    assert "env.json is damaged: the machines of this run are unknown" in caplog.text


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    assert run_folder.read_metrics(tmp_path) == [{"step": 1, "kind": "train"}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "ki\n{"step": 2, "kind": "train"}\n')
    with pytest.raises(BadInput, match=r"metrics.jsonl, line 1: not a JSON object"):
        run_folder.read_metrics(tmp_path)


def test_keys_that_say_where_a_run_is_trained_do_not_make_it_another(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    assert run_folder.differences(run, tiny_run(eval={"batch_size": 7}, checkpoint={"every": {"steps": 5}})) == []
    assert run_folder.differences(run, tiny_run(train={"steps": 9})) == [("train.steps", 8, 9)]
