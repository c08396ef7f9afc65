"""The pictures of a comparison, from run folders written by hand."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import groups
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from resnet_train.analysis import figures, style
from resnet_train.analysis.curves import curve
from resnet_train.analysis.loss_figure import draw_loss
from resnet_train.analysis.style import hue
from resnet_train.config import zoo


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, in place of their files."""
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    return kept


@pytest.fixture
def drawn(saved: list[Figure]) -> Callable[[], Figure]:
    """The figure of costs, as it is saved."""

    def draw() -> Figure:
        figures.draw_costs(groups(), Path("unused.png"))
        return saved[-1]

    return draw


def test_every_network_is_a_point_under_its_name(recorded: Callable[..., Path], drawn: Callable[[], Figure]) -> None:
    for seed in range(2):  # all at the same parameters, multiply-adds and hours
        recorded("cifar-plain-20", seed, 5.0 + seed), recorded("cifar-plain-56", seed, 5.2 + seed)
    for depth in (20, 32, 44, 56):
        recorded(f"cifar-resnet-{depth}", 0, 5.0 + depth / 1000)
    figure = drawn()
    figure.draw_without_rendering()
    *panels, curves, key = figure.axes
    assert [ax.get_xlabel() for ax in panels][0::3] == ["depth (layers)", "minutes of training"]
    for ax in panels:
        names = list(ax.texts)
        assert sorted(text.get_text() for text in names) == sorted(group.label for group in groups())
        boxes = [Text.get_window_extent(text) for text in names]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max) for box in boxes)
    depths = {tuple(bars[0].get_xdata()): list(bars[0].get_ydata()) for bars in panels[0].containers[:2]}
    assert depths[20, 56] == pytest.approx([5.5, 5.7])  # the clean training error, as in the table
    assert [list(bars[0].get_ydata()) for bars in panels[0].containers][2] == pytest.approx([9.5, 9.7])
    assert list(curves.get_lines()[0].get_xdata()) == pytest.approx([6, 12])
    assert not key.axison


LONG = "a-network-with-a-name-that-says-all-there-is-to-say-of-it-and-more"


def test_a_name_covers_no_point_no_line_and_no_error_bar(
    recorded: Callable[..., Path], drawn: Callable[[], Figure]
) -> None:
    for seed in range(2):
        for network, error in (("plain-20", 9.0), ("plain-56", 15.0), ("resnet-20", 8.0), ("resnet-56", 6.0)):
            recorded(f"cifar-{network}", seed, error + seed)
    figure = drawn()
    figure.draw_without_rendering()
    for ax in figure.axes[:4]:
        boxes = [Text.get_window_extent(text) for text in ax.texts if text.get_text()]
        segments = [ends for bars in ax.containers for ends in bars[2][0].get_segments()]
        segments += [bars[0].get_xydata() for bars in ax.containers]
        places = [
            place for one, other in map(ax.transData.transform, segments) for place in np.linspace(one, other, 50)
        ]
        assert len(boxes) == 4
        assert not any(box.contains(*place) for box in boxes for place in places)


@pytest.mark.parametrize("width", [None, 3.3])
def test_long_names_are_broken_in_legends(
    width: float | None, recorded: Callable[..., Path], saved: list[Figure]
) -> None:
    """They neither squeeze the panels nor leave the figure; points have their depths in place of them."""
    for base in ("cifar-plain-20", "cifar-resnet-20", "cifar-resnet-56"):
        recorded({"base": base, "name": f"{LONG}-{base}"}, 0, 5.0 + len(base) % 2)
    output = style.Output(width=width)
    for draw in (figures.draw_curves, figures.draw_costs, draw_loss):
        draw(groups(), Path("unused.png"), output)
        figure = saved[-1]
        figure.draw_without_rendering()
        legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
        names = " ".join(text.get_text() for legend in legends for text in legend.get_texts()).replace("\n", "")
        assert names.count(LONG) == 3
        columns = round(figure.get_figwidth() / (5.5 if draw != figures.draw_costs else 5)) if width is None else 1
        for legend in legends:
            box = legend.get_window_extent()
            assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        for ax in (ax for ax in figure.axes if ax.axison):
            assert ax.get_window_extent().width > 0.5 * figure.bbox.width / columns
            assert all(text.get_text() in ("", "20", "56") for text in ax.texts)


