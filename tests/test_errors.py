"""How errors are shown: in one line of a bounded length."""

import pytest

from resnet_train.errors import LONGEST_MESSAGE, BadInput, one_line, report


def test_a_message_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    """The thing is named at its beginning, the hint is at its end."""
    assert report(BadInput(f"first {'key.' * 5000} last")) == 2
    line = capsys.readouterr().err
    assert line.startswith("resnet-train: first key.")
    assert line.endswith("key. last\n")
    assert len(line) < LONGEST_MESSAGE + len("resnet-train: \n") + 1


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A file name may hold a line break, or codes that change a terminal; letters of any language stay."""
    report(BadInput("a\nb\r\x1b[31m\u2028 日本 é"))
    assert capsys.readouterr().err == "resnet-train: a\\nb\\r\\x1b[31m\\u2028 日本 é\n"


def test_a_message_of_the_allowed_length_is_whole() -> None:
    assert one_line("x" * LONGEST_MESSAGE) == "x" * LONGEST_MESSAGE
