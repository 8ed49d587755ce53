from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

import tone_runs
from manifests.files import ManifestError
from pipelines.output_folder import record
from transforms.storage import Storage

ROWS = [{"id": f"{i}", "mixture_uri": "a.wav", "positive_text": "x"} for i in range(5)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_manifest_has_a_digest_and_a_number_of_rows(tmp_path: Path, ending: str) -> None:
    path = tone_runs.write_manifest(tmp_path / f"m.{ending}", ROWS)
    (facts,) = record.manifest_facts([str(path)], Storage())
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (facts.num_bytes, facts.rows) == (path.stat().st_size, 5)


def test_notes_before_the_header_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("# one\n# two\nid,mixture_uri,positive_text\na,a.wav,x\nb,b.wav,#x\n")
    (facts,) = record.manifest_facts([str(path)], Storage())
    assert facts.rows == 2


def test_a_folder_of_manifests_has_facts_of_each(tmp_path: Path) -> None:
    for name in ("b.csv", "a.jsonl"):
        tone_runs.write_manifest(tmp_path / name, ROWS)
    found = record.manifest_facts([str(tmp_path)], Storage())
    assert [Path(facts.uri).name for facts in found] == ["a.jsonl", "b.csv"]


def test_a_compressed_manifest_does_not_say_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}'))
    (facts,) = record.manifest_facts([str(tmp_path / "a.jsonl.gz")], Storage())
    assert facts.rows is None


def test_a_manifest_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nowhere"):
        record.manifest_facts([str(tmp_path / "nowhere.csv")], Storage())


def test_a_record_comes_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "run.json")
    assert record.read_record(Storage(), uri) is None
    record.write_record(Storage(), uri, {"a": [1, "é"]})
    assert record.read_record(Storage(), uri) == {"a": [1, "é"]}


def test_differences_name_both_values() -> None:
    found = record.differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5})
    assert found == ["b: 2 then, 4 now", "c: 3 then, None now", "d: None then, 5 now"]


def test_versions_name_what_computes() -> None:
    versions = record.versions()
    assert versions["torch"][0].isdigit()
    assert {"python", "apache-beam", "numpy"} <= versions.keys()


def test_a_manifest_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    good = tone_runs.write_manifest(tmp_path / "good.csv", ROWS)
    bad = tmp_path / "bad.csv"
    bad.write_text("id;mixture_uri;positive_text\na;b;c\n")
    with pytest.raises(ManifestError, match=r"bad\.csv: the columns are separated by semicolons"):
        record.manifest_facts([str(good), str(bad)], Storage())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_misspelt_columns_are_said_before_a_run(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "offset": 1, "duration": 0.5, "note": "x"} for row in ROWS]
    path = tone_runs.write_manifest(tmp_path / f"m.{ending}", rows)
    record.manifest_facts([str(path)], Storage())
    assert caplog.messages == [
        f"columns of {path} that are not used: "
        '"duration" (is it duration_s?), "offset" (is it offset_s?)'
    ]
