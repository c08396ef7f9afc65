"""Reading files that a user names. What is no regular file, or too large, is refused at once.

A FIFO would block until someone writes to it, and a device such as /dev/zero has no end.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from resnet_train.errors import BadInput, exhausted

TEXT_LIMIT = 64 << 20
"""Bytes of the largest text file that is read: configurations, names and labels."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def exists(path: Path) -> bool:
    """Whether there is a file or a folder. Raises `BadInput` if the system does not say.

    `Path.exists` of Python 3.14 says no then, and a run would begin anew.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        return False
    except ValueError:  # a NUL, or a surrogate that stands for no byte
        return False
    return True


def open_regular(path: Path | str, prefix: str = "") -> BinaryIO:
    """Open a regular file for reading. Never blocks. Raises `BadInput`; `OSError` if memory or open files ran out.

    prefix: begins the message; a key or an option, such as `--classes: `.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer. Regular files ignore the flag.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:  # a socket cannot be opened
        if exhausted(error):
            raise
        reason = "it is a socket, not a file" if error.errno == errno.ENXIO else error.strerror
        raise BadInput(f"{prefix}cannot read {path}: {reason}") from None
    except ValueError as error:  # a NUL, or a surrogate that stands for no byte
        raise BadInput(f"{prefix}cannot read {str(path)!r}: {error}") from None
    kind = _KINDS.get(stat.S_IFMT(os.fstat(number).st_mode))
    if kind is not None:
        os.close(number)
        raise BadInput(f"{prefix}cannot read {path}: it is {kind}, not a file")
    return os.fdopen(number, "rb")


def read_bytes(path: Path | str, limit: int, prefix: str = "") -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises `BadInput` as `open_regular` does."""
    with open_regular(path, prefix) as file:
        size = os.fstat(file.fileno()).st_size  # 0 of files in /proc
        if size <= limit:
            try:
                data = file.read() if size else file.read(limit + 1)
            except OSError as error:
                if exhausted(error):
                    raise
                raise BadInput(f"{prefix}cannot read {path}: {error.strerror or error}") from None
            if len(data) <= limit:
                return data
    raise BadInput(f"{prefix}cannot read {path}: it is larger than {limit:,} bytes")


def read_text(path: Path | str, limit: int = TEXT_LIMIT, prefix: str = "", errors: str = "strict") -> str:
    """The content of a text file in UTF-8, whatever the locale. Raises `BadInput` as `open_regular` does.

    errors: as in `bytes.decode`; `surrogateescape` where lines may be names of files, which are any bytes.
    """
    try:
        return read_bytes(path, limit, prefix).decode("utf-8-sig", errors)
    except UnicodeDecodeError:
        raise BadInput(f"{prefix}cannot read {path}: it is not a text file in UTF-8") from None


def read_lines(path: Path | str, prefix: str = "") -> list[str]:
    """The lines of a text file of names, which may be any bytes. Raises `BadInput` as `open_regular` does."""
    return split_lines(read_text(path, prefix=prefix, errors="surrogateescape"))


def split_lines(text: str) -> list[str]:
    """The lines of a text, each without its line feed and a carriage return before that.

    `str.splitlines` also splits at eight other characters, which names may hold.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines if lines[-1] else lines[:-1]
