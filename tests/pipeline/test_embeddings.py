"""``--embeddings``: the scorer's embedding of each stem, in a table of its own."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import tone_runs
import tones
from transforms import scoring

LENGTHS = {"clip": (), "long": ("--max_clip_in_memory_s", "0.01")}


class ManyTones(tones.ToneClap):
    """Embeds a clip by the powers of all its tones; counts the clips."""

    def __init__(self) -> None:
        super().__init__()
        self.num_clips = 0

    def embed_audio(self, clips: Any) -> Any:
        self.num_clips += len(clips)
        powers = [[tones._power(clip, label) for label in tones.LABELS] for clip in clips]
        return torch.nn.functional.normalize(torch.tensor(powers), dim=-1)


@pytest.fixture(autouse=True)
def clap() -> Iterator[ManyTones]:
    with tone_runs.tones_as_models() as loaded:
        encoder = ManyTones()
        loaded.model = dataclasses.replace(loaded.model, query_encoder=encoder)
        yield encoder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = tone_runs.write_mixtures(tmp_path / "clips", 4, 2.0)
    rows.append({**rows[0], "id": "gone", "mixture_uri": "gone.wav"})
    return tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)


def run(output: Path, manifest: Path, *words: str) -> int:
    return tone_runs.run("--manifest", manifest, "--output", output, "--embeddings", *words)


def embeddings(output: Path) -> dict[str, dict[str, Any]]:
    rows = tone_runs.table(output, "embeddings")
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("length", LENGTHS)
def test_every_stem_has_one_embedding_from_which_its_score_follows(
    length: str, manifest: Path, tmp_path: Path, clap: ManyTones
) -> None:
    assert run(tmp_path / "out", manifest, *LENGTHS[length]) == 1
    rows = {row["id"]: row for row in tone_runs.table(tmp_path / "out", "metrics")}
    found = embeddings(tmp_path / "out")
    assert found.keys() == rows.keys() == {f"clip/{number}" for number in range(4)}
    for row_id, each in found.items():
        vector = np.array(each["embedding"], np.float32)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        (asked,) = clap.embed_text([rows[row_id]["positive_text"]]).numpy()
        assert vector @ asked == pytest.approx(rows[row_id]["clap_score"], abs=1e-6)
        for name in ("dataset", "split", "mixture_uri", "label", "positive_text", "scorer_sha256"):
            assert each[name] == rows[row_id][name]
        assert (each["signal"], each["undefined_reason"]) == ("stem", None)


def test_files_lie_in_the_partitions_of_the_metrics(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(output, manifest) == 1
    folders = [
        {str(file.parent.relative_to(output / name)) for file in (output / name).rglob("*.parquet")}
        for name in ("metrics", "embeddings")
    ]
    assert folders[0] == folders[1] == {f"dataset={name}/split=test" for name in ("even", "odd")}


@pytest.mark.parametrize("length", LENGTHS)
def test_nothing_is_embedded_for_it_that_is_not_embedded_anyway(
    length: str, manifest: Path, tmp_path: Path, clap: ManyTones
) -> None:
    words = ("--manifest", manifest, *LENGTHS[length])
    assert tone_runs.run(*words, "--output", tmp_path / "without") == 1
    anyway, clap.num_clips = clap.num_clips, 0
    assert run(tmp_path / "out", manifest, *LENGTHS[length]) == 1
    assert clap.num_clips == anyway > 0


@pytest.mark.parametrize("length", LENGTHS)
def test_a_stem_that_no_query_is_compared_with_has_an_embedding_too(
    length: str, tmp_path: Path
) -> None:
    (row,) = tone_runs.write_mixtures(tmp_path / "clips", 1)
    rows = [{**row, "positive_text": None, "reference_uri": None}]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert run(tmp_path / "out", manifest, "--clap_scores", "stem", *LENGTHS[length]) == 0
    assert embeddings(tmp_path / "out")["clip/0"]["embedding"] is not None


@pytest.mark.parametrize("length", LENGTHS)
def test_silent_stems_and_failures_are_null_with_the_reason(
    length: str, manifest: Path, tmp_path: Path
) -> None:
    def silent(self: Any, encoded: tones.ToneEncoded, condition: Any) -> Any:
        return encoded.mixture * 0.0

    with mock.patch.object(tones.ToneSeparator, "decode", silent):
        assert run(tmp_path / "out", manifest, *LENGTHS[length]) == 1
    for each in embeddings(tmp_path / "out").values():
        assert (each["embedding"], each["undefined_reason"]) == (None, "silent_stem")
    # A column with nulls can be read again by pyarrow.
    for file in (tmp_path / "out" / "embeddings").rglob("*.parquet"):
        assert pq.read_table(file, partitioning=None)["embedding"].null_count == 2


def test_an_embedding_that_is_not_finite_is_null() -> None:
    settings = scoring.ScoringSettings(scorer=None, model_rate_hz=8_000, keep_embeddings=True)
    kept = scoring.Scoring(settings).kept(np.array([np.nan, 0.0], np.float32))
    assert kept is not None
    assert (kept.vector, kept.undefined_reason) == (b"", "not_finite")


def test_resuming_keeps_one_embedding_for_each_row(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(output, manifest) == 1
    before = embeddings(output)
    rows = tone_runs.write_mixtures(tmp_path / "clips", 5, 2.0)
    rows[1]["positive_text"] = f"{tones.LABELS[1]} three"  # changed: its row leaves, with this
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", [*rows[:3], rows[4]])
    assert run(output, manifest, "--resume") == 0
    after = embeddings(output)
    assert after.keys() == {"clip/0", "clip/1", "clip/2", "clip/4"}
    assert after["clip/1"]["positive_text"] == rows[1]["positive_text"]
    for row_id in ("clip/0", "clip/2"):
        assert after[row_id] == before[row_id]


def test_what_a_killed_run_had_in_its_journal_is_not_embedded_again(
    manifest: Path, tmp_path: Path, clap: ManyTones
) -> None:
    output = tmp_path / "out"
    # A run of which only the journal is left.
    journal = output / "_work" / "journal"
    with mock.patch("pipelines.launch.contents.remove_working_files"):
        assert run(output, manifest) == 1
    whole = embeddings(output)
    assert list(journal.glob("*.parquet"))
    shutil.rmtree(output / "metrics")
    shutil.rmtree(output / "embeddings")
    clap.num_clips = 0
    assert run(output, manifest, "--resume") == 1
    assert embeddings(output) == whole
    assert clap.num_clips == 0


def test_rows_whose_embeddings_are_gone_are_done_again(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(output, manifest) == 1
    before = embeddings(output)
    shutil.rmtree(output / "embeddings" / "dataset=odd")
    capsys.readouterr()
    assert run(output, manifest, "--resume") == 1
    assert "2 finished before" in capsys.readouterr().out
    assert embeddings(output) == before


def test_a_run_without_them_is_not_mixed_with_one_that_has_them(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output) == 1
    assert not (output / "embeddings").exists()
    assert run(output, manifest, "--resume") == 2
    assert "embeddings: False then, True now" in capsys.readouterr().err
    assert run(output, manifest, "--overwrite") == 1
    assert len(embeddings(output)) == 4
    assert tone_runs.run("--manifest", manifest, "--output", output, "--overwrite") == 1
    assert not (output / "embeddings").exists()


def test_without_a_scorer_there_are_none(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", manifest, "--scorer", "none") == 2
    assert "--embeddings needs a scorer" in capsys.readouterr().err


def test_the_table_is_the_same_for_any_batch_and_order(manifest: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "one", manifest) == 1
    lines = manifest.read_text("utf-8").splitlines(keepends=True)
    manifest.write_text("".join(lines[::-1]), encoding="utf-8")
    assert run(tmp_path / "other", manifest, "--batch_size", "1") == 1
    assert embeddings(tmp_path / "one") == embeddings(tmp_path / "other")
