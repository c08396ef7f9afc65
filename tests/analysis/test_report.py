"""The page of `resnet-train report`: what is in it, and how a browser shows it."""

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
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
    (evaluation / "last-one-crop-classes.csv").write_text(
        "class,images,error\n</script><b>cat,10,50.0\ndog,3,33.333333333333336\n"
    )
    (evaluation / "last-one-crop-mistakes.png").write_bytes(b"\x89PNG")
    return Path("runs")


def data_of(page: str) -> Any:
    """What its script draws of the only data set."""
    [section] = sections_of(page)
    return section


def sections_of(page: str) -> Any:
    """What its script draws of each data set."""
    return json.loads(re.search(r"<script>const SECTIONS = (.*?);</script>", page)[1])  # type: ignore[index]


def test_the_page_holds_what_compare_finds(runs: Path, program: Program) -> None:
    code, out, err = program("report", runs)
    assert (code, out) == (0, "wrote runs/report.html\n"), err
    page = (runs / "report.html").read_text()
    assert "plain: the deeper network&#39;s training error is higher: cifar-plain-56" in page
    assert "<td>40.05 ± 0.07</td>" in page  # the clean error of cifar-plain-56
    assert "&lt;/script&gt;&lt;b&gt;cat" in page  # a name is no markup
    assert "<td>dog</td><td>3</td><td>33.33</td>" in page
    assert 'src="data:image/png;base64,iVBORw==' in page
    assert "All runs differ in network and seed only." in page
    data = data_of(page)
    curve = next(g for g in data["groups"] if g["name"] == "cifar-plain-56")["curves"]["clean_train_error"]
    assert curve["x"] == {"iterations": [10, 20], "epochs": [0.0032, 0.0064], "minutes": [6, 12]}
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


def test_each_data_set_has_findings_a_table_and_charts(recorded: Callable[..., Path], program: Program) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    digits = {"kind": "digits", **dict.fromkeys(("size", "train_images", "val_images", "classes"))}
    for depth in (20, 56):
        recorded(f"cifar-plain-{depth}", 0, 5.0 + depth)
        recorded(f"cifar-plain-{depth}", 0, 5.0 + depth, name="numbers", data=digits, augment={"crop": None})
    assert program("report", "runs")[0] == 0
    page = Path("runs/report.html").read_text()
    assert page.count("the deeper network&#39;s training error is higher: cifar-plain-56 61.00 %, cifar-plain-20") == 2
    assert "not only the network differs" not in page
    assert [section["name"] for section in sections_of(page)] == ["digits", "synthetic"]
    assert all(
        [group["name"] for group in s["groups"]] == ["cifar-plain-20", "cifar-plain-56"] for s in sections_of(page)
    )
    assert page.count("<td>cifar-plain-56</td>") == 2
    if browser.program() is None:
        return
    with browser.opened() as opened:
        opened.open(Path("runs/report.html"))
        top = "Math.max(...document.getElementById('curves').data[0].x)"
        before = opened.value(top)
        opened.value(
            "(s => { s.selectedIndex = 1; s.dispatchEvent(new Event('change', {bubbles: true})); })"
            "(document.querySelector('[name=data]'))"
        )
        opened.value("document.querySelector('#switches [name=x]').value = 'epochs'; drawCurves()")
        assert before == 20
        assert opened.value(top) < 1
        assert opened.value("DATA.name") == "synthetic"
        assert opened.errors() == []


def test_it_refers_to_no_other_file_or_host(runs: Path, program: Program) -> None:
    """No element or style sheet loads anything, and no other directive of its policy would let it."""
    assert program("report", runs)[0] == 0
    page = (runs / "report.html").read_text()
    loaded: list[str] = []

    class Elements(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            loaded.extend(
                f"{name}={(value or '')[:40]}"
                for name, value in attrs
                if name in ("src", "srcset", "href", "action", "data", "poster", "background", "ping")
            )

    styles = re.findall(r"<style>(.*?)</style>", page, re.S)
    Elements().feed(page)
    assert loaded == ["href=data:,", "src=data:image/png;base64,iVBORw=="]
    assert len(styles) == 1
    assert not re.search(r"@import|url\(|image-set", styles[0])
    own = page[: page.index("<script>")] + page[page.index("<script>const SECTIONS") :]  # without plotly's own code
    assert not re.search(r"https?:|//[a-z]|fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", own)
    assert "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:" in page


@pytest.mark.parametrize("seeds", [1, 2])
def test_bands_are_of_several_seeds(seeds: int, recorded: Callable[..., Path], program: Program) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    for seed in range(seeds):
        recorded("cifar-resnet-20", seed, 5.0)
    assert program("report", "runs")[0] == 0
    page = Path("runs/report.html").read_text()
    assert data_of(page)["several_seeds"] is (seeds > 1)
    if browser.program() is not None:
        with browser.opened() as opened:
            opened.open(Path("runs/report.html"))
            hidden = "getComputedStyle(document.querySelector('[name=bands]').parentElement).display === 'none'"
            assert opened.value(hidden) is (seeds == 1)


@pytest.mark.skipif(browser.program() is None, reason="no Chromium is installed")
def test_ticks_of_a_logarithmic_axis_are_whole_numbers(recorded: Callable[..., Path], program: Program) -> None:
    """Plotly's own have 2 and 5 for 20 and 50."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    for depth in (8, 20, 110):
        recorded(f"cifar-resnet-{depth}", 0, 5.0)
    assert program("report", "runs")[0] == 0
    with browser.opened() as opened:
        opened.open(Path("runs/report.html"))
        texts = opened.value("[...document.querySelectorAll('#costs .xtick text')].map(t => t.textContent)")
        assert texts == ["10", "20", "50", "100"]
        assert opened.errors() == []


def test_charts_of_a_sweep_show_each_network_at_its_best_and_a_line_for_each_key(
    recorded: Callable[..., Path], program: Program
) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    for depth in (20, 56):
        for lr, error in ((0.1, 5.0), (0.2, 4.0)):
            for nesterov in (False, True):
                sweep = {"optimizer.lr": [lr], "optimizer.nesterov": [nesterov]}
                recorded(f"cifar-plain-{depth}", 0, depth + error + nesterov, sweep=sweep)
    assert program("report", "runs")[0] == 0
    data = data_of(Path("runs/report.html").read_text())
    best = [f"cifar-plain-{depth} optimizer.lr=0.2 optimizer.nesterov=false" for depth in (20, 56)]
    assert [group["name"] for group in data["groups"]] == best
    assert [member["label"] for member in data["points"][0]["members"]] == best
    lines = data["swept"]["optimizer.lr"]
    assert [line["name"] for line in lines] == ["cifar-plain-20", "cifar-plain-56"]
    found = [(m["x"]["optimizer.lr"], m["errors"]["clean_train_error"][0]) for m in lines[1]["members"]]
    assert found == [(0.1, 61.0), (0.2, 60.0)]
    assert [m["x"]["optimizer.nesterov"] for m in data["swept"]["optimizer.nesterov"][0]["members"]] == [
        "false",
        "true",
    ]


def test_networks_of_one_depth_differ_in_their_shades(recorded: Callable[..., Path], program: Program) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    for network in ("cifar-plain-20", "cifar-resnet-20", "cifar-preact-20", "cifar-resnet-56"):
        recorded(network, 0, 5.0)
    assert program("report", "runs")[0] == 0
    shades = [group["colours"] for group in data_of(Path("runs/report.html").read_text())["groups"]]
    assert len({light for light, _ in shades}) == len({dark for _, dark in shades}) == 4


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
