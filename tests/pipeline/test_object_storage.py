"""The main job with everything in a bucket: manifest, recordings, examples, results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcsfs
import pytest

import storage_front
import tone_runs
import tones
from storage_front import MEDIA, Fault, StorageFront

NUM_ROWS = 12


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageFront]:
    with storage_front.running(tmp_path_factory.mktemp("gcs")) as found:
        yield found


@pytest.fixture(autouse=True)
def loaded(front: StorageFront) -> Iterator[tone_runs.Loaded]:
    front.forget()
    with tone_runs.tones_as_models() as found:
        yield found


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows whose files lie beside the manifest; the first two are asked for by example clips."""
    folder = tmp_path_factory.mktemp("made") / "in"
    made = tone_runs.write_mixtures(folder, count=NUM_ROWS)
    for row in made:
        row.update({name: Path(row[name]).name for name in ("mixture_uri", "reference_uri")})
    for row in made[:2]:
        label = row.pop("positive_text").split()[0]
        tones.soundfile.write(folder / f"{label}.wav", tones.tone(label, 0.7), tones.RATE_HZ)
        row["positive_audio_uris"] = [f"{label}.wav"]
    tone_runs.write_manifest(folder / "a.jsonl", made[: NUM_ROWS // 2])
    tone_runs.write_manifest(folder / "b.jsonl", made[NUM_ROWS // 2 :])
    return [{**row, "folder": folder} for row in made]


@pytest.fixture(scope="module")
def undisturbed(rows: list[dict[str, Any]]) -> Path:
    """The same from local files to local files."""
    folder: Path = rows[0]["folder"]
    with tone_runs.tones_as_models():
        code = tone_runs.run("--manifest", folder / "*.jsonl", "--output", folder.parent / "out")
    assert code == 0
    return folder.parent / "out"


@pytest.fixture(scope="module")
def bucket(front: StorageFront, rows: list[dict[str, Any]]) -> str:
    uri = front.bucket("recordings")
    gcsfs.GCSFileSystem().put(f"{rows[0]['folder']}/", f"{uri}/in/", recursive=True)
    return uri


def _run(bucket: str, output: str, *arguments: str) -> int:
    manifest = f"{bucket}/in/*.jsonl"
    return tone_runs.run("--manifest", manifest, "--output", f"{bucket}/{output}", *arguments)


def _fetched(bucket: str, output: str, folder: Path) -> Path:
    """A copy of a run's output."""
    gcsfs.GCSFileSystem(use_listings_cache=False).get(
        f"{bucket}/{output}/", f"{folder}/{output}/", recursive=True
    )
    return folder / output


def _digests(output: Path) -> dict[str, str]:
    """SHA-256 of each stem, by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (output / "stems").rglob("*.flac")
    }


def test_everything_in_a_bucket_gives_what_local_files_give(
    front: StorageFront, bucket: str, undisturbed: Path, tmp_path: Path
) -> None:
    front.faults.append(Fault(pattern=MEDIA, delay_s=0.2))
    assert _run(bucket, "whole") == 0
    output = _fetched(bucket, "whole", tmp_path)
    tone_runs.assert_same_results(undisturbed, output)
    assert _digests(output) == _digests(undisturbed)
    metrics = tone_runs.table(output, "metrics")
    assert all(row["stem_uri"].startswith(f"{bucket}/whole/stems/") for row in metrics)
    assert not list(output.rglob("_work"))

    reads = front.requests(f"o/in%2F.*{MEDIA}")
    names = [request.path.split("%2F")[-1].split("?")[0] for request in reads]
    audio = sorted(name for name in names if name.endswith(".wav"))
    mixtures = [f"{kind}{number}.wav" for kind in "mr" for number in range(NUM_ROWS)]
    assert audio == sorted([*mixtures, "bell.wav", "dog_bark.wav"])  # each once
    assert max(request.in_flight for request in reads) >= 4


def test_reads_that_fail_are_repeated_and_counted_or_said(
    front: StorageFront, bucket: str, undisturbed: Path, tmp_path: Path
) -> None:
    front.faults += [
        Fault(pattern=rf"in%2Fm3\.wav.*{MEDIA}", status=403),
        Fault(pattern=r"in%2Fm4\.wav", status=404),
        Fault(pattern=rf"in%2Fm5\.wav.*{MEDIA}", status=503, times=2),
        Fault(pattern=rf"in%2Fm6\.wav.*{MEDIA}", status=429, times=2),
        Fault(pattern=rf"in%2Fm7\.wav.*{MEDIA}", cut=1_000, times=2),
        Fault(pattern=rf"in%2Fm8\.wav.*{MEDIA}", status=503),
        Fault(pattern=rf"in%2Fr9\.wav.*{MEDIA}", cut=1_000),
        Fault(pattern=r"POST .*upload", status=503, every=5),
    ]
    assert _run(bucket, "failed_reads") == 1
    output = _fetched(bucket, "failed_reads", tmp_path)
    letters = {row["id"]: row for row in tone_runs.table(output, "dead_letters")}
    assert {row_id: row["error_type"] for row_id, row in letters.items()} == {
        "clip/3": "permission",
        "clip/4": "missing",
        "clip/8": "io_error",
        "clip/9": "io_error",
    }
    for row in letters.values():
        assert f"{bucket}/in/" in row["message"]
    expected, found = _digests(undisturbed), _digests(output)
    assert len(found) == NUM_ROWS - 4
    assert found.items() <= expected.items()
    metrics = tone_runs.table(output, "metrics")
    assert len({row["id"] for row in metrics}) == len(metrics) == NUM_ROWS - 4
    record = tone_runs.record(output)
    assert record["books"]["rows"] == NUM_ROWS
    assert record["counters"]["Storage/transient_gcsfs"] >= 2 + 2 + 2 + 5
    assert len(front.requests(rf"in%2Fm3\.wav.*{MEDIA}")) == 1  # what lasts is not asked again