def test_a_run_that_diverged_is_named_so(recorded: Callable[..., Path], saved: list[Figure]) -> None:
    recorded("cifar-plain-20", 0, 5.0)
    recorded("cifar-plain-56", 0, 5.0, status="diverged")
    figures.draw_curves(groups(), Path("unused.png"))
    assert [text.get_text() for text in saved[0].axes[0].get_legend().get_texts()] == [
        "cifar-plain-20",
        "cifar-plain-56, diverged",
    ]


def test_a_star_is_a_published_error_only(recorded: Callable[..., Path], saved: list[Figure]) -> None:
    """The axis fits the published errors, and the ends of the curves."""
    for i in range(8):
        path = recorded({"base": "cifar-resnet-20", "name": f"net-{i}", "dropout": i / 10}, 0, 5.0) / "metrics.jsonl"
        path.write_text(path.read_text().replace('"val_error_top1": 8.5', '"val_error_top1": 95.0'))
    figures.draw_curves(groups(), Path("unused.png"))
    assert not [line for line in saved[0].axes[0].lines if line.get_marker() == "*"]


def test_a_cost_that_is_not_positive_is_no_crash() -> None:
    """As hours of training are where records overestimate what evaluations took."""
    ax = Figure().subplots()
    style.scale_costs(ax, [-1.0, 0.0, 5.0, 100.0], tick_each=True)
    assert ax.get_xscale() == "log"


def test_lines_join_networks_of_one_protocol_only(recorded: Callable[..., Path], drawn: Callable[[], Figure]) -> None:
    recorded("cifar-resnet-20", 0, 5.0), recorded("cifar-resnet-56", 0, 5.0)
    path = recorded("cifar-resnet-32", 0, 4.0) / "metrics.jsonl"

    def joined() -> list[list[int]]:
        return [list(bars[0].get_xdata()) for bars in drawn().axes[0].containers]

    assert joined() == [[20, 32, 56]] * 2
    path.write_text(path.read_text().replace("whole image", "ten crops"))
    assert joined() == [[20, 56], [32]] * 2
    assert {text.get_text()[-3:] for text in drawn().axes[1].texts} == {"[1]", "[2]"}
    assert drawn().get_suptitle().endswith("[1] whole image\n[2] ten crops")


@pytest.mark.parametrize("missing", ["evaluations", "the time of evaluations"])
def test_what_is_not_known_yet_is_not_drawn(
    missing: str, recorded: Callable[..., Path], drawn: Callable[[], Figure]
) -> None:
    for depth in (20, 56):
        path = recorded(f"cifar-resnet-{depth}", 0, 5.0) / "metrics.jsonl"
        lines = path.read_text().splitlines()
        if missing == "evaluations":
            lines = [line for line in lines if '"eval"' not in line and '"end"' not in line]
        path.write_text("".join(line.replace(', "eval_seconds": 0.0', "") + "\n" for line in lines))
    *panels, _ = drawn().axes
    points = [len(ax.texts) for ax in panels]
    assert points == ([] if missing == "evaluations" else [2, 2, 2])  # no panel without a point
    figures.draw_curves(groups(), Path("unused.png"))


def test_lines_join_errors_of_one_step_only(recorded: Callable[..., Path], drawn: Callable[[], Figure]) -> None:
    for depth in (20, 32, 44, 56):
        path = recorded(f"cifar-resnet-{depth}", 0, 5.0) / "metrics.jsonl"
        if depth > 40:  # not finished
            lines = path.read_text().splitlines()
            path.write_text("".join(f"{line}\n" for line in lines if '"step": 20' not in line))
    panel = drawn().axes[0]
    assert [list(bars[0].get_xdata()) for bars in panel.containers] == [[20, 32], [44, 56]] * 2
    assert sorted(text.get_text() for text in panel.texts) == [
        "cifar-resnet-20 at step 20",
        "cifar-resnet-32 at step 20",
        "cifar-resnet-44 at step 10",
        "cifar-resnet-56 at step 10",
    ]


