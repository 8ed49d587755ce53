"""The main job in S3: the same code as for GCS, another client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
