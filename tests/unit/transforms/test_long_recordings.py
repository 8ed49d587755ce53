from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import tone_clips
import tone_runs
import tones
from model import signal as waveforms
from model.clap import MAX_WINDOWS
from model.inference import NetworkSettings
from transforms import long_recordings
from transforms.audio import AudioPart
from transforms.audio.files import open_audio
from transforms.audio.mixtures import ReadSettings
from transforms.elements import Failure, LongRecording, MetricsRow, RowQuery
from transforms.long_recordings import (
    LongJob,
    LongRecordings,
    spread_windows,
    window_starts_s,
)
from transforms.model_cache import ModelChoice, ScorerChoice
from transforms.scoring import Scoring, ScoringSettings
from transforms.separation import Separation, SeparationSettings
from transforms.storage import Storage
from transforms.tables import row_counts
from transforms.threaded import Overlap
from transforms.writing import WriteSettings

pytestmark = pytest.mark.usefixtures("loaded")


def _job(folder: Path, *, mix_down: bool = False, residual: bool = False) -> LongJob:
    choice = ModelChoice(name="tones")
    return LongJob(
        separation=Separation(
            SeparationSettings(model=choice, network=NetworkSettings(batch_size=5))
        ),
        scoring=Scoring(
            ScoringSettings(scorer=ScorerChoice(model=choice), model_rate_hz=tones.RATE_HZ)
        ),
        reading=ReadSettings(model_rate_hz=tones.RATE_HZ, mix_down=mix_down),
        writing=WriteSettings(
            uri=str(folder / "out"),
            storage=Storage(staging=str(folder / "staging")),
            stem_format="wav",
            residual=residual,
            model_rate_hz=tones.RATE_HZ,
            code_version="1",
        ),
    )


def separate_all(asked: Sequence[Sequence[RowQuery]], job: LongJob) -> list[MetricsRow | Failure]:
    """Several recordings at once; the results in the order of what was asked."""
    recordings = LongRecordings(lambda: job, Overlap())
    found = [
        results
        for queries in asked
        for results in recordings.push(LongRecording(queries=tuple(queries)))
    ]
    found += recordings.drain()
    recordings.close()
    by_id = {_id(result): result for results in found for result in results}
    return [by_id[query.row.id] for queries in asked for query in queries]


def _id(result: MetricsRow | Failure) -> str:
    if isinstance(result, MetricsRow):
        return result.id
    assert result.row is not None
    return result.row.id


def separate_long(queries: Sequence[RowQuery], job: LongJob) -> list[MetricsRow | Failure]:
    return separate_all([queries], job)


def _recording(path: Path, seconds: float = 30.0, rate_hz: int = 16_000) -> np.ndarray:
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    left = 0.3 * np.sin(2 * np.pi * tones.frequency_hz("bell") * time_s)
    right = 0.3 * np.sin(2 * np.pi * tones.frequency_hz("rain") * time_s)
    stereo = np.stack([left, right], axis=1).astype(np.float32)
    soundfile.write(path, stereo, rate_hz, "FLOAT")
    return stereo


def _query(path: Path, label: str, **fields: object) -> RowQuery:
    return tone_clips.query(label, label, mixture_uri=str(path), **fields)


def _left_over(folder: Path) -> list[Path]:
    return list((folder / "staging").glob("*"))


def test_each_query_gets_its_stem_from_one_pass(tmp_path: Path, loaded: tone_runs.Loaded) -> None:
    stereo = _recording(tmp_path / "m.wav")
    queries = [_query(tmp_path / "m.wav", label) for label in ("bell", "rain")]
    results = separate_long(queries, _job(tmp_path, residual=True))
    middle = slice(2_000, -2_000)
    for row, channel in zip(results, (0, 1), strict=True):
        assert isinstance(row, MetricsRow)
        stem, rate_hz = soundfile.read(row.values["stem_uri"])
        assert (rate_hz, stem.shape) == (16_000, stereo.shape)
        np.testing.assert_allclose(stem[middle, channel], stereo[middle, channel], atol=3e-3)
        assert np.abs(stem[middle, 1 - channel]).max() < 3e-3
        residual, _ = soundfile.read(row.values["residual_uri"])
        np.testing.assert_allclose(stem + residual, stereo, atol=1e-6)
        assert row.values["clap_score"] == pytest.approx(1.0)
        # One of two tones of equal power.
        assert row.values["stem_to_mixture_db"] == pytest.approx(-3.0, abs=0.1)
    num_windows = results[0].values["n_windows"]
    assert loaded.model.separator.heard == num_windows == 2 * 80
    assert _left_over(tmp_path) == []


