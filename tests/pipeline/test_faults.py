"""Runs that something goes wrong with: rows balance, what was not hit is unchanged."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import tenacity.nap
import torch

import faulty_storage
import tone_runs
import tones
from faulty_storage import Fault, FaultyFileSystem
from full_disk import no_file_above
from pipelines import flags
from transforms import storage
from transforms.audio import decoding

NUM_ROWS = 12


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[tone_runs.Loaded]:
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=lambda _: None))
    with tone_runs.tones_as_models() as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings and their manifest, whose URIs are relative, and an undisturbed run."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=NUM_ROWS, duration_s=3.0)
    for row in rows:
        row.update({name: Path(row[name]).name for name in ("mixture_uri", "reference_uri")})
    tone_runs.write_manifest(folder / "in" / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        assert _run(folder / "in", folder / "whole") == 0
    return folder


def _run(source: object, output: object, *arguments: str | Path) -> int:
    return tone_runs.run("--manifest", f"{source}/rows.jsonl", "--output", str(output), *arguments)


def _digests(output: Path) -> dict[str, str]:
    """SHA-256 of each stem, by its path."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (output / "stems").rglob("*")
        if path.is_file()
    }


def _checked(output: Path, made: Path, failed: dict[str, str]) -> dict[str, Any]:
    """Checks a run in which these rows, by id, failed in this way; gives its record."""
    letters = tone_runs.table(output, "dead_letters")
    assert {row["id"]: row["error_type"] for row in letters} == failed
    assert len(letters) == len(failed)
    metrics = tone_runs.table(output, "metrics")
    ids = [row["id"] for row in metrics]
    assert sorted([*ids, *failed]) == sorted(f"clip/{number}" for number in range(NUM_ROWS))
    expected = {row["id"]: row for row in tone_runs.table(made / "whole", "metrics")}
    assert tone_runs.comparable(metrics) == tone_runs.comparable([expected[i] for i in ids])
    digests = _digests(made / "whole")
    found = _digests(output)
    assert len(found) == len(metrics)
    assert found.items() <= digests.items()
    assert [path for path in output.rglob("*") if path.suffix == ".tmp"] == []
    record = tone_runs.record(output)
    row_counts = record["row_counts"]
    assert row_counts["rows"] == NUM_ROWS
    assert row_counts["finished_before"] + row_counts["stems"] == len(metrics)
    assert row_counts["dead_letters"] == len(failed)
    return record


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=503, every=20),
        Fault(kind="short", every=20),
        Fault(kind="status", status=500, every=20, mode="w"),
        pytest.param(Fault(kind="status", status=429, every=20), marks=pytest.mark.slow),
        pytest.param(Fault(kind="reset", every=20), marks=pytest.mark.slow),
        pytest.param(Fault(kind="slow", pattern=r"\.wav"), marks=pytest.mark.slow),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.mode}",
)
def test_storage_that_fails_now_and_then_changes_nothing(
    made: Path, tmp_path: Path, fault: Fault
) -> None:
    source = faulty_storage.begin(made / "in")
    storage.take_uncounted()
    FaultyFileSystem.faults.append(fault)
    assert _run(source, "faulty://out") == 0
    assert fault.done >= 1
    failures = 0 if fault.kind == "slow" else fault.done
    record = _checked(faulty_storage.copy("faulty://out", tmp_path), made, {})
    counted = [n for name, n in record["counters"].items() if name.startswith("Storage/transient_")]
    # What fails after the record was begun to be written is not in it.
    assert failures - 1 <= sum(counted) <= failures


def test_each_row_that_storage_keeps_failing_is_a_dead_letter_that_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = faulty_storage.begin(made / "in")
    for number, (kind, status) in enumerate(
        [("status", 403), ("status", 404), ("status", 429), ("status", 503), ("short", 0)]
    ):
        FaultyFileSystem.faults.append(
            Fault(pattern=rf"/in/m{number}\.wav", kind=kind, status=status)
        )
    FaultyFileSystem.faults.append(Fault(pattern=r"/stems/.*clip/5", kind="full", mode="w"))
    cut = FaultyFileSystem.store["/in/m6.wav"].getvalue()[:20_000]
    FaultyFileSystem().pipe_file("/in/m6.wav", cut)
    assert _run(source, "faulty://out") == flags.EXIT_FAILURE_RATE
    reads = dict(FaultyFileSystem.reads)
    output = faulty_storage.copy("faulty://out", tmp_path)
    _checked(
        output,
        made,
        {
            "clip/0": "permission",
            "clip/1": "missing",
            **{f"clip/{number}": "io_error" for number in (2, 3, 4)},
            "clip/5": "disk_full",
            "clip/6": "truncated",
        },
    )
    letters = {row["id"]: row for row in tone_runs.table(output, "dead_letters")}
    for number in (0, 1, 2, 3, 4, 6):
        assert f"/in/m{number}.wav: " in letters[f"clip/{number}"]["message"]
    assert "no space left" in letters["clip/5"]["message"]
    assert (reads["/in/m0.wav"], reads["/in/m1.wav"], reads["/in/m7.wav"]) == (1, 1, 1)
    assert reads["/in/m2.wav"] == reads["/in/m3.wav"] == reads["/in/m4.wav"] == 5
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err


