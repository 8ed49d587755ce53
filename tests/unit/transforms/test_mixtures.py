from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tones
from manifests.row import ManifestRow
from model import signal
from model import signal as waveforms
from transforms.audio import AudioError
from transforms.audio.mixtures import (
    ReadSettings,
    mix_row,
    mix_sources,
    read_mixture,
    read_mono,
    read_reference,
)
from transforms.storage import Storage

STORAGE = Storage()
SETTINGS = ReadSettings(model_rate_hz=tones.RATE_HZ)


def _write(path: Path, samples: np.ndarray, rate_hz: int = tones.RATE_HZ) -> str:
    soundfile.write(path, samples, rate_hz, "FLOAT")
    return str(path)


def _row(**fields: object) -> ManifestRow:
    return ManifestRow(id="x", positive_text="bell", **fields)


def test_a_recording_is_kept_as_it_is_and_resampled_for_the_model(tmp_path: Path) -> None:
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2)).astype(np.float32)
    uri = _write(tmp_path / "a.wav", stereo, 44_100)
    found = read_mixture(_row(mixture_uri=uri, offset_s=0.25), STORAGE, SETTINGS)
    assert found is not None
    part = stereo[11_025:].T
    np.testing.assert_array_equal(found.audio.samples, part)
    np.testing.assert_array_equal(found.model_audio, waveforms.resample(part, 44_100, 8_000))
    mid = read_mixture(
        _row(mixture_uri=uri, offset_s=0.25),
        STORAGE,
        ReadSettings(model_rate_hz=8_000, mix_down=True),
    )
    assert mid is not None
    expected = waveforms.resample(part.mean(axis=0, keepdims=True), 44_100, 8_000)
    np.testing.assert_allclose(mid.model_audio, expected, atol=1e-6)


def test_channels_that_cancel_out_are_no_sound_where_their_mean_is_used(tmp_path: Path) -> None:
    bell = tones.tone("bell", 1.0)
    row = _row(mixture_uri=_write(tmp_path / "a.wav", np.stack([bell, -bell], axis=1)))
    assert read_mixture(row, STORAGE, SETTINGS) is not None
    with pytest.raises(AudioError, match="or the mean of the channels is") as caught:
        read_mixture(row, STORAGE, dataclasses.replace(SETTINGS, mix_down=True))
    assert caught.value.code == "silent"


def test_what_is_long_is_left_to_be_streamed(tmp_path: Path) -> None:
    uri = _write(tmp_path / "a.wav", tones.tone("bell", 1.0))
    limit = ReadSettings(model_rate_hz=8_000, max_in_memory_s=7_999 / 96_000)
    assert read_mixture(_row(mixture_uri=uri), STORAGE, limit) is None
    assert read_mixture(_row(mixture_uri=uri, duration_s=0.5), STORAGE, limit) is not None
    with pytest.raises(AudioError, match="max_clip_in_memory_s"):
        read_mono(uri, STORAGE, 8_000, limit.max_values)


