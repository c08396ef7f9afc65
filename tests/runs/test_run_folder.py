"""The run folder: one process at a time trains in it, and what is read of it."""

import errno
import fcntl
import json
import math
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
from resnet_train.runtime import file_lock, regular_file

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


@pytest.mark.parametrize(
    "text",
    [
        *('{"sessions"', "[]", '{"sessions": 3}', '{"sessions": [3]}', "[" * 5000, "9" * 5000, "\xff"),
        '{"sessions": [{"ranks": "1", "device": "a", "torch": "2"}]}',
    ],
)
def test_damaged_sessions_are_a_warning(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run_folder.sessions(tmp_path) == []
    (tmp_path / "env.json").write_bytes(text.encode("latin-1"))
    assert run_folder.sessions(tmp_path) == []
    assert "env.json is damaged: the machines of this run are unknown" in caplog.text


START = {"step": 0, "kind": "start", "params": 1, "macs": 1, "steps": 2, "train_images": 1, "val_images": 1}
START |= {"protocol": "whole image", "seconds": 0.0, "time": 1.5}
TRAIN = {"step": 1, "kind": "train", "error": 5, "loss": None, "lr": 0.1, "images_per_second": 3.25}
TRAIN |= {"seconds": 2.0, "time": 1.5}

EVAL = {"step": 1, "kind": "eval", "val_error_top1": 1.0, "val_error_top5": 0.0, "val_loss": None}
EVAL |= {"seconds": 2.0, "time": 1.5}
PROBE = {"step": 1, "probe_seconds": 1.0, "probe_share": 0.5, "seconds": 2.0, "time": 1.5}


def metrics(folder: Path, *records: object, rest: str = "") -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines) + rest)


def test_a_run_that_has_just_begun_has_no_records(tmp_path: Path) -> None:
    metrics(tmp_path)
    assert run_folder.read_metrics(tmp_path) == []


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    metrics(tmp_path, START, TRAIN, rest='{"step": 2, "ki')
    assert run_folder.read_metrics(tmp_path) == [START, TRAIN]
    metrics(tmp_path, START, rest=json.dumps(TRAIN))  # all but its end
    assert run_folder.read_metrics(tmp_path) == [START, TRAIN]


def test_records_of_a_long_run_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each step of a long run is more text than people write."""
    monkeypatch.setattr(regular_file.read_text, "__defaults__", (200, "", "strict"))
    train = [TRAIN | {"step": step} for step in range(1, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in (START, *train)))
    assert run_folder.read_metrics(tmp_path) == [START, *train]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"step": 1, "ki', "not JSON"),
        ("[" * 5000, "not JSON"),
        ('{"step": NaN}', "not JSON"),
        ("3", "Input should be"),
        ("null", "Input should be"),
        ("{}", "Unable to extract tag using discriminator 'kind'"),
        (TRAIN | {"kind": "x" * 10_000}, "Input tag 'x"),
        (TRAIN | {"kind": ["train"]}, "Input tag"),
        (TRAIN | {"step": "1"}, "train.step: Input should be a valid integer"),
        (TRAIN | {"step": -1}, "train.step: "),
        (TRAIN | {"step": 10**30}, "train.step: "),
        (TRAIN | {"error": None}, "train.error: "),
        (TRAIN | {"error": [3]}, "train.error: "),
        (TRAIN | {"error": 101}, "train.error: "),
        (TRAIN | {"seconds": 1e308}, "train.seconds: "),
        ({key: value for key, value in TRAIN.items() if key != "time"}, "train.time: Field required"),
        (TRAIN | {"data_wait_seconds": None}, "train.data_wait_seconds: "),
        (EVAL | {"eval_seconds": None}, "eval.eval_seconds: "),
        (TRAIN | {"kind": "end", "status": "lost"}, "end.status: "),
        (PROBE | {"kind": "lesion", "a\nb": {"x": {}}}, "lesion.a?b.x: "),
        (PROBE | {"kind": "gradients"}, "gradients.units: Field required"),
        (START, "the first one, and no other, is of kind start"),
        (TRAIN, "a second record of kind train at step 1"),
        (TRAIN | {"step": 0}, "step 0 after step 1"),
    ],
)
def test_a_line_that_is_no_record_is_named(line: object, reason: str, tmp_path: Path) -> None:
    metrics(tmp_path, START, TRAIN, line)
    with pytest.raises(BadInput) as error:
        run_folder.read_metrics(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/metrics.jsonl, line 3: not a record of a run: {reason}")
    assert message.endswith("; restore that line")
    assert message.isprintable()
    assert len(message) < 500


def test_records_begin_with_the_start(tmp_path: Path) -> None:
    metrics(tmp_path, TRAIN)
    with pytest.raises(BadInput, match="line 1: not a record of a run: the first one, and no other, is of kind start"):
        run_folder.read_metrics(tmp_path)


def test_the_time_of_a_run_is_that_of_training_evaluation_and_probes(recorded: Callable[..., Path]) -> None:
    folder = recorded("cifar-resnet-20", 0, 5.0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[2]["eval_seconds"], lines[4]["eval_seconds"] = 10.0, 20.0
    probe = {"step": 20, "kind": "responses", "layers": {"a": 1.0}, "probe_share": 0.1, "seconds": 725.0, "time": 1.0}
    metrics(folder, *lines[:-1], probe | {"probe_seconds": 5.0}, lines[-1] | {"seconds": 730.0})
    run = run_folder.read(folder)
    assert (run.training_seconds[0], run.training_seconds[2]) == (0, 350)
    assert run.time_spent == (695, 30, 5)
    for line in lines:
        line.pop("eval_seconds", None)  # of an evaluation whose time is unknown
    metrics(folder, *lines)
    assert math.isnan(run_folder.read(folder).time_spent.training)


def test_keys_that_say_where_a_run_is_trained_do_not_make_it_another(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    assert run_folder.differences(run, tiny_run(eval={"batch_size": 7}, checkpoint={"every": {"steps": 5}})) == []
    assert run_folder.differences(run, tiny_run(train={"steps": 9})) == [("train.steps", 8, 9)]
