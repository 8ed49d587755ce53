from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

import report_runs
from pipelines.reporting.charts import (
    MAX_BARS,
    Bar,
    Chart,
    Cloud,
    Curve,
    Histogram,
    Point,
    charts_of,
    draw,
)
from pipelines.reporting.listening import choose, power
from pipelines.reporting.page import chart_view
from pipelines.reporting.runs import Run, read_run
from terminal import screen
from transforms.storage import Storage

HOSTILE = '</svg><script>x</script>$\\frac{ "&'
TEXT = {"title": HOSTILE, "x_label": HOSTILE, "y_label": HOSTILE, "caption": HOSTILE}
VALUES = np.array([1.0, 2.0, 4.0])


def read(folder: Path, clips: list[dict[str, object]]) -> Run:
    return read_run(str(report_runs.write_run(folder, clips)), folder.name, Storage())


@pytest.mark.parametrize(
    "content",
    [
        {"curves": (Curve(name=HOSTILE, points=(Point(x=1, mean=2, low=1, high=3, n=4),)),)},
        {"bars": (Bar(label=HOSTILE, mean=1.0, low=0.5, high=2.0, n=3),)},
        {"histograms": (Histogram(name=HOSTILE, values=VALUES),)},
        {"clouds": (Cloud(name=HOSTILE, x=VALUES, y=VALUES),)},
    ],
)
def test_text_in_a_drawing_is_text(content: dict[str, object]) -> None:
    drawing = draw(Chart(name="one", **TEXT, **content))
    root = ElementTree.fromstring(drawing.svg)  # noqa: S314 - made here
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert HOSTILE in {element.text for element in root.iter()}
    assert "var(--ink)" in drawing.svg
    assert drawing.png.startswith(b"\x89PNG")


def test_numbers_of_clips_are_whole() -> None:
    series = (Histogram(name="a", values=100 * VALUES),)
    svg = draw(
        Chart(name="one", title="t", x_label="x", y_label="y", caption="c", histograms=series)
    ).svg
    root = ElementTree.fromstring(svg)  # noqa: S314 - made here
    texts = {(element.text or "").strip() for element in root.iter()}
    assert not {"0.5", "0.50", "0.2", "0.25"} & texts


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_series_is_named_in_its_legend() -> None:
    named = {"title": "a\x1b\nb", "x_label": "x", "y_label": "y", "caption": "a\x1b\nb " * 200}
    series = tuple(Histogram(name=name, values=VALUES) for name in report_runs.NASTY)
    svg = draw(Chart(name="one", **named, histograms=series)).svg
    root = ElementTree.fromstring(svg)  # noqa: S314 - made here
    texts = [(element.text or "").strip() for element in root.iter()]
    assert {screen.one_line(name) for name in report_runs.NASTY} <= set(texts)


def test_many_kinds_of_clips_give_every_plot(tmp_path: Path) -> None:
    clips = report_runs.many_clips(1200)
    clips += [
        report_runs.clip(
            5000 + n, dataset="multisource", split=f"{n}-sources-1-targets", n_sources=n
        )
        for n in (2, 3, 4)
    ]
    charts = {chart.name: chart for chart in charts_of([read(tmp_path, clips)], "sdri_db")}
    assert set(charts) == {
        *("distribution-01", "distribution-02", "distribution-03"),
        *("levels-01", "sources-01", "shots-01", "classes-01-01", "improvement-by-input"),
    }
    points = charts["sources-01"].curves[0].points
    assert [(point.x, point.mean, point.n) for point in points] == [
        (2.0, 5002.0, 1),
        (3.0, 5003.0, 1),
        (4.0, 5004.0, 1),
    ]
    published = [curve.name for curve in charts["levels-01"].curves if curve.is_published]
    assert published == [
        "published: CLAPSep text P+N",
        "published: CLAPSep [†] text P+N",
    ]
    assert len(charts["classes-01-01"].bars) == 25
    assert all("a1a1a1a1a1a1" in chart.caption for chart in charts.values())


def test_only_the_ends_of_many_classes_are_drawn(tmp_path: Path) -> None:
    clips = [report_runs.clip(n, label=f"class {n}") for n in range(60)]
    (chart,) = (c for c in charts_of([read(tmp_path, clips)], "sdri_db") if c.bars)
    assert len(chart.bars) == MAX_BARS
    assert (chart.bars[0].label, chart.bars[-1].label) == ("class 59", "class 0")
    assert "40 of 60 the lowest and highest classes shown" in chart.caption


def test_best_median_and_worst_are_different_clips(tmp_path: Path) -> None:
    run = read(tmp_path, [report_runs.clip(n, sdri_db=None if n == 9 else n) for n in range(10)])
    chosen = choose(run.clips, "sdri_db", 2)
    assert list(zip(chosen["kind"], chosen["id"], strict=True)) == [
        ("best", "clip-00008"),
        ("best", "clip-00007"),
        ("median", "clip-00003"),
        ("median", "clip-00004"),
        ("worst", "clip-00000"),
        ("worst", "clip-00001"),
    ]
    assert choose(run.clips[:2], "sdri_db", 1)["kind"].tolist() == ["best", "worst"]
    assert choose(run.clips[:0], "sdri_db", 1).empty


def test_the_best_example_has_the_lowest_value_where_lower_is_better(tmp_path: Path) -> None:
    clips = [report_runs.clip(n, clap_score_negative=n / 10) for n in range(3)]
    chosen = choose(read(tmp_path / "run", clips).clips, "clap_score_negative", 1)
    assert dict(zip(chosen["kind"], chosen["clap_score_negative"], strict=True)) == {
        "best": 0.0,
        "median": 0.1,
        "worst": 0.2,
    }


def test_a_tone_lies_in_its_row_of_a_spectrogram() -> None:
    tone = np.sin(2 * np.pi * 4000 * np.arange(32_000) / 32_000).astype(np.float32)
    found = power(tone)
    assert found.shape[0] == 128
    assert found.shape[1] <= 500
    assert np.argmax(found.mean(axis=1)) == 128 * 4000 // 16_000


def test_a_table_of_a_plot_has_the_median_and_the_decimals_of_its_metric() -> None:
    words = {"title": "t", "x_label": "x", "y_label": "y", "caption": "c"}
    series = (Histogram(name="a", values=np.array([0.5, 0.125, 0.25, 1.0])),)
    shown = chart_view(Chart(name="one", histograms=series, **words), "", 3)
    assert shown["rows"] == [("a", "0.125", "0.219", "0.375", "0.625", "1.000", "4")]
    bars = (Bar(label="b", mean=0.125, low=0.0625, high=0.25, n=3),)
    shown = chart_view(Chart(name="two", bars=bars, **words), "", 3)
    assert shown["rows"] == [("b", "0.125", "0.062", "0.250", "3")]


def test_an_axis_of_very_many_levels_has_few_ticks() -> None:
    points = tuple(Point(x=n / 7, mean=1.0, low=0.0, high=2.0, n=1) for n in range(60))
    words = {"title": "t", "x_label": "x", "y_label": "y", "caption": "c"}
    svg = draw(Chart(name="one", curves=(Curve(name="a", points=points),), **words)).svg
    assert 2 < svg.count('id="xtick_') < 20