def test_only_members_of_a_family_are_joined(recorded: Callable[..., Path], drawn: Callable[[], Figure]) -> None:
    for network in ("cifar-resnet-20", "cifar-resnet-56", "cifar-preact-20", "cifar-preact-56", "cifar-plain-20"):
        recorded(network, 0, 5.0)
    figure = drawn()
    validation = figure.axes[0].containers[3:]
    assert [list(bars[0].get_xdata()) for bars in validation] == [[20], [20, 56], [20, 56]]
    assert [bars[0].get_color() for bars in validation] == [hue("plain"), hue("residual"), hue("residual")]
    assert len({bars[0].get_marker() for bars in validation}) == 3
    legend = figure.axes[-1].artists[0]
    assert [text.get_text() for text in legend.get_texts()][:2] == ["residual (pre-activation)", "residual"]
    for wide in ("wrn-10-2", "wrn-16-2", "wrn-10-4", "wrn-16-4", "cifar-resnet-20-C", "cifar-resnet-56-C"):
        recorded(wide, 0, 5.0)
    for depth in range(62, 146, 6):
        recorded(f"cifar-preact-{depth}", 0, 5.0)
    figure = drawn()
    figure.draw_without_rendering()
    keys = [key.get_window_extent() for key in (*figure.legends, figure.axes[-1].get_legend())]
    assert [len(key.get_texts()) for key in figure.legends] == [25]
    assert all(figure.bbox.contains(*key.min) and figure.bbox.contains(*key.max) for key in keys)
    assert not any(keys[0].overlaps(other) for other in [keys[1], *(ax.get_tightbbox() for ax in figure.axes)])


def test_many_networks_of_one_depth_have_markers_of_their_own(recorded: Callable[..., Path]) -> None:
    for i in range(6):
        recorded({"base": "cifar-resnet-20", "name": f"net-{i}", "dropout": i / 10}, 0, 5.0)
    assert len(set(figures._markers(groups()).values())) == 6


def test_the_same_networks_of_two_experiments_have_markers_of_their_own(
    recorded: Callable[..., Path], drawn: Callable[[], Figure]
) -> None:
    """Kind and depth give them one colour."""
    for name in ("first", "second"):
        for depth in (20, 56):
            recorded(f"cifar-resnet-{depth}", 0, 5.0, name=name)
    figure = drawn()
    assert len({line[0].get_marker() for line in figure.axes[0].containers}) == 2
    names = figure.axes[-1].get_legend()
    entries = zip(names.get_texts(), names.get_lines(), strict=True)
    markers = {text.get_text(): line.get_marker() for text, line in entries}
    assert markers["first/cifar-resnet-20"] == markers["first/cifar-resnet-56"] != markers["second/cifar-resnet-20"]
    families = figure.axes[-1].artists[0]
    assert families.get_lines()[0].get_marker() == ""  # a marker would be that of one experiment


def test_kinds_have_a_colour_and_depths_a_shade() -> None:
    names = ("cifar-plain-20", "cifar-plain-56", "cifar-resnet-20", "cifar-resnet-56", "cifar-preact-20", "vgg-16")
    found = style.colours([zoo.network_config(name) for name in names])
    assert found[2] == found[4]  # a family has a marker
    assert len(set(found)) == 5

    def channels(colour: str) -> list[int]:
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

    for shallow, deep in ((0, 1), (2, 3)):
        assert sum(channels(found[shallow])) > 1.5 * sum(channels(found[deep]))  # light, dark
    for plain, residual in ((0, 2), (1, 3)):
        assert channels(found[plain])[0] > channels(found[plain])[2]  # red above blue
        assert channels(found[residual])[0] < channels(found[residual])[2]
    assert style.shade("plain", 0.5) == style.hue("plain") == "#D55E00"
    assert style.colours([zoo.network_config("cifar-plain-20")]) == ["#D55E00"]


