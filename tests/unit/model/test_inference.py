from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

import tones
from model import inference
from model.devices import MachineError
from model.inference import (
    Arriving,
    ForwardPass,
    InPlace,
    Network,
    NetworkSettings,
    SeparationError,
    WindowQueries,
)

DIM = len(tones.LABELS)


def _window(num_samples: int, channels: int, labels: tuple[str, ...], seed: int) -> WindowQueries:
    rng = np.random.default_rng(seed)
    positive = np.stack([np.eye(DIM)[tones.LABELS.index(label)] for label in labels])
    return WindowQueries(
        samples=rng.normal(size=(channels, num_samples)).astype(np.float32),
        positive=positive.astype(np.float32),
        negative=np.zeros_like(positive, dtype=np.float32),
    )


def _at(gain: float) -> list[WindowQueries]:
    return [dataclasses.replace(window, gain=gain * (1 + n)) for n, window in enumerate(_windows())]


def _windows() -> list[WindowQueries]:
    return [
        _window(4_000, 2, ("bell", "rain"), 0),
        _window(4_000, 1, ("frog",), 1),
        _window(17, 3, ("wind", "bell", "frog"), 2),
        _window(4_000, 2, ("singing",), 3),
    ]


def _answers(separator: object, **settings: int | bool) -> list[np.ndarray]:
    network = Network(separator, "cpu", NetworkSettings(**settings))
    return [answer.samples for answer in network.separate(_windows())]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1},
        {"batch_size": 3},
        {"batch_size": 64},
        {"batch_size": 1, "num_threads": 3},
        {"batch_size": 3, "num_threads": 4},
        {"batch_size": 8, "num_threads": 2},
        {"batch_size": 4, "fixed_shapes": True},
        {"batch_size": 64, "fixed_shapes": True},
        {"batch_size": 5, "num_threads": 2, "fixed_shapes": True},
    ],
)
def test_answers_do_not_depend_on_batches_or_threads(settings: dict[str, int]) -> None:
    separator = tones.ToneSeparator()
    found = _answers(separator, **settings)
    for window, answer in zip(_windows(), found, strict=True):
        assert answer.shape == (len(window.positive), *window.samples.shape)
        for query, positive in enumerate(window.positive):
            condition = tones.Condition(
                positive=torch.from_numpy(positive)[None].expand(len(window.samples), -1),
                negative=torch.zeros(len(window.samples), DIM),
            )
            alone = separator.separate(torch.from_numpy(window.samples), condition)
            np.testing.assert_allclose(answer[query], alone.numpy(), atol=1e-6)


def test_each_channel_of_a_window_is_encoded_once_for_all_queries() -> None:
    separator = tones.ToneSeparator()
    _answers(separator, batch_size=3)
    assert separator.heard == 2 + 1 + 3 + 2


def test_the_queries_of_one_window_keep_all_threads_busy() -> None:
    class Meeting(tones.ToneSeparator):
        """Decodes on two threads at a time, or not at all."""

        def decode(self, encoded: tones.ToneEncoded, condition: tones.Condition) -> torch.Tensor:
            both.wait(timeout=60)
            return super().decode(encoded, condition)

    both = threading.Barrier(2)
    window = _window(4_000, 1, tones.LABELS, 0)
    separator = Meeting()
    network = Network(separator, "cpu", NetworkSettings(batch_size=4, num_threads=2))
    (answer,) = network.separate([window])
    assert separator.heard == 1
    (expected,) = Network(tones.ToneSeparator(), "cpu", NetworkSettings()).separate([window])
    np.testing.assert_array_equal(answer.samples, expected.samples)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_every_row_is_in_one_pass_and_the_time_of_passes_is_that_of_the_queries(
    num_threads: int,
) -> None:
    passes: list[ForwardPass] = []
    settings = NetworkSettings(batch_size=3, num_threads=num_threads)
    answers = Network(tones.ToneSeparator(), "cpu", settings, passes.append).separate(_windows())
    assert sum(each.num_windows for each in passes) == 2 + 1 + 3 + 2
    spent_s = sum(sum(answer.inference_s) for answer in answers)
    assert spent_s == pytest.approx(sum(each.took_s for each in passes))


def test_a_window_is_heard_with_its_gain_and_answered_without_it() -> None:
    class Listening(tones.ToneSeparator):
        def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
            heard.append(mixture.numpy().copy())
            return super().encode(mixture)

    heard: list[np.ndarray] = []
    network = Network(Listening(), "cpu", NetworkSettings(batch_size=1))
    scaled = network.separate(_at(50.0))
    rows = [
        window.samples[channel] * window.gain
        for length in (4_000, 17)
        for window in _at(50.0)
        if window.samples.shape[1] == length
        for channel in range(len(window.samples))
    ]
    for found, row in zip(heard, rows, strict=True):
        np.testing.assert_allclose(found[0], row, rtol=1e-6)
    for answer, plain in zip(scaled, network.separate(_windows()), strict=True):
        np.testing.assert_allclose(answer.samples, plain.samples, atol=1e-6)


