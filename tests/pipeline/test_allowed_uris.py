"""--allowed_uri_prefix: rows of a stranger's manifest read what they may, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile

import tone_runs
import tones
from pipelines import report, score, synthesize

pytestmark = pytest.mark.usefixtures("loaded")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder that is allowed, beside one that is not."""
    for folder in ("allowed", "secret"):
        (tmp_path / folder).mkdir()
        for label in ("bell", "rain"):
            path = tmp_path / folder / f"{label}.wav"
            soundfile.write(path, tones.tone(label, 0.5), tones.RATE_HZ, "FLOAT")
    (tmp_path / "allowed" / "link.wav").symlink_to(tmp_path / "secret" / "bell.wav")
    return tmp_path


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by id; what begins with "bad" names something that is not allowed."""
    inside, outside = str(folder / "allowed"), str(folder / "secret")
    good = {"mixture_uri": f"{inside}/bell.wav", "positive_text": "bell"}
    mixed = {"target_uri": f"{inside}/bell.wav", "interferer_uris": [f"{inside}/rain.wav"]}
    query = {"positive_text": "bell", "snr_db": 3}
    return {
        "good": good,
        "good mixed": {**mixed, **query},
        "bad mixture": {**good, "mixture_uri": f"{outside}/bell.wav"},
        "bad dots": {**good, "mixture_uri": f"{inside}/../secret/bell.wav"},
        "bad relative": {**good, "mixture_uri": "secret/bell.wav"},
        "bad scheme": {**good, "mixture_uri": f"file://{outside}/bell.wav"},
        "bad link": {**good, "mixture_uri": f"{inside}/link.wav"},
        "bad address": {**good, "mixture_uri": "http://169.254.169.254/latest/meta-data/"},
        "bad chain": {**good, "mixture_uri": f"simplecache::file://{inside}/bell.wav"},
        "bad reference": {**good, "reference_uri": f"{outside}/bell.wav"},
        "bad example": {**good, "positive_audio_uris": [f"{outside}/bell.wav"]},
        "bad negative": {**good, "negative_audio_uris": [f"{outside}/rain.wav"]},
        "bad target": {**mixed, **query, "target_uri": f"{outside}/bell.wav"},
        "bad interferer": {**mixed, **query, "interferer_uris": [f"{outside}/rain.wav"]},
    }


def write(folder: Path, rows: dict[str, dict[str, Any]]) -> Path:
    given = [{"id": row_id, **row} for row_id, row in rows.items()]
    return tone_runs.write_manifest(folder / "rows.jsonl", given)


def refused(output: Path) -> dict[str, str]:
    letters = tone_runs.table(output, "dead_letters")
    return {row["id"]: f"{row['stage']}/{row['error_type']}" for row in letters}


def expected(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: "manifest/uri_not_allowed" for name in rows if name.startswith("bad")}


def test_separate_does_what_is_allowed_and_says_what_is_not(clips: Path) -> None:
    rows = rows_of(clips)
    arguments = ("--manifest", write(clips, rows), "--allowed_uri_prefix", clips / "allowed")

    assert tone_runs.run(*arguments, "--output", clips / "out") == 1

    assert {row["id"] for row in tone_runs.table(clips / "out", "metrics")} == {
        "good",
        "good mixed",
    }
    assert refused(clips / "out") == expected(rows)
    letters = {row["id"]: row for row in tone_runs.table(clips / "out", "dead_letters")}
    assert "negative_audio_uris: " in letters["bad negative"]["message"]
    record = tone_runs.record(clips / "out")
    assert record["config"]["allowed_uri_prefix"] == [str(clips / "allowed")]
    assert record["books"]["by_reason"] == {"manifest/uri_not_allowed": len(expected(rows))}


def test_a_report_reads_no_more_than_its_run_was_allowed_to(clips: Path) -> None:
    manifest = write(clips, {"good": rows_of(clips)["good"]})
    limits = ("--allowed_uri_prefix", clips / "allowed")
    assert tone_runs.run("--manifest", manifest, "--output", clips / "out", *limits) == 0
    write(clips, {"good": rows_of(clips)["bad mixture"]})  # exchanged after the run
    assert report.run([str(clips / "out"), "--output", str(clips / "page")]) == 0
    page = (clips / "page" / "report.html").read_text(encoding="utf-8")
    assert "Spectrogram of the mixture" not in page


def test_two_prefixes_allow_both(clips: Path) -> None:
    rows = {name: row for name, row in rows_of(clips).items() if name not in ("bad address",)}
    limits = [f"--allowed_uri_prefix={clips / name}" for name in ("allowed", "secret")]
    tone_runs.run("--manifest", write(clips, rows), "--output", clips / "out", *limits)
    assert refused(clips / "out") == {"bad chain": "manifest/uri_not_allowed"}


def test_synthesize_mixes_only_what_is_allowed(clips: Path) -> None:
    rows = {name: row for name, row in rows_of(clips).items() if "target_uri" in row}
    manifest = write(clips, rows)
    given = ["--manifest", manifest, "--output", clips / "out", "--progress", "none"]
    given += ["--allowed_uri_prefix", clips / "allowed"]

    assert synthesize.run([str(argument) for argument in given]) == 1

    assert refused(clips / "out") == expected(rows)
    assert len(list((clips / "out" / "mixtures").rglob("*.flac"))) == 1


@pytest.mark.parametrize("place", ["column", "folder", "template"])
def test_score_takes_stems_only_from_where_it_may(clips: Path, place: str) -> None:
    (clips / "stems").mkdir()
    for name in ("good", "bad stem"):
        path = clips / "stems" / f"{name}.wav"
        path.symlink_to(clips / ("allowed" if name == "good" else "secret") / "bell.wav")
    good = rows_of(clips)["good"]
    rows = {
        name: {**good, "stem_uri": str(clips / "stems" / f"{name}.wav")}
        for name in ("good", "bad stem")
    }
    given = ["--manifest", write(clips, rows), "--output", clips / "out", "--scorer", "none"]
    given += ["--score_rate_hz", tones.RATE_HZ, "--progress", "none"]
    given += ["--allowed_uri_prefix", clips / "allowed"]
    stems = {"folder": clips / "stems", "template": f"{clips}/stems/{{id}}.wav"}
    given += ["--stems", stems[place]] if place in stems else []

    assert score.run([str(argument) for argument in given]) == 1

    assert refused(clips / "out") == {"bad stem": "read/stem_uri_not_allowed"}
    assert [row["id"] for row in tone_runs.table(clips / "out", "metrics")] == ["good"]


def test_a_prefix_that_is_no_place_is_refused_at_once(
    clips: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write(clips, rows_of(clips))
    code = tone_runs.run(
        "--manifest", manifest, "--output", clips / "out", "--allowed_uri_prefix", "https://"
    )
    assert code == 2
    assert "--allowed_uri_prefix: 'https://': expected" in capfd.readouterr().err
    assert not (clips / "out").exists()
