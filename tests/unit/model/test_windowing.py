"""Overlap-add: nothing lost, nothing clicks, and neither blocks nor batches show."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from float_noise import rounding
from model.signal.windowing import (
    OverlapAdder,
    WindowPlan,
    iter_windows,
    separate_array,
    separate_blocks,
)

TERMS = 40 * 3
"""A window's answer is a mean of 40 samples, and a sample the mean of a few windows' answers."""
PLANS = st.builds(
    WindowPlan,
    window_samples=st.integers(1, 40),
    overlap=st.floats(0.0, 0.9),
    tail=st.sampled_from(["shift", "pad"]),
)


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _identity(batch: torch.Tensor) -> torch.Tensor:
    return batch


def _window_dependent(batch: torch.Tensor) -> torch.Tensor:
    """Unlike any filter: each window's answer depends on all of it."""
    return batch * batch.abs().mean(dim=1, keepdim=True) + batch.flip(1)


def _level(batch: torch.Tensor) -> torch.Tensor:
    """Each window answers with a constant, its mean."""
    return batch.mean(dim=1, keepdim=True).expand_as(batch)


@st.composite
def _recordings_in_blocks(draw: st.DrawFn) -> list[np.ndarray]:
    lengths = draw(st.lists(st.integers(0, 70), min_size=1, max_size=7).filter(any))
    recording = _noise(draw(st.integers(1, 3)), sum(lengths))
    return np.split(recording, np.cumsum(lengths)[:-1], axis=1)


@given(plan=PLANS, blocks=_recordings_in_blocks(), batch_size=st.integers(1, 9))
def test_identity_gives_the_recording_back_to_the_bit(
    plan: WindowPlan, blocks: list[np.ndarray], batch_size: int
) -> None:
    pieces = list(separate_blocks(blocks, _identity, plan, batch_size))
    assert all(piece.shape[1] for piece in pieces)
    np.testing.assert_array_equal(
        np.concatenate(pieces, axis=1), np.concatenate(blocks, axis=1), strict=True
    )


@given(plan=PLANS, blocks=_recordings_in_blocks(), batch_size=st.integers(1, 9))
def test_neither_blocks_nor_batches_show_in_the_output(
    plan: WindowPlan, blocks: list[np.ndarray], batch_size: int
) -> None:
    whole = np.concatenate(blocks, axis=1)
    expected = separate_array(whole, _window_dependent, plan)
    in_blocks = np.concatenate(
        list(separate_blocks(blocks, _window_dependent, plan, batch_size)), axis=1
    )
    np.testing.assert_allclose(in_blocks, expected, rtol=0, atol=rounding(expected, TERMS))


@given(plan=PLANS, blocks=_recordings_in_blocks())
def test_streamed_windows_are_the_planned_ones(plan: WindowPlan, blocks: list[np.ndarray]) -> None:
    whole = np.concatenate(blocks, axis=1)
    windows = list(iter_windows(blocks, plan))
    assert tuple(window.start for window in windows) == plan.starts(whole.shape[1])
    for window in windows:
        np.testing.assert_array_equal(window.samples, plan.cut(whole, window.start), strict=True)


@given(plan=PLANS, num_samples=st.integers(1, 150))
def test_output_is_the_weighted_mean_of_the_answers(plan: WindowPlan, num_samples: int) -> None:
    recording = _noise(1, num_samples)
    starts = plan.starts(num_samples)
    total, weights = np.zeros(num_samples), np.zeros(num_samples)
    for start in starts:
        answer = _window_dependent(torch.from_numpy(plan.cut(recording, start).copy())).numpy()[0]
        for index in range(min(len(answer), num_samples - start)):
            weight = 1.0
            if start != starts[0] and index < plan.overlap_samples:
                weight *= np.sin(np.pi / 2 * (index + 0.5) / plan.overlap_samples) ** 2
            to_end = plan.window_samples - 1 - index
            if start != starts[-1] and to_end < plan.overlap_samples:
                weight *= np.sin(np.pi / 2 * (to_end + 0.5) / plan.overlap_samples) ** 2
            total[start + index] += weight * answer[index]
            weights[start + index] += weight
    actual = separate_array(recording, _window_dependent, plan)
    np.testing.assert_allclose(actual[0], total / weights, rtol=0, atol=rounding(actual, TERMS))


@pytest.mark.parametrize("num_samples", [1, 7, 40])
def test_up_to_one_window_is_the_single_forward(num_samples: int) -> None:
    recording = _noise(2, num_samples)
    expected = _window_dependent(torch.from_numpy(recording)).numpy()
    actual = separate_array(recording, _window_dependent, WindowPlan(window_samples=40))
    np.testing.assert_array_equal(actual, expected, strict=True)