def test_the_errors_of_a_curve_differ_in_their_lines(recorded: Callable[..., Path], saved: list[Figure]) -> None:
    for seed in range(2):
        recorded("cifar-plain-20", seed, 50.0 + seed), recorded("cifar-resnet-20", seed, 5.0 + seed)
    figures.draw_curves(groups(), Path("unused.png"))
    for ax, colour in zip(saved[0].axes, (hue("plain"), hue("residual")), strict=True):
        lines = [line for line in ax.lines if len(line.get_xdata()) > 1]
        assert [line.get_linestyle() for line in lines] == [":", "--", "-"]
        assert {line.get_color() for line in lines} == {colour}
    assert (
        saved[0]
        .get_suptitle()
        .startswith("synthetic; 2 seeds: mean and standard deviation\nwhole image\nbold: validation")
    )
    assert saved[0].axes[0].get_ylim() == pytest.approx((0, 65.5), abs=4)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([20, 56], [20, 56]),
        ([18, 34, 50, 101, 152], [18, 34, 50, 101, 152]),
        ([8, 20, 32, 44, 56, 110, 164], [8, 20, 32, 44, 56, 110, 164]),
    ],
)
def test_depths_are_labelled_where_there_is_room(values: list[float], ticks: list[float]) -> None:
    ax = Figure(figsize=(4, 3), layout="constrained").subplots()
    ax.plot(values, values)
    style.scale_costs(ax, values, tick_each=True)
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    shown = [float(label.get_text()) for label in ax.get_xticklabels()]
    assert (shown[0], shown[-1]) == (ticks[0], ticks[-1])


@pytest.mark.parametrize(
    ("lowest", "highest", "bottom"), [(0.1, 60, 0), (50.0, 60, 49), (0.0, 0.0, 0), (20.0, 20.0, 19.6)]
)
def test_an_axis_of_errors_fits_them(lowest: float, highest: float, bottom: float) -> None:
    ax = Figure().subplots()
    style.fit_errors(ax, lowest, highest)
    low, high = ax.get_ylim()
    assert (low, high > highest) == (pytest.approx(bottom, abs=0.3), True)


@pytest.mark.parametrize(("hours", "expected"), [(0.01, "seconds"), (0.5, "minutes"), (30, "hours")])
def test_times_are_in_a_unit_that_suits(hours: float, expected: str) -> None:
    assert style.time_unit(hours)[0] == expected


def test_figures_are_written_in_each_format_and_width(recorded: Callable[..., Path], program: Any) -> None:
    recorded("cifar-plain-20", 0, 5.0), recorded("cifar-resnet-20", 0, 5.0)
    code, out, err = program("compare", "runs", "--format", "svg,pdf,png", "--width", "3.3")
    assert code == 0, err
    for stem in ("compare", "compare-cost"):
        assert Path(f"runs/{stem}.pdf").read_bytes()[:4] == b"%PDF"
        assert "<svg" in Path(f"runs/{stem}.svg").read_text()
        with Image.open(f"runs/{stem}.png") as image:
            assert image.width == round(3.3 * (140 if stem == "compare" else 120))
            assert image.height > image.width  # one panel below the other
        assert f"runs/{stem}.svg" in out
    assert "(compare.svg)" in Path("runs/compare.md").read_text()
    for option, value in (("--format", "png,gif"), ("--width", "wide"), ("--width", "100")):
        code, _, err = program("compare", "runs", option, value)
        assert (code, option in err) == (2, True)


def test_many_points_of_a_curve_are_averaged(recorded: Callable[..., Path]) -> None:
    path = recorded("cifar-resnet-20", 0, 5.0) / "metrics.jsonl"
    start, line = path.read_text().splitlines()[:2]
    records = [json.loads(line) | {"step": step, "error": step / 100} for step in range(1, 5001)]
    path.write_text("\n".join([start, *map(json.dumps, records)]) + "\n")
    points = curve(groups()[0], "train_error")
    assert len(points.steps) == len(points.means) == 1000
    assert list(points.means[:2]) == pytest.approx([0.03, 0.08])  # of steps 1 to 5, 6 to 10
    assert points.means * 100 == pytest.approx(points.steps)


def test_a_cost_that_no_run_has_recorded_has_no_panel(
    recorded: Callable[..., Path], drawn: Callable[[], Figure]
) -> None:
    """As in records of an earlier version, which had no time of training."""
    path = recorded("cifar-resnet-20", 0, 5.0) / "metrics.jsonl"
    path.write_text(path.read_text().replace("_seconds", "_other"))
    assert [ax.get_xlabel() for ax in drawn().axes[:-1]] == [
        "depth (layers)",
        "parameters",
        "multiply-adds of an image",
    ]
