from __future__ import annotations

import math

import numpy as np
import pytest

from model.bootstrap import detection, summarise

RNG = np.random.default_rng(0)


def _by_pairs(scores: np.ndarray, present: np.ndarray) -> float:
    """The area under the curve by its definition."""
    one, other = scores[present][:, None], scores[~present][None, :]
    return float(((one > other) + 0.5 * (one == other)).mean())


def test_the_area_is_the_share_of_pairs_in_the_right_order_ties_counted_half() -> None:
    present = np.arange(400) % 4 == 0
    scores = np.round(RNG.normal(size=400) + present, 1)
    found = detection(scores, present, [str(number) for number in range(400)])
    assert (found.n_present, found.n_absent) == (100, 300)
    assert found.auroc == pytest.approx(_by_pairs(scores, present))
    again = detection(scores[::-1], present[::-1], [str(number) for number in range(400)][::-1])
    assert again == found


def test_the_interval_of_a_mean_of_zeros_and_ones_is_that_of_the_area() -> None:
    # Where every absent score is 0.5, the area is the mean of what lies above it.
    hits = RNG.random(300) < 0.7
    scores = np.concatenate([hits.astype(np.float64), np.full(300, 0.5)])
    groups = [str(number % 300) for number in range(600)]
    found = detection(scores, np.arange(600) < 300, groups)
    mean = summarise(hits.astype(np.float64), groups[:300])
    assert found.auroc == pytest.approx(mean.mean)
    assert found.ci_low == pytest.approx(mean.ci_low, abs=0.01)
    assert found.ci_high == pytest.approx(mean.ci_high, abs=0.01)


def test_the_interval_draws_recordings() -> None:
    present = np.arange(600) % 2 == 0
    scores = np.repeat(RNG.normal(size=30), 20) + RNG.normal(0.0, 0.1, 600) + present
    recordings = [str(number // 20) for number in range(600)]
    found = detection(scores, present, recordings)
    alone = detection(scores, present, [str(number) for number in range(600)])
    assert found.auroc == alone.auroc
    assert found.ci_high - found.ci_low > 1.5 * (alone.ci_high - alone.ci_low)


def test_infinite_scores_count_and_those_not_measured_do_not() -> None:
    scores = np.array([math.inf, 0.0, -math.inf, -math.inf, math.nan])
    present = np.array([True, True, False, True, False])
    found = detection(scores, present, list("abcde"))
    assert (found.n_present, found.n_absent) == (3, 1)
    assert found.auroc == pytest.approx((1 + 1 + 0.5) / 3)


@pytest.mark.parametrize("present", [[], [True, True], [False]])
def test_nothing_to_compare_with_has_no_area(present: list[bool]) -> None:
    scores = np.zeros(len(present))
    found = detection(scores, np.array(present, dtype=bool), ["a"] * len(present))
    assert (found.auroc, found.ci_low, found.ci_high) == (None, None, None)


def test_one_recording_gives_no_interval() -> None:
    found = detection(np.array([1.0, 0.0]), np.array([True, False]), ["a", "a"])
    assert (found.auroc, found.ci_low) == (1.0, None)
