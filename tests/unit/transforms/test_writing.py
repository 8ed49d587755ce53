from __future__ import annotations

import dataclasses
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import soundfile
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

import tone_clips
import tones
from metric_rows import PROVENANCE
from transforms.audio.files import StemWriter, WriteError
from transforms.elements import Failure, MetricsRow, ScoredClip, Scores, SeparatedClip, Stem
from transforms.storage import Storage
from transforms.threaded import Overlap
from transforms.writing import WriteSettings, WriteStems, write_clip


def _settings(folder: Path, **changes: object) -> WriteSettings:
    settings = WriteSettings(
        uri=str(folder), storage=Storage(), model_rate_hz=tones.RATE_HZ, code_version="1"
    )
    return dataclasses.replace(settings, **changes)


def _scored(name: str, labels: tuple[str, ...] = ("bell",), **row: object) -> ScoredClip:
    clip = tone_clips.clip(name, labels)
    stems = tuple(
        Stem(
            query=dataclasses.replace(query, row=dataclasses.replace(query.row, **row)),
            reference=None,
            audio=tones.tone(label, 1.0)[None],
            num_windows=3,
            inference_s=0.5,
        )
        for query, label in zip(clip.queries, labels, strict=True)
    )
    return ScoredClip(
        separated=SeparatedClip(clip=clip, stems=stems, provenance=PROVENANCE),
        scores=tuple(Scores(values={"sdr_db": 1.0}, reasons={"snr_db": "why"}) for _ in stems),
        scorer_sha256="s",
    )


def test_names_follow_from_ids_and_datasets(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    plain = settings.stem_uri(tone_clips.row("../../etc/x"))
    assert plain.startswith(f"{tmp_path}/stems/etc_x~")
    assert plain.endswith(".flac")
    named = settings.stem_uri(tone_clips.row("../../etc/x", dataset="../up"), ".residual")
    assert named.startswith(f"{tmp_path}/stems/dataset=%2E%2E%2Fup/etc_x~")
    assert named.endswith(".residual.flac")
    assert settings.stem_uri(tone_clips.row("a/b")) == f"{tmp_path}/stems/a/b.flac"


def test_a_stem_and_its_row_say_the_same(tmp_path: Path) -> None:
    (row,) = write_clip(_scored("a", extra={"colour": "red"}), _settings(tmp_path))
    assert isinstance(row, MetricsRow)
    assert row.values["stem_uri"].startswith(str(tmp_path))
    info = soundfile.info(row.values["stem_uri"])
    assert (info.samplerate, info.channels, info.frames) == (8_000, 1, 8_000)
    expected = {"duration_s": 1.0, "n_channels": 1, "n_windows": 3, "inference_s": 0.5}
    expected |= {"sdr_db": 1.0, "snr_db": None, "undefined_reason": "snr_db=why"}
    expected |= {
        "stem_format": "flac",
        "stem_note": None,
        "model": "tones",
        "scorer_sha256": "s",
        "code_version": "1",
    }
    assert {name: row.values[name] for name in expected} == expected
    assert row.values["peak"] == pytest.approx(0.3, abs=0.01)
    assert row.extra == {"colour": "red"}


def test_a_retry_writes_the_same_bytes_to_the_same_places(tmp_path: Path) -> None:
    settings = _settings(tmp_path, residual=True)
    contents = []
    for _ in range(2):
        write_clip(_scored("a", ("bell", "rain")), settings)
        contents.append({path: path.read_bytes() for path in tmp_path.rglob("*.flac")})
    assert len(contents[0]) == 4
    assert contents[0] == contents[1]


def test_the_residual_of_a_mid_stem_is_mono(tmp_path: Path) -> None:
    scored = _scored("a")
    clip = scored.separated.clip
    stereo = dataclasses.replace(clip, audio=np.concatenate([clip.audio, 0 * clip.audio]))
    separated = dataclasses.replace(scored.separated, clip=stereo)
    settings = _settings(tmp_path, residual=True, stem_format="wav")
    (row,) = write_clip(dataclasses.replace(scored, separated=separated), settings)
    residual, _ = soundfile.read(row.values["residual_uri"])
    np.testing.assert_allclose(residual, clip.audio[0] / 2 - tones.tone("bell", 1.0), atol=1e-6)


def test_a_stem_that_cannot_be_written_fails_alone_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StemWriter.write

    def full(self: StemWriter, block: np.ndarray) -> None:
        if "rain" in current[-1]:
            raise WriteError("cannot be written: No space left on device.")
        write(self, block)

    current: list[str] = []
    publish = Storage.temporary

    def temporary(self: Storage, uri: str, within: str | None = None):
        current.append(uri)
        return publish(self, uri, within)

    monkeypatch.setattr(StemWriter, "write", full)
    monkeypatch.setattr(Storage, "temporary", temporary)
    results = write_clip(_scored("a", ("bell", "rain", "frog")), _settings(tmp_path))
    assert [isinstance(result, Failure) for result in results] == [False, True, False]
    failure = results[1]
    assert isinstance(failure, Failure)
    assert (failure.stage, failure.error_type) == ("write", "io_error")
    assert "No space left" in failure.message
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_every_clip_comes_out_whatever_is_still_being_written(tmp_path: Path) -> None:
    clips = [_scored(f"{i}", ("bell", "rain")) for i in range(7)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows, failed = (
            pipeline
            | beam.Create(clips, reshuffle=False)
            | WriteStems(_settings(tmp_path), Overlap(num_threads=2, max_pending=3))
        )
        ids = [f"{i}-{label}" for i in range(7) for label in ("bell", "rain")]
        assert_that(rows | beam.Map(lambda row: row.id), equal_to(ids), "rows")
        assert_that(failed, equal_to([]), "failed")
    assert len(list(tmp_path.rglob("*.flac"))) == 14
