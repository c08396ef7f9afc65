"""`resnet-train status`: how far each run is."""

import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resnet_train.runs import run_folder
from resnet_train.runs import status as run_status
from resnet_train.runs.run_folder import read_metrics
from resnet_train.runtime.tables import duration
from resnet_train.training.run_progress import ProgressSink

Program = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]


def states(program: Program, folder: str = "runs") -> dict[str, str]:
    """The state of each run, by network."""
    code, out, err = program("status", folder, "--json")
    assert code == 0, err
    return {line["network"]: line["state"] for line in json.loads(out)}


def cut(folder: Path, lines: int) -> None:
    """Leave the first lines of a record."""
    path = folder / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def test_a_run_is_seen_while_it_trains_and_after(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the command has yet to start."""
    networks = [{"base": f"cifar-{kind}-8", "widths": [4, 8, 8]} for kind in ("plain", "resnet")]
    seen: list[Any] = []
    write = ProgressSink.write

    def look(self: ProgressSink, record: Any) -> None:
        write(self, record)
        if record["kind"] == "eval" and record["step"] == 4 and not seen:
            seen.extend(run_status.run_statuses(Path("runs")))

    monkeypatch.setattr(ProgressSink, "write", look)
    assert program("run", config(networks=networks, seeds=[3]))[0] == 0
    first, second = seen
    assert (first.network, first.seed, first.state, first.step, first.total_steps) == (
        "cifar-plain-8",
        3,
        "running",
        4,
        8,
    )
    assert (first.host, first.pid) == (socket.gethostname(), os.getpid())
    errors = read_metrics(Path("runs/tiny/cifar-plain-8/seed-3"))
    evaluation = next(record for record in errors if record["kind"] == "eval")
    assert first.val_error_top1 == evaluation["val_error_top1"]
    assert first.clean_train_error == evaluation["clean_train_error_top1"]
    assert first.seconds_left == pytest.approx(evaluation["seconds"])  # half of the steps
    assert (second.network, second.seed, second.state) == ("cifar-resnet-8", 3, "waiting")
    assert states(program) == {"cifar-plain-8": "finished", "cifar-resnet-8": "finished"}
    code, out, _ = program("status", "runs", "--watch")  # ends, since no run is active
    assert (code, out.splitlines()[-1]) == (0, "2 finished")
    assert re.search(r"^run +seed +state .*\ncifar-plain-8 +3 +finished +8/8 ", out)


def test_a_narrow_terminal_lacks_whole_columns(
    recorded: Callable[..., Path], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown is shown whole: an age of 15 s is not cut to 1…."""
    recorded("cifar-resnet-20", 0, 5.0)
    wide = program("status", "runs")[1].splitlines()
    for width, last in ((len(wide[0]), "line"), (len(wide[0]) - 1, "left"), (len(wide[0]) - 12, "left")):
        monkeypatch.setattr("resnet_train.runtime.tables.terminal_width", lambda width=width: width)
        head, *lines = program("status", "runs")[1].splitlines()
        assert (head.split()[-1], max(map(len, (head, *lines))) <= width) == (last, True)
        assert "…" not in head + lines[0]
    monkeypatch.setattr("resnet_train.runtime.tables.terminal_width", lambda: len(wide[0]) - 30)
    head, line, _ = program("status", "runs")[1].splitlines()
    assert ("…" in line.split()[0], line.split()[0][-2:], head.split()[-1]) == (True, "20", "%")
    assert len(head) == len(line) == len(wide[0]) - 30


def test_every_way_in_which_a_run_can_be(recorded: Callable[..., Path], program: Program) -> None:
    recorded("cifar-resnet-20", 0, 5.0)
    recorded("cifar-resnet-32", 0, 5.0, status="diverged")
    stopped = recorded("cifar-resnet-44", 0, 5.0, status=None)
    running = recorded("cifar-resnet-56", 0, 5.0, status=None)
    (recorded("cifar-plain-20", 0, 5.0, status=None) / "diverged-at-step-25.txt").write_text("")
    (recorded("cifar-plain-32", 0, 5.0, status=None) / "diverged-at-step-8.txt").write_text("")  # and was resumed
    with ExitStack() as stack:
        run_folder.lock_run_folder(running, stack)
        assert states(program) == {
            "cifar-plain-20": "diverged",
            "cifar-plain-32": "stopped",
            "cifar-resnet-20": "finished",
            "cifar-resnet-32": "diverged",
            "cifar-resnet-44": "stopped",
            "cifar-resnet-56": "running",
        }
        _, out, _ = program("status")
    assert out.splitlines()[-1] == "1 finished, 2 diverged, 2 stopped, 1 running"
    assert all(len(line) <= 80 for line in out.splitlines())
    cut(stopped, 1)
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "kind": "tra')  # being written
    _, out, _ = program("status", stopped)
    assert re.search(r"cifar-resnet-44 +0 +stopped +0/20 +– +– +– +– ", out)


def test_a_run_of_another_machine_runs_while_its_record_grows(recorded: Callable[..., Path], program: Program) -> None:
    folder = recorded("cifar-resnet-20", 0, 5.0, status=None)
    session = {
        "ranks": 1,
        "device": "cpu",
        "torch": "2",
        "host": "elsewhere",
        "pid": 7,
        "queue": ["cifar-resnet-32/seed-1"],
    }
    (folder / "env.json").write_text(json.dumps({"sessions": [session]}))
    assert states(program) == {"cifar-resnet-20": "stopped", "cifar-resnet-32": "waiting"}
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"time": 0.0', f'"time": {time.time()}'))
    assert states(program)["cifar-resnet-20"] == "running"
    assert "elsewhere:7" in program("status")[1]


@pytest.mark.parametrize(("lives", "ends"), [(True, False), (False, True)])
def test_runs_that_wait_for_a_command_that_ended_are_not_watched(
    lives: bool, ends: bool, recorded: Callable[..., Path], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will train them: --watch would never end."""
    folder = recorded("cifar-resnet-20", 0, 5.0, status=None)
    session = {"ranks": 1, "device": "cpu", "torch": "2", "host": socket.gethostname(), "pid": 7}
    session["queue"] = ["cifar-resnet-32/seed-1"]
    (folder / "env.json").write_text(json.dumps({"sessions": [session]}))
    monkeypatch.setattr(run_status, "_is_process", lambda pid: lives)
    first, second = run_status.run_statuses(Path("runs"))
    assert (first.state, second.state, second.is_active) == ("stopped", "waiting", not ends)
    if ends:
        assert program("status", "--watch")[0] == 0


def test_a_process_is_known_by_its_number() -> None:
    assert run_status._is_process(os.getpid())
    assert not any(map(run_status._is_process, (None, 0, -1, 2**40)))


def test_what_cannot_be_shown_is_one_line(recorded: Callable[..., Path], program: Program) -> None:
    code, _, err = program("status")
    assert (code, err) == (
        2,
        "resnet-train: runs: no run folder in or under it (a run folder holds config.yaml and metrics.jsonl)\n",
    )
    metrics = recorded("cifar-resnet-20", 0, 5.0) / "metrics.jsonl"
    assert program("status", "--watch", "--json")[::2] == (
        2,
        "resnet-train: --watch shows a table: leave out --json, or call the command again and again\n",
    )
    metrics.write_text(metrics.read_text().replace('"val_error_top1": 9.0', '"val_error_top1": "nine"'))
    code, _, err = program("status")
    assert (code, f"{metrics}, line 5: not a record of a run: " in err) == (2, True)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (7.4, "7 s"), (400, "7 min"), (6300, "1.75 h"), (180000, "2.08 d")]
)
def test_durations_are_in_a_unit_that_suits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
