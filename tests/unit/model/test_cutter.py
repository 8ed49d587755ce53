from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.signal import Cutter


@given(
    cuts=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    takes=st.lists(st.integers(1, 9), max_size=8),
)
def test_a_cutter_gives_what_the_blocks_hold_then_zeros(cuts: list[int], takes: list[int]) -> None:
    total = sum(cuts)
    samples = np.arange(2 * total, dtype=np.float32).reshape(2, total) + 1
    cutter = Cutter(np.split(samples, np.cumsum(cuts)[:-1], axis=1))
    found = [cutter.take(count) for count in takes]
    expected = np.pad(samples, ((0, 0), (0, max(0, sum(takes) - total))))
    if takes:
        np.testing.assert_array_equal(np.concatenate(found, axis=1), expected[:, : sum(takes)])


def test_a_cutter_needs_a_block() -> None:
    with pytest.raises(ValueError, match="no blocks"):
        Cutter([]).take(1)
