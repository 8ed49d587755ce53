"""Files that lack no more than their end: they are never booked, and made when there is room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import report_runs
import tone_runs
import tones
from full_disk import no_file_above
from pipelines import flags, report, synthesize

NUM_ROWS = 3
MISSING_BYTES = [1, 300]
pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of noise, whose stems are larger than tables and records."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=NUM_ROWS, duration_s=4.0)
    rng = np.random.default_rng(0)
    for number, row in enumerate(rows):
        noise = rng.uniform(-0.4, 0.4, (4 + number) * tones.RATE_HZ).astype(np.float32)
        soundfile.write(row["mixture_uri"], noise, tones.RATE_HZ, "FLOAT")
        del row["reference_uri"]
    tone_runs.write_manifest(folder / "rows.jsonl", rows)
    return folder


def _run(made: Path, output: Path, *arguments: str) -> int:
    return tone_runs.run("--manifest", made / "rows.jsonl", "--output", output, *arguments)


def _sizes(output: Path, ending: str) -> dict[Path, int]:
    return {
        path.relative_to(output): path.stat().st_size
        for path in (output / "stems").rglob(f"*{ending}")
    }


@pytest.mark.parametrize(
    ("missing_bytes", "form", "ending", "length"),
    [
        (300, "flac", "", "clip"),
        (1, "flac", ".residual", "clip"),
        (1, "flac", "", "long"),
        (300, "flac", ".residual", "long"),
        pytest.param(1, "wav", "", "clip", marks=pytest.mark.slow),
        pytest.param(300, "wav", "", "long", marks=pytest.mark.slow),
    ],
)
def test_a_stem_without_its_end_is_a_dead_letter_and_made_when_resumed(
    made: Path, tmp_path: Path, missing_bytes: int, form: str, ending: str, length: str
) -> None:
    """A FLAC whose last buffer was not written was booked as done, and nothing could read it."""
    output, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["--stem_format", form, *["--residual"] * bool(ending)]
    arguments += ["--max_clip_in_memory_s", "0.01"] * (length == "long")
    assert _run(made, whole, *arguments) == 0
    sizes = _sizes(whole, f"{ending}.{form}")
    largest = max(sizes, key=lambda path: sizes[path])
    with no_file_above(sizes[largest] - missing_bytes):
        assert _run(made, output, *arguments) == flags.EXIT_FAILURE_RATE
    letters = tone_runs.table(output, "dead_letters")
    found = {(row["stage"], row["error_type"]) for row in letters}
    assert found == {("write", "disk_full")}
    assert any(str(output / largest) in row["message"] for row in letters)
    assert not (output / largest).exists()
    assert not list(output.rglob("*.tmp"))
    assert tone_runs.record(output)["row_counts"]["dead_letters"] == len(letters)

    assert _run(made, output, *arguments, "--resume") == 0
    tone_runs.assert_same_results(whole, output)


@pytest.mark.parametrize("missing_bytes", MISSING_BYTES)
def test_a_mixture_without_its_end_is_a_dead_letter(
    made: Path, tmp_path: Path, missing_bytes: int
) -> None:
    uris = [str(made / "in" / f"m{number}.wav") for number in range(2)]
    row = {"id": "a", "target_uri": uris[0], "interferer_uris": [uris[1]], "positive_text": "a"}
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", [row])

    def run(output: Path) -> int:
        quiet = ("--progress", "none", "--num_threads", "1")
        return synthesize.run(["--manifest", str(manifest), "--output", str(output), *quiet])

    assert run(tmp_path / "whole") == 0
    (mixture,) = (tmp_path / "whole" / "mixtures").iterdir()
    with no_file_above(mixture.stat().st_size - missing_bytes):
        assert run(tmp_path / "out") == flags.EXIT_FAILURE_RATE
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    assert (letter["stage"], letter["error_type"]) == ("write", "disk_full")
    assert not (tmp_path / "out" / "mixtures" / mixture.name).exists()


@pytest.mark.parametrize("missing_bytes", MISSING_BYTES)
def test_a_report_without_its_end_is_none(
    tmp_path: Path, missing_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = report_runs.write_run(tmp_path / "run", [report_runs.clip(n) for n in range(40)])

    def write(name: str) -> int:
        return report.run([str(run), "--output", str(tmp_path / name)])

    assert write("whole") == 0
    page = tmp_path / "whole" / "report.html"
    with no_file_above(page.stat().st_size - missing_bytes):
        assert write("out") != 0
    said = capsys.readouterr().err
    assert "File too large" in said
    assert f"{tmp_path}/out/report.html: " in said
    assert not (tmp_path / "out" / "report.html").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert write("out") == 0
    assert (tmp_path / "out" / "report.html").read_bytes() == page.read_bytes()


@pytest.mark.parametrize("name", ["metrics", "summary", "run.json"])
def test_a_table_or_a_record_without_its_end_ends_the_run(
    made: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds for these alone: beside stems they are small."""
    write: Callable[[Path, bytes], int] = Path.write_bytes
    wanted = {"metrics": b"stem_uri", "summary": b"n_undefined", "run.json": b'"finished"'}[name]

    def limited(self: Path, data: bytes) -> int:
        if wanted not in data or (name == "summary" and b"stem_uri" in data):
            return write(self, data)
        with no_file_above(len(data) - 1):
            return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", limited)
    assert _run(made, tmp_path / "out") == flags.EXIT_JOB_FAILED
    monkeypatch.undo()
    if name != "run.json":
        assert not list((tmp_path / "out" / name).rglob("*.parquet"))
    assert tone_runs.record(tmp_path / "out")["status"] != "finished"
    with tone_runs.tones_as_models():
        assert _run(made, tmp_path / "out", "--resume") == 0
    assert len(tone_runs.table(tmp_path / "out", "metrics")) == NUM_ROWS
    assert tone_runs.record(tmp_path / "out")["status"] == "finished"
