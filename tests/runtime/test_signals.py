"""Signals that ask a run to save and stop, and how its process ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import spawn

from resnet_train.runtime import signals
from resnet_train.runtime.signals import catch_stop_signals


@pytest.mark.parametrize("announce", [True, False])
def test_the_first_signal_is_noted_and_handlers_are_restored(announce: bool, capfd: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with catch_stop_signals(announce) as request:
        assert request.signal_name is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.signal_name == "SIGUSR1"
    assert [signal.getsignal(number) for number in numbers] == before
    line = "SIGUSR1: saving and stopping at the next step\n"
    assert capfd.readouterr().err == (line if announce else "")


def test_a_signal_is_noted_if_nobody_reads_the_line(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    before = os.dup(2)
    os.dup2(writer, 2)
    try:
        with catch_stop_signals(announce=True) as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.signal_name == "SIGTERM"
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(writer)


def run_script(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(signals.__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    ended = run_script(
        "import os, signal\n"
        "from resnet_train.runtime.signals import catch_stop_signals\n"
        "with catch_stop_signals(announce=True):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('not reached')"
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "SIGTERM: saving and stopping at the next step\n"


STUCK = """
import ctypes
from resnet_train.runtime.signals import catch_stop_signals

mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
with catch_stop_signals(announce=True):
    print("ready", flush=True)
    lock(mutex)
"""


def test_a_second_interrupt_ends_a_process_that_waits_for_another_rank() -> None:
    """Its main thread runs no handler. A lock that is held stands in for the rank."""
    with spawn(program=["-c", STUCK]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert (
            process.stderr.readline()
            == "SIGINT: saving and stopping at the next step; again to stop at once, unsaved\n"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130


@pytest.mark.parametrize("skip", [True, False])
def test_the_clean_up_of_python_is_left_out_only_if_asked_for(skip: bool) -> None:
    ended = run_script(
        "import atexit\n"
        "from resnet_train.runtime import process_exit\n"
        "atexit.register(print, 'cleaned up')\n"
        "print('output')\n"
        f"process_exit.skip_cleanup() if {skip} else None\n"
        "process_exit.exit_process(3)"
    )
    assert (ended.returncode, ended.stdout) == (3, "output\n" if skip else "output\ncleaned up\n")
