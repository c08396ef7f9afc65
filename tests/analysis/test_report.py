"""The page of `resnet-train report`: what is in it, and how a browser shows it."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import browser
import pytest
from conftest import groups

Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(recorded: Callable[..., Path]) -> Path:
    """Two depths of both kinds, two seeds, gradients of some, and a confusion."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    for kind, errors in (("plain", (5.0, 40.0)), ("resnet", (5.0, 3.0))):
        for depth, error in zip((20, 56), errors, strict=True):
            for seed in range(2):
                folder = recorded(f"cifar-{kind}-{depth}", seed, error + seed / 10)
                metrics = folder / "metrics.jsonl"
                *lines, end = metrics.read_text().splitlines()
                units = {f"layer{i}.0": 0.5 / i for i in (1, 2, 3)} | {"layer3.1": None}
                probe = {"step": 20, "kind": "gradients", "units": units, "probe_seconds": 1.0, "probe_share": 0.1}
                lines += [json.dumps(probe | {"seconds": 720.0, "time": 0.0}), end]
                metrics.write_text("\n".join(lines) + "\n")
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    (evaluation / "last-one-crop-classes.csv").write_text("class,images,error\n</script><b>cat,10,50.0\n")
    (evaluation / "last-one-crop-mistakes.png").write_bytes(b"\x89PNG")
    return Path("runs")


def data_of(page: str) -> Any:
    """What its script draws."""
    return json.loads(re.search(r"<script>const DATA = (.*?);</script>", page)[1])  # type: ignore[index]


def test_the_page_holds_what_compare_finds(runs: Path, program: Program) -> None:
    code, out, err = program("report", runs)
    assert (code, out) == (0, "wrote runs/report.html\n"), err
    page = (runs / "report.html").read_text()
    assert "plain: the deeper network&#39;s training error is higher: cifar-plain-56" in page
    assert "<td>40.05 ± 0.07</td>" in page  # the clean error of cifar-plain-56
    assert "&lt;/script&gt;&lt;b&gt;cat" in page  # a name is no markup
    assert 'src="data:image/png;base64,iVBORw==' in page
    assert "All runs differ in network and seed only." in page
    data = data_of(page)
    curve = next(g for g in data["groups"] if g["name"] == "cifar-plain-56")["curves"]["clean_train_error"]
    assert curve["x"] == {"iterations": [10, 20], "epochs": [0.0032, 0.0064], "hours": [0.1, 0.2]}
    assert curve["y"] == [50.05, 40.05]
    assert curve["deviations"] == pytest.approx([0.0707107] * 2)
    assert data["probes"][0]["pairs"] == [["cifar-plain-20", "cifar-resnet-20"], ["cifar-plain-56", "cifar-resnet-56"]]
    assert data["probes"][0]["networks"][0]["values"][-1] == [None]  # not finite
    [plain, residual] = data["points"]
    assert [m["errors"]["val_error_top1"][0] for m in plain["members"]] == [9.05, 44.05]
    assert (residual["members"][1]["x"]["depth"], residual["members"][1]["step"]) == (56, None)


def test_what_differs_and_what_is_published_is_in_it(recorded: Callable[..., Path], program: Program) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    entry = {"source": "A <paper>", "val_images": 10_000, "val_error_top1": {"cifar-resnet-20": 8.75}}
    recorded("cifar-resnet-20", 0, 5.0, expect=[entry])
    recorded("cifar-resnet-56", 0, 5.0, optimizer={"lr": 0.2})
    assert program("report", "runs", "--out", "new/page.html")[0] == 0
    page = Path("new/page.html").read_text()
    assert "A &lt;paper&gt;" in page
    assert '<td>optimizer.lr</td><td class="text">0.1</td><td class="text">cifar-resnet-20</td>' in page
    assert [group["published"] for group in data_of(page)["groups"]] == [{"val_error_top1": 8.75}, {}]


def test_without_plotly_it_is_one_line(
    recorded: Callable[..., Path], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded("cifar-resnet-20", 0, 5.0)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setitem(sys.modules, "plotly", None)
    code, _, err = program("report", "runs")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "a report needs plotly and jinja2: pip install 'resnet-train[report]'" in err
    assert groups()


@pytest.mark.skipif(browser.program() is None, reason="no Chromium is installed")
def test_a_browser_shows_it_without_error_or_request(runs: Path, program: Program) -> None:
    """A click on a name in the legend hides the curves of one network, and every switch works."""
    assert program("report", runs)[0] == 0
    path = runs / "report.html"
    with browser.opened() as page:
        for width, dark in ((1280, False), (400, True)):
            page.open(path, width, dark)
            assert page.value("document.body.dataset.ready") == "yes"
            assert page.value("document.documentElement.scrollWidth <= innerWidth") is True
            assert (
                page.value("getComputedStyle(document.body).backgroundColor")
                == f"rgb({'21, 25, 30' if dark else '255, 255, 255'})"
            )
            for box in ("switches", "cost-switches"):
                page.value(
                    f"for (const e of document.querySelectorAll('#{box} input')) e.click();"
                    f"for (const s of document.querySelectorAll('#{box} select')) for (const o of s.options) {{"
                    "s.value = o.value; s.dispatchEvent(new Event('change', {bubbles: true})); }"
                )
            visible = "document.getElementById('curves').data.filter(t => t.visible === true).map(t => t.legendgroup)"
            before = page.value(visible)
            assert set(before) == {"cifar-plain-20", "cifar-plain-56", "cifar-resnet-20", "cifar-resnet-56"}
            page.click("#curves .legendtoggle")
            page.wait(lambda: page.value(visible) != before)  # noqa: B023
            assert set(page.value(visible)) == set(before) - {"cifar-plain-20"}
            titles = page.value("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
            assert bool(titles) is (width == 1280)
            assert not [title for title in titles if "hare" in title or "loud" in title]  # none uploads the chart
            context = "[...document.querySelectorAll('.js-plotly-plot')].map(p => p._context.plotlyServerURL)"
            assert set(page.value(context)) == {""}
            assert page.errors() == []
            assert page.addresses() == [path.absolute().as_uri()]