def test_presence_in_a_long_recording_is_that_of_its_likeliest_window(
    tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=tones.SuspiciousSeparator())
    _recording(tmp_path / "m.wav")
    queries = [_query(tmp_path / "m.wav", label) for label in ("bell", "frog")]
    there, absent = separate_long(queries, _job(tmp_path))
    assert isinstance(there, MetricsRow)
    assert isinstance(absent, MetricsRow)
    power = 0.3**2 / 2
    assert there.values["presence"] == pytest.approx(power / (power + 1e-3), abs=1e-3)
    assert absent.values["presence"] == pytest.approx(0.0, abs=1e-3)


def test_a_reference_that_breaks_fails_its_own_row_only(tmp_path: Path) -> None:
    stereo = _recording(tmp_path / "m.wav")
    soundfile.write(tmp_path / "r.flac", stereo[:, 0], 16_000)
    whole = (tmp_path / "r.flac").read_bytes()
    (tmp_path / "broken.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(tmp_path / "short.wav", stereo[:-16_000, 0], 16_000)
    queries = [
        _query(tmp_path / "m.wav", "bell", reference_uri=str(tmp_path / "broken.flac")),
        _query(tmp_path / "m.wav", "frog", reference_uri=str(tmp_path / "short.wav")),
        _query(tmp_path / "m.wav", "rain", reference_uri=str(tmp_path / "r.flac")),
    ]
    broken, short, good = separate_long(queries, _job(tmp_path, mix_down=True))
    assert isinstance(broken, Failure)
    assert (broken.stage, broken.error_type) == ("read", "not_audio")
    assert isinstance(short, Failure)
    assert short.error_type == "reference_length"
    assert isinstance(good, MetricsRow)
    assert good.values["n_channels"] == 1
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 1
    assert _left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda x: 0 * x, "silent"),
        (lambda x: np.where(np.arange(len(x))[:, None] == 300_000, np.nan, x), "not_finite"),
    ],
)
def test_what_is_found_late_still_fails_every_row(tmp_path: Path, spoil, error: str) -> None:
    stereo = _recording(tmp_path / "m.wav")
    soundfile.write(tmp_path / "m.wav", spoil(stereo), 16_000, "FLOAT")
    queries = [_query(tmp_path / "m.wav", label) for label in ("bell", "rain")]
    results = separate_long(queries, _job(tmp_path))
    assert [(r.row.id, r.stage, r.error_type) for r in results] == [
        ("bell", "read", error),
        ("rain", "read", error),
    ]
    assert not (tmp_path / "out").exists()
    assert _left_over(tmp_path) == []


