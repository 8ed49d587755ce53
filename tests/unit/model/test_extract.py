"""Extraction from Python, with the tone separator: arrays in, arrays out, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import pickle
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

import tone_runs
import tones
from model import extract
from model.clap import UnknownWordsError
from model.devices import MachineError
from model.extract import Extractor
from model.inference import SeparationError
from model.registry import UnknownModelError
from model.signal import ActivityOptions
from model.systems import Capabilities, Condition
from transforms import audio

RATE_HZ = tones.RATE_HZ


class Levelled(tones.ToneSeparator):
    """Hears at a level, and distorts, so that a wrong gain shows."""

    input_level_dbfs = -24.0

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        return super().encode(torch.tanh(4 * mixture))


def _loud_and_quiet(duration_s: float, rate_hz: int = RATE_HZ, num_channels: int = 2) -> np.ndarray:
    """Two tones and a little noise, float32[C, T], that fall by 40 dB."""
    rng = np.random.default_rng(7)
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * tones.frequency_hz(label) * time_s) for label in ("bell", "rain"))
    noise = rng.standard_normal((num_channels, len(time_s)))
    fall = 10 ** (-2 * time_s / time_s[-1])
    return ((0.3 * tone + 0.01 * noise) * fall).astype(np.float32)


def _tones(*labels: str, duration_s: float = 2.0) -> np.ndarray:
    return np.sum([tones.tone(label, duration_s) for label in labels], axis=0, dtype=np.float32)


def _is_tone(found: np.ndarray, *labels: str) -> bool:
    middle = slice(1_000, -1_000)
    expected = _tones(*labels, duration_s=len(found) / RATE_HZ)
    return bool(np.abs(found - expected)[middle].max() < 3e-3)


@pytest.fixture
def extractor(loaded: tone_runs.Loaded) -> Extractor:
    return Extractor("tones", num_threads=1)


@pytest.fixture
def levelled(loaded: tone_runs.Loaded) -> Extractor:
    loaded.model = dataclasses.replace(loaded.model, separator=Levelled())
    return Extractor("tones", num_threads=1)


@pytest.mark.parametrize(
    ("query", "stem"),
    [
        ({"positive": "the bell"}, ("bell",)),
        ({"negative": "the bell"}, ("rain", "frog")),
        ({"positive": "a bell and rain"}, ("bell", "rain")),
        ({"examples": [tones.tone("frog", 1.0)]}, ("frog",)),
        ({"examples": tones.tone("frog", 1.0)}, ("frog",)),
        ({"negative_examples": [tones.tone("frog", 1.0)]}, ("bell", "rain")),
        ({"positive": "bell", "examples": [tones.tone("rain", 1.0)]}, ("bell", "rain")),
        (
            {"positive": "bell", "examples": [tones.tone("rain", 1.0)], "text_weight": 1.0},
            ("bell",),
        ),
    ],
)
def test_words_and_examples_say_what_the_stem_is(
    extractor: Extractor, query: dict[str, Any], stem: tuple[str, ...]
) -> None:
    mixture = _tones("bell", "rain", "frog")
    found = extractor(mixture, RATE_HZ, **query)
    assert _is_tone(found.stem, *stem)
    np.testing.assert_array_equal(found.residual, mixture - found.stem)
    assert found.presence is None


@pytest.mark.parametrize("as_one", [False, True])
def test_an_example_may_have_a_rate_and_channels_of_its_own(
    extractor: Extractor, as_one: bool
) -> None:
    time_s = np.arange(44_100) / 44_100
    left = np.sin(2 * np.pi * tones.frequency_hz("frog") * time_s)
    clip = (torch.from_numpy(np.stack([left, 0 * left])), 44_100)
    found = extractor(
        _tones("bell", "frog"), RATE_HZ, examples=clip if as_one else [clip, tones.tone("frog", 1)]
    )
    assert _is_tone(found.stem, "frog")


def test_arrays_and_tensors_come_back_as_they_were_given(extractor: Extractor) -> None:
    mixture = _tones("bell", "rain")
    mixture.setflags(write=False)
    expected = extractor(mixture, RATE_HZ, positive="bell").stem
    assert (expected.dtype, expected.shape) == (np.float32, mixture.shape)
    one_channel = extractor(mixture[None], RATE_HZ, positive="bell")
    np.testing.assert_array_equal(one_channel.stem, expected[None])
    doubled = extractor(mixture.astype(np.float64), RATE_HZ, positive="bell")
    assert doubled.residual.dtype == np.float32
    np.testing.assert_array_equal(doubled.stem, expected)
    from_file = np.stack([mixture, mixture], axis=1)  # [samples, channels]
    both = extractor(from_file.T, float(RATE_HZ), positive="bell")
    np.testing.assert_array_equal(both.stem, np.stack([expected, expected]))
    tensor = torch.tensor(mixture, requires_grad=True)
    found = extractor(tensor, RATE_HZ, positive="bell")
    assert not found.stem.requires_grad
    torch.testing.assert_close(found.stem, torch.from_numpy(expected), rtol=0, atol=0)
    torch.testing.assert_close(found.residual, tensor.detach() - found.stem, rtol=0, atol=0)
    half = extractor(tensor.half(), RATE_HZ, positive="bell").stem
    assert half.dtype == torch.float32


@pytest.mark.parametrize("rate_hz", [1_000, 11_025, 44_100, 96_000])
@pytest.mark.parametrize("num_samples", [1, 2, 999, 30_001])
def test_any_length_rate_and_number_of_channels_will_do(
    extractor: Extractor, rate_hz: int, num_samples: int
) -> None:
    for num_channels in (1, 2, 7):
        mixture = 0.1 * np.random.default_rng(0).standard_normal((num_channels, num_samples))
        found = extractor(mixture, rate_hz, positive="bell")
        assert found.stem.shape == mixture.shape
        (streamed,) = _joined(extractor, [mixture], rate_hz)
        np.testing.assert_array_equal(streamed, found.stem)


def _joined(extractor: Extractor, blocks: Any, rate_hz: int, *names: str) -> list[np.ndarray]:
    found = list(extractor.stream(blocks, rate_hz, positive="bell"))
    assert all(each.stem.shape == each.residual.shape for each in found)
    return [
        np.concatenate([getattr(each, name) for each in found], axis=-1)
        for name in names or ("stem",)
    ]


@pytest.mark.parametrize("level_dbfs", [None, -24.0])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 11_025])
@hypothesis.given(
    cuts=st.lists(st.integers(0, 45 * RATE_HZ), max_size=20),
    once=st.booleans(),
    in_file=st.booleans(),
)
@hypothesis.settings(
    max_examples=15, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_a_stream_has_the_bits_of_the_whole(
    loaded: tone_runs.Loaded,
    level_dbfs: float | None,
    rate_hz: int,
    cuts: list[int],
    once: bool,
    in_file: bool,
) -> None:
    separator = Levelled()
    separator.input_level_dbfs = level_dbfs
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    extractor = Extractor("tones", num_threads=1)
    mixture = _loud_and_quiet(45.0, rate_hz)
    whole = extractor(mixture, rate_hz, positive="bell")
    blocks = np.split(mixture, sorted(cuts), axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "_KEPT_IN_MEMORY_BYTES", 1_000 if in_file else 2**26)
        stem, residual = _joined(
            extractor, iter(blocks) if once else blocks, rate_hz, "stem", "residual"
        )
    np.testing.assert_array_equal(stem, whole.stem)
    np.testing.assert_array_equal(residual, whole.residual)


def test_segments_of_a_stream_come_with_its_last_block(extractor: Extractor) -> None:
    samples = np.concatenate([0.01 * _tones("rain"), _tones("bell", "rain"), 0.01 * _tones("rain")])
    whole = extractor(samples, RATE_HZ, "bell").segments
    assert whole
    assert (whole[0].start_s, whole[-1].end_s) == pytest.approx((2.0, 4.0), abs=0.3)
    blocks = np.split(samples, range(3_000, len(samples), 3_000))
    *others, last = (each.segments for each in extractor.stream(blocks, RATE_HZ, "bell"))
    assert others
    assert set(others) == {None}
    assert last == whole


def test_what_counts_as_active_can_be_said(loaded: tone_runs.Loaded) -> None:
    options = ActivityOptions(min_length_s=60.0)
    extractor = Extractor("tones", num_threads=1, activity=options)
    assert extractor(_tones("bell"), RATE_HZ, "bell").segments == ()


def test_a_stream_of_mono_tensors_gives_mono_tensors(extractor: Extractor) -> None:
    mixture = torch.from_numpy(_tones("bell", "rain"))
    found = list(extractor.stream(mixture.split(3_000), RATE_HZ, positive="bell"))
    assert all(isinstance(each.stem, torch.Tensor) and each.stem.ndim == 1 for each in found)
    whole = extractor(mixture, RATE_HZ, positive="bell")
    torch.testing.assert_close(torch.cat([e.stem for e in found]), whole.stem, rtol=0, atol=0)


def test_without_a_level_blocks_come_out_before_the_last_came_in(extractor: Extractor) -> None:
    read = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal read
        for _ in range(200):
            read += 1
            yield tones.tone("bell", 0.5)

    next(extractor.stream(blocks(), RATE_HZ, positive="bell"))
    assert read < 20


def test_a_stream_holds_a_part_of_the_recording(
    levelled: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "_KEPT_IN_MEMORY_BYTES", 2**16)
    num_bytes = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal num_bytes
        for number in range(120):
            block = tones.tone("bell", 5.0, phase=number)
            num_bytes += block.nbytes
            yield block

    levelled(tones.tone("bell", 1.0), RATE_HZ, positive="bell")  # imports are not the recording's
    tracemalloc.start()
    try:
        num_samples = sum(
            len(each.stem) for each in levelled.stream(blocks(), RATE_HZ, positive="bell")
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_samples * 4 == num_bytes
    assert peak < num_bytes / 5


class Reread:
    """Blocks that can be read again, unless they are other ones then."""

    def __init__(self, *readings: list[np.ndarray]) -> None:
        self.readings, self.times = readings, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.times += 1
        return iter(self.readings[min(self.times, len(self.readings)) - 1])


def test_blocks_that_can_be_read_again_are_not_kept(
    levelled: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "save", lambda *_: pytest.fail("a block was kept"))
    blocks = Reread(np.array_split(_loud_and_quiet(40.0), 9, axis=1))
    _joined(levelled, blocks, RATE_HZ)
    assert blocks.times == 2


@pytest.mark.parametrize("second", [[], [np.ones(99)], [np.ones(50), np.ones(51)]])
def test_blocks_that_are_others_when_read_again_are_refused(
    levelled: Extractor, second: list[np.ndarray]
) -> None:
    blocks = Reread([np.ones(100)], second)
    message = rf"gave 100 samples .* first and {sum(map(len, second))} .* again; .*iter\(blocks\)"
    with pytest.raises(ValueError, match=message):
        list(levelled.stream(blocks, RATE_HZ, positive="bell"))


def test_a_quiet_recording_gives_a_quiet_stem(levelled: Extractor) -> None:
    mixture = _loud_and_quiet(3.0)
    loud = levelled(mixture, RATE_HZ, positive="bell").stem
    quiet = levelled(mixture / 1024, RATE_HZ, positive="bell").stem
    np.testing.assert_allclose(1024 * quiet, loud, rtol=0, atol=1e-5)


def test_silence_gives_silence(levelled: Extractor) -> None:
    found = levelled(np.zeros((2, 9_000)), RATE_HZ, positive="bell")
    assert not found.stem.any()
    assert not found.residual.any()


def test_torch_has_as_many_threads_afterwards_as_before(loaded: tone_runs.Loaded) -> None:
    seen: set[int] = set()

    class Watched(tones.ToneSeparator):
        def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
            seen.add(torch.get_num_threads())
            return super().encode(mixture)

    loaded.model = dataclasses.replace(loaded.model, separator=Watched())
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for num_threads in (1, 2):
            extractor = Extractor("tones", num_threads=num_threads)
            extractor(_tones("bell", "rain"), RATE_HZ, positive="bell", examples=_tones("rain"))
            next(extractor.stream([_tones("bell")], RATE_HZ, positive="bell"))
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


@contextlib.contextmanager
def _set_in_torch(name: str) -> Iterator[None]:
    """What a user may have set for computations of their own; ``meta`` stands for a GPU."""
    if name == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
    elif name == "device":
        torch.set_default_device("meta")
        try:
            yield
        finally:
            torch.set_default_device(None)
    else:
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["autocast", "device", "dtype"])
def test_what_is_set_in_torch_changes_nothing(name: str) -> None:
    """One thread: others have settings of their own."""
    mixture = _loud_and_quiet(1.0, 32_000)
    query: dict[str, Any] = {"positive": "a bell", "examples": mixture[0]}
    expected = Extractor(num_threads=1)(mixture, 32_000, **query)
    with _set_in_torch(name):
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        extractor = Extractor(num_threads=1)
        found = extractor(mixture, 32_000, **query)
        blocks = list(extractor.stream([mixture[:, :9_000], mixture[:, 9_000:]], 32_000, **query))
        assert (torch.get_default_dtype(), torch.get_default_device()) == (dtype, device)
        assert torch.is_autocast_enabled("cpu") == (name == "autocast")
    assert np.array_equal(found.stem, expected.stem)
    assert found.presence == expected.presence
    assert np.array_equal(np.concatenate([each.stem for each in blocks], axis=1), expected.stem)


def test_a_pickled_extractor_is_made_again_from_the_same_arguments(
    loaded: tone_runs.Loaded,
) -> None:
    never = ActivityOptions(min_length_s=60.0)
    extractor = Extractor("tones", num_threads=1, batch_size=3, overlap=0.0, activity=never)
    again = pickle.loads(pickle.dumps(extractor))  # noqa: S301
    mixture = _loud_and_quiet(3.0)
    found, other = (each(mixture, RATE_HZ, positive="bell") for each in (extractor, again))
    assert np.array_equal(found.stem, other.stem)
    assert found.segments == other.segments == ()


def test_a_process_that_is_forked_goes_on_with_the_extractor(loaded: tone_runs.Loaded) -> None:
    """As the workers of a DataLoader are: the threads of their parent do not come along."""
    extractor = Extractor("tones", num_threads=2)
    mixture = _loud_and_quiet(3.0)
    stem = extractor(mixture, RATE_HZ, positive="bell").stem

    def same() -> None:
        sys.exit(not np.array_equal(extractor(mixture, RATE_HZ, positive="bell").stem, stem))

    child = multiprocessing.get_context("fork").Process(target=same, daemon=True)
    child.start()
    child.join(timeout=60)
    child.kill()
    assert child.exitcode == 0


def test_threads_share_an_extractor(extractor: Extractor) -> None:
    mixture = _tones("bell", "rain", "frog")
    labels = ["bell", "rain", "frog"] * 8
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda label: extractor(mixture, RATE_HZ, positive=label).stem, labels)
        )
    for label, stem in zip(labels, found, strict=True):
        assert _is_tone(stem, label)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(9), 0), ValueError, r"rate_hz=0: expected a whole number of hertz from 1000"),
        ((np.zeros(9), -1), ValueError, "rate_hz=-1"),
        ((np.zeros(9), 44.1), ValueError, r"rate_hz=44\.1"),
        ((np.zeros(9), 44_100.5), ValueError, r"rate_hz=44100\.5"),
        ((np.zeros(9), float("nan")), ValueError, "rate_hz=nan"),
        ((np.zeros(9), "44100"), TypeError, "rate_hz='44100': expected a number of hertz"),
        ((np.zeros(9), True), TypeError, "rate_hz=True"),
        ((np.zeros(0), 8_000), ValueError, r"samples: has shape \(0,\), and so no samples"),
        ((np.zeros((2, 0)), 8_000), ValueError, r"samples: has shape \(2, 0\), and so no"),
        ((np.zeros((0, 2)), 8_000), ValueError, r"samples: has shape \(0, 2\); expected \[samp"),
        ((np.zeros(()), 8_000), ValueError, r"shape \(\); expected \[samples\] or \[channels"),
        ((np.zeros((1, 2, 3)), 8_000), ValueError, r"shape \(1, 2, 3\)"),
        (
            (np.zeros((9_000, 2)), 8_000),
            ValueError,
            r"shape \(9000, 2\); .* the transpose, samples\.T, has 2 channels",
        ),
        (  # a block of a stereo file, as soundfile reads it
            (np.zeros((1_024, 2)), 8_000),
            ValueError,
            r"shape \(1024, 2\); .* the transpose, samples\.T, has 2 channels",
        ),
        (
            (np.array([[0, 1], [0, np.nan]]), 8_000),
            ValueError,
            r"samples: sample 1 of channel 1 is nan; expected finite numbers \(numpy\.nan_to_num",
        ),
        ((torch.tensor([0.0, -torch.inf]), 8_000), ValueError, "sample 1 of channel 0 is -inf"),
        ((np.array([1e300]), 8_000), ValueError, "sample 0 of channel 0 is inf"),
        ((np.zeros(9, np.int16), 8_000), TypeError, r"of type int16; .* by / 32768"),
        ((torch.zeros(9, dtype=torch.int32), 8_000), TypeError, r"of type torch\.int32"),
        ((np.zeros(9, complex), 8_000), TypeError, "of type complex128"),
        (
            ([0.0, 1.0], 8_000),
            TypeError,
            "samples: expected a numpy array or a torch .* found list",
        ),
    ],
)
def test_recordings_that_cannot_be_used_are_refused(
    extractor: Extractor, arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        extractor(*arguments, positive="bell")


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ({}, ValueError, "there is no query; give positive, negative, examples or negative_exam"),
        ({"examples": []}, ValueError, "there is no query"),
        ({"positive": ""}, ValueError, "positive='': expected words, or None"),
        ({"negative": " \n"}, ValueError, r"negative=' \\n': expected words"),
        ({"positive": b"bell"}, TypeError, "positive: expected text, found bytes"),
        ({"positive": ["bell"]}, TypeError, "positive: expected text, found list"),
        ({"positive": "\ud800"}, ValueError, "is no text: surrogates not allowed"),
        ({"positive": "bell", "text_weight": 1.1}, ValueError, r"text_weight=1\.1"),
        ({"positive": "bell", "text_weight": "1"}, TypeError, "text_weight='1'"),
        ({"examples": [np.zeros(9)]}, ValueError, r"examples\[0\]: all samples are zero"),
        ({"examples": np.zeros(9)}, ValueError, "examples: all samples are zero"),
        ({"examples": np.full(9, 0.5)}, ValueError, "examples: all samples are the same"),
        ({"examples": np.array([[0.5, 0.1], [-0.5, -0.1]])}, ValueError, "samples are zero"),
        ({"examples": (np.ones(9), 0)}, ValueError, "examples: rate_hz=0"),
        (
            {"negative_examples": [np.arange(9.0), (np.ones(9), 44)]},
            ValueError,
            r"negative_examples\[1\]: rate_hz=44",
        ),
        (
            {"examples": [np.arange(9.0), np.ones(0)]},
            ValueError,
            r"examples\[1\]: has shape \(0,\)",
        ),
        ({"examples": ["dog.wav"]}, TypeError, r"examples\[0\]: expected a numpy array"),
        (
            {"examples": "dog.wav"},
            TypeError,
            "examples: expected a clip, or .* found str",
        ),
        ({"examples": [(np.ones(9), 8_000, 1)]}, TypeError, r"examples\[0\]: .* found tuple"),
    ],
)
def test_queries_that_cannot_be_used_are_refused(
    extractor: Extractor, query: dict[str, Any], error: type[Exception], message: str
) -> None:
    for call in (
        extractor,
        lambda samples, *more, **rest: extractor.stream([samples], *more, **rest),
    ):
        with pytest.raises(error, match=message):
            call(np.ones(9), RATE_HZ, **query)


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "blocks: the recording has no samples"),
        ([np.zeros(0)], ValueError, "blocks: the recording has no samples"),
        ([np.zeros(9), np.array([0, np.nan])], ValueError, r"blocks\[1\]: sample 1 of channel 0"),
        (
            [np.zeros((2, 9)), np.zeros((1, 9))],
            ValueError,
            r"blocks\[1\]: has shape \(1, 9\); the blocks before it have 2 channels",
        ),
        ([np.zeros((1, 9)), np.zeros(9)], ValueError, r"blocks\[1\]: has shape \(9,\)"),
        ([np.zeros(9), [0.0]], TypeError, r"blocks\[1\]: expected a numpy array"),
    ],
)
@pytest.mark.parametrize("kind", [list, iter])
def test_blocks_that_cannot_be_used_are_refused_when_they_are_read(
    levelled: Extractor, kind: Any, blocks: Any, error: type[Exception], message: str
) -> None:
    stream = levelled.stream(kind(blocks), RATE_HZ, positive="bell")
    with pytest.raises(error, match=message):
        list(stream)


def test_an_array_is_no_stream_of_its_channels(extractor: Extractor) -> None:
    for one in (np.zeros((2, 9)), torch.zeros(2, 9)):
        with pytest.raises(TypeError, match="expected an iterable of arrays, found one array"):
            extractor.stream(one, RATE_HZ, positive="bell")
    with pytest.raises(TypeError, match="blocks: expected an iterable of arrays, found float"):
        extractor.stream(0.5, RATE_HZ, positive="bell")


def test_an_unknown_model_is_refused_with_those_that_are_near() -> None:
    with pytest.raises(UnknownModelError, match=r"'clapsep-mni'\. Did you mean clapsep-mini"):
        Extractor("clapsep-mni")


def test_an_oracle_is_refused() -> None:
    with pytest.raises(ValueError, match="'oracle-irm' is an oracle, which needs the sound"):
        Extractor("oracle-irm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "^device gpu: expected auto, cpu, cuda or cuda:N; did you mean cuda"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_threads": -1}, "num_threads at least 0"),
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"condition_norm": "none"}, "none"),
    ],
)
@pytest.mark.usefixtures("loaded")
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Extractor("tones", **settings)


def test_a_query_that_the_model_does_not_understand_is_refused(loaded: tone_runs.Loaded) -> None:
    separator = tones.ToneSeparator()
    separator.capabilities = Capabilities(audio=False, negative=False)
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    extractor = Extractor("tones")
    with pytest.raises(ValueError, match="'tones' cannot use this query: it takes no negative"):
        extractor(np.ones(9), RATE_HZ, positive="bell", negative="rain")
    with pytest.raises(ValueError, match="it takes no example clips"):
        extractor(np.ones(9), RATE_HZ, examples=np.arange(9.0))


def test_a_text_of_which_the_model_knows_nothing_is_named(loaded: tone_runs.Loaded) -> None:
    class English(tones.ToneClap):
        def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
            raise UnknownWordsError(f"{texts[0]!r}: the text encoder knows nothing of it")

    loaded.model = dataclasses.replace(loaded.model, query_encoder=English())
    extractor = Extractor("tones", num_threads=1)
    with pytest.raises(ValueError, match=r"^negative='🐶': the text encoder knows nothing of it$"):
        extractor(np.ones(9), RATE_HZ, negative="🐶")


def test_what_the_network_cannot_do_is_said(loaded: tone_runs.Loaded) -> None:
    class Broken(tones.ToneSeparator):
        def decode(self, encoded: tones.ToneEncoded, condition: Condition) -> torch.Tensor:
            if self.heard == 1:
                return encoded.mixture * torch.nan
            if self.heard == 2 or broken:
                raise RuntimeError("enough")
            return super().decode(encoded, condition)

    broken: list[bool] = []
    loaded.model = dataclasses.replace(loaded.model, separator=Broken())
    extractor = Extractor("tones", num_threads=1)
    for message in ("not_finite", "enough"):
        with pytest.raises(SeparationError) as caught:
            extractor(np.ones(9), RATE_HZ, positive="bell")
        assert message in f"{caught.value.code} {caught.value}"
    broken.append(True)
    with pytest.raises(MachineError, match="fails on a probe too"):
        extractor(np.ones(9), RATE_HZ, positive="bell")


def test_presence_is_that_of_the_likeliest_window_and_channel(loaded: tone_runs.Loaded) -> None:
    separator = tones.SuspiciousSeparator()
    loaded.model = dataclasses.replace(loaded.model, separator=separator)
    extractor = Extractor("tones", num_threads=1)
    bell = np.concatenate([0 * tones.tone("bell", 3.0), tones.tone("bell", 2.0)])
    mixture = np.stack([tones.tone("rain", 5.0), tones.tone("rain", 5.0) + bell])
    power = 0.3**2 / 2
    there = extractor(mixture, RATE_HZ, positive="bell").presence
    assert there == pytest.approx(power / (power + 1e-3), abs=1e-3)
    assert extractor(mixture, RATE_HZ, positive="frog").presence == pytest.approx(0.0, abs=1e-3)
    blocks = extractor.stream(np.split(mixture, 5, axis=1), RATE_HZ, positive="bell")
    first, *_, last = [block.presence for block in blocks]
    assert first == pytest.approx(0.0, abs=1e-3)
    assert last == there
    assert extractor(mixture, RATE_HZ, negative="bell").presence is None  # as in the metrics
    separator.says = False
    assert extractor(mixture, RATE_HZ, positive="bell").presence is None


def test_rates_are_those_that_recordings_may_have() -> None:
    assert (extract.MIN_RATE_HZ, extract.MAX_RATE_HZ) == (audio.MIN_RATE_HZ, audio.MAX_RATE_HZ)
