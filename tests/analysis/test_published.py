"""Published figures beside measured ones, from run folders written by hand."""

import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import groups
from matplotlib import figure as mpl
from matplotlib.axes import Axes
from pydantic import TypeAdapter
from scipy import stats
from scipy.optimize import brentq

from resnet_train.analysis import figures
from resnet_train.analysis.groups import rows
from resnet_train.analysis.published import Published, add_published, compare_with, published, published_table
from resnet_train.config.expect import Figure

Program = Callable[..., tuple[int, str, str]]
Recorded = Callable[..., Path]
NET = "cifar-resnet-20"
FIGURE: TypeAdapter[Figure] = TypeAdapter(Figure)


def expect(figure: Any, error: str = "val_error_top1", **changes: Any) -> list[dict[str, Any]]:
    return [{"source": "a paper, table 1", "val_images": 10_000, error: {NET: figure}} | changes]


def compared(recorded: Recorded, clean: Sequence[float], entries: list[dict[str, Any]], **changes: Any) -> Published:
    """The only figure of a network; its validation errors are `clean` and 4 more, its clean ones `clean`."""
    for seed, error in enumerate(clean):
        recorded(NET, seed, error, expect=entries, **changes)
    [one] = published(groups())
    return one


def verdict_of(figure: Any, values: Sequence[float], images: int = 10_000) -> str:
    return compare_with(FIGURE.validate_python(figure), values, images)[2]


def check_threshold(figure: Any, values: Sequence[float], p_value: Callable[[float], float], images: int) -> None:
    """Errors are better or worse from the difference on at which a test of scipy's has a p-value of 0.05."""
    threshold = brentq(lambda shift: p_value(shift) - 0.05, 1e-3, 1e3)
    for side, verdict in ((-1, "better"), (1, "worse")):
        assert verdict_of(figure, [value + side * threshold * 1.001 for value in values], images) == verdict
        below = verdict_of(figure, [value + side * threshold * 0.999 for value in values], images)
        assert below in ("agrees", "too few seeds to tell")


@pytest.mark.parametrize(("spread", "seeds", "n"), [(0.1, 2, 5), (0.1, 3, 2), (0.5, 5, 5), (1.0, 2, 2)])
def test_both_deviations_known_is_welchs_test(spread: float, seeds: int, n: int) -> None:
    values = [50 + spread * math.sin(3 * seed) for seed in range(seeds)]
    mean, deviation = statistics.mean(values), statistics.stdev(values)

    def p_value(shift: float) -> float:
        return float(stats.ttest_ind_from_stats(mean + shift, deviation, seeds, mean, 0.3, n, equal_var=False).pvalue)

    check_threshold({"mean": mean, "std": 0.3, "n": n}, values, p_value, images=10_000)


@pytest.mark.parametrize("figure", [3.0, {"mean": 3.0, "std": 0.0, "n": 5}, {"low": 1.0, "high": 3.0}])
def test_seeds_that_are_equal_by_chance_are_not_certain(figure: Any) -> None:
    """On few images ties are common: 0.06 points are a fifth of one of 359."""
    assert verdict_of(figure, [3.06] * 3, images=359) == "too few seeds to tell"
    assert verdict_of(figure, [8.0] * 3, images=359) == "worse"


@pytest.mark.parametrize(("spread", "seeds"), [(0.1, 2), (0.1, 3), (0.5, 5)])
def test_a_single_number_is_one_training_with_our_spread(spread: float, seeds: int) -> None:
    """Student's test of one value against several, as scipy's with pooled variances has it."""
    values = [50 + spread * math.sin(3 * seed) for seed in range(seeds)]
    mean, deviation = statistics.mean(values), statistics.stdev(values)

    def p_value(shift: float) -> float:
        return float(stats.ttest_ind_from_stats(mean + shift, deviation, seeds, mean, 0, 1).pvalue)

    check_threshold(mean, values, p_value, images=10_000)


def test_a_single_seed_is_one_training_with_their_spread() -> None:
    """And it must differ by two standard errors of the images, as between two networks of one seed each."""
    figure = {"mean": 8, "std": 0.2, "n": 5}

    def p_value(shift: float) -> float:
        return float(stats.ttest_ind_from_stats(8 + shift, 0, 1, 8, 0.2, 5).pvalue)

    check_threshold(figure, [8.0], p_value, images=10**9)
    p = (8.7 / 100 * 10_000 + 1) / 10_002
    assert 0.7 < 200 * math.sqrt(2 * p * (1 - p) / 10_002) < 0.8
    assert [verdict_of(figure, [8 + shift]) for shift in (0.7, 0.9)] == ["agrees", "worse"]


def test_a_median_is_compared_with_our_median() -> None:
    assert compare_with(FIGURE.validate_python({"median": 8, "n": 5}), [7.0, 8.5, 9.0], 10_000)[:2] == (8.5, 0.5)


