"""Overlap-add: what is refused, and what is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.signal.windowing import OverlapAdder, WindowPlan, separate_array, separate_blocks


def _silence(num_channels: int, num_samples: int) -> np.ndarray:
    return np.zeros((num_channels, num_samples), np.float32)


def _unchanged(batch: torch.Tensor) -> torch.Tensor:
    return batch


@pytest.mark.parametrize("blocks", [[], [np.zeros((1, 0), np.float32)]])
def test_an_empty_recording_is_refused(blocks: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="without samples"):
        list(separate_blocks(blocks, _unchanged, WindowPlan(window_samples=10)))


def test_channels_may_not_change_midway() -> None:
    with pytest.raises(ValueError, match="2 channels became 1"):
        list(
            separate_blocks(
                [_silence(2, 5), _silence(1, 5)], _unchanged, WindowPlan(window_samples=9)
            )
        )


def test_batches_must_hold_something() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        separate_array(_silence(1, 5), _unchanged, WindowPlan(window_samples=9), batch_size=0)


def test_a_separator_that_changes_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made \(1, 4\) of \(1, 5\)"):
        separate_array(_silence(1, 5), lambda batch: batch[:, 1:], WindowPlan(window_samples=9))


class TestOverlapAdderRefuses:
    @pytest.fixture
    def adder(self) -> OverlapAdder:
        return OverlapAdder(WindowPlan(window_samples=8), num_channels=2)

    def test_to_begin_later_than_the_recording(self, adder: OverlapAdder) -> None:
        with pytest.raises(ValueError, match=r"at 3, where one in \[0, 0\]"):
            adder.push(_silence(2, 8), 3)

    @pytest.mark.parametrize("start", [0, 9])
    def test_repetitions_and_gaps(self, adder: OverlapAdder, start: int) -> None:
        adder.push(_silence(2, 8), 0)
        with pytest.raises(ValueError, match=rf"at {start}, where one in \[1, 8\]"):
            adder.push(_silence(2, 8), start)

    @pytest.mark.parametrize("shape", [(1, 8), (8,)])
    def test_other_channels(self, adder: OverlapAdder, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected \[2, n\]"):
            adder.push(np.zeros(shape, np.float32), 0)

    @pytest.mark.parametrize("num_samples", [0, 9])
    def test_windows_that_do_not_fit(self, adder: OverlapAdder, num_samples: int) -> None:
        with pytest.raises(ValueError, match=f"no window of {num_samples} samples"):
            adder.push(_silence(2, num_samples), 0)

    def test_company_for_a_short_window(self, adder: OverlapAdder) -> None:
        adder.push(_silence(2, 5), 0)
        with pytest.raises(ValueError, match="no window of 8 samples"):
            adder.push(_silence(2, 8), 5)

    def test_to_end_before_it_begins(self, adder: OverlapAdder) -> None:
        with pytest.raises(ValueError, match="flush before the first window"):
            adder.flush()
