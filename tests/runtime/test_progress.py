"""Progress on standard error: a bar on a terminal, lines elsewhere, and no error where nothing can be written."""

import io
import logging
import sys
from typing import Any

import pytest

from resnet_train.runtime import progress
from resnet_train.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(Terminal):
    """A standard error that can no longer be written, as after `2>&1 | head`."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("packing", 40, "img", initial=10) as bar:
        assert "packing:  25%" in sys.stderr.getvalue()
        bar.bar.mininterval = 0
        bar.advance(10)
        bar.show("2 odd")
        progress.write_line("one line")
    shown = sys.stderr.getvalue()
    assert "packing:  50%" in shown
    assert "img/s, 2 odd]" in shown
    assert "one line\n" in shown.replace("\r", "")


def test_lines_elsewhere_no_more_often_than_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("packing", 40, "img") as bar:
        bar.update(10)
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(Progress, "seconds_between_lines", 0.0)
        bar.update(10)
        bar.advance(20)
        bar.show("2 odd")
    assert capsys.readouterr().err == "packing: img 20/40, 00:00 left\npacking: img 40/40, 00:00 left, 2 odd\n"


def closed() -> Any:
    stream = Terminal()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [Full, closed, lambda: None])
def test_nothing_is_raised_where_nothing_can_be_written(
    make: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", make())
    monkeypatch.setattr(Progress, "seconds_between_lines", 0.0)
    with Progress("packing", 40, "img") as bar:
        bar.bar.mininterval = 0
        bar.update(10)
        bar.update(30)
        progress.write_line("one line")
    assert capsys.readouterr().out == ""  # which is for results


def test_messages_are_lines_and_a_warning_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    progress.show_messages()
    progress.show_messages()
    logger = logging.getLogger("resnet_train.training.loop")
    logger.info("the run ends after %d steps", 8)
    logger.warning("cannot decode a.png")
    logger.debug("nobody asks for this")
    assert capsys.readouterr().err == "the run ends after 8 steps\nwarning: cannot decode a.png\n"