@pytest.mark.parametrize(("figure", "factor"), [({"mean": 8, "n": 5}, 1), ({"median": 8, "n": 5}, math.pi / 2)])
def test_without_their_deviation_ours_is_that_of_both(figure: Any, factor: float) -> None:
    """The variance of a median of normal values is pi / 2 times that of a mean, for many of them."""
    values = [-0.3, 0.0, 0.3]  # their mean is their median
    half_width = stats.t.ppf(0.975, 2) * 0.3 * math.sqrt(factor * (1 / 3 + 1 / 5))
    for side, verdict in ((-1, "better"), (1, "worse")):
        assert verdict_of(figure, [8 + value + side * (half_width + 0.001) for value in values]) == verdict
        assert verdict_of(figure, [8 + value + side * (half_width - 0.001) for value in values]) not in (
            "better",
            "worse",
        )


@pytest.mark.parametrize("figure", [8.0, {"median": 8, "n": 5}, {"mean": 8, "n": 5}, {"low": 7, "high": 9}])
def test_a_single_seed_tells_nothing_where_no_spread_is_known(figure: Any, recorded: Recorded) -> None:
    one = compared(recorded, [30.0], expect(figure, "clean_train_error"))
    assert (one.verdict, one.measured_text) == (
        "too few seeds to tell",
        "30.00 (median of 1)" if "median" in str(figure) else "30.00",
    )
    assert one.difference == (21 if "low" in str(figure) else 22)


@pytest.mark.parametrize(
    ("figure", "values", "verdict"),
    [
        ({"low": 7, "high": 9}, [8.9, 9.0, 9.1], "agrees"),
        ({"low": 7, "high": 9}, [9.4, 9.5, 9.6], "worse"),
        ({"low": 7, "high": 9}, [6.0, 6.1, 6.2], "better"),
        ({"low": 7, "high": 9}, [8.0, 12.0], "too few seeds to tell"),
        ({"low": 20, "high": 96}, [30.0, 40.0, 50.0], "agrees"),  # "fails (over 20)"
        ({"median": 8, "n": 5}, [7.9, 8.0, 20.0], "too few seeds to tell"),  # the medians are equal
        ({"median": 8, "n": 5}, [7.9, 8.0, 8.1, 8.0], "agrees"),
        ({"mean": 0, "std": 0, "n": 3}, [0.0, 0.0], "agrees"),
        ({"mean": 0, "std": 0, "n": 3}, [1.0, 1.0], "worse"),
        (8, [8.0, 8.1], "too few seeds to tell"),  # 12.7 x 0.07 x 1.22 is more than 0.8
        (8, [8.0, 8.1, 8.05], "agrees"),
        (2, [2.0, 2.2, 1.8], "too few seeds to tell"),  # 4.3 x 0.2 x 1.15 is more than 0.5
    ],
)
def test_verdicts_know_the_spread(figure: Any, values: list[float], verdict: str) -> None:
    assert verdict_of(figure, values) == verdict


@pytest.mark.parametrize(
    ("entry", "changes", "reason"),
    [
        (
            {"protocol": "ten-crop"},
            {},
            "eval.protocol = one-crop, not ten-crop: `resnet-train eval FOLDER --protocol ten-crop` measures it",
        ),
        ({"val_images": 50_000}, {}, "10,000 validation images, not 50,000"),
        ({"differs": {NET: ["train.steps = 8, not 64000"]}}, {}, "train.steps = 8, not 64000"),
        ({}, {"status": None}, None),
        ({}, {"status": "diverged"}, "step 20 of 20"),
    ],
)
def test_figures_of_another_protocol_are_not_compared(
    entry: dict[str, Any], changes: dict[str, Any], reason: str | None, recorded: Recorded
) -> None:
    one = compared(recorded, [4.0, 4.1, 4.2], expect(8.1, **entry), **changes)
    assert one.verdict == "another protocol"
    assert reason is None or one.reasons == (reason,)
    assert one.difference == pytest.approx(0)  # it is printed all the same


def test_images_that_were_reduced_are_not_those_of_a_source(recorded: Recorded) -> None:
    folder = recorded(NET, 0, 4.0, expect=expect(8.1))
    path, protocol = folder / "metrics.jsonl", "validation set, shorter sides reduced to 80 px; whole image, one view"
    path.write_text(path.read_text().replace("whole image", protocol))
    [one] = published(groups())
    assert one.reasons == ("packed images, shorter sides reduced to 80 px",)
    path.write_text(path.read_text().replace(protocol, protocol.replace(", shorter sides reduced to 80 px", "")))
    [one] = published(groups())
    assert one.reasons == ()


def test_the_running_training_error_has_no_protocol(recorded: Recorded) -> None:
    assert compared(recorded, [4.0, 4.1, 4.2], expect(6.1, "train_error", protocol="ten-crop")).verdict == "agrees"