def test_sources_are_mixed_by_the_papers_rule(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sources = [rng.normal(size=n).astype(np.float32) * 0.3 for n in (8_000, 3_000, 12_000)]
    uris = [_write(tmp_path / f"{i}.wav", source) for i, source in enumerate(sources)]
    row = _row(target_uri=uris[0], interferer_uris=tuple(uris[1:]), snr_db=(3.0, -2.0))
    found = read_mixture(row, STORAGE, SETTINGS)
    fitted = [waveforms.fit_length(source, 8_000) for source in sources]
    expected = signal.mix(fitted[0], fitted[1:], [3.0, -2.0])
    assert found is not None
    assert found.reference is not None
    np.testing.assert_allclose(found.model_audio[0], expected.mixture, atol=1e-6)
    np.testing.assert_allclose(found.reference, expected.target, atol=1e-6)
    assert found.audio.sample_rate_hz == 8_000


def test_what_is_absent_from_a_mixture_has_silence_for_a_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sources = [rng.normal(size=8_000).astype(np.float32) * 0.3 for _ in range(2)]
    uris = [_write(tmp_path / f"{i}.wav", source) for i, source in enumerate(sources)]
    present = _row(target_uri=uris[0], interferer_uris=tuple(uris[1:]))
    absent = dataclasses.replace(present, target_absent=True)
    mixed, other = (mix_row(row, STORAGE, SETTINGS) for row in (present, absent))
    np.testing.assert_array_equal(other.mixture, mixed.mixture)
    assert mixed.reference.any()
    assert not other.reference.any()


def test_the_part_of_a_row_is_of_every_source_and_pads_short_ones(tmp_path: Path) -> None:
    long, short = tones.tone("bell", 2.0), tones.tone("rain", 0.5)
    uris = [_write(tmp_path / "l.wav", long), _write(tmp_path / "s.wav", short)]
    row = _row(target_uri=uris[0], interferer_uris=(uris[1],), offset_s=0.25, duration_s=1.0)
    found = read_mixture(row, STORAGE, SETTINGS)
    expected = signal.mix(long[2_000:10_000], [waveforms.fit_length(short[2_000:], 8_000)], 0.0)
    assert found is not None
    np.testing.assert_allclose(found.model_audio[0], expected.mixture, atol=1e-6)


def test_further_targets_are_brought_to_the_power_of_the_first() -> None:
    sources = [0.2 * tones.tone("bell", 1.0), tones.tone("frog", 1.0), tones.tone("rain", 1.0)]
    mixed = mix_sources(sources, num_targets=2, levels_db=[6.0])
    power = np.mean(sources[0] ** 2)
    second = mixed.reference - sources[0]
    np.testing.assert_allclose(np.mean(second**2), power, rtol=1e-4)
    (rest,) = mixed.interferers
    np.testing.assert_allclose(np.mean(rest**2), power / 10**0.6, rtol=1e-4)
    np.testing.assert_allclose(mixed.mixture, mixed.reference + rest, atol=1e-6)


def test_sources_begin_where_the_row_says_and_levels_are_those_while_they_last(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(2)
    sources = [0.1 * rng.normal(size=n).astype(np.float32) for n in (4_000, 2_000, 9_000)]
    uris = [_write(tmp_path / f"{i}.wav", source) for i, source in enumerate(sources)]
    row = _row(
        target_uris=tuple(uris[:2]),
        interferer_uris=(uris[2],),
        snr_db=(6.0,),
        onsets_s=(0.25, 1.5, 1.0),
        duration_s=2.0,
    )
    mixed = mix_row(row, STORAGE, SETTINGS)
    assert mixed.extents == (range(2_000, 6_000), range(12_000, 14_000), range(8_000, 16_000))
    for signals, extents in ((mixed.reference, mixed.extents[:2]), (mixed.interferers[0], [])):
        sounding = {index for extent in extents for index in extent} or set(mixed.extents[2])
        assert set(np.flatnonzero(signals)) <= sounding
    first, second = (mixed.reference[extent.start : extent.stop] for extent in mixed.extents[:2])
    other = mixed.interferers[0][8_000:]
    np.testing.assert_allclose(first, sources[0], atol=1e-6)
    np.testing.assert_allclose(np.mean(second**2), np.mean(first**2), rtol=1e-4)
    np.testing.assert_allclose(np.mean(other**2), np.mean(first**2) / 10**0.6, rtol=1e-4)
    np.testing.assert_allclose(mixed.mixture, mixed.reference + mixed.interferers[0], atol=1e-6)


def test_a_reference_is_cut_or_padded_by_a_tenth_of_a_second_at_most(tmp_path: Path) -> None:
    uri = _write(tmp_path / "r.wav", tones.tone("bell", 1.0))
    row = _row(mixture_uri="m.wav", reference_uri=uri)
    for length in (7_300, 8_000, 8_700):
        found = read_reference(row, length, STORAGE, SETTINGS)
        assert found is not None
        assert found.shape == (length,)
    for length in (7_000, 9_000):
        with pytest.raises(AudioError, match="its mixture") as caught:
            read_reference(row, length, STORAGE, SETTINGS)
        assert caught.value.code == "reference_length"
    assert read_reference(_row(mixture_uri="m.wav"), 8_000, STORAGE, SETTINGS) is None


@pytest.mark.parametrize("silence_s", [1.0, 3.0])
def test_a_source_that_is_silent_where_it_is_used_cannot_be_mixed(
    tmp_path: Path, silence_s: float
) -> None:
    bell = tones.tone("bell", 1.0)
    late = np.concatenate([np.zeros(round(silence_s * tones.RATE_HZ), np.float32), bell])
    target = _write(tmp_path / "bell.wav", bell)
    interferer = _write(tmp_path / "late.wav", late)
    row = _row(target_uri=target, interferer_uris=(interferer,))
    with pytest.raises(AudioError, match=r"late\.wav: is silent in the 1 s that") as caught:
        read_mixture(row, STORAGE, SETTINGS)
    assert caught.value.code == "cannot_mix"


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ReadSettings(model_rate_hz=8_000, max_in_memory_s=0)
