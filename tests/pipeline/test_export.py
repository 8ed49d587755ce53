"""What ``pipelines.export`` writes, read back by the programs that it is for."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset

import metric_rows
from full_disk import no_file_above
from manifests.columns import EXPORT_FIELDS, METRICS_SCHEMA, SEGMENTS_SCHEMA
from manifests.row import output_name
from pipelines import export, flags
from transforms import exporting
from transforms.exporting import LAYOUTS, annotation, file_name, sample_key
from transforms.tables import metrics_rows

RATE_HZ = 8_000
IDS = ("001", "2024.01.05_rec", "2024.01.06_rec", "NA", "a/b", "../x\ty\nz", "d.flac/e")
LABELS = ("dog", "001", "NA", "", None, "dog\tin\nthe rain", "dog")
LEVELS = (0.0, 1.0, -2.0, 0.0, 3.0, 2.5, 0.0)
FIELDS = tuple(column.name for column in EXPORT_FIELDS)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of seven clips of 2 s with two segments each, moved after it was written."""
    folder = tmp_path / "out"
    metrics, segments = [], []
    rng = np.random.default_rng(0)
    for number, (row_id, label, level) in enumerate(zip(IDS, LABELS, LEVELS, strict=True)):
        stem = folder / "stems" / f"{number}.flac"
        stem.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(stem, rng.uniform(-0.5, 0.5, 2 * RATE_HZ), RATE_HZ, "PCM_24")
        metrics.append(
            {
                "id": row_id,
                "label": label,
                "dataset": "007",
                "positive_text": "a dog",
                "mixture_uri": f"memory://b/rec {number // 2}.wav",
                "offset_s": 10.0 if number == 1 else None,
                "duration_s": 2.0,
                "sample_rate_hz": RATE_HZ,
                "stem_uri": f"/was/here/stems/{number}.flac",
                "presence": 0.9,
                "model": "m",
            }
        )
        for start_s, end_s in ((1.25, 1.75), (0.25, 0.5)):
            segments.append(
                {
                    "id": row_id,
                    "label": label,
                    "positive_text": "a dog",
                    "mixture_uri": f"memory://b/rec {number // 2}.wav",
                    "start_s": start_s,
                    "end_s": end_s,
                    "presence": start_s / 2,
                    "peak_db": level,
                }
            )
    _write(folder / "metrics" / "part-000-00000-of-00001.parquet", metrics, METRICS_SCHEMA)
    _write(folder / "segments" / "part-000-00000-of-00001.parquet", segments, SEGMENTS_SCHEMA)
    record = {"config": {"output": "/was/here"}, "status": "finished"}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


