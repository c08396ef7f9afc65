"""The figure of the training loss, read from what is drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import groups
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from resnet_train.analysis.figures import draw_curves
from resnet_train.analysis.loss_figure import draw_loss

Program = Callable[..., tuple[int, str, str]]


def with_losses(folder: Path, losses: list[float | None]) -> None:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record, loss in zip([r for r in records if r["kind"] == "train"], losses, strict=True):
        record["loss"] = loss
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """The axes of the figure: of each panel that of the loss, then that of the error."""
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))

    def draw() -> list[Any]:
        draw_loss(groups(), Path("unused.png"))
        return kept[-1].axes

    return draw


def test_losses_and_errors_are_means_on_axes_of_their_own(
    recorded: Callable[..., Path], drawn: Callable[[], list[Any]]
) -> None:
    with_losses(recorded("cifar-plain-20", 0, 5.0), [2.0, 0.5])
    with_losses(recorded("cifar-plain-20", 1, 7.0), [1.0, 0.25])
    with_losses(recorded("cifar-resnet-20", 0, 3.0), [1.5, None])  # not finite
    plain_loss, plain_error, loss, error = drawn()
    assert (plain_loss.get_title(), loss.get_title()) == ("plain", "residual")
    assert plain_loss.get_yscale() == "log"
    assert plain_error.get_yscale() == "linear"
    assert [list(line.get_ydata()) for line in plain_loss.lines] == [[1.5, 0.375]]
    assert [list(line.get_ydata()) for line in plain_error.lines] == [pytest.approx([9.5, 10.0])]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines] == [([10], [1.5])]
    assert plain_loss.lines[0].get_linestyle() == "--"
    assert plain_loss.lines[0].get_color() == plain_error.lines[0].get_color()
    assert plain_loss.get_ylim() == loss.get_ylim()
    assert plain_error.get_ylim() == error.get_ylim()
    assert [text.get_text() for text in error.get_legend().texts] == ["cifar-resnet-20"]


def test_networks_of_one_depth_have_a_colour_each(
    recorded: Callable[..., Path], drawn: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the figures of He et al. 2016, whose networks differ in their shortcuts and orders alone."""
    for i in range(12):
        recorded({"base": "cifar-resnet-20", "name": f"net-{i}", "dropout": i / 100}, 0, 5.0 + i)
    _, error = drawn()
    assert len({to_hex(line.get_color()) for line in error.lines}) == 12
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    draw_curves(groups(), Path("unused.png"))
    bold = [line for line in kept[0].axes[0].lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 1]
    assert len({to_hex(line.get_color()) for line in bold}) == len(bold) == 12


def test_it_is_drawn_on_request(recorded: Callable[..., Path], program: Program) -> None:
    for loss in (0.0, None):  # a logarithm has neither
        with_losses(recorded("cifar-resnet-20", int(loss is None), 3.0), [loss, loss])
    assert program("compare", "runs")[0] == 0
    assert not Path("runs/compare-loss.png").exists()
    code, out, err = program("compare", "runs", "--loss", "--format", "png,svg")
    assert code == 0, err
    assert "runs/compare-loss.svg" in out
    assert Path("runs/compare-loss.png").read_bytes()[:4] == b"\x89PNG"
    assert "![training loss](compare-loss.png)" in Path("runs/compare.md").read_text()
