"""The report of runs with sound, with hostile names, and with 20,000 clips in a browser."""

from __future__ import annotations

import base64
import csv
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from markdown_it import MarkdownIt

import browser
import report_runs
from manifests.columns import SHOWN_METRICS
from pipelines import report

RATE_HZ = 32_000
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&$\\frac{${{7*7}}"


def write_sounding_run(folder: Path, count: int = 5) -> Path:
    """A run whose stems, mixtures and references can be heard."""
    rows, clips = [], []
    stems = folder / "stems"
    stems.mkdir(parents=True)
    time_s = np.arange(RATE_HZ) / RATE_HZ
    for number in range(count):
        reference = 0.4 * np.sin(2 * np.pi * 200 * (number + 1) * time_s)
        for name, signal in (
            ("mixture", reference + 0.4 * np.sin(2 * np.pi * 3000 * time_s)),
            ("reference", reference),
        ):
            soundfile.write(folder / f"{name}{number}.wav", signal, RATE_HZ)
        soundfile.write(stems / f"{number}.flac", 0.9 * reference, RATE_HZ)
        identity = f"clip-{number:05d}"
        rows.append(f"{identity},mixture{number}.wav,reference{number}.wav,a tone,a whistle")
        clips.append(report_runs.clip(number, stem_uri=str(stems / f"{number}.flac")))
    manifest = folder / "rows.csv"
    header = "id,mixture_uri,reference_uri,positive_text,negative_text"
    manifest.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    facts = {"uri": str(manifest), "sha256": report_runs.MANIFEST_SHA}
    return report_runs.write_run(folder, clips, record={"manifests": [facts]})


def test_a_report_has_page_tables_and_plots(tmp_path: Path) -> None:
    run = write_sounding_run(tmp_path / "run")
    output = tmp_path / "report"

    assert report.run([str(run), "--output", str(output)]) == 0

    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert files == [
        "plots/distribution-01.png",
        "plots/improvement-by-input.png",
        "plots/spectrograms-01.png",
        "report.html",
        "tables.csv",
        "tables.md",
        "tables.tex",
    ]
    page = (output / "report.html").read_text(encoding="utf-8")
    for kind, number in (("best", 4), ("median", 2), ("worst", 0)):
        assert f'<span class="badge {kind}">{kind}</span> SDRi (dB) {number}.00' in page
    assert page.count('src="data:audio/flac;base64,') == 9
    assert page.count('src="data:image/png;base64,') == 9
    assert "extract “a tone”" in page
    assert page.count("manifest c3c3c3c3c3c3") >= 5


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_sounding_run(tmp_path / "run")
    for name in ("one", "two"):
        assert report.run([str(run), "--output", str(tmp_path / name)]) == 0
    for path in (tmp_path / "one").rglob("*.*"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.is_dir() or path.read_bytes() == other.read_bytes(), path


def test_stems_of_a_moved_run_are_still_found(tmp_path: Path) -> None:
    write_sounding_run(tmp_path / "run").rename(tmp_path / "moved")
    assert report.run([str(tmp_path / "moved"), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:audio/flac;base64,') == 3  # the manifest pointed to the old place
    assert json_of(page)["folders"] == ["./../moved/"]
    assert json_of(page)["stems"][0] == "stems/0.flac"


def json_of(page: str) -> dict[str, Any]:
    text = page.split('id="data">', 1)[1].split("</script>", 1)[0]
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_stem_of_another_rate_than_it_was_scored_at_sounds_as_it_is(tmp_path: Path) -> None:
    stem = tmp_path / "stem.flac"
    soundfile.write(stem, 0.1 * np.sin(2 * np.pi * 440 * np.arange(2 * 44_100) / 44_100), 44_100)
    clips = [report_runs.clip(1, stem_uri=str(stem), sample_rate_hz=RATE_HZ)]
    run = report_runs.write_run(tmp_path / "run", clips)
    assert report.run([str(run), "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (sound,) = re.findall("data:audio/flac;base64,([A-Za-z0-9+/=]+)", page)
    heard, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(sound)))
    assert len(heard) == 2 * rate_hz
    assert np.abs(np.fft.rfft(heard)).argmax() / 2 == 440


def test_what_a_manifest_says_is_text_everywhere(tmp_path: Path) -> None:
    hostile = {"dataset": HOSTILE, "label": HOSTILE, "undefined_reason": HOSTILE, "model": HOSTILE}
    clips = [report_runs.clip(n, id=f"{HOSTILE}{n}", **hostile) for n in range(3)]
    clips += [report_runs.clip(9, **{**hostile, "label": "other"})]
    letter = {"stage": HOSTILE, "error_type": HOSTILE, "message": HOSTILE, "id": HOSTILE}
    run = report_runs.write_run(tmp_path / "run", clips, [letter])
    arguments = [str(run), "--output", str(tmp_path / "out"), "--title", HOSTILE]

    assert report.run([*arguments, "--names", HOSTILE]) == 0

    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    assert json_of(page)["columns"][0]["values"][0] == f"{HOSTILE}0"


class Page(html.parser.HTMLParser):
    """What a browser sees of a page: the elements, and the text in them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def nasty_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in which every name is one that would be markup or a formula."""
    folder = tmp_path_factory.mktemp("nasty")
    clips = [
        report_runs.clip(
            number, **dict.fromkeys(("id", "label", "model", "extra_protocol"), name), dataset="[/]"
        )
        for number, name in enumerate(report_runs.NASTY)
    ]
    letters = [
        {"stage": "read", "error_type": f"e{number}", "message": name, "id": name}
        for number, name in enumerate(report_runs.NASTY)
    ]
    record = {"settings": dict.fromkeys(report_runs.NASTY, report_runs.NASTY[0])}
    run = report_runs.write_run(folder / "[1] %41 #run", clips, letters, record)
    assert report.run([str(run), "--output", str(folder / "out"), "--listen", "0"]) == 0
    return folder / "out"


def test_a_page_has_the_elements_of_its_template_only(nasty_report: Path) -> None:
    page = Page(nasty_report / "report.html")
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [attributes for tag, attributes in page.elements if tag == "img"]
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    shown = {" ".join(text.split()) for text in page.texts}
    assert {" ".join(name.split()) for name in report_runs.NASTY} <= shown


def test_a_csv_has_no_formula_and_a_row_a_figure(nasty_report: Path) -> None:
    text = (nasty_report / "tables.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(), strict=True))
    assert len(rows) == len(report_runs.NASTY) * len(SHOWN_METRICS)
    assert all(None not in row and None not in row.values() for row in rows)
    for column in ("system", "dataset", "model", "protocol"):
        assert not [row for row in rows if row[column].lstrip()[0] in "=+-@\uff1d"]


def test_markdown_and_latex_have_a_line_a_setting(nasty_report: Path) -> None:
    markdown = (nasty_report / "tables.md").read_text(encoding="utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    kinds = [token.type for token in tokens]
    assert kinds.count("tr_open") == 1 + len(report_runs.NASTY)
    assert kinds.count("td_open") == kinds.count("th_open") * len(report_runs.NASTY)
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= {"text", "text_special"}
    latex = (nasty_report / "tables.tex").read_text(encoding="utf-8")
    assert sum(line.endswith(r" \\") for line in latex.splitlines()) == 1 + len(report_runs.NASTY)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--output", "o"], "no metrics, no dead letters"),
        (["a", "b", "--names", "one", "--output", "o"], "expected 2 different names"),
        (["a", "--listen", "-1", "--output", "o"], "--listen=-1"),
        (["a", "--storage_options", "[]", "--output", "o"], "--storage_options"),
    ],
)
def test_wrong_arguments_are_said(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.run(arguments) == report.EXIT_USAGE
    assert said in capsys.readouterr().err


def test_help_needs_neither_torch_nor_beam() -> None:
    script = (
        "import sys; from pipelines import report; code = report.run(['--help']); "
        "heavy = {'torch', 'apache_beam', 'matplotlib'}; print(code, heavy & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "--listen" in found.stdout
    assert found.stdout.strip().endswith("0 set()")


@pytest.fixture(scope="module")
def page_of_20_000(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    run = write_sounding_run(folder / "run")
    clips = [report_runs.clip(n, label=HOSTILE if n == 7 else None) for n in range(20_000)]
    clips[19_999]["stem_uri"] = str(run / "stems" / "0.flac")
    clips[3].update(sdri_db=None, undefined_reason="sdri_db=silent_reference")
    (run / "metrics" / "dataset=x" / "a.parquet").unlink()
    (run / "metrics" / "dataset=x").rmdir()
    (run / "metrics").rmdir()
    report_runs.write_run(run, clips, record={"manifests": []})
    assert report.run([str(run), "--output", str(folder / "report"), "--listen", "1"]) == 0
    return folder / "report" / "report.html"


FIRST_ID = "return document.querySelector('#rows tr[data-place=\"0\"] td').textContent"
COUNT = "return document.getElementById('count').textContent"


@pytest.mark.slow
@pytest.mark.browser
def test_twenty_thousand_clips_sort_filter_and_play(
    page_of_20_000: Path, chromium: browser.Browser
) -> None:
    page = chromium
    page.open("about:blank")
    page.requests()
    page.open(page_of_20_000.as_uri())
    assert page.until(COUNT) == "20,000 of 20,000 clips"
    assert page.js("return document.querySelectorAll('#rows tr').length") < 60

    page.click("#heads th:nth-child(2) button")  # SDRi, highest first
    assert page.js(FIRST_ID) == "clip-19999"
    heads = "return document.querySelector('#heads th[aria-sort]').ariaSort"
    assert page.js(heads) == "descending"
    page.type("#viewport", "\ue007")  # Enter opens and plays
    playing = "const a = document.querySelector('#detail audio'); return a && a.currentTime > 0"
    assert page.until(playing)
    assert "clip-19999" in page.js("return document.getElementById('detail').textContent")

    page.type("#viewport", "\ue010")  # End: undefined values are last
    last = "const seen = document.querySelector('#rows tr[aria-selected=true] td');"
    page.until(f"{last} return seen && seen.textContent === 'clip-00003'")

    page.type("#find", "clip-0123")
    assert page.until(f"{COUNT} === '10 of 20,000 clips' && '10'") == "10"
    page.click("#filters button[type=reset]")
    page.until(f"{COUNT} === '20,000 of 20,000 clips'")
    page.click("#undefined")
    page.until(f"{COUNT} === '1 of 20,000 clips'")
    assert page.js(FIRST_ID) == "clip-00003"
    page.click("#undefined")
    page.type("#low", "19990")
    page.until(f"{COUNT} === '10 of 20,000 clips'")

    assert page.console() == []
    local = {url.split(":", 1)[0] for url in page.requests()}
    assert local <= {"file", "data"}


@pytest.mark.slow
@pytest.mark.browser
def test_sorting_and_filtering_draw_only_what_is_seen(
    page_of_20_000: Path, chromium: browser.Browser
) -> None:
    page = chromium
    page.open(page_of_20_000.as_uri())
    page.until(COUNT)
    drawn = (
        "const watch = new MutationObserver(() => {});"
        "watch.observe(document.getElementById('rows'), {childList: true, subtree: true});"
        "document.querySelectorAll('#heads button')[arguments[0]].click();"
        "return watch.takeRecords().reduce((sum, each) => sum + each.addedNodes.length, 0)"
    )
    for column in (1, 1, 0, 0):  # numbers and text, up and down
        assert 10 < page.js(drawn, column) < 60


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_fits_a_phone_and_changes_its_colours(
    page_of_20_000: Path, chromium: browser.Browser
) -> None:
    page = chromium
    paper = "return getComputedStyle(document.body).backgroundColor"
    page.colours("dark")
    page.size(390, 844, mobile=True)
    page.open(page_of_20_000.as_uri())
    page.until(COUNT)
    assert page.js("return document.documentElement.scrollWidth") <= 390
    assert page.js(paper) == "rgb(15, 20, 25)"
    page.colours("light")
    assert page.js(paper) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.js("return document.documentElement.dataset.theme") == "dark"
    assert page.js(paper) == "rgb(15, 20, 25)"
    label = "return document.getElementById('theme').ariaLabel"
    assert page.js(label) == "Colours: dark. Change"


@pytest.mark.slow
@pytest.mark.browser
def test_every_control_and_picture_has_a_name(
    page_of_20_000: Path, chromium: browser.Browser
) -> None:
    page = chromium
    page.open(page_of_20_000.as_uri())
    page.until(COUNT)
    page.devtools("Accessibility.enable")
    nodes = page.devtools("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "combobox", "searchbox", "spinbutton", "checkbox", "image", "link", "grid"}
    unnamed = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node.get("role", {}).get("value") in wanted
        and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
