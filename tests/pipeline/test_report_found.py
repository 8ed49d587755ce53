"""The report of runs without references: what was found, and what a listener says of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import browser
import report_runs
from pipelines import report
from pipelines.reporting.found import threshold_of

RATE_HZ = 8_000
HOSTILE = '=1+1 <img src=x>,"a"'


def write_archive(folder: Path, count: int, with_presence: bool = True) -> Path:
    """A run over ``count`` recordings of 12 s, which share a stem, and two queries."""
    clips, segments = [], []
    stem = folder / "stems" / "all.flac"
    stem.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).standard_normal(12 * RATE_HZ)
    soundfile.write(stem, 0.1 * noise, RATE_HZ)
    for number in range(count):
        query = "a dog" if number % 2 else HOSTILE
        presence = (1.0 if number == count - 1 else number / count) if with_presence else None
        name = HOSTILE if number == 0 else f"rec/{number:05d}"
        row = report_runs.clip(
            number,
            id=name,
            sdri_db=None,
            sdr_db=None,
            si_sdri_db=None,
            positive_text=query,
            mixture_uri=str(stem),
            stem_uri=str(stem),
            duration_s=12.0,
            presence=presence,
            active_s=2.0 + number / count,
            n_segments=2,
        )
        clips.append(row)
        for start_s in (1.5, 9.25):
            segments.append(
                {
                    "id": name,
                    "start_s": start_s,
                    "end_s": start_s + 1.0,
                    "presence": presence,
                    "stem_to_mixture_db": -number / count,
                }
            )
    return report_runs.write_run(folder, clips, segments=segments, record={"manifests": []})


def test_recordings_are_ranked_and_the_best_is_shown(tmp_path: Path) -> None:
    run = write_archive(tmp_path / "run", 30)
    assert report.run([str(run), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    section = page.split('id="found"', 1)[1].split('id="check"', 1)[0]
    dogs = section.split("a dog</h3>", 1)[1]
    assert dogs.index("rec/00029") < dogs.index("rec/00027")
    assert section.count("data:audio/flac") == 4  # mixture and stem of two queries
    assert section.count('class="marked"') == 4
    assert "left:10.0%;width:10.0%" in section  # 1.5 s in a view of 10 s from 0.5 s
    assert "<img src=x>" not in page


def test_what_a_run_was_not_allowed_to_read_is_not_shown(tmp_path: Path) -> None:
    run = write_archive(tmp_path / "run", 4)
    outside = tmp_path / "outside.flac"
    outside.write_bytes((run / "stems" / "all.flac").read_bytes())
    file = run / "metrics" / "dataset=x" / "a.parquet"
    table = pq.read_table(file, partitioning=None)
    place = table.schema.get_field_index("mixture_uri")
    pq.write_table(table.set_column(place, "mixture_uri", [[str(outside)] * 4]), file)
    words = [str(run), "--output", str(tmp_path / "out")]
    limited = ["--allowed_uri_prefix", str(tmp_path / "elsewhere")]
    assert report.run([*words, *limited]) == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Spectrogram of the stem" in page
    assert "Spectrogram of the mixture" not in page
    assert "outside of what --allowed_uri_prefix allows" in page


def test_without_presences_recordings_are_ranked_by_what_was_found(tmp_path: Path) -> None:
    run = write_archive(tmp_path / "run", 10, with_presence=False)
    assert report.run([str(run), "--output", str(tmp_path / "out"), "--listen", "0"]) == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    dogs = page.split("a dog</h3>", 1)[1]
    assert dogs.index("rec/00009") < dogs.index("rec/00007")


def test_a_recording_whose_segments_are_gone_is_said(tmp_path: Path) -> None:
    run = write_archive(tmp_path / "run", 4)
    (file,) = (run / "segments").iterdir()
    table = pq.ParquetFile(file).read()
    kept = [number for number, name in enumerate(table["id"].to_pylist()) if name != "rec/00003"]
    pq.write_table(table.take(kept), file)
    assert report.run([str(run), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("Its segments are missing") == 1


def test_a_run_without_segments_has_no_such_section(tmp_path: Path) -> None:
    run = report_runs.write_run(tmp_path / "run", [report_runs.clip(0)])
    assert report.run([str(run), "--output", str(tmp_path / "out")]) == 0
    assert 'id="found"' not in (tmp_path / "out" / "report.html").read_text("utf-8")


def _reviews(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = ("run", "id", "start_s", "end_s", "positive_text", "score", "present")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_reviews_give_precision_and_a_threshold(tmp_path: Path) -> None:
    """Whatever has a presence above 0.6 is right; half of the segments are judged."""
    run = write_archive(tmp_path / "run", 200)
    rows = [
        {
            "run": "run",
            "id": f"'{HOSTILE}" if number == 0 else f"rec/{number:05d}",
            "start_s": "1.500",
            "present": "yes" if number / 200 > 0.6 else "no",
        }
        for number in range(200)
    ]
    reviews = _reviews(tmp_path / "reviews.csv", rows)
    words = [str(run), "--output", str(tmp_path / "out"), "--reviews", str(reviews)]
    assert report.run([*words, "--listen", "0"]) == 0
    found = list(csv.DictReader((tmp_path / "out" / "precision.csv").open(encoding="utf-8")))
    assert [row["num_judged"] for row in found] == ["100", "100"]
    for row in found:
        assert float(row["precision"]) == pytest.approx(0.4, abs=0.02)
        assert float(row["low"]) < 0.4 < float(row["high"])
        assert float(row["threshold"]) == pytest.approx(0.62, abs=0.04)
        assert row["score"] == "presence"
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "40 % (" in page


@pytest.mark.parametrize(("num_right", "threshold"), [(12, None), (19, 0.0), (20, 0.0)])
def test_a_score_that_is_no_better_when_higher_is_no_threshold(
    num_right: int, threshold: float | None
) -> None:
    """The segments of the lowest scores are right: from none on are 90 %, unless of all."""
    scores = np.linspace(0.0, 1.0, 20)
    assert threshold_of(scores, scores, np.arange(20) < num_right) == threshold


@pytest.mark.parametrize(("separator", "point"), [(";", ","), ("\t", "."), (",", ".")])
def test_reviews_that_a_spreadsheet_saved(separator: str, point: str, tmp_path: Path) -> None:
    run = write_archive(tmp_path / "run", 4)
    cells = [
        ["run", "id", "start_s", "end_s", "positive_text", "score", "present"],
        ["run", "rec/00001", f"1{point}5", f"2{point}5", "a dog", f"0{point}25", "YES"],
    ]
    text = "\r\n".join(separator.join(row) for row in cells)
    (tmp_path / "reviews.csv").write_text(f"\ufeff{text}\r\n", encoding="utf-8")
    words = [str(run), "--output", str(tmp_path / "out")]
    assert report.run([*words, "--reviews", str(tmp_path / "reviews.csv"), "--listen", "0"]) == 0
    (found,) = csv.DictReader((tmp_path / "out" / "precision.csv").open(encoding="utf-8"))
    assert (found["num_judged"], found["num_right"]) == ("1", "1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"present": "maybe"}, "line 2, present: 'maybe'; expected yes or no"),
        ({"start_s": "x"}, "line 2, start_s: 'x'"),
        ({"id": "nobody"}, "none of its rows is about a segment of these runs"),
    ],
)
def test_wrong_reviews_are_said(
    change: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_archive(tmp_path / "run", 4)
    row = {"run": "run", "id": "rec/00001", "start_s": "1.5", "present": "yes", **change}
    reviews = _reviews(tmp_path / "reviews.csv", [row])
    words = [str(run), "--output", str(tmp_path / "out"), "--reviews", str(reviews)]
    assert report.run([*words, "--listen", "0"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_row_that_ends_early_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_archive(tmp_path / "run", 4)
    reviews = tmp_path / "reviews.csv"
    reviews.write_text("present,end_s,positive_text,score,start_s,run,id\nyes,1,x,1\n", "utf-8")
    words = [str(run), "--output", str(tmp_path / "out"), "--reviews", str(reviews)]
    assert report.run(words) == 2
    assert "line 2, start_s: ''" in capsys.readouterr().err


def test_judgements_of_segments_that_are_gone_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_archive(tmp_path / "run", 4)
    row = {"run": "run", "id": "rec/00001", "start_s": "1.5", "present": "yes"}
    gone = [{**row, "start_s": "1.4"}, {**row, "id": "1"}, {**row, "run": "other"}]
    reviews = _reviews(tmp_path / "reviews.csv", [row, row, *gone])
    words = [str(run), "--output", str(tmp_path / "out"), "--reviews", str(reviews)]
    assert report.run([*words, "--listen", "0"]) == 0
    assert "3 of 4 segments judged are in none of these runs" in capsys.readouterr().err
    _reviews(reviews, [row])
    assert report.run([*words, "--listen", "0"]) == 0
    assert not capsys.readouterr().err


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 20,000 rows."""
    folder = tmp_path_factory.mktemp("archive")
    run = write_archive(folder / "run", 20_000)
    assert report.run([str(run), "--output", str(folder / "report")]) == 0
    return folder / "report" / "report.html"


