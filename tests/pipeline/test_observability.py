"""What a run says of itself: every documented name is in ``run.json``, and the log stays short."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tone_runs
from pipelines import separate

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("terminal", "model", "manifests", "transforms", "pipelines")


@pytest.fixture(autouse=True)
def tones() -> Iterator[None]:
    with tone_runs.tones_as_models():
        yield


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = tone_runs.write_mixtures(tmp_path / "clips")
    rows[0]["positive_audio_uris"] = [rows[1]["mixture_uri"]]
    gone = {**rows[0], "id": "gone", "mixture_uri": str(tmp_path / "none.wav")}
    return tone_runs.write_manifest(tmp_path / "rows.jsonl", [*rows, gone])


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """A run configures it; other tests find it as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(False)


def _documented(heading: str) -> set[str]:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    names = re.findall(r"^\| `([^`]+)`", section, flags=re.MULTILINE)
    return {name.replace("STAGE", "read").replace("REASON", "missing") for name in names}


def _always(names: set[str]) -> set[str]:
    """Without those of --screen, and of a transient error of storage."""
    return {name for name in names if not name.startswith(("ScreenMixtures/", "Storage/"))}


def test_what_is_documented_is_in_the_record(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output, "--max_failure_rate", "1") == 0
    record = tone_runs.record(output)
    assert _always(_documented("Counters")) == record["counters"].keys()
    assert _always(_documented("Distributions")) <= record["distributions"].keys()
    counters, distributions = record["counters"], record["distributions"]
    assert counters["ReadManifest/in"] == 7
    assert counters["EmbedExamples/in"] == 1
    assert counters["AttachQueries/captions"] == 14  # a positive and a negative text of each row
    assert (counters["WriteStems/out"], counters["WriteStems/audio_msec"]) == (6, 6_000)
    assert (counters["read/dead"], counters["read/missing"]) == (1, 1)
    assert distributions["ReadAudio/read_msec"]["count"] == 7
    assert distributions["WriteStems/write_msec"]["count"] == 6
    assert distributions["SeparateClips/batch_windows"]["sum"] == 18  # three of each clip
    for each in distributions.values():
        assert each["min"] <= each["mean"] <= each["max"]
        assert each["mean"] == pytest.approx(each["sum"] / each["count"], abs=1e-3)


def _ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.split(".")[0] in PACKAGES and record.levelno > logging.DEBUG
    ]


def test_the_log_names_what_was_counted_and_no_clip(
    manifest: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    basic = logging.basicConfig

    def keeping_the_capture(**settings: object) -> None:
        basic(**settings)
        logging.getLogger().addHandler(caplog.handler)

    monkeypatch.setattr(logging, "basicConfig", keeping_the_capture)
    arguments = ["--manifest", str(manifest), "--output", str(tmp_path / "out")]
    code = separate.run(
        [*arguments, *tone_runs.QUIET, "--max_failure_rate", "1", "--log_level", "info"]
    )
    assert code == 0
    lines = _ours(caplog)
    record = tone_runs.record(tmp_path / "out")
    assert len(lines) == len(record["counters"]) + len(record["distributions"])
    assert "WriteStems/out = 6" in lines
    assert not [line for line in lines if "clip/" in line or "m0.wav" in line]


def test_by_default_a_run_logs_nothing(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--manifest", manifest, "--output", tmp_path / "out", "--max_failure_rate", "1")
    assert tone_runs.run(*arguments) == 0
    (device,) = capfd.readouterr().err.splitlines()
    assert device.startswith("note: --device auto: c")
    assert tone_runs.record(tmp_path / "out")["device"]["asked"] == "auto"
