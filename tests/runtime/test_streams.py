"""Streams that cannot be written: a message is lost, a result ends the command with one line."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_train import cli
from resnet_train.errors import BadInput, ReaderGone
from resnet_train.runtime import streams


def unread_pipe() -> int:
    """The writing end of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed() -> int:
    """Descriptor that refuses every write, as a closed one does."""
    return os.open(os.devnull, os.O_RDONLY)


def stream(kind: type[io.FileIO], number: int, encoding: str = "utf-8") -> io.TextIOWrapper:
    """As `prepare_streams` makes it."""
    raw = kind(number, "wb")
    buffer = io.BufferedWriter(raw) if kind is streams._Results else raw
    return streams._text(buffer, io.TextIOWrapper(io.BytesIO(), encoding), write_through=buffer is raw)


@pytest.mark.parametrize("number", [unread_pipe, full_disk, closed])
def test_a_message_that_cannot_be_written_is_lost(number: object) -> None:
    with stream(streams._Messages, number()) as messages:  # type: ignore[operator]
        print("a line", file=messages, flush=True)
        messages.write("x" * 100_000)


def test_a_message_is_written_at_once_and_names_need_not_be_text(tmp_path: Path) -> None:
    number = os.open(tmp_path / "messages", os.O_CREAT | os.O_WRONLY)
    with stream(streams._Messages, number, "ascii") as messages:
        messages.write("日本, \udcff.jpg\n")
        assert (tmp_path / "messages").read_bytes() == rb"\u65e5\u672c, \udcff.jpg" + b"\n"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (unread_pipe, ReaderGone),
        (full_disk, "cannot write to standard output: No space left on device"),
        (closed, "cannot write to standard output: Bad file descriptor"),
    ],
)
@pytest.mark.parametrize("command", [["schema"], ["--help"]])
def test_a_result_that_cannot_be_written_is_one_line(
    command: list[str],
    number: object,
    error: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing if the reader has seen enough."""
    with stream(streams._Results, number()) as results:  # type: ignore[operator]
        monkeypatch.setattr(sys, "stdout", results)
        code = cli.main(command)
        print("more", flush=True)
    lines = capsys.readouterr().err.splitlines()
    if error is ReaderGone:
        assert (code, lines) == (0, [])
    else:
        assert (code, lines) == (2, [f"resnet-train: {error}; run the same command again"])


def test_a_terminal_that_another_program_made_non_blocking_gets_the_whole_result() -> None:
    """With a small buffer and a reader that comes late."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    count = 300_000
    with subprocess.Popen(["wc", "-c"], stdin=reader, stdout=subprocess.PIPE, text=True) as late:
        os.close(reader)
        with stream(streams._Results, writer) as results:
            results.write("x" * count)
        assert late.stdout is not None
        assert int(late.stdout.read()) == count


CLOSED = """
import sys
from resnet_train.runtime.streams import prepare_streams

prepare_streams()
with open("file", "w") as file:
    print("a message", file=sys.stderr)
    try:
        print("a result", flush=True)
    except Exception as error:
        file.write(f"{type(error).__name__}, number above 2: {file.fileno() > 2}")
"""


@pytest.mark.parametrize(("write_through", "written"), [(False, b""), (True, b"a result\n")])
def test_python_without_buffers_writes_a_result_at_once(
    write_through: bool, written: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with PYTHONUNBUFFERED=1."""
    before = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=write_through)
    monkeypatch.setattr(sys, "stdout", before)
    monkeypatch.setattr(sys, "__stdout__", before)
    raw = streams._Results(os.open(tmp_path / "results", os.O_CREAT | os.O_WRONLY), "wb")
    monkeypatch.setattr(streams, "_Results", lambda *_, **__: raw)
    streams.prepare_streams()
    print("a result")
    assert (tmp_path / "results").read_bytes() == written
    sys.stdout.close()


def test_a_file_does_not_get_the_number_of_a_closed_stream() -> None:
    """Else it would receive what is printed."""
    script = f"exec 0>&- 1>&- 2>&-; exec '{sys.executable}' -c '{CLOSED}'"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    assert subprocess.run(["bash", "-c", script], env=environment, timeout=300).returncode == 0
    assert Path("file").read_text() == f"{BadInput.__name__}, number above 2: True"
