"""How the process of a command ends."""

import os
import sys
from typing import NoReturn

_skip_cleanup = False


def skip_cleanup() -> None:
    """From now on `exit_process` leaves out Python's clean-up, because a library's threads would not survive it."""
    global _skip_cleanup
    _skip_cleanup = True


def exit_process(code: int) -> NoReturn:
    """End this process with an exit code."""
    if _skip_cleanup:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