@pytest.mark.slow
def test_a_page_of_20_000_recordings_stays_small(archive: Path) -> None:
    assert archive.stat().st_size < 15e6


@pytest.mark.slow
@pytest.mark.browser
def test_segments_are_judged_by_keyboard_and_saved(
    archive: Path, chromium: browser.Browser, tmp_path: Path
) -> None:
    page = chromium
    page.open("about:blank")
    page.requests()
    page.open(archive.as_uri())
    first = "return document.querySelector('#rows tr[data-place=\"0\"] td')?.textContent"
    assert page.until(first) == "rec/19999"  # without references: the most present comes first
    page.type("#viewport", "\ue007")
    page.until("return document.querySelectorAll('.timeline button').length === 2")
    page.click(".timeline button:nth-child(2)")
    playing = "const a = document.querySelector('#detail audio'); return a.currentTime >= 9.25"
    page.until(playing)

    page.js("document.getElementById('judge-query').selectedIndex = 1")
    page.js("document.getElementById('check').scrollIntoView()")  # not beneath the bar at the top
    page.click("#judge-start")
    place = "return document.getElementById('judge-place').textContent"
    assert str(page.js(place)).startswith("1 of 200: ")
    for key in ("y", "n", "s", "Y", "b", "n"):
        page.type("#judge", key)
    assert str(page.js(place)).startswith("5 of 200: ")
    text = str(page.js("return document.getElementById('judge-text').textContent"))
    (tmp_path / "reviews.csv").write_text(text, encoding="utf-8", newline="")
    rows = list(csv.DictReader(text.splitlines(), strict=True))
    assert [row["present"] for row in rows] == ["yes", "no", "no"]
    scores = [float(row["score"]) for row in rows]
    assert scores[0] < 0.11
    assert 0.09 < scores[1] < 0.21  # one of each tenth of the scores in turn
    assert page.console() == []
    assert {url.split(":", 1)[0] for url in page.requests()} <= {"file", "data", "blob"}

    run = archive.parents[1] / "run"
    words = [str(run), "--output", str(tmp_path / "out"), "--listen", "0"]
    assert report.run([*words, "--reviews", str(tmp_path / "reviews.csv")]) == 0


