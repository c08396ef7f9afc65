"""A lock file that one process holds against all others."""

import errno
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from resnet_train.errors import FolderInUse

logger = logging.getLogger(__name__)

_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What flock answers on file systems without locks, such as Lustre that was mounted without `flock`."""


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold the lock file `path`, an empty file, to the end of the block or of the process, however that ends.

    The process that holds it may take it again. Raises `FolderInUse(message)` if another process holds it, and
    `OSError` if the file cannot be opened. On a file system without locks a warning is logged, and nobody is kept out:
    a file that merely exists, in place of a lock, would also keep out the run that follows a killed one.
    """
    lock = FileLock(path.absolute(), timeout=0, is_singleton=True, fallback_to_soft=False)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except Timeout:
            raise FolderInUse(message) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning("%s: this file system has no locks; start no second process here", path)
        yield
