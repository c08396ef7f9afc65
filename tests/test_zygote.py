"""A copy of the zygote is what a new Python would be, which each test starts beside it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zygote

KINDS: list[Callable[..., Any]] = [subprocess.Popen, zygote.Popen]
STATE = """
import os, signal, sys
print(sys.argv, sys.path[0], os.getcwd(), sorted(os.environ.items()), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())
print(*(f"{number.name} {signal.getsignal(number)}" for number in signal.valid_signals() if isinstance(number, signal.Signals)))
print(sorted(map(int, os.listdir("/proc/self/fd")))[:4], sys.stdin.read(), __name__, os.getppid())
print(sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdout.write_through, file=sys.stderr)
print(sys.stderr.encoding, sys.stderr.errors, sys.stderr.line_buffering, os.umask(0o22), file=sys.stderr)
sys.exit(int(sys.argv[-1]))
"""


@pytest.mark.parametrize("options", [[], ["-u"]])
@pytest.mark.parametrize("form", ["-c", "-m", "script"])
@pytest.mark.parametrize("grouping", [{}, {"start_new_session": True}, {"process_group": 0}])
def test_a_copy_has_the_state_of_a_new_process(form: str, options: list[str], grouping: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "state.py").write_text(STATE)
    command = {"-c": ["-c", STATE], "-m": ["-m", "state"], "script": [folder / "state.py"]}[form]
    environment = os.environ | {"NAME": "\udcff", "PYTHONPATH": str(folder)}
    ends = []
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which a child inherits
    try:
        for kind in KINDS:
            process = kind(
                [sys.executable, *options, *command, "a b", "3"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd="folder",
                env=environment,
                **grouping,
            )
            ends.append((*process.communicate("input"), process.returncode))
    finally:
        signal.signal(signal.SIGUSR1, before)
    new, copy = ends
    assert copy == new
    assert new[2] == 3


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os; os._exit(7)", 7),
        ("import sys; sys.exit('a message')", 1),
        ("import atexit; atexit.register(print, 'at the end'); print('before')", 0),
        ("raise ValueError('a bug')", 1),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()", 0),
        ("import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'import sys; sys.exit(9)']))", 9),
    ],
)
def test_a_copy_ends_as_a_new_process(code: str, status: int) -> None:
    ends = []
    for kind in KINDS:
        process = kind([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate()
        ends.append((out, err.splitlines()[-1:], process.returncode))
    new, copy = ends
    assert copy == new
    assert new[2] == status


CHILDREN = """
import multiprocessing, os, subprocess, sys

def work(connection):
    connection.send(["torch" in sys.modules, os.getcwd(), os.environ["NAME"]])

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    child = context.Process(target=work, args=(theirs,))
    child.start()
    print(ours.recv(), flush=True)
    child.join()
    subprocess.run([sys.executable, "-c", "import sys; print('torch' in sys.modules)"])
"""


def test_what_a_copy_starts_is_a_copy(tmp_path: Path) -> None:
    """The fork server and other Pythons: torch, which they never import, is there."""
    (tmp_path / "children.py").write_text(CHILDREN)
    lines = []
    for kind in KINDS:
        environment = os.environ | {"NAME": "value"}
        command = [sys.executable, "children.py"]
        lines.append(kind(command, stdout=subprocess.PIPE, text=True, env=environment).communicate()[0].splitlines())
    assert lines == [[f"[{torch}, {str(tmp_path)!r}, 'value']", torch] for torch in ("False", "True")]


def test_no_process_stays_behind() -> None:
    """Of a copy that is killed, too. All processes that hold the pipe have ended once its end is reached."""
    code = "import sys, time; print('ready', flush=True); time.sleep(1000)"
    process = zygote.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate()
    while process_group(process.pid):
        pass
    assert process.returncode == -signal.SIGKILL


def process_group(leader: int) -> list[int]:
    """Its processes that run."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            members.append(int(path.parent.name))
    return members