def test_a_network_that_fails_midway_fails_every_row(
    tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    class Tired(tones.ToneSeparator):
        def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
            if self.heard > 40 and mixture.any():
                raise RuntimeError("enough")
            return super().encode(mixture)

    loaded.model = dataclasses.replace(loaded.model, separator=Tired())
    _recording(tmp_path / "m.wav")
    queries = [_query(tmp_path / "m.wav", label) for label in ("bell", "rain")]
    for result in separate_long(queries, _job(tmp_path)):
        assert isinstance(result, Failure)
        assert (result.stage, result.message) == ("separate", "RuntimeError: enough")
    assert _left_over(tmp_path) == []


def test_an_oracle_needs_the_whole_reference(tmp_path: Path, loaded: tone_runs.Loaded) -> None:
    oracle = tones.ToneSeparator()
    oracle.capabilities = dataclasses.replace(oracle.capabilities, needs_reference=True)
    loaded.model = dataclasses.replace(loaded.model, separator=oracle)
    _recording(tmp_path / "m.wav")
    (failure,) = separate_long([_query(tmp_path / "m.wav", "bell")], _job(tmp_path))
    assert isinstance(failure, Failure)
    assert failure.stage == "separate"


@pytest.mark.parametrize("duration_s", [3.0, 10.0, 25.0, 500.0])
def test_windows_for_the_scorer_cover_a_recording_as_they_cover_a_clip(duration_s: float) -> None:
    part = AudioPart(
        sample_rate_hz=100, num_channels=1, start=700, num_samples=round(100 * duration_s)
    )
    starts = window_starts_s(part, 10.0)
    assert len(starts) == min(max(1, int(np.ceil(duration_s / 10.0))), MAX_WINDOWS)
    assert starts[0] == 7.0
    if duration_s > 10.0:
        assert starts[-1] + 10.0 == pytest.approx(7.0 + duration_s)


@pytest.mark.parametrize("name", ["m.wav", "m.mp3"])
@pytest.mark.parametrize("file_hz", [16_000, 44_100])
def test_windows_for_the_scorer_are_cut_from_what_was_resampled(
    tmp_path: Path, name: str, file_hz: int
) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(file_hz * 7)
    soundfile.write(tmp_path / name, noise, file_hz)
    storage, uri = Storage(), str(tmp_path / name)
    with open_audio(storage, uri) as file:
        part = dataclasses.replace(file.part, num_samples=file_hz * 7)
        whole = waveforms.resample(file.read()[0, : part.num_samples], file_hz, 32_000)
    windows = spread_windows(storage, uri, part, 2.5, 32_000)  # from 0, 2.25 and 4.5 s on
    assert [len(window) for window in windows] == [80_000] * 3
    for start, window in zip((0, 72_000, 144_000), windows, strict=True):
        np.testing.assert_allclose(window, whole[start:][:80_000], atol=1e-6)


class Levelled(tones.ToneSeparator):
    """Hears at a level, and answers loud sounds otherwise than quiet ones."""

    input_level_dbfs = -24.0

    def __init__(self) -> None:
        super().__init__()
        self.levels_dbfs: list[float] = []

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        self.levels_dbfs += (10 * mixture.square().mean(dim=1).log10()).tolist()
        return super().encode(torch.tanh(10 * mixture) / 10)


def _storm(path: Path, rate_hz: int = tones.RATE_HZ) -> np.ndarray:
    """Half a minute of a loud sound, and two minutes that are 45 dB quieter, without a pause."""
    recording = _recording(path, 150.0, rate_hz)
    recording[30 * rate_hz :] *= 10 ** (-45 / 20)
    soundfile.write(path, recording, rate_hz, "FLOAT")
    return recording


def test_a_quiet_sound_after_a_loud_one_is_heard_and_no_gain_is_left_behind(
    tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    separator = Levelled()
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    stereo = _storm(tmp_path / "m.wav")
    queries = [_query(tmp_path / "m.wav", label) for label in ("bell", "rain")]
    first, _ = separate_long(queries, _job(tmp_path, residual=True))
    heard = separator.levels_dbfs[::2]
    assert heard[0] == pytest.approx(-24.0, abs=0.1)
    assert min(heard) > -24.0 - 45.0
    assert heard[-1] == pytest.approx(-24.0 - 5.0, abs=1.5)  # the floor is at 40 of the 45 dB
    stem, _ = soundfile.read(first.values["stem_uri"])
    residual, _ = soundfile.read(first.values["residual_uri"])
    np.testing.assert_allclose(stem + residual, stereo, atol=1e-7)
    ratio = np.abs(stem[-8_000:, 0]).max() / np.abs(stem[2_000:10_000, 0]).max()
    assert 20 * np.log10(ratio) == pytest.approx(-45.0, abs=6.0)
    tone_db = 20 * np.log10(np.abs(stem[-8_000:, 0]).max() / np.abs(stereo[-8_000:, 0]).max())
    assert tone_db == pytest.approx(0.0, abs=1.5)


@pytest.mark.parametrize("gain_db", [0.0, -40.0])
def test_a_streamed_recording_is_heard_as_in_memory(
    tmp_path: Path, loaded: tone_runs.Loaded, gain_db: float
) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=Levelled())
    stereo = (_storm(tmp_path / "m.wav") * 10 ** (gain_db / 20)).astype(np.float32)
    soundfile.write(tmp_path / "m.wav", stereo, tones.RATE_HZ, "FLOAT")
    job = _job(tmp_path)
    query = _query(tmp_path / "m.wav", "bell")
    (row,) = separate_long([query], job)
    streamed, _ = soundfile.read(row.values["stem_uri"], dtype="float32", always_2d=True)
    clip = dataclasses.replace(
        tone_clips.clip("m"),
        queries=(query,),
        references=(None,),
        audio=stereo.T,
        model_audio=np.ascontiguousarray(stereo.T),
    )
    (result,) = job.separation.separate([clip])
    assert row.values["input_gain_db"] == pytest.approx(result.stems[0].input_gain_db, abs=1e-6)
    peak = np.abs(stereo).max()
    np.testing.assert_allclose(streamed.T, result.stems[0].audio, atol=1e-6 * peak)


def test_a_pause_counts_for_the_scorer_as_in_memory(tmp_path: Path) -> None:
    mono = np.concatenate([tones.tone("rain", 4.0), np.zeros(8 * tones.RATE_HZ, np.float32)])
    soundfile.write(tmp_path / "m.wav", mono, tones.RATE_HZ, "FLOAT")
    job = _job(tmp_path)
    query = _query(tmp_path / "m.wav", "rain")
    (row,) = separate_long([query], job)
    clip = dataclasses.replace(
        tone_clips.clip("m"), queries=(query,), references=(None,), audio=mono[None],
        model_audio=mono[None],
    )  # fmt: skip
    (scored,) = job.scoring.score(job.separation.separate([clip]))
    for name in ("clap_score", "clap_score_mixture"):
        assert row.values[name] == pytest.approx(scored.scores[0].values[name], abs=1e-6)
    assert row.values["clap_score_mixture"] < 0.9  # silence does not sound like rain


def _recordings(folder: Path, seconds: Sequence[float]) -> list[list[RowQuery]]:
    """Recordings of their own, with two queries each, one of which has a reference."""
    asked = []
    for number, length_s in enumerate(seconds):
        path = folder / f"m{number}.wav"
        _recording(path, length_s)
        bell, rain = (
            tone_clips.query(f"{number} {label}", label, mixture_uri=str(path), **fields)
            for label, fields in (("bell", {"reference_uri": str(path)}), ("rain", {}))
        )
        asked.append([bell, rain])
    return asked


def _columns(result: MetricsRow | Failure) -> dict[str, object]:
    assert isinstance(result, MetricsRow)
    changing = {"inference_s"}
    return {name: value for name, value in result.values.items() if name not in changing}


def _stems(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").rglob("*.wav")}


@pytest.mark.parametrize("bytes_a_row", [long_recordings.BYTES_A_ROW, 100_000, 1])
def test_recordings_together_give_what_each_gives_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_a_row: int
) -> None:
    """Bit for bit, and however little may be under way."""
    asked = _recordings(tmp_path, [1.0, 30.0, 0.3, 4.7])
    job = _job(tmp_path, residual=True)
    alone = [separate_long(queries, job) for queries in asked]
    expected = _stems(tmp_path)
    assert len(expected) == 2 * 2 * len(asked)
    for path in (tmp_path / "out").rglob("*.wav"):
        path.unlink()
    monkeypatch.setattr(long_recordings, "BYTES_A_ROW", bytes_a_row)
    together = separate_all(asked, job)
    assert _stems(tmp_path) == expected
    assert [*map(_columns, together)] == [_columns(each) for some in alone for each in some]
    assert _left_over(tmp_path) == []


class Counting(tones.ToneSeparator):
    """Notes the batches that it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        self.batches.append(len(mixture))
        return super().encode(mixture)


def test_a_batch_is_filled_up_from_other_recordings(
    tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    separator = Counting()
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    # Windows of half a second, which overlap by a quarter: three in each of these.
    separate_all(_recordings(tmp_path, [1.2] * 4), _job(tmp_path, mix_down=True))
    assert separator.batches == [5, 5, 2]


def test_no_more_is_under_way_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where nobody takes what was decoded, and of all recordings together."""
    monkeypatch.setattr(long_recordings, "BYTES_A_ROW", 300_000)
    recordings = LongRecordings(lambda: _job(tmp_path), Overlap())
    held: list[int] = []
    add = long_recordings._Recording.add

    def noted(recording: object, passage: object) -> None:
        add(recording, passage)  # type: ignore[arg-type]
        held.append(recordings._held_bytes)

    monkeypatch.setattr(long_recordings._Recording, "add", noted)
    asked = _recordings(tmp_path, [30.0, 30.0, 30.0])
    for queries in asked:
        assert not list(recordings.push(LongRecording(queries=tuple(queries))))
    assert len(list(recordings.drain())) == len(asked)
    assert len(held) == 3 * 80
    assert max(held) <= 5 * 300_000


def test_progress_is_told_as_recordings_go_by_and_ends_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(row_counts, "under_way", lambda *counts: told.append(counts))
    separate_long(*_recordings(tmp_path, [30.0]), _job(tmp_path, mix_down=True))
    rows, audio_s = np.cumsum(told, axis=0).T
    assert len(told) == 80 // 5 + 1
    assert (np.diff(rows[:-1]) > 0).all()
    assert rows[-2] == pytest.approx(2.0)  # two queries
    assert audio_s[-2] == pytest.approx(60.0)
    assert (rows[-1], audio_s[-1]) == pytest.approx((0.0, 0.0))


class Picky(tones.ToneSeparator):
    """Fails at windows that are louder than the others."""

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        if mixture.abs().max() > 0.5:
            raise ValueError("too loud for me")
        return super().encode(mixture)


def test_a_recording_at_which_the_network_fails_fails_alone(
    tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=Picky())
    asked = _recordings(tmp_path, [3.0, 3.0, 3.0])
    loud, rate_hz = soundfile.read(tmp_path / "m1.wav")
    loud[-8_000:] *= 3
    soundfile.write(tmp_path / "m1.wav", loud, rate_hz, "FLOAT")
    results = separate_all(asked, _job(tmp_path))
    assert [isinstance(result, Failure) for result in results] == [False] * 2 + [True] * 2 + [
        False
    ] * 2
    assert {result.message for result in results[2:4]} == {"ValueError: too loud for me"}
    assert _left_over(tmp_path) == []


def test_a_bundle_that_fails_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is nobody's fault fails the bundle, which is tried again."""
    asked = _recordings(tmp_path, [30.0, 30.0])
    job = _job(tmp_path)
    recordings = LongRecordings(lambda: job, Overlap())
    with monkeypatch.context() as broken:
        broken.setattr(job.separation, "estimates", _broken)
        with pytest.raises(LookupError, match="a bug"):
            _all(recordings, asked)
    for thread in threading.enumerate():
        if thread.name == "long recording":
            thread.join(timeout=60)
            assert not thread.is_alive()
    assert _left_over(tmp_path) == []
    results = _all(recordings, asked)
    assert [type(each) for some in results for each in some] == [MetricsRow] * 4


def _broken(_: object) -> None:
    raise LookupError("a bug")


def _all(recordings: LongRecordings, asked: Sequence[Sequence[RowQuery]]) -> list[object]:
    found: list[object] = []
    for queries in asked:
        found += recordings.push(LongRecording(queries=tuple(queries)))
    return found + list(recordings.drain())


def test_a_bug_in_a_stem_is_raised_where_the_bundle_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(long_recordings.StemFiles, "take", broken)
    with pytest.raises(LookupError, match="a bug"):
        separate_all(_recordings(tmp_path, [30.0]), _job(tmp_path))


def test_a_stem_that_asks_after_its_bundle_has_failed_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold what all later recordings of the process need in turn."""
    reading, failed = threading.Event(), threading.Event()
    scores, spread = long_recordings.LongStem._scores, long_recordings.spread_windows

    def late(*given: Any) -> Any:
        reading.set()
        assert failed.wait(60)
        return spread(*given)

    def broken(stem: Any, path: str) -> Any:
        if stem._index == 0:
            return scores(stem, path)
        assert reading.wait(60)
        raise LookupError("a bug")

    asked = _recordings(tmp_path, [3.0])
    recordings = LongRecordings(lambda: _job(tmp_path), Overlap())
    with monkeypatch.context() as patched:
        patched.setattr(long_recordings, "spread_windows", late)
        patched.setattr(long_recordings.LongStem, "_scores", broken)
        with pytest.raises(LookupError, match="a bug"):
            _all(recordings, asked)
        failed.set()
        for thread in threading.enumerate():
            if thread.name == "long recording":
                thread.join(timeout=60)
                assert not thread.is_alive()
    assert [type(each) for some in _all(recordings, asked) for each in some] == [MetricsRow] * 2
