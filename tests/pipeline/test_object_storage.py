"""The main job with everything in a bucket: manifest, recordings, examples, results."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gcsfs.core
import pytest

import gcs_emulator
import tiny_model
import tone_runs
import tones
from storage_front import MEDIA, Fault, StorageFront

NUM_ROWS = 12
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageFront]:
    with gcs_emulator.running(tmp_path_factory.mktemp("gcs")) as found:
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
    gcsfs.core.GCSFileSystem().put(f"{rows[0]['folder']}/", f"{uri}/in/", recursive=True)
    return uri


def _run(bucket: str, output: str, *arguments: str) -> int:
    manifest = f"{bucket}/in/*.jsonl"
    return tone_runs.run("--manifest", manifest, "--output", f"{bucket}/{output}", *arguments)


def _fetched(bucket: str, output: str, folder: Path) -> Path:
    """A copy of a run's output."""
    gcsfs.core.GCSFileSystem(use_listings_cache=False).get(
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
    assert record["row_counts"]["rows"] == NUM_ROWS
    assert record["counters"]["Storage/transient_gcsfs"] >= 2 + 2 + 2 + 5
    assert len(front.requests(rf"in%2Fm3\.wav.*{MEDIA}")) == 1  # what lasts is not asked again


def test_a_run_that_could_not_go_on_is_resumed(
    front: StorageFront, bucket: str, undisturbed: Path, tmp_path: Path, capsys
) -> None:
    front.faults.append(Fault(pattern=r"POST .*upload.*", status=503, after=14))
    assert _run(bucket, "resumed", "--batch_size", "1") == 3
    assert "503" in capsys.readouterr().err
    front.forget()

    assert _run(bucket, "resumed", "--resume") == 0
    output = _fetched(bucket, "resumed", tmp_path)
    row_counts = tone_runs.record(output)["row_counts"]
    assert row_counts["finished_before"] > 0
    assert row_counts["finished_before"] + row_counts["stems"] == NUM_ROWS
    tone_runs.assert_same_results(undisturbed, output)
    assert _digests(output) == _digests(undisturbed)


@pytest.mark.parametrize(
    ("pattern", "status", "said"),
    [
        (r"in%2Fa\.jsonl.*alt=media", 403, "in/a.jsonl"),
        (r"prefix=in/", 404, "no such file"),
        (r"nowhere%2Frun\.json.*alt=media", 403, "nowhere/run.json"),
        (r"POST .*upload", 403, "--output: cannot be written"),
    ],
)
def test_what_cannot_be_reached_at_all_is_said_before_anything_is_run(
    front: StorageFront, bucket: str, pattern: str, status: int, said: str, capsys
) -> None:
    front.faults.append(Fault(pattern=pattern, status=status))
    assert _run(bucket, "nowhere") == 2
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_the_endpoint_can_be_given_by_storage_options(
    front: StorageFront, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name)
    options = json.dumps({"gs": {"endpoint_url": front.url, "token": "anon"}})
    assert _run(bucket, "by_options", "--storage_options", options) == 0
    assert front.requests("/token") == []
    monkeypatch.undo()
    output = _fetched(bucket, "by_options", tmp_path)
    assert len(tone_runs.table(output, "metrics")) == NUM_ROWS
    assert front.url not in (output / "run.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("by_options", "workers"),
    [
        (False, 1),
        pytest.param(False, 2, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_weights_come_from_a_bucket_in_any_process(
    front: StorageFront, bucket: str, tmp_path: Path, by_options: bool, workers: int
) -> None:
    """The command itself, with worker processes, and what it knows by its environment only."""
    local = tiny_model.write_tiny_model(tmp_path / "tiny.safetensors")
    gcsfs.core.GCSFileSystem().put(local, f"{bucket}/tiny.safetensors")
    environment = {**os.environ, "CLAPSEP_CACHE": str(tmp_path / "cache")}
    arguments = ["--num_workers", str(workers)]
    if by_options:
        environment.pop("STORAGE_EMULATOR_HOST")
        options = {"gs": {"endpoint_url": front.url, "token": "anon"}}
        arguments = ["--storage_options", json.dumps(options)]
    output = f"with_weights_{by_options}_{workers}"
    command = [sys.executable, "-m", "pipelines.separate", "--manifest", f"{bucket}/in/a.jsonl"]
    command += ["--output", f"{bucket}/{output}", "--model", f"{bucket}/tiny.safetensors"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(front.requests(rf"GET .*tiny\.safetensors\?.*{MEDIA}")) == 1
    metrics = tone_runs.table(_fetched(bucket, output, tmp_path), "metrics")
    assert len(metrics) == NUM_ROWS // 2
    assert metrics[0]["model_sha256"] == hashlib.sha256(Path(local).read_bytes()).hexdigest()