@pytest.mark.slow
@pytest.mark.browser
def test_judgements_outlive_a_reload_and_a_new_page_of_the_run(
    chromium: browser.Browser, tmp_path: Path
) -> None:
    page = chromium
    runs = [write_archive(tmp_path / name, 8) for name in ("one", "other")]
    place = "return document.getElementById('judge-place').textContent"
    text = "return document.getElementById('judge-text').textContent"

    def begin(*shown: Path) -> str:
        words = [*map(str, shown), "--output", str(tmp_path / "out"), "--listen", "0"]
        assert report.run(words) == 0
        page.open((tmp_path / "out" / "report.html").as_uri())
        page.until("return document.querySelector('#judge-query option')")
        page.js("document.getElementById('judge-query').selectedIndex = 1")
        page.js("document.getElementById('judge-start').click()")
        return str(page.js(place))

    assert begin(runs[0]).startswith("1 of 8: ")
    for key in ("y", "s", "n"):
        page.type("#judge", key)
    saved = page.js(text)
    assert [row["present"] for row in csv.DictReader(str(saved).splitlines())] == ["yes", "no"]
    page.js("location.reload()")
    assert begin(runs[0]).startswith("2 of 8: ")  # the first that is not judged
    assert sorted(str(page.js(text)).splitlines()) == sorted(str(saved).splitlines())
    assert begin(runs[1]).startswith("1 of 8: ")  # of the same ids and starts
    assert begin(*runs).startswith("2 of 8: ")

    page.js("document.querySelector('[data-answer=forget]').scrollIntoView({block: 'center'})")
    page.click("[data-answer=forget]")
    page.call("/alert/accept")
    assert str(page.js(place)).startswith("1 of 8: ")
    assert begin(runs[0]).startswith("1 of 8: ")
    assert len(str(page.js(text)).splitlines()) == 1
    assert page.console() == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sections_fit_a_phone_in_both_colours(
    scheme: str, archive: Path, chromium: browser.Browser
) -> None:
    page = chromium
    page.colours(scheme)
    page.size(360, 740, mobile=True)
    page.open(archive.as_uri())
    page.click("#judge-start")
    page.until("return !document.getElementById('judge').hidden")
    assert page.js("return document.documentElement.scrollWidth") <= 360
    assert page.console() == []


