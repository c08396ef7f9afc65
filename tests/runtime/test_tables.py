"""Tables and sentences for a terminal."""

import pytest

from resnet_train.errors import wrap
from resnet_train.runtime.tables import columns, few

ROWS = [("network", "lr", "error", "hours"), ("a-long-name", "0.1", "5.00", "1.5"), ("b", "0.2", "12.00", "20")]


def test_a_table_without_a_width_is_whole() -> None:
    assert columns(ROWS).splitlines() == [
        "network       lr  error  hours",
        "a-long-name  0.1   5.00    1.5",
        "b            0.2  12.00     20",
    ]
    assert columns(ROWS, 30) == columns(ROWS)


def test_columns_that_do_not_fit_follow_below() -> None:
    assert columns(ROWS, 24).splitlines() == [
        "network       lr  error",
        "a-long-name  0.1   5.00",
        "b            0.2  12.00",
        "",
        "network      hours",
        "a-long-name    1.5",
        "b               20",
    ]
    assert columns(ROWS, 24, fixed=2).splitlines()[4:] == [
        "network       lr  hours",
        "a-long-name  0.1    1.5",
        "b            0.2     20",
    ]


@pytest.mark.parametrize("width", range(17, 40))
def test_a_long_name_is_cut_in_its_middle(width: int) -> None:
    rows = [*ROWS, (f"{'x' * 50}1", "0.1", "5.00", "1"), (f"{'x' * 50}2", "0.1", "5.00", "1")]
    table = columns(rows, width).splitlines()
    assert max(map(len, table)) <= width
    assert len({line.split()[0] for line in table[3:5]}) == 2


def test_sentences_are_broken_between_words() -> None:
    line = "resnet-20 has an error of 1.25 ± 0.10 % (clean)"
    for width in range(20, 60):
        broken = wrap(f"{line}\nshort", width).splitlines()
        assert max(map(len, broken)) <= width
        assert broken[-1] == "short"
        assert " ".join(part.strip() for part in broken[:-1]) == line
        assert any("1.25 ± 0.10 %" in part for part in broken)
        assert all(part.startswith("  ") for part in broken[1:-1])
    assert wrap(f"{line}\nshort", None) == f"{line}\nshort"


def test_of_many_names_the_first_are_listed() -> None:
    assert few("abcd") == "a, b, c, d"
    assert few("abcde") == "a, b, c and 2 others"
