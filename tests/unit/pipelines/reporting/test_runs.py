from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import report_runs
from pipelines.reporting.runs import RunError, default_protocol, or_none, read_run, run_names
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

    assert run.clips["id"].tolist() == ["clip-00001", "clip-00002"]
    assert or_none(run.clips["sdri_db"]) == [None, 2.0]
    assert or_none(run.clips["undefined_reason"]) == ["why", None]
    assert run.clips["made_by"].tolist() == ["tones a1a1a1a1a1a1"] * 2
    assert run.clips["scorer"].tolist() == ["b2b2b2b2b2b2"] * 2
    assert run.clips["protocol"].tolist() == ["manifest c3c3c3c3c3c3"] * 2
    assert run.failures["setting"].tolist() == [run.clips["setting"][0], None]
    assert run.failures["error_type"].tolist() == ["missing", "unknown"]
    assert run.failures["id"].tolist() == ["gone", None]


def test_a_protocol_of_the_manifest_keeps_figures_apart(tmp_path: Path) -> None:
    clips = [report_runs.clip(1, extra_protocol="DCASE"), report_runs.clip(2)]
    run = read_run(str(report_runs.write_run(tmp_path, clips)), "mine", Storage())
    assert run.clips["protocol"].tolist() == ["DCASE", "manifest c3c3c3c3c3c3"]
    assert [each.protocol for each in run.clips["setting"]] == run.clips["protocol"].tolist()


def test_what_nobody_named_has_no_name(tmp_path: Path) -> None:
    missing = {"model": "", "model_sha256": None, "scorer_sha256": "", "dataset": ""}
    clips = [report_runs.clip(1, **missing), report_runs.clip(2, **dict.fromkeys(missing))]
    run = read_run(str(report_runs.write_run(tmp_path, clips)), "mine", Storage())
    assert run.clips["made_by"].tolist() == ["unnamed none"] * 2
    assert run.clips["scorer"].tolist() == ["none"] * 2
    assert or_none(run.clips["dataset"]) == [None, None]


def test_metrics_that_another_tool_wrote_anew_are_read(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(n, group="tape") for n in (1, 2)])
    (file,) = tmp_path.rglob("a.parquet")
    ours = read_run(str(tmp_path), "mine", Storage()).clips
    table = pq.ParquetFile(file).read()
    other = {"dataset": table["dataset"].dictionary_encode(), "label": pa.nulls(2)}
    for name, column in other.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, file)
    pd.testing.assert_frame_equal(read_run(str(tmp_path), "mine", Storage()).clips, ours)

    pq.write_table(table.set_column(0, "id", pa.array([[1], [2]])), file)
    with pytest.raises(RunError, match="has other types than such a table has"):
        read_run(str(tmp_path), "mine", Storage())


def test_the_split_of_a_multi_source_set_says_how_many_targets(tmp_path: Path) -> None:
    clip = report_runs.clip(1, dataset="multisource", split="4-sources-3-targets", n_sources=4)
    run = read_run(str(report_runs.write_run(tmp_path, [clip])), "mine", Storage())
    assert run.clips["setting"][0].n_targets == 3
    assert run.clips["setting"][0].mixture == "4 sources, 3 of them targets, 0 dB"


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

    assert or_none(new["group"]) == ["tape", None]
    assert or_none(old["group"]) == [None, None]
    pd.testing.assert_frame_equal(old.drop(columns="group"), new.drop(columns="group"))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no metrics, no dead letters and no run\.json"):
        read_run(str(tmp_path), "mine", Storage())


def test_a_table_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics" / "a.parquet"
    file.parent.mkdir()
    file.write_bytes(b"not parquet")
    with pytest.raises(RunError, match="is not Parquet"):
        read_run(str(tmp_path), "mine", Storage())


def test_a_table_that_is_damaged_within_is_named(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(1)])
    (file,) = tmp_path.rglob("a.parquet")
    data = file.read_bytes()
    file.write_bytes(data[:4] + b"\xff" * 16 + data[20:])
    with pytest.raises(RunError, match=r"a\.parquet: is not Parquet"):
        read_run(str(tmp_path), "mine", Storage())


def test_runs_of_the_same_name_are_told_apart() -> None:
    assert run_names(["/a/run", "/b/run/", "gs://c/run"]) == ["run", "run (2)", "run (3)"]


def test_a_run_of_several_manifests_names_the_first() -> None:
    record = {"manifests": [{"sha256": "f" * 64}, {"sha256": "e" * 64}]}
    assert default_protocol(record) == "manifest eeeeeeeeeeee and 1 more"
    assert default_protocol({}) == "not named"


def test_a_record_that_is_no_object_is_said(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(1)])
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match=r"run\.json: is not the record of a run"):
        read_run(str(tmp_path), "mine", Storage())


def test_dead_letters_without_a_column_are_said(tmp_path: Path) -> None:
    report_runs.write_run(tmp_path, [report_runs.clip(1)], [LETTER])
    (file,) = (tmp_path / "dead_letters").iterdir()
    pq.write_table(pq.ParquetFile(file).read().drop_columns(["stage"]), file)
    with pytest.raises(RunError, match="has no column stage"):
        read_run(str(tmp_path), "mine", Storage())
