from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import report_runs
from pipelines.reporting.runs import RunError, default_protocol, read_run, run_names
from transforms.storage import Storage

LETTER = {
    "stage": "read",
    "error_type": "missing",
    "message": "m.wav: not there",
    "id": "gone",
    "mixture_uri": "/m.wav",
    "positive_text": "a dog",
    "negative_text": "rain",
    "dataset": "AudioCaps",
    "snr_db": [0.0],
    "n_sources": 2,
}


def test_clips_failures_and_record_are_read(tmp_path: Path) -> None:
    clips = [report_runs.clip(2), report_runs.clip(1, sdri_db=None, undefined_reason="why")]
    report_runs.write_run(tmp_path, clips, [LETTER, {"stage": "read", "row_json": "{"}])

    run = read_run(str(tmp_path), "mine", Storage())

    assert [clip.id for clip in run.clips] == ["clip-00001", "clip-00002"]
    assert run.clips[0].value("sdri_db") != run.clips[0].value("sdri_db")
    assert run.clips[0].undefined_reason == "why"
    assert run.clips[1].value("sdri_db") == 2.0
    assert run.models == ("tones a1a1a1a1a1a1",)
    assert run.scorers == ("b2b2b2b2b2b2",)
    assert run.protocols == ("manifest c3c3c3c3c3c3",)
    assert run.failures[0].setting == run.clips[0].setting
    assert run.failures[1].setting is None
    assert run.failures[1].error_type == "unknown"


def test_a_protocol_of_the_manifest_keeps_figures_apart(tmp_path: Path) -> None:
    clips = [report_runs.clip(1, extra_protocol="DCASE"), report_runs.clip(2)]
    run = read_run(str(report_runs.write_run(tmp_path, clips)), "mine", Storage())
    assert [clip.setting.protocol for clip in run.clips] == ["DCASE", "manifest c3c3c3c3c3c3"]


def test_the_split_of_a_multi_source_set_says_how_many_targets(tmp_path: Path) -> None:
    clip = report_runs.clip(1, dataset="multisource", split="4-sources-3-targets", n_sources=4)
    run = read_run(str(report_runs.write_run(tmp_path, [clip])), "mine", Storage())
    assert run.clips[0].setting.n_targets == 3
    assert run.clips[0].setting.mixture == "4 sources, 3 of them targets, 0 dB"


VERSION_2 = (
    *("group", "row_sha256", "mixture_uri", "target_uris", "interferer_uris", "reference_uri"),
    *("offset_s", "positive_text", "negative_text", "positive_audio_uris", "negative_audio_uris"),
    *("text_weight", "seed", "target_absent", "suppression_db", "stem_to_mixture_db", "presence"),
    *("active_s", "n_segments", "input_gain_db", "stem_format", "stem_note"),
)


def test_runs_of_schema_version_1_are_read(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(1, group="tape"), report_runs.clip(2)])
    (file,) = tmp_path.rglob("a.parquet")
    new = read_run(str(tmp_path), "mine", Storage()).clips
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(VERSION_2), file)

    old = read_run(str(tmp_path), "mine", Storage()).clips

    assert [clip.group for clip in new] == ["tape", None]
    assert repr(old) == repr((dataclasses.replace(new[0], group=None), new[1]))  # NaN == NaN


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no metrics, no dead letters and no run\.json"):
        read_run(str(tmp_path), "mine", Storage())


def test_a_table_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(RunError, match="is not Parquet"):
        read_run(str(tmp_path), "mine", Storage())


def test_runs_of_the_same_name_are_told_apart() -> None:
    assert run_names(["/a/run", "/b/run/", "gs://c/run"]) == ["run", "run (2)", "run (3)"]


def test_a_run_of_several_manifests_names_the_first() -> None:
    record = {"manifests": [{"sha256": "f" * 64}, {"sha256": "e" * 64}]}
    assert default_protocol(record) == "manifest eeeeeeeeeeee and 1 more"
    assert default_protocol({}) == "not named"
