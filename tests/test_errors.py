"""How errors are shown: in one line of a bounded length; resources of the machine that ran out, too."""

import errno
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_train import __main__
from resnet_train.errors import LONGEST_MESSAGE, BadInput, InvalidConfig, exhausted, one_line, report
from resnet_train.runtime.precision import out_of_memory_hint


def test_a_message_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    """The thing is named at its beginning, the hint is at its end."""
    assert report(BadInput(f"first {'key.' * 5000} last")) == 2
    line = capsys.readouterr().err
    assert line.startswith("resnet-train: first key.")
    assert line.endswith("key. last\n")
    assert len(line) < LONGEST_MESSAGE + len("resnet-train: \n") + 1


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A file name may hold a line break, or codes that change a terminal; letters of any language stay."""
    report(BadInput("a\nb\r\x1b[31m\u2028 日本 é"))
    assert capsys.readouterr().err == "resnet-train: a\\nb\\r\\x1b[31m\\u2028 日本 é\n"


def test_each_complaint_about_a_configuration_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    report(InvalidConfig("a\nb: wrong", "c: unknown key"))
    assert capsys.readouterr().err == "resnet-train: 2 errors in the configuration:\n  a\\nb: wrong\n  c: unknown key\n"


def test_builds_of_torch_and_torchvision_that_do_not_fit_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What `import torchvision` raises where torch is a CPU build and torchvision is not, seen with 2.13.0+cpu."""
    assert report(RuntimeError("operator torchvision::nms does not exist")) == 2
    line = capsys.readouterr().err
    assert line.startswith("resnet-train: torchvision does not fit torch: ")
    assert line.count("\n") == 1


def test_windows_is_refused_in_one_line() -> None:
    """Before what Windows lacks is imported."""
    code = (
        "import runpy, sys; sys.platform = 'win32'; sys.modules.update(dict.fromkeys(['fcntl', 'resource']))\n"
        "import os; [delattr(os, name) for name in dir(os) if name.startswith('EX_')]\n"
        "runpy.run_module('resnet_train', run_name='__main__')"
    )
    folder = str(Path(__main__.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    expected = "resnet-train: it runs on Linux and macOS, not on Windows: use WSL 2\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_a_message_of_the_allowed_length_is_whole() -> None:
    assert one_line("x" * LONGEST_MESSAGE) == "x" * LONGEST_MESSAGE


def failing(error: Exception) -> Callable[[], object]:
    def fail() -> None:
        raise error

    return fail


TOO_MUCH = [
    lambda: torch.empty(1 << 60, dtype=torch.uint8),
    lambda: np.empty(1 << 56),
    failing(OSError(errno.ENOMEM, "Cannot allocate memory")),
]


def error_of(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("function", TOO_MUCH)
def test_memory_that_ends_is_one_line(function: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error_of(function)) == 2
    assert re.fullmatch("resnet-train: out of memory: lower data.workers, .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("function", TOO_MUCH)
def test_memory_that_ends_at_known_work_names_it(function: Callable[[], object]) -> None:
    expected = "resnet-18 seed 0: out of memory on cpu: lower the batch; or lower data.workers"
    with (
        pytest.raises(BadInput, match=expected),
        out_of_memory_hint("resnet-18 seed 0", torch.device("cpu"), "lower the batch"),
    ):
        function()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EMFILE, "Too many open files"), r"too many open files, the limit is \d+ \(ulimit -n\): .*"),
        (OSError(errno.EFBIG, "File too large"), r"a file is too large.*: .*"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), r"too many processes or threads, .*"),
        (RuntimeError("can't start new thread"), r"too many processes or threads, .*\(ulimit -u\): .*"),
    ],
)
def test_another_limit_is_one_line_that_names_it(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == 2
    assert re.fullmatch(f"resnet-train: {line}\n", capsys.readouterr().err)


def test_a_limit_that_this_process_does_not_have_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container limits processes, and a file system the size of files."""
    for limit, processes, size in (
        (resource.RLIM_INFINITY, "", ""),
        (7, ", the limit is 7 (ulimit -u)", ", the limit is 7 bytes (ulimit -f)"),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert exhausted(OSError(errno.EAGAIN, "")) == f"too many processes or threads{processes}"
        assert exhausted(OSError(errno.EFBIG, "")) == f"a file is too large{size}"


def test_another_error_is_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(RuntimeError("shapes do not match")) == 1
    assert "RuntimeError: shapes do not match" in capsys.readouterr().err
