"""The pictures of a comparison, from run folders written by hand."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import groups
from matplotlib.figure import Figure
from matplotlib.text import Text

from resnet_train.analysis import figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Figure]:
    """The figure of costs, as it is saved."""

    def draw() -> Figure:
        kept: list[Figure] = []
        monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
        figures.draw_costs(groups(), Path("unused.png"))
        return kept[0]

    return draw


def test_every_network_is_a_point_under_its_name(recorded: Callable[..., Path], drawn: Callable[[], Figure]) -> None:
    for seed in range(2):  # all at the same parameters, multiply-adds and hours
        recorded("cifar-plain-20", seed, 5.0 + seed), recorded("cifar-plain-56", seed, 5.2 + seed)
    for depth in (20, 32, 44, 56):
        recorded(f"cifar-resnet-{depth}", 0, 5.0 + depth / 1000)
    figure = drawn()
    *panels, curves, key = figure.axes
    assert [ax.get_xlabel() for ax in panels][0::3] == ["depth (layers)", "hours of training"]
    for ax in panels:
        names = list(ax.texts)
        assert sorted(text.get_text() for text in names) == sorted(group.label for group in groups())
        boxes = [Text.get_window_extent(text) for text in names]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max) for box in boxes)
    depths = {tuple(bars[0].get_xdata()): list(bars[0].get_ydata()) for bars in panels[0].containers[:2]}
    assert depths[20, 56] == pytest.approx([5.5, 5.7])  # the clean training error, as in the table
    assert [list(bars[0].get_ydata()) for bars in panels[0].containers][2] == pytest.approx([9.5, 9.7])
    assert list(curves.get_lines()[0].get_xdata()) == pytest.approx([0.1, 0.2])
    assert not key.axison


def test_lines_join_networks_of_one_protocol_only(recorded: Callable[..., Path], drawn: Callable[[], Figure]) -> None:
    recorded("cifar-resnet-20", 0, 5.0), recorded("cifar-resnet-56", 0, 5.0)
    path = recorded("cifar-resnet-32", 0, 4.0) / "metrics.jsonl"

    def joined() -> list[list[int]]:
        return [list(bars[0].get_xdata()) for bars in drawn().axes[0].containers]

    assert joined() == [[20, 32, 56]] * 2
    path.write_text(path.read_text().replace("whole image", "ten crops"))
    assert joined() == [[20, 56], [32]] * 2
    assert {text.get_text()[-3:] for text in drawn().axes[1].texts} == {"[1]", "[2]"}
    assert drawn().axes[-1].texts[0].get_text() == "[1] whole image\n[2] ten crops"


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
    *panels, curves, _ = drawn().axes
    points = [len(ax.texts) for ax in panels]
    assert points == ([0, 0, 0, 0] if missing == "evaluations" else [2, 2, 2, 0])
    assert not any(len(line.get_xdata()) and line.get_xdata()[0] >= 0 for line in curves.get_lines())
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
    assert len({bars[0].get_color() for bars in validation}) == 3
    legend = figure.axes[-1].artists[0]
    assert [text.get_text() for text in legend.get_texts()][:2] == ["residual (pre-activation)", "residual"]
    for wide in ("wrn-10-2", "wrn-16-2", "wrn-10-4", "wrn-16-4", "cifar-resnet-20-C", "cifar-resnet-56-C"):
        recorded(wide, 0, 5.0)
    figure = drawn()
    keys = [key.get_window_extent() for key in (figure.axes[-1].artists[0], figure.axes[-1].get_legend())]
    assert not keys[0].overlaps(keys[1])
    assert all(figure.bbox.contains(*key.min) and figure.bbox.contains(*key.max) for key in keys)


def test_many_networks_of_one_depth_have_lines_of_their_own(recorded: Callable[..., Path]) -> None:
    for i in range(6):
        recorded({"base": "cifar-resnet-20", "name": f"net-{i}", "dropout": i / 10}, 0, 5.0)
    assert len({str(style) for style in figures._curve_styles(groups())}) == 6


def test_a_cost_that_no_run_has_recorded_is_an_empty_panel(
    recorded: Callable[..., Path], drawn: Callable[[], Figure]
) -> None:
    """As in records of an earlier version, which had no time of training."""
    path = recorded("cifar-resnet-20", 0, 5.0) / "metrics.jsonl"
    path.write_text(path.read_text().replace("_seconds", "_other"))
    assert [len(ax.texts) for ax in drawn().axes[:4]] == [1, 1, 1, 0]
