"""Python processes without the seconds of importing torch: copies of a process that has imported it.

`Popen` is `subprocess.Popen` for commands such as `[sys.executable, "-m", "resnet_train", …]`. A copy is a child of the
process that starts it; its arguments, environment, folder, files, process group, signals and exit status are those of
a process of its own. It starts ranks (torchrun) and multiprocessing's fork server as copies, too. What differs:
`preexec_fn` is refused, environment variables that are read when Python starts or torch is imported come too late (HOME
for matplotlib, the locale), `/proc/PID/cmdline` is that of the zygote, `os.fsync` does nothing, and at its end objects are
not freed one by one. For these, use `subprocess.Popen`.

Run as a program, this file is a zygote: it serves requests on the socket that is its standard input, and ends with the
process at the other end. It has one thread, so that a copy finds no lock held by another.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import inspect
import json
import multiprocessing.process
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NoReturn

_ROOT = Path(__file__).parents[1]
_IMPORTED = (
    *("matplotlib.figure", "multiprocessing.popen_forkserver", "torch.utils.tensorboard", "torchvision"),
    *(
        "torch._dynamo",
        "torch.distributed.launcher.api",
        "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    ),
    *(f"resnet_train.{name}" for name in ("training.grid", "training.loop", "training.sinks")),
    *(f"resnet_train.{name}" for name in ("evaluation.ensemble", "packing.prepare")),
)
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_CHILD_SUBREAPER = 36
_execute_child = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_spawn = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]
_lock = threading.Lock()
_requests: socket.socket | None = None
"""Leads to the zygote of process `_owner`. What that has forked has none, and starts new Pythons."""
_owner = 0


class Popen(subprocess.Popen[str]):
    """A copy of the zygote in place of a new Python."""

    def _execute_child(self, *arguments: Any) -> None:
        _copy_in_place_of_child(self, *arguments)


def _copy_in_place_of_child(process: Any, *arguments: Any) -> None:
    given = inspect.signature(_execute_child).bind(process, *arguments).arguments
    if given["preexec_fn"]:
        raise ValueError("a copy calls no preexec_fn: use subprocess.Popen")
    pipes = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
    files = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
    process.pid = _start(
        list(map(os.fspath, given["args"])),
        dict(zip((0, 1, 2, *given["pass_fds"]), (*files, *given["pass_fds"]), strict=True)),
        given["cwd"],
        given["env"],
        session=given["start_new_session"],
        group=given.get("process_group", -1),
    )
    process._child_created = True
    ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    process._close_pipe_fds(*(given[name] for name in ends))


def _start(
    command: Sequence[str],
    files: dict[int, int],
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    session: bool = False,
    group: int = -1,
) -> int:
    """Start a copy; its process id. files: the file descriptors of the copy, and what they are here."""
    request = {
        "command": command,
        "files": list(files),
        "cwd": str(Path(cwd or ".").absolute()),
        "env": dict(os.environ if env is None else env),
        "session": session,
        "group": group,
        "ignored": [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_IGN],
    }
    with _lock:
        requests = _zygote()
        assert _owner == os.getpid()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # so that the copy becomes a child of this process
        try:
            socket.send_fds(requests, [json.dumps(request).encode()], list(files.values()))
            return int(requests.recv(20))
        finally:
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _zygote() -> socket.socket:
    global _requests, _owner
    if _requests is None:
        _owner = os.getpid()
        _requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, __file__]
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, cwd=_ROOT, env=environment)
        theirs.close()
        atexit.register(process.wait)
        atexit.register(_requests.close)
    return _requests


def sync_nothing() -> None:
    """Let `os.fsync` return at once, in this process and its copies: no test cuts the power, and a disk may be slow."""
    os.fsync = lambda file: os.fstat(file) and None  # type: ignore[assignment,return-value]


def main() -> None:
    """Serve requests."""
    for name in _IMPORTED:
        importlib.import_module(name)
    sync_nothing()
    gc.collect()
    gc.freeze()
    requests = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _become(*_serve(requests))


def _serve(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; returns in the copy, and never in the zygote."""
    assert len([*Path("/proc/self/task").iterdir()]) == 1
    while True:
        message, files, *_ = socket.recv_fds(requests, 1 << 20, 100)
        if not message:
            os._exit(0)
        answer, process_id = os.pipe()
        middle = os.fork()
        if middle == 0:  # ends at once, so that the copy becomes a child of the process that asked for it
            middle = os.getpid()
            if os.fork():
                os._exit(0)
            while os.getppid() == middle:
                time.sleep(0.001)
            request = json.loads(message)
            if request["session"]:
                os.setsid()
            if request["group"] >= 0:
                os.setpgid(0, request["group"])
            os.write(process_id, str(os.getpid()).encode())
            for number in (requests.detach(), answer, process_id):
                os.close(number)
            return request, files
        os.waitpid(middle, 0)
        requests.send(os.read(answer, 20))
        for number in (answer, process_id, *files):
            os.close(number)