def test_of_several_sources_the_one_of_the_protocol_is_compared(recorded: Recorded) -> None:
    ten, one = expect(7, protocol="ten-crop")[0], expect(8, source="another")[0]
    assert compared(recorded, [4.0, 4.1, 4.2], [ten, one]).entry.source == "another"


def test_a_run_of_another_recipe_among_the_seeds_counts(recorded: Recorded) -> None:
    """Seeds may be trained at different times; the figures are of all of them."""
    recorded(NET, 0, 4.0, expect=expect(8))
    recorded(NET, 1, 4.1, expect=expect(8, differs={NET: ["optimizer.lr = 0.2, not 0.1"]}))
    [one] = published(groups())
    assert one.reasons == ("optimizer.lr = 0.2, not 0.1",)


def test_published_stands_beside_measured_in_every_output(recorded: Recorded, program: Program) -> None:
    for seed in range(3):
        recorded(NET, seed, 4.0 + seed / 10, expect=expect(8.75, val_error_top5={NET: {"mean": 1, "std": 0.1, "n": 3}}))
        recorded("cifar-plain-20", seed, 6.0)
    code, out, err = program("compare", "runs")
    assert code == 0, err
    lines = [line.split("  ") for line in out.splitlines() if "a paper" in line]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        [NET, "val top-1", "8.10 ± 0.10 (3)", "8.75", "-0.65", "better", "a paper, table 1"],
        [NET, "val top-5", "1.00 ± 0.00 (3)", "1.00 ± 0.10 (3)", "+0.00", "agrees", "a paper, table 1"],
    ]
    text = Path("runs/compare.md").read_text()
    assert f"| {NET} | validation top-1 | 8.10 ± 0.10 (3) | 8.75 | -0.65 | better | a paper, table 1 |" in text
    plain, residual = csv.DictReader(Path("runs/compare.csv").read_text().splitlines())
    assert (residual["published_val_error_top1"], residual["verdict_val_error_top1"]) == ("8.75", "better")
    assert float(residual["difference_val_error_top1"]) == pytest.approx(-0.65)
    assert (residual["published_val_error_top5"], plain["published_val_error_top1"]) == ("1.00 ± 0.10 (3)", "")
    table = json.loads(Path("runs/compare.json").read_text())
    assert table == json.loads(program("compare", "runs", "--json")[1])
    assert (table[1]["source_val_error_top1"], table[0]["verdict_val_error_top1"]) == ("a paper, table 1", None)


def test_nothing_published_is_not_mentioned(recorded: Recorded) -> None:
    recorded(NET, 0, 4.0)
    assert published(groups()) == []
    assert published_table([]) == ""
    assert add_published(rows(groups()), groups()) == rows(groups())


def stars(ax: Axes) -> list[tuple[float, float]]:
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.get_lines() if line.get_marker() == "*"]  # type: ignore[index]


def test_figures_have_a_mark_at_the_published_value(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[mpl.Figure] = []
    monkeypatch.setattr(mpl.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    recorded(NET, 0, 4.0, expect=expect(8.75, clean_train_error={NET: {"low": 1, "high": 3}}))
    recorded("cifar-resnet-32", 0, 4.0, expect=expect(8, protocol="ten-crop"))  # another protocol: no mark
    figures.draw_curves(groups(), Path("unused.png")), figures.draw_costs(groups(), Path("unused.png"))
    curves, costs = drawn
    assert stars(curves.axes[0]) == [(20, 8.75), (20, 2.0)]
    assert [stars(ax) for ax in costs.axes[:4]] == [[(20, 8.75)], [(1000, 8.75)], [(2e6, 8.75)], [(12, 8.75)]]
    assert "star: published" in curves.get_suptitle().replace("\n", " ")


def test_a_dry_run_says_what_to_expect(config: Callable[..., Path], program: Program) -> None:
    entry = {"source": "a paper", "val_images": 14, "val_error_top1": {"cifar-resnet-8": {"mean": 7, "std": 1, "n": 3}}}
    path = config(expect=[entry], networks=["cifar-resnet-8", "cifar-plain-8"])
    code, out, err = program("run", path, "--dry-run")
    assert code == 0, err
    assert out.splitlines()[-4:] == [
        "",
        "expected, a paper, one-crop:",
        "network                 val top-1",
        "cifar-resnet-8  7.00 ± 1.00 (3) %",
    ], out
    assert "another protocol: train.steps = 4, not 8" in program("run", path, "train.steps=4", "--dry-run")[1]
    assert "a paper" not in program("run", path, "--dry-run", "--only", "cifar-plain-8")[1]
    verbose = program("run", path, "--dry-run", "--verbose")[1]
    assert verbose.startswith("# network "), verbose
    assert yaml.safe_load(verbose)["expect"][0]["source"] == "a paper"
