"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path, older: Path | None = None) -> Iterator[BinaryIO]:
    """A file that appears under its name at the end of the block, durably; where that fails, nothing is left of it.

    What had the name before is replaced, or kept as `older`. Raises `OSError`.
    """
    partial = temporary_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if older is not None and path.exists():
            path.replace(older)
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the renames durable
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """A text file, written whole. Raises `OSError`."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def temporary_path(path: Path) -> Path:
    """The name of a file while it is written; a process that is killed then leaves it."""
    return path.with_name(f"{path.name}.tmp")
