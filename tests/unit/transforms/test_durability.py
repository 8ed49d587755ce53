"""What is on disk, and in which order: a stem is checked, synced, named, and only then booked."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tone_clips
import tones
from full_disk import no_file_above
from manifests.files import ShortTransferError
from metric_rows import PROVENANCE
from model.checkpoints.fetch import RetryPolicy
from transforms.audio import AudioPart, files
from transforms.audio.files import StemFormat, StemWriter, WriteError, require_whole
from transforms.elements import MetricsRow, ScoredClip, Scores, SeparatedClip, Stem
from transforms.storage import Storage
from transforms.tables.metrics_rows import write_piece
from transforms.writing import WriteSettings, write_clip


def _scored(name: str) -> ScoredClip:
    clip = tone_clips.clip(name, ("bell", "rain"))
    stems = tuple(
        Stem(
            query=query,
            reference=None,
            audio=tones.tone("bell", 1.0)[None],
            num_windows=3,
            inference_s=0.5,
        )
        for query in clip.queries
    )
    return ScoredClip(
        separated=SeparatedClip(clip=clip, stems=stems, provenance=PROVENANCE),
        scores=tuple(Scores(values={}, reasons={}) for _ in stems),
        scorer_sha256=None,
    )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the system is asked for, in order: (``sync`` or ``name``, path)."""
    found: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def watched_sync(handle: int) -> None:
        sync(handle)
        found.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))

    def watched_replace(source: str, target: str) -> None:
        replace(source, target)
        found.append(("name", target))
        at = [path for step, path in found if step == "sync"]
        assert source in at, f"{target} has its name before its content is on disk"

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc tells what is synced")
@pytest.mark.parametrize("staged", [False, True])
def test_a_row_is_booked_after_its_files_are_on_disk(
    tmp_path: Path, steps: list[tuple[str, str]], staged: bool
) -> None:
    """After a loss of power 8 of 500 stems of a finished run had no length in their headers."""
    output, journal = tmp_path / "out", tmp_path / "out" / "_work" / "journal"
    write_settings = WriteSettings(
        uri=str(output),
        storage=Storage(staging=str(output / "_work" / "staging") if staged else None),
        model_rate_hz=tones.RATE_HZ,
        residual=True,
        code_version="1",
    )
    rows = [row for name in ("a", "b/c") for row in write_clip(_scored(name), write_settings)]
    assert all(isinstance(row, MetricsRow) for row in rows)
    write_piece(write_settings.storage, str(journal), rows)

    files = [row.values[name] for row in rows for name in ("stem_uri", "residual_uri")]
    (piece,) = journal.iterdir()
    booked = steps.index(("name", str(piece)))
    for file in files:
        named = steps.index(("name", file))
        lasting = steps.index(("sync", os.path.dirname(file)), named)
        assert named < lasting < booked
    folders = [path for path in (output / "stems").rglob("*") if path.is_dir()]
    for folder in [output, output / "stems", *folders]:  # a new folder needs its own name
        assert steps.index(("sync", str(folder.parent))) < booked
    assert ("sync", str(journal)) in steps[booked:]
    after_naming = [step for step in steps if step[0] == "sync" and step[1].endswith("stems")]
    assert len(after_naming) < len(files)  # a folder is synced for many files at once


CUTS = sorted({*(n / 20 for n in range(20)), *(-n for n in range(1, 301))})


def _written(path: Path, samples: np.ndarray, rate_hz: int, form: StemFormat) -> AudioPart:
    part = AudioPart(
        sample_rate_hz=rate_hz, num_channels=len(samples), start=0, num_samples=samples.shape[1]
    )
    with contextlib.closing(StemWriter(str(path), part, form)) as writer:
        writer.write(samples)
        writer.complete()
    return part


SIGNALS = {
    "noise": lambda rng, shape: rng.uniform(-1, 1, shape),
    "silence": lambda _, shape: np.zeros(shape),
    "constant": lambda _, shape: np.full(shape, 0.3),
    "tone": lambda _, shape: 0.5 * np.sin(0.05 * np.arange(shape[1])) * np.ones(shape),
}


