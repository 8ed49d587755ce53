from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import catalogue
from model.checkpoints.loading import load_converted
from model.config import MINI
from model.signal import (
    AS_IT_IS,
    FLOOR_DB,
    QUIETEST_DBFS,
    InputGain,
    LevelMeter,
    at_level,
    input_gain,
)

RATE_HZ = 1_000
WINDOW = 5 * RATE_HZ
LEVEL_DBFS = -24.0


def noise(*levels_dbfs: float, seconds: float = 5.0, seed: int = 0) -> np.ndarray:
    """Stretches of noise at given levels, one after another, float32[1, T]."""
    rng = np.random.default_rng(seed)
    stretches = []
    for level in levels_dbfs:
        stretch = rng.standard_normal(round(seconds * RATE_HZ))
        stretches.append(stretch * 10 ** (level / 20) / np.sqrt(np.mean(stretch**2)))
    return np.concatenate(stretches)[None].astype(np.float32)


def gain_of(recording: np.ndarray) -> InputGain:
    return input_gain([recording], RATE_HZ, LEVEL_DBFS)


def along(recording: np.ndarray, hop: int = WINDOW) -> list[float]:
    gain = gain_of(recording)
    return [gain.at_db(start, WINDOW) for start in range(0, recording.shape[1] - WINDOW + 1, hop)]


def test_a_clip_is_brought_to_the_level() -> None:
    clip = noise(-50.0, seconds=3.0)
    gain = gain_of(clip)
    assert gain.at_db(0, clip.shape[1]) == pytest.approx(26.0, abs=1e-3)
    heard = clip * np.float32(gain.at(0, clip.shape[1]))
    assert 10 * np.log10(np.mean(heard**2)) == pytest.approx(LEVEL_DBFS, abs=1e-3)


def test_a_clip_has_one_gain_which_its_loudest_block_decides() -> None:
    assert along(noise(-70.0, -30.0, -60.0)) == pytest.approx([6.0] * 3, abs=1e-3)
    padded = np.concatenate([noise(-30.0), np.zeros((1, 2 * WINDOW), np.float32)], axis=1)
    assert along(padded) == pytest.approx([6.0] * 3, abs=1e-3)


def test_channels_share_a_gain() -> None:
    left = noise(-30.0)
    stereo = np.concatenate([left, 0 * left])
    assert gain_of(stereo).at_db(0, WINDOW) == pytest.approx(6.0 + 3.01, abs=1e-2)


@pytest.mark.parametrize("level_dbfs", [20.0, 0.0, -20.0, -40.0, -60.0])
@pytest.mark.parametrize("seconds", [5.0, 120.0])
def test_the_gain_makes_up_for_any_other(level_dbfs: float, seconds: float) -> None:
    recording = noise(*np.linspace(-20.0, -28.0, 6), seconds=seconds / 6)
    scaled = (recording * 10 ** (level_dbfs / 20)).astype(np.float32)
    assert along(scaled) == pytest.approx([g - level_dbfs for g in along(recording)], abs=1e-3)


def test_a_quiet_sound_away_from_a_loud_one_is_heard_at_its_level() -> None:
    thunder, dog = [-10.0] * 12, [-50.0] * 36
    gains = along(noise(*thunder, *dog))
    assert gains[0] == pytest.approx(-14.0, abs=1e-3)
    minute_later = gains[len(thunder) + 12]
    assert minute_later == pytest.approx(26.0, abs=40 * np.exp(-2))
    assert gains[-1] == pytest.approx(26.0, abs=0.2)


@given(st.lists(st.floats(-120.0, 0.0), min_size=7, max_size=40), st.integers(0, 100))
def test_the_gain_moves_with_a_time_constant_of_half_a_minute(
    levels: list[float], seed: int
) -> None:
    recording = noise(*levels, seed=seed)
    hop = WINDOW // 4
    gains = along(recording, hop)
    most = FLOOR_DB * (1 - np.exp(-WINDOW / RATE_HZ / 30.0)) / 4
    assert all(abs(b - a) <= most + 1e-6 for a, b in itertools.pairwise(gains))
    assert max(gains) - min(gains) <= FLOOR_DB + 1e-6
    assert max(gains) <= LEVEL_DBFS - QUIETEST_DBFS + 1e-6


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=12))
def test_the_gain_does_not_depend_on_how_a_recording_arrives(lengths: list[int]) -> None:
    recording = noise(*[-20.0, -60.0, -35.0] * 5)
    cuts = [cut for cut in np.cumsum(lengths) if cut < recording.shape[1]]
    pieces = np.split(recording, cuts, axis=1)
    found = input_gain(pieces, RATE_HZ, LEVEL_DBFS)
    np.testing.assert_array_equal(found.gains_db, gain_of(recording).gains_db)


def test_silence_and_noise_of_16_bits_are_not_blown_up() -> None:
    silence = np.zeros((2, 3 * WINDOW), np.float32)
    assert gain_of(silence) is AS_IT_IS
    assert gain_of(np.zeros((1, 0), np.float32)) is AS_IT_IS
    assert along(noise(-130.0)) == pytest.approx([LEVEL_DBFS - QUIETEST_DBFS])
    gains = along(np.concatenate([noise(*[-30.0] * 6), np.zeros((1, 60 * WINDOW), np.float32)], 1))
    assert np.isfinite(gains).all()
    assert gains[-1] == pytest.approx(6.0 + FLOOR_DB, abs=0.1)


