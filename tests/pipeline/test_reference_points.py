"""The two reference points and query adaptation, in the pipeline that every system runs in."""

from __future__ import annotations

from pathlib import Path

import pytest

import tone_runs
import tones
from model.systems import Capabilities
from pipelines import separate

QUIET = ("--progress", "none", "--num_threads", "1", "--scorer", "none")


def run(manifest: Path, output: Path, *arguments: str) -> int:
    flags = ("--manifest", str(manifest), "--output", str(output))
    return separate.run([*flags, *arguments, *QUIET])


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = tone_runs.write_mixtures(tmp_path / "clips", count=4)
    return tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)


def test_the_mixture_improves_nothing_and_the_oracle_much(manifest: Path, tmp_path: Path) -> None:
    for name in ("mixture", "oracle-irm"):
        assert run(manifest, tmp_path / name, "--model", name) == 0
    untouched = tone_runs.table(tmp_path / "mixture", "metrics")
    masked = tone_runs.table(tmp_path / "oracle-irm", "metrics")
    assert len(untouched) == len(masked) == 4
    for nothing, oracle in zip(untouched, masked, strict=True):
        assert (nothing["sdri_db"], nothing["si_sdri_db"], nothing["snri_db"]) == (0.0, 0.0, 0.0)
        assert (nothing["model"], oracle["model"]) == ("mixture", "oracle-irm")
        assert oracle["sdri_db"] > 20
        assert oracle["sdr_mixture_db"] == nothing["sdr_mixture_db"]


def test_an_oracle_without_a_reference_is_a_dead_letter(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "clips", count=2)
    del rows[1]["reference_uri"]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert run(manifest, tmp_path / "out", "--model", "oracle-irm") == 1
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    assert (letter["stage"], letter["error_type"]) == ("separate", "no_reference")
    assert "needs the reference" in letter["message"]
    assert len(tone_runs.table(tmp_path / "out", "metrics")) == 1


def test_an_oracle_is_not_streamed(manifest: Path, tmp_path: Path) -> None:
    arguments = ("--model", "oracle-irm", "--max_clip_in_memory_s", "0.01")
    assert run(manifest, tmp_path / "out", *arguments) == 1
    letters = tone_runs.table(tmp_path / "out", "dead_letters")
    assert {letter["error_type"] for letter in letters} == {"too_long"}


def test_the_metrics_say_which_query_was_really_run(manifest: Path, tmp_path: Path) -> None:
    with tone_runs.tones_as_models() as loaded:
        assert isinstance(loaded.model.separator, tones.ToneSeparator)
        loaded.model.separator.capabilities = Capabilities(negative=False)
        assert run(manifest, tmp_path / "strict") == 1
        assert run(manifest, tmp_path / "near", "--on_unsupported_query", "nearest") == 0
    letters = tone_runs.table(tmp_path / "strict", "dead_letters")
    assert len(letters) == 4
    assert {letter["error_type"] for letter in letters} == {"unsupported_query"}
    assert {letter["negative_text"] for letter in letters} != {None}
    assert {row["polarity"] for row in tone_runs.table(tmp_path / "near", "metrics")} == {"P"}