@pytest.mark.slow
@pytest.mark.browser
def test_a_stem_that_cannot_be_heard_is_said_while_judging(
    chromium: browser.Browser, tmp_path: Path
) -> None:
    run = write_archive(tmp_path / "run", 2)
    (file,) = (run / "metrics").rglob("a.parquet")
    table = pq.ParquetFile(file).read()
    stems = [table["stem_uri"][0].as_py(), "/elsewhere/stem.flac"]
    place = table.column_names.index("stem_uri")
    pq.write_table(table.set_column(place, table.schema.field(place), [stems]), file)
    assert report.run([str(run), "--output", str(tmp_path / "out"), "--listen", "0"]) == 0
    page = chromium
    page.open((tmp_path / "out" / "report.html").as_uri())
    page.until("return document.querySelector('#judge-query option')")
    page.js("document.getElementById('check').scrollIntoView()")
    for query, said in (("=1+1", False), ("a dog", True)):
        page.js(
            "const s = document.getElementById('judge-query'); s.selectedIndex = "
            "[...s.options].findIndex((o) => o.text.startsWith(arguments[0]))",
            query,
        )
        page.click("#judge-start")
        text = str(page.js("return document.getElementById('judge-place').textContent"))
        assert text.endswith("Its stem is not where a page can reach it.") == said
        source = page.js("return document.getElementById('judge-player').getAttribute('src')")
        assert (source is None) == said
    (run / "stems" / "all.flac").unlink()
    page.open((tmp_path / "out" / "report.html").as_uri())
    page.until("return document.querySelector('#judge-query option')")
    page.js("document.getElementById('judge-query').selectedIndex = 0")
    page.js("document.getElementById('check').scrollIntoView()")
    page.click("#judge-start")
    said_text = "document.getElementById('judge-place').textContent"
    page.until(f"return {said_text}.endsWith('Its stem cannot be played from here.')")
    page.console()


@pytest.mark.slow
@pytest.mark.browser
def test_a_stem_that_was_passed_over_before_it_came_moves_no_other(
    chromium: browser.Browser, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "stems").mkdir(parents=True)
    clips, segments = [], []
    for number, start_s in enumerate((9.25, 0.0)):
        stem = run / "stems" / f"{number}.flac"
        soundfile.write(stem, np.zeros(12 * RATE_HZ), RATE_HZ)
        words = {"positive_text": "a dog", "stem_uri": str(stem), "n_segments": 1}
        clips.append(report_runs.clip(number, id=str(number), sdri_db=None, **words))
        times = {"start_s": start_s, "end_s": start_s + 2.0}
        segments.append({"id": str(number), "presence": number / 2, **times})
    report_runs.write_run(run, clips, segments=segments)
    assert report.run([str(run), "--output", str(tmp_path / "out"), "--listen", "0"]) == 0
    page = chromium
    page.open((tmp_path / "out" / "report.html").as_uri())
    page.until("return document.querySelector('#judge-query option')")
    page.js(
        "document.getElementById('judge-start').click();"
        "document.querySelector('[data-answer=skip]').click()"  # before the first is loaded
    )
    player = "const a = document.getElementById('judge-player'); "
    assert str(page.js(player + "return a.getAttribute('src')")).endswith("/1.flac")
    page.until(player + "return a.currentTime > 0.2")
    assert float(page.js(player + "return a.currentTime")) < 5.0
    page.console()