@pytest.mark.parametrize("peak", [1e-38, 1e-20, 1e5, 1e30])
def test_no_level_overflows(peak: float) -> None:
    factor = gain_of(np.full((1, WINDOW), peak, np.float32)).at(0, WINDOW)
    assert np.isfinite(np.float32(factor))
    assert np.float32(factor) > 0


def test_a_system_without_a_level_hears_what_there_is() -> None:
    def unread() -> np.ndarray:
        raise AssertionError("read for nothing")
        yield

    assert input_gain(unread(), RATE_HZ, None) is AS_IT_IS
    assert AS_IT_IS.at(0, 5) == 1.0
    assert LevelMeter(RATE_HZ).gain(None) is AS_IT_IS


@pytest.mark.parametrize("seconds", [2.0, 40.0])
def test_an_example_clip_has_one_gain(seconds: float) -> None:
    clip = noise(-60.0, -50.0, seconds=seconds / 2)[0]
    heard = at_level(clip, RATE_HZ, LEVEL_DBFS)
    ratio = heard / clip
    assert ratio.min() == pytest.approx(ratio.max(), rel=1e-6)
    loudest = heard[-min(len(heard), WINDOW) :]
    assert 10 * np.log10(np.mean(loudest**2)) == pytest.approx(LEVEL_DBFS, abs=0.1)
    assert at_level(clip, RATE_HZ, None) is clip
    assert not at_level(0 * clip, RATE_HZ, LEVEL_DBFS).any()


def test_the_catalogue_and_the_bundled_file_say_the_same_level() -> None:
    by_name = {entry.name: entry for entry in catalogue.ENTRIES}
    entry = by_name.pop("clapsep-mini")
    bundled = load_converted(entry.file("converted").location())
    assert bundled.config == MINI
    assert entry.input_level_dbfs == MINI.signal.input_level_dbfs == LEVEL_DBFS
    assert {other.input_level_dbfs for other in by_name.values()} == {None}


@pytest.mark.parametrize("seconds", [5.0, 120.0])
@pytest.mark.parametrize("offset", [0.5, -0.003])
def test_a_constant_offset_is_not_heard(seconds: float, offset: float) -> None:
    recording = noise(*np.linspace(-60.0, -68.0, 6), seconds=seconds / 6)
    stereo = np.concatenate([recording, 0.5 * recording]).astype(np.float32)
    there = stereo + np.float32([[offset], [0.0]])
    one, other = gain_of(stereo), gain_of(there)
    assert one.offset is None
    assert other.offset is not None
    np.testing.assert_allclose(other.gains_db, one.gains_db, atol=0.01)
    heard, expected = other.heard(there[:, :WINDOW], 0), one.heard(stereo[:, :WINDOW], 0)
    np.testing.assert_allclose(heard, expected, atol=1e-2 * np.abs(expected).max())


def test_an_offset_that_changes_nothing_is_left() -> None:
    clip = noise(-50.0)
    low, high = clip - clip.mean() + 1e-4, clip - clip.mean() + 1e-3
    assert gain_of(low).offset is None
    assert gain_of(high).offset == pytest.approx([1e-3], rel=1e-3)


def test_an_offset_over_a_quiet_part_counts_beside_a_loud_one() -> None:
    recording = noise(*[-10.0] * 12, *[-50.0] * 36)
    there = gain_of(recording + np.float32(0.003))
    assert there.offset == pytest.approx([0.003], rel=0.1)
    assert there.at_db(47 * WINDOW, WINDOW) == pytest.approx(26.0, abs=0.5)


@given(st.lists(st.integers(1, 9_000), min_size=1, max_size=12))
def test_an_offset_does_not_depend_on_how_a_recording_arrives(lengths: list[int]) -> None:
    whole = noise(-60.0, seconds=sum(lengths) / RATE_HZ) + np.float32(0.1)
    ends = np.cumsum(lengths)
    pieces = [whole[:, e - n : e] for e, n in zip(ends, lengths, strict=True)]
    one, other = gain_of(whole), input_gain(pieces, RATE_HZ, LEVEL_DBFS)
    assert one.offset is not None
    assert other.offset is not None
    assert one.offset.tobytes() == other.offset.tobytes()
    assert one.gains_db.tobytes() == other.gains_db.tobytes()


def test_nothing_but_an_offset_is_silence() -> None:
    clip = np.full((1, WINDOW), 0.05, np.float32)
    gain = gain_of(clip)
    assert gain.at_db(0, WINDOW) == LEVEL_DBFS - QUIETEST_DBFS
    np.testing.assert_allclose(gain.heard(clip, 0), 0.0, atol=1e-4)
    example = at_level(clip[0], RATE_HZ, LEVEL_DBFS)
    np.testing.assert_allclose(example, 0.0, atol=1e-4)