def test_storage_that_ends_in_the_middle_ends_the_run_and_resuming_completes_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = faulty_storage.begin(made / "in")
    FaultyFileSystem.faults.append(Fault(pattern="/out/metrics/", kind="status", mode="w"))
    assert _run(source, "faulty://out") == flags.EXIT_JOB_FAILED
    assert "the store answered 503" in capsys.readouterr().err
    FaultyFileSystem.faults.clear()
    assert _run(source, "faulty://out", "--resume") == 0
    record = _checked(faulty_storage.copy("faulty://out", tmp_path), made, {})
    assert record["row_counts"]["finished_before"] == NUM_ROWS


@pytest.mark.parametrize("form", ["flac", pytest.param("wav", marks=pytest.mark.slow)])
def test_a_stem_that_does_not_fit_onto_the_disk_leaves_nothing_behind(
    made: Path, tmp_path: Path, form: str
) -> None:
    with no_file_above(26_000):
        code = _run(made / "in", tmp_path / "out", "--stem_format", form)
    assert code == flags.EXIT_FAILURE_RATE
    letters = tone_runs.table(tmp_path / "out", "dead_letters")
    metrics = tone_runs.table(tmp_path / "out", "metrics")
    assert {(row["stage"], row["error_type"]) for row in letters} == {("write", "disk_full")}
    assert all(f".{form}: " in row["message"] for row in letters)
    assert len(letters) >= NUM_ROWS - 1  # one is little more than a pure tone, and small as FLAC
    assert len(letters) + len(metrics) == NUM_ROWS
    left = {path.name for path in (tmp_path / "out" / "stems").rglob("*") if path.is_file()}
    assert left == {Path(row["stem_uri"]).name for row in metrics}
    assert list((tmp_path / "out").rglob("*.tmp")) == []
    assert _run(made / "in", tmp_path / "out", "--stem_format", form, "--resume") == 0
    if form == "flac":
        _checked(tmp_path / "out", made, {})


def test_metrics_that_do_not_fit_onto_the_disk_end_the_run_and_resuming_completes_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if data[:4] == b"PAR1":
            write(self, data[: len(data) // 2])
            raise OSError(28, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert _run(made / "in", tmp_path / "out") == flags.EXIT_JOB_FAILED
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert list((tmp_path / "out").rglob("*.parquet")) == []
    monkeypatch.undo()
    assert _run(made / "in", tmp_path / "out", "--resume") == 0
    _checked(tmp_path / "out", made, {})


def test_memory_that_is_too_small_halves_batches_and_then_costs_one_row(
    made: Path, tmp_path: Path, loaded: tone_runs.Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tones.ToneSeparator.encode
    poison = torch.from_numpy(soundfile.read(made / "in" / "m7.wav", dtype="float32")[0][:1_000])
    sizes = []

    def small(self: tones.ToneSeparator, mixture: torch.Tensor) -> tones.ToneEncoded:
        sizes.append(len(mixture))
        if len(mixture) > 2 or any(torch.equal(row[:1_000], poison) for row in mixture):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, mixture)

    monkeypatch.setattr(tones.ToneSeparator, "encode", small)
    assert _run(made / "in", tmp_path / "out") == flags.EXIT_FAILURE_RATE
    assert max(sizes) > 2
    _checked(tmp_path / "out", made, {"clip/7": "out_of_memory"})


@pytest.mark.parametrize("error", [SystemError, MemoryError])
def test_a_clip_on_which_the_decoder_fails_costs_one_row(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    shutil.copytree(made / "in", tmp_path / "in")
    poisoned = tones.tone("wind", 3.0, 5.0)
    soundfile.write(tmp_path / "in" / "m3.wav", poisoned, tones.RATE_HZ + 1, "FLOAT")
    read_into = decoding.read_into

    def crash(block: np.ndarray, file: soundfile.SoundFile) -> int:
        if file.samplerate == tones.RATE_HZ + 1:
            raise error("the decoder has lost its mind")
        return read_into(block, file)

    monkeypatch.setattr(decoding, "read_into", crash)
    assert _run(tmp_path / "in", tmp_path / "out") == flags.EXIT_FAILURE_RATE
    _checked(tmp_path / "out", made, {"clip/3": "not_audio"})
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    assert "m3.wav: cannot be decoded: the decoder has lost its mind" in letter["message"]
