"""Stems of other systems: found, scored like ours, and checked against torchmetrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_distortion_ratio,
)

import tone_runs
import tones
from pipelines import score

pytestmark = pytest.mark.usefixtures("loaded")
RATE_HZ = tones.RATE_HZ
QUIET = ("--progress", "none", "--num_threads", "1")


def write_stems(folder: Path, rows: list[dict[str, Any]]) -> dict[str, tuple[np.ndarray, ...]]:
    """Noisy references as stems; gives stem, mixture and reference by id."""
    signals = {}
    for number, row in enumerate(rows):
        rng = np.random.default_rng(number)
        mixture, _ = soundfile.read(row["mixture_uri"], dtype="float32")
        reference, _ = soundfile.read(row["reference_uri"], dtype="float32")
        noise = rng.standard_normal(len(reference)).astype(np.float32)
        stem = 0.8 * reference + 0.02 * noise + 0.1 * (mixture - reference)
        path = folder / f"{row['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, stem, RATE_HZ, "FLOAT")
        signals[row["id"]] = (stem.astype(np.float32), mixture, reference)
    return signals


def run(manifest: Path, output: Path, *more: str) -> int:
    given = ["--manifest", str(manifest), "--output", str(output)]
    given += ["--score_rate_hz", str(RATE_HZ)]
    return score.run([*given, *QUIET, *more])


def test_ratios_are_those_of_torchmetrics(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=3)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    signals = write_stems(tmp_path / "stems", rows)
    arguments = ("--stems", str(tmp_path / "stems"), "--system", "other", "--scorer", "none")

    assert run(manifest, tmp_path / "out", *arguments) == 0

    table = tone_runs.table(tmp_path / "out", "metrics")
    assert [row["id"] for row in table] == sorted(signals)
    for row in table:
        stem, mixture, reference = map(torch.from_numpy, signals[row["id"]])
        for name, metric in (
            ("sdr", signal_distortion_ratio),
            ("si_sdr", scale_invariant_signal_distortion_ratio),
        ):
            ours = row[f"{name}_db"], row[f"{name}_mixture_db"]
            theirs = [float(metric(x.double(), reference.double())) for x in (stem, mixture)]
            assert ours == pytest.approx(theirs, abs=1e-3)
            assert row[f"{name}i_db"] == pytest.approx(theirs[0] - theirs[1], abs=1e-3)
        plain = [
            float(10 * torch.log10(reference.square().sum() / (x - reference).square().sum()))
            for x in (stem, mixture)
        ]
        assert row["snri_db"] == pytest.approx(plain[0] - plain[1], abs=1e-3)
        assert row["clap_score"] is None
        assert "clap_score=not_scored" in row["undefined_reason"]
        assert (row["model"], row["model_sha256"], row["extra_colour"]) == ("other", None, "red")
        assert row["stem_uri"] == str(tmp_path / "stems" / f"{row['id']}.wav")


def test_a_scorer_gives_similarities_without_references_too(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=2)
    write_stems(tmp_path / "stems", rows)
    rows = [{k: v for k, v in row.items() if k != "reference_uri"} for row in rows]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)

    template = str(tmp_path / "stems" / "{id}.wav")
    assert run(manifest, tmp_path / "out", "--stems", template) == 0

    for row in tone_runs.table(tmp_path / "out", "metrics"):
        assert row["sdri_db"] is None
        assert row["clap_score"] == pytest.approx(1.0)
        assert row["scorer_sha256"] is not None
    summary = tone_runs.table(tmp_path / "out", "summary")
    assert {row["n"] for row in summary if row["metric"] == "clap_score"} == {1}


def test_a_column_of_the_manifest_may_say_where_stems_are(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=2)
    write_stems(tmp_path / "stems", rows)
    for row in rows:
        row["stem_uri"] = str(tmp_path / "stems" / f"{row['id']}.wav")
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert run(manifest, tmp_path / "out", "--scorer", "none") == 0
    found = tone_runs.table(tmp_path / "out", "metrics")
    assert [row["stem_uri"] for row in found] == [row["stem_uri"] for row in rows]


def test_stems_that_cannot_be_used_are_dead_letters(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=4)
    write_stems(tmp_path / "stems", rows)
    (tmp_path / "stems" / "clip" / "0.wav").unlink()
    (tmp_path / "stems" / "clip" / "1.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "stems" / "clip" / "2.wav", np.ones(9), RATE_HZ)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)

    stems = str(tmp_path / "stems" / "{id}.wav")
    assert run(manifest, tmp_path / "out", "--stems", stems, "--scorer", "none") == 1

    found = {
        row["id"]: row["error_type"] for row in tone_runs.table(tmp_path / "out", "dead_letters")
    }
    assert found == {
        "clip/0": "stem_missing",
        "clip/1": "stem_not_audio",
        "clip/2": "stem_reference_length",
    }
    assert [row["id"] for row in tone_runs.table(tmp_path / "out", "metrics")] == ["clip/3"]


def test_our_own_run_scores_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=3)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert (
        tone_runs.run(
            "--manifest", manifest, "--output", tmp_path / "first", "--stem_format", "wav"
        )
        == 0
    )
    assert run(manifest, tmp_path / "again", "--stems", str(tmp_path / "first")) == 2
    assert f"its stems are in {tmp_path / 'first' / 'stems'}" in capsys.readouterr().err
    arguments = ("--stems", str(tmp_path / "first" / "stems"))
    assert run(manifest, tmp_path / "again", *arguments) == 0
    first = tone_runs.table(tmp_path / "first", "metrics")
    again = tone_runs.table(tmp_path / "again", "metrics")
    for one, other in zip(first, again, strict=True):
        for name in ("sdri_db", "si_sdri_db", "snri_db", "clap_score", "ref_clap_score"):
            assert one[name] == pytest.approx(other[name], abs=1e-4), name


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--stems", "x/{id.__class__}.wav"), "is not a plain field"),
        (("--score_rate_hz", "0"), "--score_rate_hz=0"),
        (("--residual",), "unknown flag --residual"),
    ],
)
def test_wrong_flags_are_said(
    more: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=1)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    given = ("--manifest", str(manifest), "--output", str(tmp_path / "out"))
    assert score.run([*given, *QUIET, *more]) == 2
    assert said in capsys.readouterr().err


def test_stems_in_the_output_are_never_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=1)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    write_stems(tmp_path / "out" / "stems", rows)
    stems = str(tmp_path / "out" / "stems")
    assert run(manifest, tmp_path / "out", "--stems", stems, "--overwrite") == 2
    assert "would delete the stems" in capsys.readouterr().err
    assert (tmp_path / "out" / "stems" / "clip" / "0.wav").exists()
