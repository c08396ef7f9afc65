"""A file that one process holds against all others."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resnet_train.errors import BadInput


@contextmanager
def claimed(path: Path, taken: str) -> Iterator[None]:
    """The file, made if need be, is this process's until the end of the block, or of the process, however that ends.

    What a process has claimed it may claim again. Raises `BadInput`, which says what is `taken`, where another process
    has claimed it; `OSError` where it cannot be opened. A file system without locks keeps nobody out.
    """
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # of the two, POSIX leaves the choice
            raise BadInput(taken) from None
        except OSError:
            pass
        yield
