"""The main job in S3: the same code as for GCS, another client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import s3_emulator
import tone_runs
from storage_front import Fault, StorageFront

s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")

NUM_ROWS = 6


@pytest.fixture
def front() -> Iterator[StorageFront]:
    with s3_emulator.running() as found:
        yield found


def test_everything_in_s3_is_read_and_written_and_failures_are_told_apart(
    front: StorageFront, tmp_path: Path
) -> None:
    rows = tone_runs.write_mixtures(tmp_path / "in", count=NUM_ROWS)
    for row in rows:
        row.update({name: Path(row[name]).name for name in ("mixture_uri", "reference_uri")})
    tone_runs.write_manifest(tmp_path / "in" / "rows.parquet", rows)
    bucket = "s3://recordings"
    files = s3fs.S3FileSystem()
    files.mkdir("recordings")
    files.put(f"{tmp_path}/in/", f"{bucket}/in/", recursive=True)
    front.faults += [
        Fault(pattern=r"GET /recordings/in/m1\.wav", status=503, times=2),
        Fault(pattern=r"GET /recordings/in/m2\.wav", status=403),
        Fault(pattern=r"(GET|HEAD) /recordings/in/m3\.wav", status=404),
    ]
    with tone_runs.tones_as_models():
        code = tone_runs.run(
            *("--manifest", f"{bucket}/in/*.parquet", "--output", f"{bucket}/out"),
            *("--max_failure_rate", 0.5),
        )
    assert code == 0
    reads = front.requests(r"GET /recordings/in/[mr]\d\.wav")
    files.get(f"{bucket}/out/", f"{tmp_path}/out/", recursive=True)
    output = tmp_path / "out"
    letters = tone_runs.table(output, "dead_letters")
    assert [(row["id"], row["error_type"]) for row in letters] == [
        ("clip/2", "permission"),
        ("clip/3", "missing"),
    ]
    metrics = tone_runs.table(output, "metrics")
    assert {row["id"] for row in metrics} == {"clip/0", "clip/1", "clip/4", "clip/5"}
    for row in metrics:
        assert row["sdri_db"] > 30
        local = output / row["stem_uri"].removeprefix(f"{bucket}/out/")
        assert tone_runs.soundfile.info(local).frames == tone_runs.tones.RATE_HZ
    record = tone_runs.record(output)
    assert record["row_counts"]["rows"] == NUM_ROWS
    assert record["counters"]["Storage/transient_botocore"] == 2
    served = [request.path for request in reads if request.status < 300]
    assert len(served) == len(set(served)) == 2 * (NUM_ROWS - 2)


def test_what_another_program_wrote_into_the_bucket_meanwhile_is_resumed_from(
    front: StorageFront, tmp_path: Path
) -> None:
    """The client remembers what it listed for ever: what came later it lists, and cannot open."""
    rows = tone_runs.write_mixtures(tmp_path / "in", count=4, duration_s=0.5)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    part = tone_runs.write_manifest(tmp_path / "part.jsonl", rows[:3])
    files = s3fs.S3FileSystem()
    files.mkdir("meanwhile")
    output = "s3://meanwhile/run[1]/out"  # a name that clients take for a pattern
    other = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    with tone_runs.tones_as_models() as loaded:
        assert tone_runs.run("--manifest", part, "--output", output) == 0
        assert files.find("meanwhile/run[1]")  # this process now has a listing of all folders
        for number, table in enumerate(other.find("meanwhile/run[1]/out/metrics")):
            piece = f"meanwhile/run[1]/out/_work/journal/{number:032x}.parquet"
            other.pipe_file(piece, other.cat_file(table))
            other.rm_file(table)
        other.pipe_file("meanwhile/run[1]/out/_work/journal/empty", b"")
        loaded.model.separator.heard = 0
        assert tone_runs.run("--manifest", manifest, "--output", output, "--resume") == 0
        heard = loaded.model.separator.heard
    listed = other.find("meanwhile/run[1]/out")
    row_counts = json.loads(other.cat_file("meanwhile/run[1]/out/run.json"))["row_counts"]
    assert (row_counts["finished_before"], row_counts["recovered"], row_counts["stems"]) == (
        3,
        3,
        1,
    )
    assert heard > 0
    assert piece not in listed
    assert "meanwhile/run[1]/out/_work/journal/empty" in listed  # it is not ours
    ids = [
        row_id
        for name in listed
        if "/metrics/" in name
        for row_id in pq.read_table(pa.BufferReader(other.cat_file(name)))["id"].to_pylist()
    ]
    assert sorted(ids) == [f"clip/{number}" for number in range(4)]