@pytest.fixture
def exported(run_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def call(layout: str, *more: str, code: int = 0) -> Path:
        output = tmp_path / layout
        words = ["--runs", str(run_folder), "--layout", layout, "--output", str(output)]
        assert export.run([*words, "--progress", "none", *more]) == code
        return output

    return call


def _expected(run_folder: Path, cut: str = "segments") -> dict[str, np.ndarray[Any, Any]]:
    """Samples by item."""
    found = {}
    for number, row_id in enumerate(IDS):
        samples, _ = soundfile.read(run_folder / "stems" / f"{number}.flac", dtype="float32")
        if cut == "clips":
            found[row_id] = samples
            continue
        found[f"{row_id}/0001"] = samples[RATE_HZ // 4 : RATE_HZ // 2]
        found[f"{row_id}/0002"] = samples[RATE_HZ * 5 // 4 : RATE_HZ * 7 // 4]
    return found


def _samples(data: bytes) -> np.ndarray[Any, Any]:
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate_hz == RATE_HZ
    return np.asarray(samples)


def _assert_fields(fields: Sequence[dict[str, Any]]) -> None:
    """What is said of every segment is what the tables have, by type too."""
    assert {each["id"] for each in fields} == {f"{i}/{n:04d}" for i in IDS for n in (1, 2)}
    for each in fields:
        number = IDS.index(each["id"].rpartition("/")[0])
        assert each["label"] == LABELS[number]
        assert each["dataset"] == "007"
        assert each["peak_db"] == LEVELS[number]
        assert isinstance(each["peak_db"], float)
        begin = 10.0 if number == 1 else 0.0
        assert each["start_s"] == begin + (0.25 if each["id"].endswith("1") else 1.25)
        assert each["clap_score"] is None


def test_an_audio_folder_names_every_segment(
    exported: Callable[..., Path], run_folder: Path
) -> None:
    output = exported("audiofolder")
    lines = (output / "data" / "metadata.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    _assert_fields(records)
    expected = _expected(run_folder)
    for record in records:
        path = output / "data" / record["file_name"]
        assert path.resolve().is_relative_to(output)
        np.testing.assert_array_equal(_samples(path.read_bytes()), expected[record["id"]])
    table = pq.read_table(output / "exported").to_pylist()
    assert {row["file"] for row in table} == {f"data/{r['file_name']}" for r in records}
    assert {row["duration_s"] for row in table} == {0.25, 0.5}


def test_whole_stems_are_the_same_samples(exported: Callable[..., Path], run_folder: Path) -> None:
    output = exported("parquet", "--cut", "clips")
    rows = pq.read_table(output / "data").to_pylist()
    expected = _expected(run_folder, "clips")
    assert {row["id"] for row in rows} == set(IDS)
    for row in rows:
        np.testing.assert_array_equal(_samples(row["audio"]["bytes"]), expected[row["id"]])


def test_a_webdataset_is_read_by_its_library(
    exported: Callable[..., Path], run_folder: Path
) -> None:
    output = exported("webdataset", "--shard_rows", "5")
    shards = sorted(map(str, (output / "data").glob("*.tar")))
    assert len(shards) == 3
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 2 * len(IDS)
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    fields = [json.loads(sample["json"]) for sample in samples]
    _assert_fields(fields)
    expected = _expected(run_folder)
    for sample, field in zip(samples, fields, strict=True):
        assert list(field) == list(FIELDS)
        assert sample["__key__"] == sample_key(field["id"])
        np.testing.assert_array_equal(_samples(sample["flac"]), expected[field["id"]])
    for shard in shards:
        with tarfile.open(shard) as tar:
            unknown = [
                sum(value is None for value in json.load(_member(tar, name)).values())
                for name in tar.getnames()
                if name.endswith(".json")
            ]
        assert unknown == sorted(unknown)


def _member(tar: tarfile.TarFile, name: str) -> Any:
    return tar.extractfile(name)


def test_parquet_is_equal_in_every_reader(exported: Callable[..., Path]) -> None:
    files = str(exported("parquet") / "data" / "*.parquet")
    by_arrow = pq.read_table(Path(files).parent).to_pylist()
    _assert_fields(by_arrow)
    columns = ", ".join(f'"{name}"' for name in FIELDS)
    picked = f"SELECT {columns} FROM read_parquet('{files}') ORDER BY id"  # noqa: S608
    by_duckdb = duckdb.sql(picked).fetchall()
    by_polars = polars.read_parquet(files).select(FIELDS).sort("id").rows()
    in_order = sorted(by_arrow, key=lambda row: str(row["id"]))
    assert [tuple(row[name] for name in FIELDS) for row in in_order] == by_duckdb == by_polars


def test_a_nemo_manifest_has_paths_and_durations(exported: Callable[..., Path]) -> None:
    data = exported("nemo") / "data"
    records = [
        json.loads(line) for line in (data / "manifest.jsonl").read_text("utf-8").splitlines()
    ]
    _assert_fields(records)
    for record in records:
        assert soundfile.info(data / record["audio_filepath"]).duration == record["duration"]
        assert record["text"] == "a dog"


@pytest.mark.parametrize(("layout", "header"), [("audacity", 0), ("raven", 1)])
def test_labels_are_one_file_a_recording(
    layout: str, header: int, exported: Callable[..., Path]
) -> None:
    data = exported(layout) / "data"
    files = sorted(data.iterdir())
    assert len(files) == 4
    (first,) = (path for path in files if path.name.startswith("rec_0"))
    lines = [line.split("\t") for line in first.read_text("utf-8").splitlines()]
    assert {len(line) for line in lines} == {3 if layout == "audacity" else 9}
    place = 0 if layout == "audacity" else 3
    starts = [float(line[place]) for line in lines[header:]]
    assert starts == [0.25, 1.25, 10.25, 11.25]
    (noisy,) = (path for path in files if path.name.startswith("rec_2"))
    assert "dog in the rain" in noisy.read_text("utf-8")


def test_ravens_tables_have_what_other_readers_of_them_need(exported: Callable[..., Path]) -> None:
    """opensoundscape 0.13 and crowsetta 5.1 refuse a table without frequencies."""
    for path in (exported("raven") / "data").iterdir():
        rows = list(csv.DictReader(path.open(encoding="utf-8"), delimiter="\t"))
        for number, row in enumerate(rows, 1):
            assert int(row["Selection"]) == number
            assert float(row["Begin Time (s)"]) < float(row["End Time (s)"])
            assert (row["Low Freq (Hz)"], float(row["High Freq (Hz)"])) == ("0.0", RATE_HZ / 2)


def test_labels_of_a_stretch_say_times_in_its_recording(
    exported: Callable[..., Path], run_folder: Path
) -> None:
    for name, schema in (("metrics", METRICS_SCHEMA), ("segments", SEGMENTS_SCHEMA)):
        (path,) = (run_folder / name).iterdir()
        rows = pq.read_table(path).to_pylist()
        for row in rows:
            if row["mixture_uri"] == "memory://b/rec 0.wav":
                row["mixture_uri"] += "#t=1:40,180"
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
    output = exported("audacity")
    files = sorted((output / "data").iterdir())
    assert len(files) == 4
    (first,) = (path for path in files if path.name.startswith("rec_0"))
    starts = [float(line.split("\t")[0]) for line in first.read_text("utf-8").splitlines()]
    assert starts == [100.25, 101.25, 110.25, 111.25]
    items = {row["id"]: row for row in pq.read_table(output / "exported").to_pylist()}
    assert items[f"{IDS[0]}/0001"]["start_s"] == 100.25


def test_a_condition_picks_by_columns_of_both_tables(exported: Callable[..., Path]) -> None:
    where = "presence > 0.5 AND clip_presence = 0.9 AND label = 'dog' AND model = 'm'"
    rows = pq.read_table(exported("parquet", "--where", where) / "data").to_pylist()
    assert {row["id"] for row in rows} == {"001/0002", "d.flac/e/0002"}


def test_nothing_picked_is_no_failure(
    exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    exported("parquet", "--where", "presence > 2")
    assert "nothing to do: --where picks nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("presense > 0.5", "presense"),
        ("presence >", "syntax error"),
        ("true; DROP TABLE clips", "modifiers"),
        ("id IN (SELECT column0 FROM read_csv('/etc/hostname'))", "disabled"),
        ("CAST(label AS INT) > 5", "Could not convert string"),
        (" ", "empty condition"),
    ],
)
def test_a_condition_that_is_none_is_exit_2(
    where: str,
    said: str,
    exported: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = exported("parquet", "--where", where, code=2)
    error = capsys.readouterr().err
    assert "--where" in error
    assert said in error
    assert not output.exists()


def test_margins_stay_inside_of_the_stem(exported: Callable[..., Path]) -> None:
    rows = pq.read_table(exported("parquet", "--margin_s", "0.5") / "exported").to_pylist()
    assert {row["duration_s"] for row in rows} == {1.0, 1.25}
    assert min(row["start_s"] for row in rows) == 0.0
    assert max(row["end_s"] for row in rows if row["id"].startswith("001")) == 2.0


def test_a_margin_around_whole_clips_is_refused(
    exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    exported("parquet", "--cut", "clips", "--margin_s", "0.5", code=2)
    assert "--margin_s goes with --cut segments" in capsys.readouterr().err


def test_a_missing_stem_is_a_dead_letter(exported: Callable[..., Path], run_folder: Path) -> None:
    (run_folder / "stems" / "3.flac").unlink()
    output = exported("webdataset", "--max_failure_rate", "0.5")
    letters = pq.read_table(output / "dead_letters").to_pylist()
    assert {row["id"] for row in letters} == {"NA/0001", "NA/0002"}
    assert {(row["stage"], row["error_type"]) for row in letters} == {("read", "missing")}
    assert len(pq.read_table(output / "exported")) == 2 * len(IDS) - 2


def test_stems_of_a_run_that_was_moved_and_gone_on_with_are_its_own(
    exported: Callable[..., Path], run_folder: Path, tmp_path: Path
) -> None:
    """Where it was first there is another run now, whose stems have the same names."""
    table = run_folder / "metrics" / "part-000-00000-of-00001.parquet"
    rows = pq.ParquetFile(table).read().to_pylist()
    places = [str(tmp_path / "new"), str(tmp_path / "new" / "moved")]
    for number, row in enumerate(rows):
        row["stem_uri"] = f"{places[number % 2]}/stems/{number}.flac"
        other = tmp_path / "new" / "stems" / f"{number}.flac"
        other.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(other, np.zeros(2 * RATE_HZ), RATE_HZ, "PCM_24")
    pq.write_table(pa.Table.from_pylist(rows, METRICS_SCHEMA), table)
    record = {"config": {"output": places[1]}, "outputs": places, "status": "finished"}
    (run_folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    output = exported("parquet", "--cut", "clips")
    expected = _expected(run_folder, "clips")
    for row in pq.read_table(output / "data").to_pylist():
        np.testing.assert_array_equal(_samples(row["audio"]["bytes"]), expected[row["id"]])


def test_a_missing_stem_whose_address_has_the_output_folders_in_it_was_to_be_read(
    run_folder: Path, tmp_path: Path
) -> None:
    (run_folder / "stems" / "3.flac").unlink()
    output = tmp_path / "data"
    run = tmp_path / "mnt" / output.relative_to("/")
    run.parent.mkdir(parents=True)
    run_folder.rename(run)
    words = ["--runs", str(run), "--output", str(output), "--max_failure_rate", "0.5"]
    assert export.run([*words, "--cut", "clips"]) == 0
    (letter,) = pq.read_table(output / "dead_letters").to_pylist()
    assert (letter["stage"], letter["error_type"]) == ("read", "missing")


@pytest.mark.parametrize("layout", ["audiofolder", "webdataset", "parquet"])
def test_a_disk_without_room_for_clips_is_said_of_what_is_written(
    exported: Callable[..., Path], run_folder: Path, layout: str
) -> None:
    with no_file_above(6 * RATE_HZ):  # a clip has 8 bytes for each
        output = exported(layout, "--cut", "clips", "--clip_format", "wav", code=1)
    letters = pq.read_table(output / "dead_letters").to_pylist()
    assert {(row["stage"], row["error_type"]) for row in letters} == {("write", "disk_full")}
    assert all(str(output) in row["message"] for row in letters)
    assert not any(str(run_folder) in row["message"] for row in letters)


def test_a_clip_that_cannot_be_put_in_place_could_not_be_written(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    place = tmp_path / "audiofolder" / "data" / "audio" / f"{file_name('NA')}.flac"
    (place / "a folder of that name").mkdir(parents=True)
    output = exported("audiofolder", "--cut", "clips", "--max_failure_rate", "0.5")
    (letter,) = pq.read_table(output / "dead_letters").to_pylist()
    assert (letter["id"], letter["stage"]) == ("NA", "write")
    assert str(place) in letter["message"]


@pytest.mark.parametrize(("layout", "file"), [("webdataset", "shard-"), ("parquet", "part-")])
def test_a_disk_without_room_for_many_clips_ends_the_job_and_names_the_file(
    exported: Callable[..., Path], layout: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = ("--cut", "clips", "--clip_format", "wav")
    with no_file_above(20 * RATE_HZ):  # two clips
        output = exported(layout, *clips, code=flags.EXIT_JOB_FAILED)
    assert f"{output}/data/{file}00000-of-00001." in capsys.readouterr().err
    assert not list((output / "data").glob("*"))
    exported(layout, *clips, "--resume")
    assert len(_items(output)) == len(IDS)


def test_audio_outside_of_what_is_allowed_is_not_read(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    words = ("--signal", "mixture", "--allowed_uri_prefix", str(other))
    output = exported("nemo", *words, code=1)
    letters = pq.read_table(output / "dead_letters").to_pylist()
    assert {row["error_type"] for row in letters} == {"uri_not_allowed"}


def test_what_a_format_does_not_hold_is_said(
    exported: Callable[..., Path], run_folder: Path
) -> None:
    stem = run_folder / "stems" / "0.flac"
    stem.unlink()
    soundfile.write(stem, np.full(2 * RATE_HZ, 1.5), RATE_HZ, "FLOAT", format="WAV")
    output = exported("audiofolder", "--max_failure_rate", "0.5")
    (message, *_) = {row["message"] for row in pq.read_table(output / "dead_letters").to_pylist()}
    assert "--clip_format wav" in message
    again = exported("audiofolder", "--overwrite", "--clip_format", "wav")
    assert len(pq.read_table(again / "exported")) == 2 * len(IDS)
    assert not list((again / "data").rglob("*.flac"))


@pytest.mark.parametrize(
    ("form", "ending", "rate_hz"), [("opus", "opus", 48_000), ("mp3", "mp3", 44_100)]
)
def test_lossy_clips_are_as_long_as_the_segments(
    form: str, ending: str, rate_hz: int, exported: Callable[..., Path], run_folder: Path
) -> None:
    """Opus has no 44.1 kHz: it is resampled."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * 44_100)
    for stem in (run_folder / "stems").iterdir():
        soundfile.write(stem, noise, 44_100, "PCM_24")
    output = exported("webdataset", "--clip_format", form, "--clip_quality", "0.7")
    (shard,) = map(str, (output / "data").glob("*.tar"))
    samples = list(webdataset.WebDataset([shard], shardshuffle=False))
    assert len(samples) == 2 * len(IDS)
    for sample in samples:
        heard, found_hz = soundfile.read(io.BytesIO(sample[ending]))
        assert found_hz == rate_hz
        length_s = 0.25 if json.loads(sample["json"])["id"].endswith("1") else 0.5
        assert len(heard) == length_s * rate_hz


def test_overwrite_leaves_what_somebody_else_put_there(exported: Callable[..., Path]) -> None:
    output = exported("audiofolder")
    (output / "data" / "notes.txt").write_text("mine", encoding="utf-8")
    exported("audiofolder", "--overwrite", "--where", "label = 'dog'")
    assert (output / "data" / "notes.txt").read_text("utf-8") == "mine"
    assert len(list((output / "data" / "audio").rglob("*.flac"))) == 4


def test_two_runs_have_their_names_before_ids(run_folder: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.symlink_to(run_folder)
    output = tmp_path / "both"
    words = ["--runs", str(run_folder), "--runs", str(second), "--output", str(output)]
    assert export.run([*words, "--cut", "clips", "--where", "id = '001'"]) == 0
    ids = {row["id"] for row in pq.read_table(output / "exported").to_pylist()}
    assert ids == {"out/001", "second/001"}


def test_runs_of_one_name_and_one_that_is_called_like_the_third_of_it_are_three(
    run_folder: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / name for name in ("a/run", "b/run_3", "c/run")]
    for each in runs:
        each.parent.mkdir()
        each.symlink_to(run_folder)
    output = tmp_path / "all"
    words = ["--runs", *map(str, runs), "--output", str(output), "--cut", "clips"]
    assert export.run([*words, "--where", "id = '001'"]) == 0
    ids = {row["id"] for row in pq.read_table(output / "exported").to_pylist()}
    assert ids == {"run/001", "run_3/001", "run_4/001"}


def test_the_parts_of_a_run_are_exported_as_one(run_folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for number in range(2):
        (whole / f"shard={number}-of-2").symlink_to(run_folder)
    output = tmp_path / "parts"
    words = ["--runs", str(whole), "--output", str(output), "--max_failure_rate", "0.5"]
    assert export.run([*words, "--cut", "clips", "--where", "id = '001'"]) == 0
    assert len(pq.read_table(output / "exported")) == 1
    (letter,) = pq.read_table(output / "dead_letters").to_pylist()  # here each part has every row
    assert letter["error_type"] == "duplicate_id"


def test_parts_that_have_not_finished_are_said_and_divisions_are_not_mixed(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("shard=0-of-2", "shard=0-of-3"):
        words = ["--runs", str(tmp_path / "parts"), "--output", str(tmp_path / name)]
        (tmp_path / "parts" / name).symlink_to(run_folder)
        code = export.run([*words, "--layout", "audacity", "--progress", "none"])
        said = "holds parts of several divisions" if code else "parts: 1 of 2 parts have finished"
        assert (code, said in capsys.readouterr().err) == (2 * (name == "shard=0-of-3"), True)
    (run_folder / "run.json").write_text('{"config": {}, "status": "running"}', encoding="utf-8")
    words = ["--runs", str(run_folder), "--output", str(tmp_path / "ex"), "--layout", "audacity"]
    assert export.run([*words, "--progress", "none"]) == 0
    assert f"note: --runs {run_folder}: has not finished" in capsys.readouterr().err


def test_what_a_run_was_not_allowed_to_read_is_not_exported(
    exported: Callable[..., Path], run_folder: Path
) -> None:
    record = json.loads((run_folder / "run.json").read_text("utf-8"))
    record["config"]["allowed_uri_prefix"] = ["gs://other/"]
    (run_folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    output = exported("nemo", "--signal", "mixture", code=1)
    letters = pq.read_table(output / "dead_letters").to_pylist()
    assert {row["error_type"] for row in letters} == {"uri_not_allowed"}
    assert exported("parquet")  # its own stems


def test_runs_without_segments_say_what_to_do(
    run_folder: Path, exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run_folder / "segments").iterdir():
        path.unlink()
    exported("parquet", code=2)
    assert "take --cut clips" in capsys.readouterr().err


@pytest.mark.parametrize("cut", ["segments", "clips"])
def test_a_run_in_which_nothing_was_found_keeps_no_other_from_being_exported(
    run_folder: Path, tmp_path: Path, cut: str
) -> None:
    quiet = tmp_path / "quiet"
    rows = [
        {"id": "a", "n_segments": 0, "stem_uri": "/a.flac"},
        {"id": "b", "n_segments": None, "stem_note": "not separated: presence 0.01"},
    ]
    where = "stem_note IS NULL AND id <> 'a'"
    _write(quiet / "metrics" / "part-000-00000-of-00001.parquet", rows, METRICS_SCHEMA)
    failed = tmp_path / "failed"
    failed.mkdir()
    for folder in (quiet, failed):
        (folder / "run.json").write_text('{"config": {}, "status": "finished"}', encoding="utf-8")
    words = ["--runs", str(quiet), str(failed), str(run_folder), "--cut", cut, "--where", where]
    assert export.run([*words, "--layout", "raven", "--output", str(tmp_path / "ex")]) == 0
    assert len(pq.read_table(tmp_path / "ex" / "exported")) == len(IDS) * (
        2 if cut == "segments" else 1
    )


def test_a_damaged_table_is_named(
    run_folder: Path, exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_folder / "metrics" / "part-000-00000-of-00001.parquet"
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for at, named in ((footer, f"{file}: is not Parquet ("), (4, f"--runs {run_folder}: a table")):
        file.write_bytes(data[:at] + b"\xff" * 16 + data[at + 16 :])
        exported("parquet", code=2)
        assert named in capsys.readouterr().err


def test_what_is_no_finished_run_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--runs", str(tmp_path), "--output", str(tmp_path / "ex")]
    assert export.run(words) == 2
    assert "has no metrics/; expected a folder in which" in capsys.readouterr().err


@pytest.mark.parametrize("layout", sorted(exporting.LABELS))
def test_label_tracks_have_no_format_of_clips(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert layout in flags.LABEL_LAYOUTS
    words = ["--runs", str(tmp_path), "--output", str(tmp_path / "ex"), "--layout", layout]
    assert export.run([*words, "--clip_format", "wav"]) == 2
    assert f"--clip_format wav: --layout {layout} holds no audio" in capsys.readouterr().err


def test_the_help_names_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    assert export.run(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in LAYOUTS)


def test_the_help_says_what_flags_mean_for_exports() -> None:
    said, elsewhere = (
        {action.dest: str(action.help) for action in command.parser()._actions}
        for command in (flags.EXPORT, flags.SEPARATE)
    )
    assert "data/" in said["output"]
    assert "stems" not in said["output"]
    assert "manifest" not in said["resume"]
    assert "manifest" in elsewhere["resume"]


def test_a_record_that_was_lost_leaves_nothing_of_another_selection(
    exported: Callable[..., Path],
) -> None:
    few = ("--shard_rows", "2")
    output = exported("parquet", *few)
    (output / "data" / "note.txt").write_text("somebody's")
    (output / "run.json").unlink()
    exported("parquet", *few, "--where", "id = 'NA'", "--resume")
    rows = [row for file in (output / "data").glob("*.parquet")
            for row in pq.ParquetFile(file).read(["id"]).to_pylist()]  # fmt: skip
    assert sorted(row["id"] for row in rows) == ["NA/0001", "NA/0002"]
    assert (output / "data" / "note.txt").exists()
    table = [pq.ParquetFile(file).read() for file in (output / "exported").glob("*.parquet")]
    assert sum(each.num_rows for each in table) == 2


def test_no_file_name_has_the_word_of_a_split() -> None:
    names = ["dog-test-1", "train/a", "Validation", "contest", "a.dev", "latest~", "val"]
    assert [file_name(name) for name in names] == [
        *("dog-test~-1", "train~/a", "Validation~", "contest", "a.dev~"),
        *(f"latest~{output_name('latest~').partition('~')[2]}", "val~"),
    ]


def test_a_label_without_a_text_is_the_id() -> None:
    assert annotation({"label": None, "positive_text": None, "id": "a\tb"}) == "a b"


def _content(output: Path) -> dict[str, bytes]:
    """All files of a data set."""
    files = (path for path in (output / "data").rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def _items(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / "exported").to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def _counts(output: Path) -> tuple[int, int, int]:
    found = json.loads((output / "run.json").read_text("utf-8"))["row_counts"]
    return found["finished_before"], found["stems"], found["dead_letters"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_that_was_stopped_goes_on_to_the_same_files(
    layout: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done when it failed is kept, though a shard of it is only half in the journal."""
    monkeypatch.setattr(metrics_rows, "LOCAL_JOURNAL_S", 0.0)
    words = ["--runs", str(run_folder), "--layout", layout, "--shard_rows", "5"]
    words += ["--progress", "none", "--output"]
    whole, output = tmp_path / "whole", tmp_path / "stopped"
    assert export.run([*words, str(whole)]) == 0
    with metric_rows.journal_that_fails() as written:
        assert export.run([*words, str(output)]) == 3
    assert 0 < len(written) < 2 * len(IDS)
    assert export.run([*words, str(output), "--resume"]) == 0
    assert _content(output) == _content(whole)
    assert _items(output) == _items(whole)
    assert _counts(output) == (len(written), 2 * len(IDS) - len(written), 0)
    assert not (output / "_work").exists()


@pytest.mark.parametrize("layout", ["audiofolder", "webdataset"])
def test_what_failed_is_tried_again(
    layout: str, exported: Callable[..., Path], run_folder: Path
) -> None:
    stem = run_folder / "stems" / "3.flac"
    stem.rename(stem.with_suffix(".away"))
    more = ("--max_failure_rate", "0.5", "--shard_rows", "5")
    output = exported(layout, *more)
    before = _content(output)
    assert exported(layout, *more, "--resume") == output  # nothing has changed
    assert _counts(output) == (2 * len(IDS) - 2, 0, 2)
    assert _content(output) == before
    stem.with_suffix(".away").rename(stem)
    exported(layout, *more, "--resume")
    assert _counts(output) == (2 * len(IDS) - 2, 2, 0)
    assert len(_items(output)) == 2 * len(IDS)
    assert not list((output / "dead_letters").glob("*.parquet"))
    again = _content(output)
    exported(layout, *more, "--overwrite")
    assert _content(output) == again


def test_a_shard_is_not_written_again_without_what_was_in_it(
    exported: Callable[..., Path], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = run_folder / "stems"
    (stems / "3.flac").rename(stems / "3.away")
    output = exported("webdataset", "--max_failure_rate", "0.5")
    before = _content(output)
    (stems / "3.away").rename(stems / "3.flac")
    (stems / "0.flac").unlink()
    exported("webdataset", "--resume", code=3)
    said = capsys.readouterr().err
    assert "0.flac" in said
    assert "--overwrite begins again without it" in said
    assert _content(output) == before


@pytest.mark.parametrize("what", ["where", "layout", "rows"])
def test_another_selection_is_not_mixed_in(
    what: str, exported: Callable[..., Path], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A layout that packs many items has other files for it."""
    output = exported("parquet")
    before = _content(output)
    words = ["--runs", str(run_folder), "--layout", "parquet", "--output", str(output)]
    if what == "where":
        words += ["--where", "presence > 0.2"]
    elif what == "layout":
        words += ["--layout", "nemo"]
        words.remove("parquet")
        words.remove("--layout")
    else:
        (table,) = (run_folder / "segments").iterdir()
        rows = pq.read_table(table).to_pylist()
        pq.write_table(pa.Table.from_pylist(rows[1:], SEGMENTS_SCHEMA), table)
    assert export.run([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert "--resume: the run in --output had other settings" in said
    assert {
        "where": "where: 'true' then, 'presence > 0.2' now",
        "layout": "layout: 'parquet' then, 'nemo' now",
        "rows": "14 rows (",
    }[what] in said
    assert _content(output) == before
