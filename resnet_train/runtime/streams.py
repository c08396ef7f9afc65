"""The standard streams of a command: a message that cannot be written ends nothing, a result ends it with one line."""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any

from resnet_train.errors import BadInput, ReaderGone


def prepare_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` of this process. Call it before a file is opened.

    A closed stream (`2>&-`) is occupied: a file of its number would receive what is printed. Text that the encoding of
    the terminal lacks, such as a file name that is not UTF-8, is written with backslashes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # /dev/null for reading only: writing fails as it did before
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # open() takes the lowest free number
    if sys.stdout is sys.__stdout__:
        results = _Results(1, "wb", closefd=False)
        unbuffered = sys.stdout is not None and sys.stdout.write_through  # python -u, or PYTHONUNBUFFERED
        sys.stdout = _text(results if unbuffered else io.BufferedWriter(results), sys.stdout, unbuffered)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(2, "wb", closefd=False), sys.stderr, write_through=True)


def _text(
    buffer: io.BufferedWriter | io.FileIO, before: io.TextIOBase | None, write_through: bool = False
) -> io.TextIOWrapper:
    encoding = "utf-8" if before is None else before.encoding
    return io.TextIOWrapper(
        buffer, encoding, errors="backslashreplace", line_buffering=buffer.isatty(), write_through=write_through
    )


class _Messages(io.FileIO):
    """Standard error. What cannot be written is lost."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            _write_all(self, data)
        return len(data)


class _Results(io.FileIO):
    """Standard output. Raises `BadInput` at the first failure, or `ReaderGone` if it is a pipe that nobody reads."""

    def write(self, data: Any) -> int:
        try:
            _write_all(self, data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # the rest is dropped, also when Python ends
            if error.errno == errno.EPIPE:
                raise ReaderGone("standard output is closed") from None
            raise BadInput(
                f"cannot write to standard output: {error.strerror or error}; run the same command again"
            ) from None
        return len(data)


def _write_all(file: io.FileIO, data: Any) -> None:
    view = memoryview(data)
    while view:
        written = io.FileIO.write(file, view)
        if written is None:  # another program has made the terminal non-blocking, and it is busy
            select.select([], [file], [])
        else:
            view = view[written:]
