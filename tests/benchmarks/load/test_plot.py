from __future__ import annotations

import re
from pathlib import Path

import pytest

from xpeft_benchmarks.load import sweep as load
from xpeft_benchmarks.load.exchange import Exchange
from xpeft_benchmarks.load.figure import load_figure
from xpeft_benchmarks.load.plan import Kind, LoadPlan, TargetPlan
from xpeft_benchmarks.load.plot import PlotInvalid, check_plot, write_plot
from xpeft_benchmarks.load.points import Point, Stretch
from xpeft_benchmarks.load.slo import Slo
from xpeft_benchmarks.load.sweep import BenchExtraMissing, Sweep
from xpeft_benchmarks.popularity import Popularity

FACTS = {"plm": "tiny<1>", "dtype": "float32", "device": "cpu"}
PLAN = LoadPlan(
    targets=(TargetPlan("new", "http://a"), TargetPlan("old", "http://b")),
    kind=Kind.CLASSIFY,
    rates=None,
    seconds=10.0,
    rounds=2,
    profiles=5,
    popularity=Popularity.parse("distinct"),
    texts=8,
    slo=Slo(0.1, 0.02),
    server={},
    tenants=1,
    plm="tiny",
)


def sweep(late: float = 0.0, **stages: float) -> Sweep:
    points = [
        Point(name, rate, [Stretch(1.0, [Exchange(late, 200, 5, {**stages, "total": rate / 100})] * int(rate))] * 2)
        for rate in (5.0, 10.0, 20.0)
        for name in ("new", "old")
    ]
    return Sweep(points, {"new": FACTS, "old": FACTS}, {})


def words(page: str) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", page)]


def test_a_page_holds_the_plot_with_its_words_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "load.html"
    write_plot(path, sweep(), PLAN)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>POST /v1/classify: tiny&lt;1&gt;, float32 on cpu</title>" in page
    told = words(page)
    assert "latency, ms" in told
    assert "rate, requests sent a second" in told
    assert "limit 100 ms" in told
    for name in ("new", "old"):
        assert {f"{name}  p50", f"{name}  p95", f"{name}  p99", name} <= set(told)
    assert any("medians of 2 rounds" in each for each in told)
    assert not re.search(r"""(?:src|href)\s*=\s*["']https?:""", page)
    assert "<script" not in page


def test_the_same_sweep_is_the_same_page(tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_plot(tmp_path / name, sweep(), PLAN)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "load.png"
    write_plot(path, sweep(), PLAN)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000


def test_latency_and_goodput_stand_at_their_rates() -> None:
    above, below = load_figure(sweep().points, Slo(0.1), title="t", subtitle="s").axes
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in above.get_lines()}
    assert curves["old  p99"] == ([5.0, 10.0, 20.0], [50.0, 100.0, 200.0])
    goodput = {line.get_label(): list(line.get_ydata()) for line in below.get_lines()}
    assert goodput["new"] == [5.0, 10.0, 0.0]
    assert goodput["all that were sent"] == [0.0, 5.0, 10.0, 20.0]


def test_streams_are_drawn_by_their_first_token_and_by_a_token() -> None:
    streamed = sweep(first_token=0.05, per_token=0.01).points
    labels = [axes.get_ylabel() for axes in load_figure(streamed, PLAN.slo, title="t", subtitle="s").axes]
    assert labels[:2] == ["time to first token, ms", "time of a token after it, ms"]


@pytest.mark.parametrize(("late", "face"), [(0.0, "#1b6ca8"), (0.2, "white")])
def test_a_mark_is_hollow_where_the_client_was_late(late: float, face: str) -> None:
    above = load_figure(sweep(late=late).points, Slo(0.1), title="t", subtitle="s").axes[0]
    marks = [line for line in above.get_lines() if line.get_marker() == "o"]
    assert marks[0].get_markerfacecolor() == face


@pytest.mark.parametrize("name", ["load.pdf", "load", "load.PNG.gz"])
def test_a_name_that_is_neither_picture_nor_page_is_refused(name: str) -> None:
    with pytest.raises(PlotInvalid, match=rf"plot '{re.escape(name)}' does not end in \.png or \.html"):
        check_plot(Path(name))


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(BenchExtraMissing, match=r"matplotlib is not installed; .* -e '\.\[bench\]'"):
        check_plot(Path("load.png"))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"load\.png"):
        write_plot(tmp_path / "gone" / "load.png", sweep(), PLAN)
