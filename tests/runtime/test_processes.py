"""Child processes: their messages, their end, and how their loss is reported."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from resnet_train.errors import BadInput, Diverged, Stop
from resnet_train.runtime import process_exit, processes
from resnet_train.runtime.processes import Children, Count, run_jobs


def double(number: int, count: Count) -> int:
    """A job: 13 is bad input, 66 a bug, and 99 kills the process."""
    count(1)
    if number == 13:
        raise BadInput("13 is bad")
    if number == 66:
        raise ZeroDivisionError
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


@pytest.mark.parametrize("workers", [1, 3])
def test_jobs_are_done_and_counted(workers: int) -> None:
    counts: list[int] = []
    results = run_jobs(double, range(8), workers, counts.append, "hint")
    assert sorted(results) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert counts == [1] * 8
    assert not multiprocessing.active_children()


def test_bad_input_of_a_job_is_raised() -> None:
    with pytest.raises(BadInput, match="13 is bad"):
        list(run_jobs(double, [1, 13, 2], 2, print, "hint"))
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_bad_input_with_a_hint() -> None:
    expected = "a worker process was killed by SIGKILL, perhaps because memory ran out: use fewer"
    with pytest.raises(BadInput, match=expected):
        list(run_jobs(double, [1, 99, 2], 2, print, "use fewer"))
    assert not multiprocessing.active_children()


def test_a_bug_in_a_worker_ends_the_jobs() -> None:
    with pytest.raises(Stop, match="a worker process failed; the reason is above") as failure:
        list(run_jobs(double, [66], 1, print, "hint"))
    assert (failure.value.exit_code, failure.value.reported) == (1, True)


def diverge(connection: Connection) -> None:
    connection.send("before the end")
    raise Diverged("the loss is not finite")


def test_a_childs_own_failure_has_its_exit_code_and_comes_after_its_messages() -> None:
    with Children("hint") as children:
        child = children.start("cifar-plain-8 seed 0", diverge)
        assert list(children.receive()) == [(child, "before the end")]
        with pytest.raises(Stop, match="cifar-plain-8 seed 0 failed") as failure:
            list(children.receive())
        assert children.running == []
    assert failure.value.exit_code == Diverged.exit_code


def stop_late(connection: Connection, file: Path) -> None:
    """A child that saves before it ends, and for some time is not ready to."""
    time.sleep(0.5)

    def save(*_: object) -> None:
        file.write_text("saved")
        sys.exit(75)

    signal.signal(signal.SIGTERM, save)
    while True:
        time.sleep(0.01)


def test_children_that_save_are_ended_by_sigterm_and_waited_for(tmp_path: Path) -> None:
    with Children("hint", end_by=signal.SIGTERM) as children:
        children.start("a run", stop_late, tmp_path / "a")
        children.start("a run", stop_late, tmp_path / "b")
        assert list(children.receive(timeout=0.01)) == []
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


PARENT = """
import os, signal, sys, time
from pathlib import Path
import test_processes
from resnet_train.runtime.processes import Children

if __name__ == "__main__":
    with Children("hint", end_by=signal.Signals[sys.argv[1]]) as children:
        children.start("a child", getattr(test_processes, sys.argv[2]), Path(sys.argv[3]))
        [*children.receive(timeout=float(sys.argv[4]))]
        os.kill(os.getpid(), signal.SIGKILL)
