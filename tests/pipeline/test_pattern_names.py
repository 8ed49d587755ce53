"""Whole jobs whose inputs, outputs and stems have names that stores take for patterns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import stores
import tone_runs
import tones
from pipelines import report, score
from transforms.storage import Storage, join

NUM_ROWS = 3
STORAGE = Storage()


SLOW = ("local", "gs", "s3")
"""Each call alone is tried with every store in tests/unit/transforms/test_storage_names.py."""


@pytest.fixture(
    params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in stores.KINDS]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    with stores.place(request.param, tmp_path) as uri:
        yield uri


@pytest.fixture
def manifest(place: str, tmp_path: Path) -> str:
    """A manifest beside its recordings; beside each file is one that its name would match."""
    made = tone_runs.write_mixtures(tmp_path / "made", count=NUM_ROWS)
    folder = join(place, "in[1]?*")
    for number, row in enumerate(made):
        for name in ("mixture_uri", "reference_uri"):
            source = Path(row[name])
            row[name] = f"{source.stem}[0-9]?*.wav"
            STORAGE.write_bytes(join(folder, row[name]), source.read_bytes())
            STORAGE.write_bytes(join(folder, f"{source.stem}1xy.wav"), b"not this one")
        row["id"] = f"clip[{number}]?*"
    del made[0]["positive_text"]
    made[0]["positive_audio_uris"] = ["bell[a-z]?.wav"]
    tones.soundfile.write(tmp_path / "bell.wav", tones.tone("bell", 0.7), tones.RATE_HZ)
    STORAGE.write_bytes(join(folder, "bell[a-z]?.wav"), (tmp_path / "bell.wav").read_bytes())
    path = tone_runs.write_manifest(tmp_path / "rows.jsonl", made)
    uri = join(folder, "rows[1]*.jsonl")
    STORAGE.write_bytes(uri, path.read_bytes())
    STORAGE.write_bytes(join(folder, "rows1.jsonl"), b"not this one")
    return uri


def _contents(folder: str) -> dict[str, bytes]:
    return {uri: STORAGE.read_bytes(uri) for uri in STORAGE.list_files(folder, "")}


def _metrics(output: str) -> list[dict[str, Any]]:
    rows = []
    for uri in STORAGE.list_files(join(output, "metrics"), ".parquet"):
        with STORAGE.open(uri) as file:
            rows += pq.ParquetFile(file).read().to_pylist()
    return sorted(rows, key=lambda row: row["id"])


def test_jobs_touch_only_what_they_are_given(place: str, manifest: str, loaded: object) -> None:
    """The case ``storage_brackets``: a run to ``run[1]`` deleted the results of ``run1``."""
    others = [join(place, name) for name in ("run1", "score1", "report1")]
    for other in others:
        for name in ("run.json", "_work/row_counts.json", "stems/a.flac", "metrics/a.parquet"):
            STORAGE.write_bytes(join(other, name), name.encode())
    before = _contents(place)

    def unchanged() -> bool:
        now = _contents(place)
        return {uri: now.get(uri) for uri in before} == before

    output = join(place, "run[1]")
    arguments = ("--manifest", manifest, "--output", output)
    assert tone_runs.run(*arguments) == 0
    assert unchanged()
    found = _metrics(output)
    assert [row["id"] for row in found] == [f"clip[{number}]?*" for number in range(NUM_ROWS)]
    assert all(row["sdri_db"] > 30 for row in found)
    assert all(STORAGE.exists(row["stem_uri"]) for row in found)
    assert not STORAGE.exists(join(output, "_work"))

    assert tone_runs.run(*arguments, "--resume") == 0
    record = json.loads(STORAGE.read_bytes(join(output, "run.json")))
    assert record["row_counts"]["finished_before"] == NUM_ROWS
    assert tone_runs.run(*arguments, "--overwrite") == 0
    assert tone_runs.comparable(_metrics(output)) == tone_runs.comparable(found)
    assert unchanged()

    quiet = ("--progress", "none", "--num_threads", "1")
    scored = join(place, "score[1]")
    again = ["--manifest", manifest, "--output", scored, "--score_rate_hz", str(tones.RATE_HZ)]
    again += ["--stems", join(output, "stems"), "--system", "ours", "--scorer", "none", *quiet]
    assert score.run(again) == 0
    assert score.run([*again, "--overwrite"]) == 0
    for ours, theirs in zip(found, _metrics(scored), strict=True):
        assert theirs["stem_uri"] == ours["stem_uri"]
        assert theirs["si_sdr_db"] == pytest.approx(ours["si_sdr_db"], abs=0.1)

    assert report.run([output, "--output", join(place, "report[1]")]) == 0
    page = STORAGE.read_bytes(join(place, "report[1]", "report.html")).decode()
    assert "data:audio/flac;base64," in page
    assert unchanged()