@pytest.mark.parametrize("num_samples", [1001, 1350, 1750, 1751, 2500, 2999])
def test_windows_that_disagree_do_not_click(num_samples: int) -> None:
    plan = WindowPlan(window_samples=1000, overlap=0.25)
    step = np.where(np.arange(num_samples) < num_samples // 2, 1.0, -1.0)[None].astype(np.float32)
    joined = separate_array(step, _level, plan)
    assert np.ptp(joined) > 0.0  # the windows do disagree
    steepest = np.pi / 2 / plan.overlap_samples * np.ptp(joined)
    assert np.abs(np.diff(joined)).max() <= 2 * steepest  # twice: two may fade in over a third


def test_without_overlap_windows_that_disagree_do_click() -> None:
    plan = WindowPlan(window_samples=1000, overlap=0.0)
    step = np.where(np.arange(2000) < 1000, 1.0, -1.0)[None].astype(np.float32)
    assert np.abs(np.diff(separate_array(step, _level, plan))).max() == 2.0


def test_cross_fading_hides_answers_that_are_bad_at_the_edges() -> None:
    edge = np.ones(1000, np.float32)
    edge[:100] = edge[-100:] = 0.0

    def bad_at_the_edges(batch: torch.Tensor) -> torch.Tensor:
        return batch * torch.from_numpy(edge)

    recording = _noise(1, 10_000)

    def error(overlap: float) -> float:
        plan = WindowPlan(window_samples=1000, overlap=overlap)
        difference = separate_array(recording, bad_at_the_edges, plan) - recording
        return float(np.square(difference[:, 100:-100]).mean())

    assert error(0.25) < 0.5 * error(0.0)
    assert error(0.5) < 0.5 * error(0.25)


def test_application_protocol_joins_windows_bluntly_and_keeps_the_padding() -> None:
    recording = _noise(1, 25)
    joined = separate_array(recording, _level, WindowPlan.application_protocol(10))
    padded = np.pad(recording, ((0, 0), (0, 5))).reshape(3, 10)
    expected = np.repeat(padded.mean(axis=1), 10)[None]
    np.testing.assert_allclose(joined, expected, rtol=0, atol=rounding(recording, 10))


def test_padding_is_cut_off_unless_asked_for() -> None:
    recording = _noise(1, 25)
    plan = WindowPlan(window_samples=10, overlap=0.0, tail="pad")
    kept = separate_array(recording, _level, WindowPlan.application_protocol(10))
    assert kept.shape == (1, 30)
    np.testing.assert_array_equal(separate_array(recording, _level, plan), kept[:, :25])


def test_batches_are_filled_but_never_exceeded() -> None:
    sizes: list[int] = []

    def recorded(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        return batch

    plan = WindowPlan(window_samples=10, overlap=0.0)
    separate_array(_noise(2, 70), recorded, plan, batch_size=4)  # 7 windows x 2 channels
    assert sizes == [4, 4, 4, 2]
    sizes.clear()
    separate_array(_noise(3, 20), recorded, plan, batch_size=2)
    assert sizes == [2, 1, 2, 1]


def test_one_batch_may_hold_windows_of_several_recordings() -> None:
    plan = WindowPlan(window_samples=50)
    recordings = {"a": _noise(1, 130, seed=1), "b": _noise(1, 211, seed=2)}
    jobs = sorted(
        ((start, name) for name, array in recordings.items() for start in plan.starts(array.size)),
    )
    batch = np.concatenate([plan.cut(recordings[name], start) for start, name in jobs])
    answers = _window_dependent(torch.from_numpy(batch)).numpy()
    adders = {name: OverlapAdder(plan, num_channels=1) for name in recordings}
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in recordings}
    for (start, name), answer in zip(jobs, answers, strict=True):
        pieces[name].append(adders[name].push(answer[None], start))
    for name, recording in recordings.items():
        joined = np.concatenate([*pieces[name], adders[name].flush()], axis=1)
        alone = separate_array(recording, _window_dependent, plan)
        np.testing.assert_allclose(joined, alone, rtol=0, atol=rounding(alone, 50))


def test_memory_does_not_grow_with_the_recording() -> None:
    plan = WindowPlan(window_samples=4000)

    def peak_bytes(num_blocks: int) -> int:
        blocks = (_noise(2, 1500) for _ in range(num_blocks))
        tracemalloc.start()
        try:
            for _ in separate_blocks(blocks, _identity, plan, batch_size=4):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(10)
    assert peak_bytes(400) < 1.2 * peak_bytes(40)


def test_output_lags_the_input_by_no_more_than_a_window_and_a_hop() -> None:
    plan = WindowPlan(window_samples=100, overlap=0.25)
    received = produced = 0

    def blocks():
        nonlocal received
        for _ in range(300):
            received += 7
            yield _noise(1, 7)

    for piece in separate_blocks(blocks(), _identity, plan):
        assert received - produced <= 100 + 75 + 7
        produced += piece.shape[1]
    assert produced == 2100


def test_inputs_are_left_untouched() -> None:
    recording = _noise(2, 333)
    before = recording.copy()
    separate_array(recording, lambda batch: batch.mul_(0), WindowPlan(window_samples=100))
    np.testing.assert_array_equal(recording, before)


def test_answers_may_be_overwritten_after_they_are_pushed() -> None:
    plan = WindowPlan(window_samples=4, overlap=0.5)
    adder = OverlapAdder(plan, num_channels=1)
    answer = np.ones((1, 4), np.float32)
    pieces = []
    for start in plan.starts(10):
        answer[:] = 1.0
        pieces.append(adder.push(answer, start))
        answer[:] = 99.0
    np.testing.assert_array_equal(
        np.concatenate([*pieces, adder.flush()], axis=1), np.ones((1, 10))
    )


def test_low_precision_answers_become_float32() -> None:
    joined = separate_array(
        _noise(1, 30), lambda batch: batch.bfloat16(), WindowPlan(window_samples=10)
    )
    assert joined.dtype == np.float32
