"""Files that a user names: only regular ones of a bounded size are read, and nothing blocks."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_train.errors import BadInput
from resnet_train.runtime.regular_file import exists, read_bytes, read_lines, read_text, split_lines


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "it is a pipe, not a file"),
        (os.mkdir, "it is a folder, not a file"),
        (lambda path: Path(path).symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda path: Path(path).symlink_to(path), "Too many levels of symbolic links"),
        (_socket, "it is a socket, not a file"),
        (lambda path: None, "No such file or directory"),
    ],
    ids=["fifo", "folder", "device", "loop", "socket", "none"],
)
def test_only_regular_files_are_read(make: Callable[[str], None], reason: str) -> None:
    make("thing")
    for read in (read_bytes, read_text):
        with pytest.raises(BadInput, match=f"^base: cannot read thing: {reason}$"):
            read("thing", 10, "base: ")


def test_a_large_file_is_refused_before_it_is_read() -> None:
    with Path("large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadInput, match=r"^cannot read large: it is larger than 1,000 bytes$"):
        read_bytes("large", 1000)
    with pytest.raises(BadInput, match=r"larger than 2 bytes"):
        read_bytes("/proc/self/status", 2)  # whose size is 0
    Path("small").write_bytes(b"12")
    assert read_bytes("small", 2) == b"12"


def test_names_that_no_file_can_have_are_refused() -> None:
    for name in ("a\0b", "\ud800"):
        with pytest.raises(BadInput, match=r"^cannot read '"):
            read_bytes(name, 10)


def test_text_is_utf8_and_may_begin_with_a_mark_and_hold_bytes_of_names() -> None:
    Path("names").write_bytes("\ufeff日本\n".encode() + b"\xe9\n")
    assert read_text("names", errors="surrogateescape") == "日本\n\udce9\n"
    with pytest.raises(BadInput, match=r"^cannot read names: it is not a text file in UTF-8$"):
        read_text("names")


def test_lines_end_at_line_feeds_alone() -> None:
    """`str.splitlines` splits at each of these, too."""
    names = [f"a{character}b" for character in "\v\f\x1c\x1d\x1e\x85\u2028\u2029\r"]
    Path("names").write_bytes("\n".join([*names, "", "c\r\n"]).encode())
    assert read_lines("names") == [*names, "", "c"]
    assert [split_lines(text) for text in ("", "\n", "a", "a\n", "a\n\n")] == [[], [""], ["a"], ["a"], ["a", ""]]


def test_what_is_absent_and_what_the_disk_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    there = {
        name: exists(tmp_path / name) for name in (".", "file", "file/x", "none", "loop", "dangling", "x\0", "\ud800")
    }
    assert [name for name, is_there in there.items() if is_there] == [".", "file"]
    with pytest.raises(BadInput, match="File name too long"):
        exists(tmp_path / ("x" * 300))
