from __future__ import annotations

import math

import numpy as np
import pytest

from model.evaluation.results import Results, Score, summarise


def score(number: int, dataset: str = "d", sdri_db: float = 1.0, **fields: str) -> Score:
    return Score(
        id=f"{dataset}-{number}",
        dataset=dataset,
        label=fields.get("label", "bell"),
        group=fields.get("group", str(number)),
        phrase=fields.get("phrase", ""),
        sdri_db=sdri_db,
        si_sdri_db=2 * sdri_db,
        snri_db=3 * sdri_db,
        undefined_reason="silent_stem" if math.isnan(sdri_db) else "",
    )


def test_figures_of_defined_values() -> None:
    summary = summarise(np.array([1.0, math.nan, 2.0, 6.0]), ["a", "b", "c", "d"])
    assert (summary.n, summary.n_undefined) == (3, 1)
    assert summary.mean == pytest.approx(3.0)
    assert summary.median == 2.0
    assert summary.std == pytest.approx(math.sqrt(7.0))
    assert 1.0 <= summary.low < summary.mean < summary.high <= 6.0


def test_nothing_defined() -> None:
    summary = summarise(np.array([math.nan]), ["a"])
    assert (summary.n, summary.n_undefined) == (0, 1)
    assert all(
        math.isnan(getattr(summary, name)) for name in ("mean", "std", "median", "low", "high")
    )
    assert summarise(np.array([]), []).n == 0


def test_one_value_has_no_spread() -> None:
    summary = summarise(np.array([4.0]), ["a"])
    assert math.isnan(summary.std)
    assert (summary.mean, summary.low, summary.high) == (4.0, 4.0, 4.0)


def test_the_interval_covers_the_mean_of_a_normal_sample_as_the_formula_says() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    summary = summarise(values, [str(index) for index in range(400)])
    half = 1.96 * values.std(ddof=1) / 20
    assert summary.low == pytest.approx(values.mean() - half, abs=0.03)
    assert summary.high == pytest.approx(values.mean() + half, abs=0.03)


def test_copies_of_a_recording_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 50)
    groups = [str(index) for index in range(50)]
    once = summarise(values, groups)
    copies = summarise(np.repeat(values, 9), list(np.repeat(groups, 9)))
    assert copies.mean == pytest.approx(once.mean)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))


def test_a_summary_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(2).normal(size=20)
    groups = [str(index % 7) for index in range(20)]
    backwards = summarise(values[::-1], groups[::-1])
    forwards = summarise(values, groups)
    assert (backwards.low, backwards.high) == pytest.approx((forwards.low, forwards.high))


def test_results_by_data_set_and_metric() -> None:
    results = Results(
        split="test",
        seed=0,
        limit=None,
        scores=(score(0, "a", 1.0), score(1, "b", 5.0), score(2, "a", 3.0)),
    )
    assert results.datasets == ["a", "b"]
    assert results.mean("a") == 2.0
    assert results.mean("a", "si_sdri_db") == 4.0
    assert results.summary("b", "snri_db").mean == 15.0
    with pytest.raises(ValueError, match="data set 'c'"):
        results.mean("c")
    with pytest.raises(ValueError, match="metric 'sdr'"):
        results.mean("a", "sdr")