def test_a_gain_of_one_changes_no_bit() -> None:
    separator = tones.ToneSeparator()
    (window, *_) = _windows()
    (answer,) = Network(separator, "cpu", NetworkSettings()).separate([window])
    rows = torch.from_numpy(np.repeat(window.samples, 2, axis=0))
    positive = torch.from_numpy(np.tile(window.positive, (2, 1)))
    condition = tones.Condition(positive=positive, negative=torch.zeros_like(positive))
    alone = separator.separate(rows, condition).numpy().reshape(2, 2, -1).transpose(1, 0, 2)
    np.testing.assert_array_equal(answer.samples, alone)


def test_the_time_is_shared_among_queries() -> None:
    network = Network(tones.ToneSeparator(), "cpu", NetworkSettings())
    first, *_ = network.separate(_windows())
    assert len(first.inference_s) == 2
    assert all(seconds > 0 for seconds in first.inference_s)


class Small(tones.ToneSeparator):
    """Has memory for a few rows at once."""

    def __init__(self, encodes: int, answers: int) -> None:
        super().__init__()
        self.encodes, self.answers = encodes, answers
        self.tried: list[int] = []

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        self.tried.append(len(mixture))
        if len(mixture) > self.encodes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().encode(mixture)

    def decode(self, encoded: tones.ToneEncoded, condition: tones.Condition) -> torch.Tensor:
        if len(condition.positive) > self.answers:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to …")
        return super().decode(encoded, condition)


@pytest.mark.parametrize(("encodes", "answers"), [(1, 64), (2, 64), (64, 1), (1, 1)])
def test_a_batch_that_does_not_fit_is_halved_and_tried_again(encodes: int, answers: int) -> None:
    small = Small(encodes, answers)
    for found, expected in zip(
        _answers(small, batch_size=8), _answers(tones.ToneSeparator()), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    if encodes == 1:
        assert small.tried[0] == 5
        assert min(small.tried) == 1


class Shapes(tones.ToneSeparator):
    """Notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        self.seen.add(tuple(mixture.shape))
        return super().encode(mixture)

    def decode(self, encoded: tones.ToneEncoded, condition: tones.Condition) -> torch.Tensor:
        self.seen.add(tuple(condition.positive.shape))
        return super().decode(encoded, condition)


def test_with_fixed_shapes_a_compiled_network_meets_one_shape_for_each_length() -> None:
    separator = Shapes()
    _answers(separator, batch_size=4, fixed_shapes=True)
    assert separator.seen == {(4, 4_000), (4, 17), (4, DIM)}


@pytest.mark.parametrize(("encodes", "answers"), [(1, 64), (3, 64), (64, 2)])
def test_a_filled_up_batch_that_does_not_fit_is_halved_too(encodes: int, answers: int) -> None:
    for found, expected in zip(
        _answers(Small(encodes, answers), batch_size=8, fixed_shapes=True),
        _answers(tones.ToneSeparator()),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_memory_too_small_for_one_window_is_said() -> None:
    with pytest.raises(SeparationError, match="one window at a time") as caught:
        _answers(Small(0, 0), batch_size=8)
    assert caught.value.code == "out_of_memory"


def test_other_errors_of_the_model_are_not_tried_again() -> None:
    class Broken(Small):
        def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
            self.tried.append(len(mixture))
            if mixture.any():
                raise RuntimeError("shapes do not match\nand much more")
            return super().encode(mixture)

    broken = Broken(64, 64)
    with pytest.raises(SeparationError, match=r"RuntimeError: shapes do not match$") as caught:
        _answers(broken, batch_size=8)
    assert caught.value.code == "model_error"
    assert broken.tried[0] == 5  # and then the probe


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("fixed_shapes", [False, True])
def test_a_network_that_fails_on_silence_too_is_a_broken_machine(
    late: bool, fixed_shapes: bool, monkeypatch
) -> None:
    class Broken(tones.ToneSeparator):
        def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
            raise RuntimeError("CUDA error: unspecified launch failure")

    class Late(InPlace):
        def down(self, tensor: torch.Tensor) -> Arriving:
            def fail() -> np.ndarray:
                raise RuntimeError("CUDA error: unspecified launch failure")

            return fail

    if late:
        monkeypatch.setattr(inference, "transfers_for", lambda device: Late())
    with pytest.raises(MachineError, match=r"machine is at fault: .*launch failure"):
        _answers(tones.ToneSeparator() if late else Broken(), fixed_shapes=fixed_shapes)


def test_a_network_that_needs_references_is_probed_with_one() -> None:
    class Oracle(tones.ToneSeparator):
        capabilities = dataclasses.replace(tones.ToneSeparator.capabilities, needs_reference=True)

        def decode(self, encoded: tones.ToneEncoded, condition: tones.Condition) -> torch.Tensor:
            assert condition.reference is not None
            if condition.reference.any():
                raise RuntimeError("shapes do not match")
            return super().decode(encoded, condition)

    window = dataclasses.replace(_windows()[0])
    references = np.ones((len(window.positive), window.samples.shape[1]), np.float32)
    network = Network(Oracle(), "cpu", NetworkSettings())
    with pytest.raises(SeparationError, match="shapes do not match"):
        network.separate([dataclasses.replace(window, references=references)])


def test_settings_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NetworkSettings(batch_size=0)
