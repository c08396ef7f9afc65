"""The reasons for which a command stops early: a message of one line and an exit code.

What a scheduler may retry has a code of its own, of those that `sysexits.h` names: 69, 73, 75.
"""

import errno
import os
import sys
import textwrap
import traceback

LONGEST_MESSAGE = 2000


class Stop(Exception):
    """A reason to stop. Its text is the message for the user, in one line."""

    exit_code = 1
    reported = False
    """Whether another process, a rank or a child, shows the message."""
    on_all_ranks = False
    """Whether every rank raises it at the same point; the first one shows the message."""

    def lines(self) -> list[str]:
        """The message as it is shown."""
        return [str(self)]


class BadInput(Stop):
    """Something that the user gave cannot be used: the message names it and says what to do."""

    exit_code = 2


class InvalidConfig(BadInput):
    """What is wrong with a configuration, one argument for each complaint.

    Its text is one line if there is one complaint, else a line with their number and a line for each.
    """

    def lines(self) -> list[str]:
        if len(self.args) == 1:
            return [str(self.args[0])]
        shown = [f"  {complaint}" for complaint in self.args[:15]]
        if len(self.args) > len(shown):
            shown.append(f"  … and {len(self.args) - len(shown)} more")
        return [f"{len(self.args)} errors in the configuration:", *shown]

    def __str__(self) -> str:
        return "\n".join(self.lines())


class FolderInUse(BadInput):
    """Another process works in the folder that the command needs: once that ends, the same command can succeed."""

    exit_code = 73  # EX_CANTCREAT


class Diverged(Stop):
    """The loss is no longer finite."""

    on_all_ranks = True


class RankLost(Stop):
    """Another rank has stopped, and has reported why; or its node or network was lost, so a retry can succeed."""

    exit_code = 69  # EX_UNAVAILABLE, which Windows lacks


class ReaderGone(Stop):
    """Nobody reads standard output any more, as after `| head`: the command ends without a word."""

    exit_code = 0
    reported = True


class Interrupted(Stop):
    """A signal asked the run to stop; its state is saved and the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL
    on_all_ranks = True


def exhausted(error: BaseException) -> str | None:
    """Which resource of this machine ran out, in words, if that is what an error says."""
    if is_out_of_memory(error):
        return "out of memory"
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many open files{_limit('RLIMIT_NOFILE', '', '-n')}"
    if number == errno.EAGAIN or str(error) == "can't start new thread":
        return f"too many processes or threads{_limit('RLIMIT_NPROC', '', '-u')}"
    if number == errno.EFBIG:
        return f"a file is too large{_limit('RLIMIT_FSIZE', ' bytes', '-f')}"
    return None


def _does_not_fit(error: BaseException) -> bool:
    """Whether torchvision says that it cannot use this torch, in the only way it does."""
    return isinstance(error, RuntimeError) and "operator torchvision::nms does not exist" in str(error)


def _limit(kind: str, unit: str, option: str) -> str:
    """The limit of this process in words. If it has none, the machine, a container or the file system has."""
    import resource  # Windows, which `__main__` refuses in a line, has none

    number = resource.getrlimit(getattr(resource, kind))[0]
    return "" if number == resource.RLIM_INFINITY else f", the limit is {number}{unit} (ulimit {option})"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch's allocator, the kernel or the loader of libraries says that the CPU's memory ended."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # The last one is oneDNN's.
    words = (
        "can't allocate memory",
        "failed to map segment",
        "Cannot allocate memory",
        "bad_alloc",
        "could not create a primitive",
    )
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(word in str(error) for word in words)
    )


def shorten(text: str, limit: int = 100) -> str:
    """A text that a message quotes, cut in its middle if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-(limit // 4) :]}"


def report(error: BaseException) -> int:
    """Write the message of an error on standard error, or a traceback if the error is a bug. Returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        if str(error):
            print(f"resnet-train: {one_line(str(error))}", file=sys.stderr)
        return 130
    reason = exhausted(error)
    if reason is not None:
        error = BadInput(f"{reason}: lower data.workers, --jobs or the batch size, or raise the limit")
    if _does_not_fit(error):
        error = BadInput(
            "torchvision does not fit torch: one is a build for the CPU and the other for CUDA, or their releases "
            "differ; install both at once, from the same index"
        )
    if not isinstance(error, Stop):
        traceback.print_exception(error)
        return 1
    if not error.reported:
        text = "\n".join(["resnet-train: " * (not i) + one_line(line) for i, line in enumerate(error.lines())])
        print(wrap(text, stderr_width()), file=sys.stderr)
    return error.exit_code


def wrap(text: str, width: int | None, indent: int = 2) -> str:
    """The text, each line wrapped between words to `width`, the rest of it indented; with `None` as it is."""
    if width is None:
        return text
    lines: list[str] = []
    for line in text.splitlines():
        whole = line.replace(" %", "\xa0%").replace(" ± ", "\xa0±\xa0")  # numbers are not broken
        rest = " " * (len(line) - len(line.lstrip()) + indent)
        lines += textwrap.wrap(
            whole, max(width, 20), subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines).replace("\xa0", " ")


def stderr_width() -> int | None:
    """Characters in a line of the terminal that standard error is; None where it is none, or closed."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None


def one_line(text: str) -> str:
    """A message as one line of at most `LONGEST_MESSAGE` characters; control characters are escaped."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(escaped) <= LONGEST_MESSAGE:
        return escaped
    half = LONGEST_MESSAGE // 2 - 4  # the hint is at the end
    return f"{escaped[:half]} […] {escaped[-half:]}"
