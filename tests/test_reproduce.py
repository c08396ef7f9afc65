"""The page of all tables and figures of the papers: generated, and without a row that lacks a command and a reason."""

import json
from pathlib import Path

import pytest
import reproduce

ROOT = Path(__file__).parents[1]


def test_the_page_is_generated_from_the_recipes() -> None:
    """Its commands are parsed by test_docs."""
    text = (ROOT / "docs/reproduce.md").read_text()
    assert text == reproduce.page(ROOT / "docs/results"), "run `python scripts/reproduce.py`"


def test_every_row_has_a_command_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line for line in reproduce.page().splitlines() if line.startswith(("| figure", "| table"))]
    rows = [row for row in rows if row.count(" | ") == 3]
    assert len(rows) == sum(len(items) for items in reproduce.ITEMS.values()) - 1  # and one section
    assert all("`resnet-train " in row or "none: " in row for row in rows)
    monkeypatch.setitem(reproduce.ITEMS["He et al. 2015"], "figure 8", reproduce.Item("nothing"))
    with pytest.raises(ValueError, match=r"figure 8 \(nothing\) has neither a recipe, nor a command, nor a reason"):
        reproduce.page()


def test_a_figure_of_a_table_that_is_not_listed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(reproduce.ITEMS["He et al. 2016"], "table 5")
    with pytest.raises(ValueError, match=r"imagenet-preact: He et al. 2016, table 5 is not listed"):
        reproduce.page()


def test_what_a_study_measured_stands_beside_what_was_published(tmp_path: Path) -> None:
    """Unless it is of another protocol."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/study.json").write_text('{"experiment": "cifar10-depth"}')
    row = {"network": "cifar-resnet-20", "seeds": 3, "val_error_top1": 8.6, "val_error_top1_std": 0.12}
    row |= {"source_val_error_top1": "He et al. 2015, table 6", "verdict_val_error_top1": "agrees"}
    row |= {"published_val_error_top1": "8.75"}
    other = row | {"network": "cifar-resnet-32", "verdict_val_error_top1": "another protocol"}
    (tmp_path / "kept/compare.json").write_text(json.dumps([row, other]))
    lines = reproduce.page(tmp_path).splitlines()
    [ours] = [line for line in lines if line.startswith("| table 6 | `cifar10-depth` | cifar-resnet-20 ")]
    assert ours.endswith("| 8.75 | 8.60 ± 0.12 (3), [agrees](results/kept/README.md) |")
    [ours] = [line for line in lines if line.startswith("| table 6 | `cifar10-depth` | cifar-resnet-32 ")]
    assert ours.endswith("| 7.51 | – |")


def test_a_median_stands_beside_a_median(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/study.json").write_text('{"experiment": "cifar10-preact"}')
    row = {"network": "cifar-preact-164", "seeds": 5, "val_error_top1": 5.6, "val_error_top1_std": 0.3}
    row |= {"val_error_top1_median": 5.44, "published_val_error_top1": "5.46 (median of 5)"}
    row |= {"source_val_error_top1": "He et al. 2016, table 3", "verdict_val_error_top1": "agrees"}
    (tmp_path / "kept/compare.json").write_text(json.dumps([row]))
    assert "| 5.46 (median of 5) | 5.44 (median of 5), [agrees](results/kept/README.md) |" in reproduce.page(tmp_path)


def test_figures_of_another_preprocessing_are_listed_and_say_so() -> None:
    [row] = [
        line
        for line in reproduce.page().splitlines()
        if line.startswith("| table 4 | `cifar100-wide-depths` | wrn-28-10 ")
    ]
    assert "| 20.50; images are whitened (ZCA) there |" in row


def test_costs_are_those_of_the_networks_own_recipe() -> None:
    """The batch of 64 of He et al. 2016, table 4, is an exception for one network."""
    [row] = [line for line in reproduce.page().splitlines() if "--only cifar-preact-1001-batch-64" in line]
    assert "| 1 x 5 seeds x 64,000 steps of 128 images<br>1 x 5 seeds x 200 epochs<br>" in row


def test_a_study_of_two_protocols_has_columns_of_each(tmp_path: Path) -> None:
    """As `compare` writes them: a row has the figures of its own protocol, and none under the others."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/study.json").write_text('{"experiment": "cifar10-preact"}')
    row = {"network": "cifar-preact-164", "seeds": 5, "published_val_error_top1": "5.46 (median of 5)"}
    row |= {"source_val_error_top1": "He et al. 2016, table 3", "verdict_val_error_top1": "agrees"}
    row |= {f"val_error_top1{name} [1]": None for name in ("", "_std", "_median")}
    row |= {"val_error_top1 [2]": 5.6, "val_error_top1_std [2]": 0.3, "val_error_top1_median [2]": 5.44}
    table_4 = {"source_val_error_top1": "He et al. 2016, table 4", "network": "cifar-preact-1001-batch-64"}
    rows = [row, row | table_4 | {"published_val_error_top1": "4.69 ± 0.20 (5)"}]
    (tmp_path / "kept/compare.json").write_text(json.dumps(rows))
    text = reproduce.page(tmp_path)
    assert "| 5.46 (median of 5) | 5.44 (median of 5), [agrees](results/kept/README.md) |" in text
    assert "| 4.69 ± 0.20 (5) | 5.60 ± 0.30 (5), [agrees](results/kept/README.md) |" in text


def test_one_seed_has_no_median(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/study.json").write_text('{"experiment": "cifar10-preact"}')
    row = {"network": "cifar-preact-164", "seeds": 1, "val_error_top1": 5.6, "val_error_top1_std": None}
    row |= {"val_error_top1_median": None, "published_val_error_top1": "5.46 (median of 5)"}
    row |= {"source_val_error_top1": "He et al. 2016, table 3", "verdict_val_error_top1": "too few seeds to tell"}
    (tmp_path / "kept/compare.json").write_text(json.dumps([row]))
    assert "| 5.46 (median of 5) | 5.60, [too few seeds to tell]" in reproduce.page(tmp_path)


def test_each_training_of_a_row_has_its_cost() -> None:
    """Also where two cost the same: on CIFAR-10 and on CIFAR-100."""
    rows = [
        line for line in reproduce.page().splitlines() if line.startswith("| table") and "`resnet-train run " in line
    ]
    assert all(row.count("`resnet-train run ") == row.split(" | ")[-1].count("<br>") + 1 for row in rows)
