"""Files that appear complete or not at all, also if the process is killed."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, previous: Path | None = None, unique: bool = False) -> Iterator[BinaryIO]:
    """Open a file that gets its name at the end of the block, durably. If the block fails, the file is removed.

    An existing file of that name is replaced; with `previous`, it is renamed to that. Raises `OSError`.

    unique: until then its name is one that no other process uses, NAME.HEX.tmp, so that two may write the file at once.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp") if unique else temporary_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the renames durable
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str, unique: bool = False) -> None:
    """Write a text file that appears complete or not at all. Raises `OSError`."""
    with atomic_write(path, unique=unique) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a text file, for one process at a time. Raises `OSError`.

    A last line without its end, which a killed process left, is cut off first; it is kept if it is JSON, since only its
    end is missing then.
    """
    with path.open("a+b") as file:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)  # to the end of the block, or of the process
        file.seek(0)
        half = file.read().rpartition(b"\n")[2]
        text = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        if half:
            try:
                json.loads(half)
                text = b"\n" + text
            except (ValueError, RecursionError):
                file.truncate(file.tell() - len(half))
        file.write(text)


def temporary_path(path: Path) -> Path:
    """The name of a file while it is written. A process that is killed meanwhile leaves this file."""
    return path.with_name(f"{path.name}.tmp")
