"""Where a stem is active: envelopes that come in pieces, and stretches on toy envelopes."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.signal import (
    ENVELOPE_S,
    ActivityOptions,
    Envelope,
    active_stretches,
    envelope_of,
)

RATE_HZ = 1_000
FRAME = 100
OPTIONS = ActivityOptions(
    level_db=-10.0,
    percentile=100.0,
    percentile_s=600.0,
    rise_db=-20.0,
    hysteresis_db=6.0,
    min_gap_s=0.5,
    min_length_s=0.3,
)


def noise(num_samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    samples: npt.NDArray[np.float32] = rng.normal(0.0, 0.1, num_samples).astype(np.float32)
    return samples


def at_levels(*stretches: tuple[float, float]) -> npt.NDArray[np.float32]:
    """A square wave of some seconds at each of some levels in dB; None of it below -200 dB."""
    parts = [
        np.full(round(seconds * RATE_HZ), 10.0 ** (level_db / 20.0) if level_db > -200.0 else 0.0)
        for seconds, level_db in stretches
    ]
    samples: npt.NDArray[np.float32] = np.concatenate(parts).astype(np.float32)
    return samples


def found(
    stem: npt.NDArray[np.float32],
    mixture: npt.NDArray[np.float32],
    options: ActivityOptions = OPTIONS,
) -> list[tuple[float, float]]:
    stretches = active_stretches(envelope_of(stem, RATE_HZ), envelope_of(mixture, RATE_HZ), options)
    return [(each.start_s, each.end_s) for each in stretches]


@given(st.lists(st.integers(0, 450), min_size=1, max_size=8), st.sampled_from([1_000, 1_234]))
def test_an_envelope_does_not_depend_on_how_a_recording_was_cut(
    lengths: list[int], rate_hz: int
) -> None:
    samples = noise(sum(lengths), seed=sum(lengths))
    envelope = Envelope(rate_hz)
    for end, length in zip(np.cumsum(lengths), lengths, strict=True):
        envelope.add(samples[end - length : end])
    whole = envelope_of(samples, rate_hz)
    assert envelope.powers().tobytes() == whole.powers().tobytes()
    assert envelope.duration_s == whole.duration_s
    assert envelope.duration_s == pytest.approx(len(samples) / rate_hz)


def test_a_value_of_an_envelope_is_the_mean_square_of_its_100_ms() -> None:
    samples = noise(250)
    powers = envelope_of(samples, RATE_HZ).powers()
    squares = samples.astype(np.float64) ** 2
    expected = [squares[:100].mean(), squares[100:200].mean(), squares[200:].mean()]
    np.testing.assert_allclose(powers, expected, rtol=1e-6)
    assert len(Envelope(RATE_HZ).powers()) == 0
    assert envelope_of(samples, 44_100).frame_s == ENVELOPE_S


def test_an_hour_is_kept_in_150_kilobytes() -> None:
    envelope = Envelope(100)
    envelope.add(np.zeros(360_000, np.float32))
    kept = envelope._energies._whole
    assert len(kept) * kept.itemsize <= 150_000


def test_a_stem_is_active_where_it_is_high_over_the_mixture() -> None:
    mixture = at_levels((10.0, -20.0))
    stem = at_levels((2.0, -60.0), (3.0, -25.0), (2.5, -60.0), (1.0, -28.0), (1.5, -60.0))
    assert found(stem, mixture) == [(2.0, 5.0), (7.5, 8.5)]
    assert found(stem, mixture, ActivityOptions(level_db=-6.0, min_gap_s=0.5)) == [(2.0, 5.0)]


def test_a_stem_is_not_active_where_it_is_low_for_itself() -> None:
    mixture = at_levels((5.0, -20.0), (5.0, -70.0))
    stem = at_levels((5.0, -22.0), (5.0, -72.0))  # as much of the mixture, but of next to nothing
    assert found(stem, mixture) == [(0.0, 5.0)]
    again = ActivityOptions(level_db=-10.0, rise_db=-60.0)
    assert found(stem, mixture, again) == [(0.0, 10.0)]
    near = ActivityOptions(level_db=-10.0, percentile=100.0, percentile_s=4.0, rise_db=-20.0)
    assert found(stem, mixture, near) == [(0.0, 5.0), (7.0, 10.0)]


def test_a_sound_that_never_ends_is_one_stretch() -> None:
    stem = noise(60_000)
    assert found(stem, stem + 0.3 * noise(60_000, seed=1)) == [(0.0, 60.0)]


def test_a_stretch_goes_on_within_the_hysteresis_and_does_not_begin_there() -> None:
    mixture = at_levels((6.0, -20.0))
    stem = at_levels((1.0, -34.0), (1.0, -25.0), (1.0, -35.0), (1.0, -37.0), (2.0, -34.0))
    assert found(stem, mixture) == [(0.0, 3.0)]


def test_near_stretches_are_one_and_short_ones_none() -> None:
    mixture = at_levels((10.0, -20.0))
    low, high = -60.0, -22.0
    stem = at_levels(
        *((1.0, low), (0.2, high), (1.0, low), (0.3, high), (1.0, low)),
        *((0.2, high), (0.4, low), (0.2, high), (0.5, low), (0.3, high), (4.9, low)),
    )
    assert found(stem, mixture) == [(2.2, 2.5), (3.5, 4.3), (4.8, 5.1)]


def test_moments_that_are_high_last_long_enough_together() -> None:
    mixture = at_levels((4.0, -20.0))
    low, within, high = -60.0, -34.0, -22.0
    stem = at_levels(
        *((0.5, low), (0.1, high), (0.8, within), (0.2, high), (1.0, low)),
        *((0.2, high), (1.0, within), (0.2, low)),
    )
    assert found(stem, mixture) == [(0.5, 1.6)]


def test_silence_is_never_active() -> None:
    nothing = at_levels((2.0, -300.0))
    assert found(nothing, nothing) == []
    assert found(nothing, at_levels((2.0, -20.0))) == []
    assert found(at_levels((2.0, -95.0)), at_levels((2.0, -95.0))) == []
    assert found(np.zeros(0, np.float32), np.zeros(0, np.float32)) == []


def test_a_stretch_says_how_loud_it_is() -> None:
    mixture = at_levels((4.0, -20.0))
    stem = at_levels((1.0, -80.0), (1.0, -26.0), (1.0, -23.0), (1.0, -80.0))
    (stretch,) = active_stretches(
        envelope_of(stem, RATE_HZ), envelope_of(mixture, RATE_HZ), OPTIONS
    )
    assert dataclasses.astuple(stretch) == pytest.approx(
        (1.0, 3.0, -23.0, 10 * np.log10((10**-0.6 + 10**-0.3) / 2)), abs=1e-4
    )


def test_the_last_stretch_ends_with_the_recording_and_one_over_silence_has_no_ratio() -> None:
    stem = at_levels((1.03, -20.0))
    (stretch,) = active_stretches(
        envelope_of(stem, RATE_HZ), envelope_of(np.zeros_like(stem), RATE_HZ), OPTIONS
    )
    assert stretch.end_s == pytest.approx(1.03)
    assert stretch.stem_to_mixture_db is None


def test_louder_or_quieter_recordings_have_the_same_stretches() -> None:
    mixture = noise(20_000) + at_levels((20.0, -30.0))
    stem = mixture * np.repeat(np.tile([0.02, 0.9], 5), 2_000).astype(np.float32)
    assert found(stem, mixture) == found(4.0 * stem, 4.0 * mixture) != []


def test_envelopes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="envelopes of 1 and 2 values"):
        active_stretches(
            envelope_of(noise(FRAME), RATE_HZ), envelope_of(noise(2 * FRAME), RATE_HZ), OPTIONS
        )


@pytest.mark.parametrize("name", ["level_db", "percentile", "percentile_s", "min_gap_s"])
def test_options_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=-1000.0: expected"):
        ActivityOptions(**{name: -1_000.0})


def test_a_constant_offset_of_the_recording_does_not_count() -> None:
    samples = at_levels((3.0, -60.0), (2.05, -80.0))
    samples[::2] *= -1.0  # so that it has none itself
    there = samples + np.float32(0.02)
    expected = envelope_of(samples, RATE_HZ)
    assert envelope_of(samples, RATE_HZ, centred=True).powers().tobytes() == (
        expected.powers().tobytes()
    )
    centred = envelope_of(there, RATE_HZ, centred=True)
    np.testing.assert_allclose(centred.powers(), expected.powers(), rtol=0.05)
    energy, without = (float(np.square(each, dtype=np.float64).sum()) for each in (there, samples))
    assert centred.centred_energy(energy) == pytest.approx(without, rel=0.01)
    assert expected.centred_energy(without) == without
    direct = envelope_of(np.full(RATE_HZ, 0.05, np.float32), RATE_HZ, centred=True)
    assert direct.centred_energy(RATE_HZ * float(np.float32(0.05)) ** 2) == 0.0
    assert len(Envelope(RATE_HZ, centred=True).powers()) == 0
