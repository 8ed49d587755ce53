"""Windows that the device makes, against the same windows made sample by sample."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from model.training.drawing import WindowDrawer, as_tensors
from model.training.settings import PLAIN_WINDOWS, WindowSettings
from model.training.sound import (
    BLOCK,
    ClipStore,
    Renderer,
    at_rms,
    band_frequencies,
    decode_all,
)

RATE, SAMPLES = 8_000, 5_000
CPU = torch.device("cpu")
UNCOLOURED = WindowSettings(
    cut_share=0.0, equaliser_share=0.0, low_pass_share=0.0, reverberant_share=0.0
)


def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(rng.normal(size=n) * 3000).astype(np.int16) for n in (700, 4_999, 5_000, 12_345)]


def drawn_windows(settings: WindowSettings, count: int = 40) -> dict[str, np.ndarray]:
    lengths = np.array([len(clip) for clip in clips()])
    drawer = WindowDrawer(lengths, SAMPLES, settings)
    return drawer.draw(np.arange(count) % 4, np.random.default_rng(1))


def sample_by_sample(clip: np.ndarray, speed: float, first_block: int, period: int) -> np.ndarray:
    """Gives sample t of a window as the clip at ((t + first) modulo period) · speed."""
    time = np.arange(-(-SAMPLES // BLOCK) * BLOCK) + first_block * BLOCK
    place = np.remainder(time, period * BLOCK) * speed
    padded = np.concatenate([clip.astype(np.float64) / 32_767, np.zeros(2)])
    values = np.interp(place, np.arange(len(padded)), padded, right=0.0)
    return values[:SAMPLES]


@pytest.mark.parametrize("settings", [PLAIN_WINDOWS, UNCOLOURED])
def test_a_window_is_the_clip_at_its_speed_and_place(settings: WindowSettings) -> None:
    sources, drawn = clips(), drawn_windows(settings)
    made = Renderer(ClipStore(sources), SAMPLES, RATE)(as_tensors(drawn, CPU)).numpy()
    for row, clip in enumerate(drawn["clip"]):
        speed = float(np.float32(drawn["speed"][row]))  # as the device has it
        place = speed, drawn["first_block"][row], drawn["period"][row]
        expected = sample_by_sample(sources[clip], *place)
        level = np.sqrt(np.mean(expected**2))
        expected *= drawn["rms"][row] / max(level, 1e-4)
        np.testing.assert_allclose(made[row], expected, atol=2e-4)


def test_every_window_has_its_level() -> None:
    drawn = drawn_windows(WindowSettings())
    made = Renderer(ClipStore(clips()), SAMPLES, RATE)(as_tensors(drawn, CPU)).numpy()
    np.testing.assert_allclose(np.sqrt(np.mean(made**2, axis=1)), drawn["rms"], rtol=1e-3)


def test_silence_stays_silent() -> None:
    assert not at_rms(torch.zeros(1, 10), torch.ones(1)).any()


def test_colours_are_gains_of_their_frequencies() -> None:
    plain = drawn_windows(dataclasses.replace(PLAIN_WINDOWS, repeated_share=0.0))
    drawn = {**plain, "colour_db": np.zeros_like(plain["colour_db"])}
    band = 14
    louder = {**drawn, "colour_db": drawn["colour_db"].copy()}
    louder["colour_db"][:, band] = 12.0
    renderer = Renderer(ClipStore(clips()), SAMPLES, RATE)
    before, after = (renderer(as_tensors(each, CPU))[3] for each in (drawn, louder))
    spectra = [torch.fft.rfft(each).abs().double() for each in (before, after)]
    bins = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    frequency = band_frequencies()[band]
    near = np.abs(bins / frequency - 1) < 0.02
    far = (bins < frequency / 2) | (bins > frequency * 2)
    ratios = [20 * torch.log10(spectra[1][at].norm() / spectra[0][at].norm()) for at in (near, far)]
    assert ratios[0] - ratios[1] == pytest.approx(12.0, abs=1.0)


def test_reverberation_goes_on_after_the_sound() -> None:
    click = np.zeros(400, dtype=np.int16)
    click[:40] = 8_000
    settings = dataclasses.replace(PLAIN_WINDOWS, repeated_share=0.0)
    drawer = WindowDrawer(np.array([400]), SAMPLES, settings)
    dry = drawer.draw(np.zeros(1, dtype=np.int64), np.random.default_rng(0))
    dry["first_block"] = np.zeros(1, dtype=np.int64)
    wet = {**dry, "reverberant": np.array([0]), "decay_s": np.array([0.3]), "wet": np.array([0.8])}
    renderer = Renderer(ClipStore([click]), SAMPLES, RATE)
    torch.manual_seed(0)
    made = {name: renderer(as_tensors(each, CPU))[0] for name, each in (("dry", dry), ("wet", wet))}
    assert made["dry"][400:].abs().max() < 1e-4
    early, late = (
        made["wet"][at].square().mean() for at in (slice(400, 1_200), slice(3_000, 3_800))
    )
    assert early > 100 * late > 0  # 6.9 / 0.3 s · 0.325 s in amplitude: 65 dB


@pytest.mark.parametrize("name", ["broken.wav", "missing.wav", "empty.wav", "not_finite.wav"])
def test_a_clip_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 32_000)
    soundfile.write(tmp_path / "not_finite.wav", np.full(9, np.nan), 32_000, subtype="FLOAT")
    soundfile.write(tmp_path / "good.wav", np.zeros(9), 32_000)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: ") + "[A-Za-z]"):
        decode_all([tmp_path / "good.wav", tmp_path / name], 32_000)


def test_clips_that_int32_cannot_count_are_refused() -> None:
    hour = np.broadcast_to(np.int16(0), 3_600 * 32_000)
    with pytest.raises(ValueError, match="18 hours at 32 kHz"):
        ClipStore([hour] * 19)


def test_a_window_may_begin_anywhere_in_a_long_recording() -> None:
    drawer = WindowDrawer(np.array([7_200 * 32_000]), SAMPLES, PLAIN_WINDOWS)
    drawn = drawer.draw(np.zeros(100, dtype=np.int64), np.random.default_rng(0))
    last = drawn["first_block"] + -(-SAMPLES // BLOCK)
    assert drawn["first_block"].max() * BLOCK > 6_500 * 32_000
    assert (last < drawn["period"]).all()