def _become(request: dict[str, Any], files: list[int]) -> None:
    """Turn this copy into the process that was asked for, and run its command."""
    global _requests, _owner
    _requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:  # the zygote of this process
        _requests.close()
        for number in files:
            os.close(number)
        for number in _SIGNALS:  # which a job sends to all of its processes
            signal.signal(number, signal.SIG_IGN)
        _become(*_serve(theirs))
        return
    theirs.close()
    _owner = os.getpid()
    for number in _SIGNALS:
        ignored = number in request["ignored"]
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if ignored else default)
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 200) for number in files]
    for number in files:
        os.close(number)
    _requests = socket.socket(fileno=fcntl.fcntl(_requests.detach(), fcntl.F_DUPFD_CLOEXEC, 200))
    for number, file in zip(request["files"], high, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    multiprocessing.process.ORIGINAL_DIR = request["cwd"]
    subprocess.Popen._execute_child = _copy_if_python  # type: ignore[attr-defined]
    multiprocessing.util.spawnv_passfds = _copy_if_fork_server  # type: ignore[attr-defined]
    code: object = None
    try:
        _run(request["command"][1:])
    except SystemExit as stop:
        code = stop.code
    _exit(code)


def _exit(code: object) -> NoReturn:
    """End as Python ends, but do not free each object: the pages of a copy would have to be copied for that."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if code is None or isinstance(code, int):
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit((code or 0) & 0xFF)
    sys.exit(code)  # type: ignore[arg-type]


def _copy_if_python(process: Any, args: Any, *arguments: Any) -> None:
    python = isinstance(args, list | tuple) and args[0] == sys.executable
    copied = python and _owner == os.getpid()
    (_copy_in_place_of_child if copied else _execute_child)(process, args, *arguments)


def _copy_if_fork_server(path: str, args: Sequence[bytes | str], pass_fds: Sequence[int]) -> int:
    command = [os.fsdecode(arg) for arg in args]
    if not any(forkserver.__name__ in word for word in command) or _owner != os.getpid():
        return int(_spawn(path, args, pass_fds))
    return _start(command, {number: number for number in (0, 1, 2, *pass_fds)})


def _run(command: list[str]) -> None:
    """What `python COMMAND` does after its start."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    while command[0].startswith("-") and command[0] not in ("-m", "-c"):
        option = command.pop(0)
        unbuffered |= option == "-u"
        if option in ("-X", "-W"):
            command.pop(0)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        was = getattr(sys, name)
        stream = open(number, was.mode, encoding=was.encoding, errors=was.errors, closefd=False)  # noqa: SIM115
        lines = not unbuffered and (name == "stderr" or stream.isatty())
        stream.reconfigure(write_through=unbuffered, line_buffering=lines)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if command[0] == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), command[1:]
        sys.modules.pop(command[1], None)
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    elif command[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *command[2:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(command[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.path[0], sys.argv = str(Path(command[0]).parent), command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
