"""Files that appear complete or not at all."""

import os
from pathlib import Path

import pytest

from resnet_train.runtime.atomic import append_lines, atomic_write, atomic_write_text, temporary_path


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("", ""),
        ('{"a": 1}\n', '{"a": 1}\n'),
        ('{"a": 1}\n{"a": 2, "b', '{"a": 1}\n'),
        ('{"a": 1}\n{"a": 2}', '{"a": 1}\n{"a": 2}\n'),  # only its end is missing
        ('{"a"', ""),
        ("[" * 100_000, ""),
    ],
)
def test_a_line_that_was_cut_short_is_not_continued(before: str, kept: str, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text(before)
    append_lines(path, ['{"a": 3}', os.fsdecode(b"caf\xe9")])
    assert path.read_bytes() == kept.encode() + b'{"a": 3}\ncaf\xe9\n'


def test_a_file_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as file:
        file.write(b"one")
        assert [child.name for child in tmp_path.iterdir()] == [temporary_path(path).name]
    atomic_write_text(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_the_previous_file_is_kept_if_asked_for(tmp_path: Path) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    for text in (b"one", b"two", b"three"):
        with atomic_write(path, previous) as file:
            file.write(text)
    assert (path.read_text(), previous.read_text()) == ("three", "two")


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write_text(path, "one")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("two")  # type: ignore[arg-type]
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_not_unicode_is_written(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "file", os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "file").read_bytes() == b"caf\xe9"
