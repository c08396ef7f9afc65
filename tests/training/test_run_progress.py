"""How far runs are, on a terminal of 80 columns: nothing is wider, and what is left can be read."""

import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from conftest import spawn
from terminal import Screen, feed, files, open_terminal

from resnet_train.runtime import progress
from resnet_train.training import run_progress
from resnet_train.training.run_progress import GridProgress, LinesToParent, Parent, ProgressSink, RunProgress

Config = Callable[..., Path]
NETWORKS = [{"base": f"cifar-{kind}", "widths": [4, 8, 8]} for kind in ("plain-8", "plain-14", "resnet-8", "resnet-14")]


@pytest.mark.parametrize("jobs", [1, 2])
def test_four_networks_on_a_terminal(jobs: int, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they train, after a signal, and to the end."""
    monkeypatch.setenv("TERM", "xterm")
    path = config(networks=NETWORKS, train={"steps": 1_000_000}, eval={"every": {"steps": 1_000_000}})
    ours, theirs = open_terminal(80)
    process = spawn("run", path, "--jobs", jobs, **files(theirs))
    os.close(theirs)
    screen, training = Screen(80), list[str]()
    while len(training) < jobs and feed(screen, ours):
        lines = screen.lines()
        all_show = lines and lines[-1].startswith("0 of 4 runs done") and " left" in lines[-1]
        training = [line for line in lines if " seed 0 " in line and " left" in line] if all_show else []
    assert [line.split()[0] for line in training] == ["cifar-plain-8", "cifar-plain-14"][:jobs], screen.lines()
    assert screen.lines()[0].startswith("tiny: opening synthetic, 4 networks x 1 seed, ")
    process.send_signal(signal.SIGINT)
    while feed(screen, ours):
        pass
    assert (process.wait(), screen.too_wide) == (75, set())
    end = " ".join(screen.lines())
    assert "SIGINT: saving and stopping at the next step" in end
    assert " ".join(end.split()).count("of 1000000, saved; run again to continue") == jobs
    assert "|" not in end  # the lines that were drawn over are gone

    ours, theirs = open_terminal(80)
    process = spawn("run", path, "train.steps=4", "eval.every.steps=4", "output=short", "--jobs", jobs, **files(theirs))
    os.close(theirs)
    screen = Screen(80)
    while feed(screen, ours):
        pass
    assert (process.wait(), screen.too_wide) == (0, set())
    lines = screen.lines()
    for network in NETWORKS:
        assert sum(line.startswith(f"{network['base']} seed 0: step 4, val error") for line in lines) == 1
        assert sum(line.startswith(f"{network['base']} seed 0: finished in 0") for line in lines) == 1
    assert len(lines) == 10, lines
    assert lines[-1] == "figures and findings: resnet-train compare short/tiny"


class Terminal(io.StringIO):
    """Keeps what is written; its width is that of a terminal."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.files = open_terminal(columns)

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.files[1]

    def __del__(self) -> None:
        for file in self.files:
            os.close(file)


def terminal_and_clock(monkeypatch: pytest.MonkeyPatch, columns: int = 80) -> SimpleNamespace:
    """A terminal on standard error, and a clock that a test sets."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(run_progress, "time", clock)
    monkeypatch.setattr(sys, "stderr", Terminal(columns))
    monkeypatch.setenv("TERM", "xterm")
    return clock


def shown(columns: int = 80) -> list[str]:
    screen = Screen(columns)
    screen.feed(cast(Terminal, sys.stderr).getvalue())
    assert screen.too_wide == set()
    assert screen.column == 0  # where a terminal shows ^C
    return screen.lines()


def test_what_is_left_of_a_run_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = terminal_and_clock(monkeypatch)
    names = ["cifar-plain-20 seed 0", "cifar-resnet-110 seed 0"]
    grid = GridProgress(names, work=[1, 3], jobs=1)
    grid.start(0)
    assert [line.split() for line in shown()] == [
        [*names[0].split(), "0%|", "|", "starting"],
        ["0", "of", "2", "runs", "done", "0%|", "|"],
    ]
    sink = ProgressSink(names[0], 0, 100, partial(grid.show, 0))
    clock.now = 10.0
    sink.write({"kind": "train", "step": 50, "error": 12.5, "images_per_second": 640.4})
    assert shown() == [
        "cifar-plain-20 seed 0    50%|########5        | 00:10 left, train error 12.50 %",
        "0 of 2 runs done         12%|###                     | 01:10 left, 640 images/s",
    ], "\n".join(shown())


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (60, "cifar-resnet-110 seed 0  45%|#######2        | 1:00:00 left"),
        (80, "cifar-resnet-110 seed 0  45%|######7        | 1:00:00 left, train error 18.31 %"),
        (120, "| 28800/64000, 1:00:00 left, train error 18.31 %, 4800 images/s"),
    ],
)
def test_the_text_leaves_room_for_the_bar(columns: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = terminal_and_clock(monkeypatch, columns)
    grid = GridProgress(["cifar-resnet-110 seed 0"], [1], jobs=1)
    grid.start(0)
    state = RunProgress(grid.names[0], 0, 0, 64_000)
    grid.show(0, state)
    clock.now = 3600 * 28_800 / 35_200
    grid.show(0, replace(state, step=28_800, error=18.31, images_per_second=4800))
    [last] = shown(columns)
    assert last.endswith(line)
    assert len(last) < columns


def test_an_evaluation_has_a_bar_and_a_run_that_ends_leaves_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = terminal_and_clock(monkeypatch)
    grid = GridProgress(["cifar-plain-20 seed 0", "cifar-plain-56 seed 0", "cifar-plain-110 seed 0"], [1, 3, 5], jobs=2)
    for index in (0, 1):
        grid.start(index)
        grid.show(index, RunProgress(grid.names[index], 0, 0, 64_000))
    sink = ProgressSink(grid.names[1], 0, 64_000, partial(grid.show, 1))
    clock.now = 1.0
    sink.write({"kind": "train", "step": 4, "error": 90.0, "images_per_second": 128.0})
    sink.begin("evaluating", 1000)
    clock.now = 2.0
    sink.count_images(250)
    progress.write_line("a message")
    message, first, second, third = shown()
    assert message == "a message"
    assert first.startswith("cifar-plain-20 seed 0    0%|")
    assert second.startswith("cifar-plain-56 seed 0   25%|###")
    assert second.endswith("| evaluating 250/1000 images")
    assert third.startswith("0 of 3 runs done         0%|")
    assert third.endswith(" left, 128 images/s")
    grid.end(0)
    grid.start(2)
    assert [line.split(" ")[0] for line in shown()] == ["a", "cifar-plain-110", "cifar-plain-56", "1"]
    grid.close()
    assert shown() == ["a message"]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal_that_cannot_go_back_gets_lines(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = terminal_and_clock(monkeypatch)
    monkeypatch.setenv("TERM", term)
    grid = GridProgress(["cifar-plain-20 seed 0"], [1], jobs=1)
    grid.start(0)
    for clock.now in (10, 20, 61.0, 70.0):
        grid.show(0, RunProgress("cifar-plain-20 seed 0", 0, int(clock.now), 100))
    grid.close()
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    lines = "cifar-plain-20 seed 0: step 61/100, 00:32 left\n"
    assert text == lines if term == "dumb" else "\r" in text


def test_a_run_does_not_wait_for_the_process_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its messages are not lost: once that process is gone, it writes them itself."""
    monkeypatch.setattr(run_progress, "SECONDS_BETWEEN_DRAWINGS", 0)
    ours, theirs = Pipe()
    stderr = io.StringIO()
    parent = Parent(theirs, stderr)
    state = RunProgress("cifar-plain-20 seed 0", 0, 1, 2)
    print("a message", file=LinesToParent(parent))
    for _ in range(10_000):  # more than a pipe holds
        parent.send_progress(state)
    assert [ours.recv(), ours.recv()] == ["a message", state]
    ours.close()
    parent.send_progress(state)
    assert stderr.getvalue() == ""
    print("another message", file=LinesToParent(parent))
    assert stderr.getvalue() == "another message\n"
    theirs.close()


def test_lesions_are_counted(
    config: Config, program: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """14 images for the whole network and without each of three units, at most; here no two units can be swapped."""
    monkeypatch.setattr(progress.Progress, "seconds_between_lines", 0.0)
    code, _, err = program("run", config(probes={"lesion": {}}))
    assert code == 0, err
    assert "probing lesion 56/84 images\n" in err
    checkpoint = "runs/tiny/cifar-resnet-8/seed-0/checkpoints/last.pt"
    code, _, err = program("probe", "lesion", checkpoint)
    assert (code, "lesion of cifar-resnet-8: img 56/84, " in err) == (0, True), err


def test_a_note_that_all_runs_share_is_shown_once(config: Config, program: Callable[..., tuple[int, str, str]]) -> None:
    path = config(networks=NETWORKS[:2], schedule={"kind": "step", "milestones": [{"steps": 99}]}, train={"steps": 2})
    for _ in range(2):  # in a command
        code, _, err = program("run", path, "--fresh")
        assert (code, err.count("the run ends after 2 steps, before the milestone at 99\n")) == (0, 1), err
    with spawn("run", path, "--fresh", "--jobs", 2) as process:
        _, err = process.communicate()
    assert (process.returncode, err.count("the run ends after 2 steps, before the milestone at 99\n")) == (0, 1), err
