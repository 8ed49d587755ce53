"""What must hold for any weights: how a stem answers to changes of its mixture and its query.

Exact laws are asserted to rounding. The others compare two distances with one another and know no
threshold: the bundled weights may be trained again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from model import registry
from model.registry import LoadedModel
from model.signal import mix, resample
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition

AUDIO = Path(__file__).parents[3] / "manifests" / "examples" / "audio"
PAIRS = (
    ("dog_barking", "a dog barking", "river", "a stream of running water"),
    ("rooster_crowing", "a rooster crowing", "clock_ticking", "a clock ticking"),
)
ROUNDING = 1e-5
Signal = NDArray[np.float32]


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield registry.load("clapsep-mini")
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plan(loaded: LoadedModel) -> WindowPlan:
    return WindowPlan(window_samples=loaded.separator.window_samples)


def clip(name: str, loaded: LoadedModel, seconds: float) -> Signal:
    samples, rate_hz = soundfile.read(AUDIO / f"{name}.flac", dtype="float32", always_2d=True)
    mono = samples.mean(axis=1, dtype=np.float32)[None]
    count = round(seconds * loaded.separator.sample_rate_hz)
    found = np.resize(resample(mono, rate_hz, loaded.separator.sample_rate_hz)[0], count)
    return found.astype(np.float32)


def window_of(loaded: LoadedModel, pair: int = 0) -> tuple[Signal, Signal, Signal]:
    """One window of a mixture, and its two sources in it, float32[T] each."""
    seconds = loaded.separator.window_samples / loaded.separator.sample_rate_hz
    target, interferer = (clip(PAIRS[pair][index], loaded, seconds) for index in (0, 2))
    mixed = mix(target, [interferer], [0.0])
    return mixed.mixture, mixed.target, mixed.interferers[0]


def condition(loaded: LoadedModel, pair: int = 0, *, exchanged: bool = False) -> Condition:
    with torch.inference_mode():
        vectors = loaded.query_encoder.embed_text([PAIRS[pair][1], PAIRS[pair][3]])
    first, second = (vectors[1:], vectors[:1]) if exchanged else (vectors[:1], vectors[1:])
    return Condition(positive=first, negative=second)


def stem(loaded: LoadedModel, recording: Signal, asked: Condition) -> Signal:
    with torch.inference_mode():
        found = loaded.separator.separate(torch.from_numpy(recording)[None], asked)
    return np.asarray(found[0].numpy())


def distance(one: Signal, other: Signal) -> float:
    return float(np.sqrt(np.mean(np.square(one - other, dtype=np.float64))))


def test_an_inverted_mixture_gives_the_inverted_stem(loaded: LoadedModel) -> None:
    mixture, _, _ = window_of(loaded)
    asked = condition(loaded)
    one, other = stem(loaded, mixture, asked), stem(loaded, -mixture, asked)
    np.testing.assert_allclose(other, -one, atol=ROUNDING)


def test_the_level_of_the_mixture_matters_less_than_what_is_asked(loaded: LoadedModel) -> None:
    mixture, _, _ = window_of(loaded)
    asked = condition(loaded)
    one = stem(loaded, mixture, asked)
    what_queries_change = distance(one, stem(loaded, mixture, condition(loaded, exchanged=True)))
    for gain in (0.5, 2.0):
        scaled = stem(loaded, np.float32(gain) * mixture, asked) / np.float32(gain)
        assert distance(one, scaled) < what_queries_change


def test_swapped_channels_give_swapped_stems(loaded: LoadedModel) -> None:
    mixture, target, _ = window_of(loaded)
    both = np.stack([mixture, target])
    asked = condition(loaded).index(torch.tensor([0, 0]))
    with torch.inference_mode():
        one = loaded.separator.separate(torch.from_numpy(both), asked).numpy()
        other = loaded.separator.separate(torch.from_numpy(both[::-1].copy()), asked).numpy()
    np.testing.assert_allclose(other[::-1], one, atol=ROUNDING)


def test_exchanged_queries_give_roughly_the_other_source(loaded: LoadedModel) -> None:
    nearer = []
    for pair in range(len(PAIRS)):
        mixture, target, interferer = window_of(loaded, pair)
        first = stem(loaded, mixture, condition(loaded, pair))
        second = stem(loaded, mixture, condition(loaded, pair, exchanged=True))
        nearer.append(
            distance(first, interferer) + distance(second, target)
            - distance(first, target) - distance(second, interferer)
        )  # fmt: skip
    assert np.mean(nearer) > 0


def windowed(loaded: LoadedModel, recording: Signal, plan: WindowPlan) -> Signal:
    asked = condition(loaded)

    def separate(rows: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            repeated = asked.index(torch.zeros(len(rows), dtype=torch.int64))
            return loaded.separator.separate(rows, repeated)

    return separate_array(recording[None], separate, plan)[0]


def test_delay_and_appended_silence_change_nothing_beyond_the_windows_they_touch(
    loaded: LoadedModel, plan: WindowPlan
) -> None:
    window, hop = plan.window_samples, plan.hop_samples
    seconds = (window + hop) / loaded.separator.sample_rate_hz
    recording = clip("dog_barking", loaded, seconds) + clip("river", loaded, seconds)
    silence = np.zeros(hop, np.float32)
    whole = windowed(loaded, recording, plan)
    assert len(whole) == window + hop

    delayed = windowed(loaded, np.concatenate([silence, recording]), plan)
    # The first window hears the silence too; behind it, all windows hear what they heard before.
    np.testing.assert_allclose(delayed[window:], whole[window - hop :], atol=ROUNDING)

    longer = windowed(loaded, np.concatenate([recording, silence]), plan)
    # The added window fades in over the overlap with the one that was the last.
    kept = len(recording) - plan.overlap_samples
    np.testing.assert_allclose(longer[:kept], whole[:kept], atol=ROUNDING)


@pytest.mark.parametrize(
    "name", ["silence", "one sample", "denormal", "direct current", "clipped", "loud"]
)
def test_odd_signals_give_finite_stems(loaded: LoadedModel, name: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(loaded.separator.sample_rate_hz // 4).astype(np.float32)
    signals = {
        "silence": np.zeros_like(noise),
        "one sample": np.full(1, 0.5, np.float32),
        "denormal": (noise * 1e-40).astype(np.float32),
        "direct current": np.full_like(noise, 0.5),
        "clipped": np.sign(noise),
        "loud": 1e4 * noise,
    }
    found = stem(loaded, signals[name], condition(loaded))
    assert found.shape == signals[name].shape
    assert np.isfinite(found).all()
    peak = float(np.abs(signals[name]).max())
    assert float(np.abs(found).max()) <= 10 * peak + np.finfo(np.float32).tiny
    if name == "silence":
        assert not found.any()


@pytest.mark.parametrize("num_samples", [12_345, 160_000])
def test_a_window_gives_the_same_bits_in_every_batch(loaded: LoadedModel, num_samples: int) -> None:
    """On one machine's CPU: what else is in the batch, and how much, changes nothing at all."""
    draw = torch.Generator().manual_seed(0)
    mixtures = 0.1 * torch.randn(4, num_samples, generator=draw)
    queries = torch.randn(2, 4, loaded.separator.embedding_dim, generator=draw)
    positive, negative = torch.nn.functional.normalize(queries, dim=-1)

    def separated(begin: int, end: int) -> torch.Tensor:
        condition = Condition(positive=positive[begin:end], negative=negative[begin:end])
        with torch.inference_mode():
            return loaded.separator.separate(mixtures[begin:end], condition)

    together = separated(0, 4)
    for begin, end in ((0, 1), (3, 4), (1, 3)):
        assert torch.equal(separated(begin, end), together[begin:end])