@pytest.mark.parametrize("form", ["flac", "wav"])
@settings(max_examples=5)
@given(
    num_samples=st.sampled_from([1, 2, 4_095, 4_096, 4_097]) | st.integers(1, 20_000),
    num_channels=st.sampled_from([1, 2, 8]),
    rate_hz=st.sampled_from([1_000, 8_000, 44_100, 96_000, 655_350]),
    signal=st.sampled_from(sorted(SIGNALS)),
)
def test_a_cut_stem_is_never_taken_for_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory,
    form: StemFormat,
    num_samples: int,
    num_channels: int,
    rate_hz: int,
    signal: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"cut.{form}"
    rng = np.random.default_rng(0)
    samples = SIGNALS[signal](rng, (num_channels, num_samples)).astype(np.float32)
    part = _written(path, samples, rate_hz, form)
    whole = path.read_bytes()
    lengths = {round(cut * len(whole)) if cut >= 0 else len(whole) + cut for cut in CUTS}
    for length in sorted(length for length in lengths if 0 <= length < len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WriteError, match="is not whole"):
            require_whole(str(path), part)


@pytest.mark.parametrize(
    "other", [{"sample_rate_hz": 16_000}, {"num_channels": 1}, {"num_samples": 99}]
)
def test_a_stem_of_another_shape_is_not_whole(tmp_path: Path, other: dict[str, int]) -> None:
    part = _written(tmp_path / "a.flac", np.zeros((2, 100), np.float32), 8_000, "flac")
    values = {"sample_rate_hz": 8_000, "num_channels": 2, "num_samples": 100}
    with pytest.raises(WriteError, match=r"are \(8000, 2, 100\) of \("):
        require_whole(str(tmp_path / "a.flac"), AudioPart(start=0, **{**values, **other}))
    require_whole(str(tmp_path / "a.flac"), part)


@pytest.mark.parametrize("form", ["flac", "wav"])
def test_every_byte_that_the_disk_refuses_is_noticed(tmp_path: Path, form: StemFormat) -> None:
    """libsndfile says nothing of the last buffer of a FLAC."""
    samples = np.random.default_rng(0).uniform(-1, 1, (1, 5_000)).astype(np.float32)
    _written(tmp_path / "whole", samples, 8_000, form)
    size = (tmp_path / "whole").stat().st_size
    for missing in (*range(1, 40), *range(40, size, 997)):
        with (
            no_file_above(size - missing),
            pytest.raises(WriteError, match="cannot be written") as caught,
        ):
            _written(tmp_path / "cut", samples, 8_000, form)
        assert files.error_code(caught.value) == "disk_full"


def test_samples_that_were_never_given_are_missed(tmp_path: Path) -> None:
    part = AudioPart(sample_rate_hz=8_000, num_channels=1, start=0, num_samples=10)
    with contextlib.closing(
        StemWriter(str(tmp_path / "x"), part, "flac", "gs://b/x.flac")
    ) as writer:
        writer.write(np.zeros((1, 9), np.float32))
        with pytest.raises(WriteError, match=r"gs://b/x.flac: is not whole"):
            writer.complete()


@pytest.mark.parametrize("by", ["write_bytes", "publish"])
def test_a_store_that_kept_less_than_it_was_sent_is_asked_again_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    storage = Storage(retry=RetryPolicy(attempts=3, first_wait_s=0.0))
    files, _ = storage.resolve("memory://durability")
    pipe_file, put_file = files.pipe_file, files.put_file
    short: list[str] = []

    def cut(path: str, data: bytes) -> None:
        pipe_file(path, data[: -len(short.pop())] if short else data)

    def cut_file(local: str, path: str) -> None:
        put_file(local, path)
        if short:
            pipe_file(path, Path(local).read_bytes()[: -len(short.pop())])

    monkeypatch.setattr(files, "pipe_file", cut)
    monkeypatch.setattr(files, "put_file", cut_file)
    (tmp_path / "x").write_bytes(b"content")

    def send() -> None:
        if by == "write_bytes":
            storage.write_bytes("memory://durability/x", b"content")
        else:
            storage.publish("memory://durability/x", str(tmp_path / "x"))

    short[:] = ["-", "--"]
    send()
    assert storage.read_bytes("memory://durability/x") == b"content"
    short[:] = ["-"] * 3
    with pytest.raises(ShortTransferError, match="6 bytes arrived of 7"):
        send()


def test_a_disk_that_cannot_sync_fails_the_file_and_a_system_that_has_no_sync_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, uri = Storage(), str(tmp_path / "x")

    def refusing(code: int) -> None:
        def sync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", sync)

    for code in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        refusing(code)
        with pytest.raises(OSError, match=os.strerror(code)):
            storage.write_bytes(uri, b"x")
        assert list(tmp_path.iterdir()) == []
    refusing(errno.EINVAL)
    storage.write_bytes(uri, b"x")
    assert storage.read_bytes(uri) == b"x"