"""


def wait_for_ever(connection: Connection, file: Path) -> None:
    connection.send("ready")
    time.sleep(1000)


@pytest.mark.parametrize(
    ("end_by", "function", "seconds"), [("SIGKILL", wait_for_ever, "20"), ("SIGTERM", stop_late, "0.1")]
)
def test_children_end_when_their_parent_is_killed(
    end_by: str, function: Callable[..., None], seconds: str, tmp_path: Path
) -> None:
    """All processes that hold the pipe have ended once its end is reached."""
    (tmp_path / "parent.py").write_text(PARENT)
    paths = [str(Path(__file__).parent), str(Path(processes.__file__).parents[2])]
    command = [sys.executable, tmp_path / "parent.py", end_by, function.__name__, tmp_path / "saved", seconds]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    parent = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, env=environment)
    assert parent.returncode == -signal.SIGKILL
    assert (tmp_path / "saved").exists() == (end_by == "SIGTERM")


def test_a_worker_whose_parent_was_killed_before_it_began_ends() -> None:
    script = (
        "import signal, subprocess, sys; from resnet_train.runtime import processes\n"
        "gone = subprocess.Popen([sys.executable, '-c', '']); gone.wait()\n"
        "processes.end_with(gone.pid, signal.SIGKILL)\n"
        "print('it goes on')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


def test_a_signal_that_comes_while_the_fork_server_starts_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)  # to this thread: another, which may be slow, would take os.kill's

    monkeypatch.setattr(processes.forkserver, "ensure_running", start)
    came: list[int] = []
    with catch(signal.SIGTERM, came), catch(signal.SIGUSR1, came), catch(signal.SIGINT, came):
        processes.ensure_fork_server()
    assert sorted(came) == sorted([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])


@contextmanager
def catch(number: int, came: list[int]) -> Iterator[None]:
    before = signal.signal(number, lambda number, _: came.append(number))
    yield
    signal.signal(number, before)


def test_a_low_limit_of_open_files_is_noticed_before_a_child_is_started() -> None:
    """multiprocessing would end its fork server with a traceback, at some numbers of files that are left."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Children("hint") as children:
        fork_server = processes.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
        lowest = os.dup(2)
        os.close(lowest)
        for left in range(1, 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, before[1]))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    children.start("a child", wait_for_ever, Path())
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
        child = children.start("a child", wait_for_ever, Path())
        assert list(children.receive()) == [(child, "ready")]
        assert fork_server == processes.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]


def test_a_worker_that_even_sigkill_does_not_end_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits for a disk: the process ends without it."""
    monkeypatch.setattr(processes, "_SECONDS_TO_DIE", 0.0)
    monkeypatch.setattr(process_exit, "_skip_cleanup", False)
    with monkeypatch.context() as patch, Children("hint") as children:
        child = children.start("a child", wait_for_ever, Path())
        patch.setattr(processes.os, "kill", lambda *_: None)
    assert f"the kernel does not end process {child.process.pid}" in caplog.text
    assert process_exit._skip_cleanup
    child.process.kill()
    child.process.join()


def end_the_job(connection: Connection) -> None:
    """What a scheduler sends to every process of a job. The answer: whether something ends this process later."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(os.getpid(), number)
    connection.send(signal.alarm(0))


def test_a_worker_goes_on_at_the_signals_of_a_job_however_long_the_evaluation_is() -> None:
    with Children("hint") as children:
        child = children.start("a child", end_the_job)
        assert list(children.receive()) == [(child, 0)]


def test_workers_of_a_block_that_is_never_left_end() -> None:
    children = Children("hint")
    processes.ensure_fork_server()
    child = children.start("a child", wait_for_ever, Path())
    assert list(children.receive()) == [(child, "ready")]
    del children
    child.process.join()
    assert child.process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_end_of_a_process_that_is_no_child_is_noticed(has_pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system does not report it, as macOS."""
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr(processes, "_SECONDS_TO_POLL", 0.01)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat:
        wait_for_end = processes._end_of(cat.pid)
    wait_for_end()
    with pytest.raises(ProcessLookupError):
        processes._end_of(cat.pid)


def test_cores_are_those_of_the_machine_where_the_system_knows_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.available_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processes.available_cores() == os.cpu_count()


def test_a_fork_server_that_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where the kernel gives it no more processes."""

    def end_of_file(_: int) -> int:
        raise EOFError

    with Children("use fewer") as children, monkeypatch.context() as patch:
        patch.setattr(processes.forkserver, "read_signed", end_of_file)
        with pytest.raises(
            BadInput, match=r"a child cannot be started, perhaps because memory or processes .* use fewer"
        ):
            children.start("a child", id)
