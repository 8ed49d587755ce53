from __future__ import annotations

from collections import Counter

import pytest

from manifests.benchmarks.mixtures import BENCHMARKS
from manifests.columns import METRIC_COLUMNS
from manifests.published import load


def find(**wanted):
    return [
        result
        for result in load()
        if all(getattr(result, name) == value for name, value in wanted.items())
    ]


def test_every_table_is_there():
    assert Counter(result.table for result in load()) == {
        "II": 102,
        "III": 40,
        "IV": 102,
        "V": 36,
        "VI": 30,
        "VII": 50,
    }


def test_first_figure():
    first = load()[0]
    assert (first.table, first.method, first.dataset) == ("II", "AudioSep", "AudioCaps")
    assert (first.query_type, first.polarity, first.shots) == ("text", "P", None)
    assert (first.metric, first.mean, first.std, first.column) == ("SDRi", 7.75, 5.59, "sdri_db")


@pytest.mark.parametrize(("method", "mean"), [("CLAPSep", -1.62), ("CLAPSep [†]", 5.07)])
def test_the_published_model_breaks_at_a_high_input_level(method, mean):
    (result,) = find(table="VI", method=method, input_snr_db=10.0, metric="SDRi")
    assert result.mean == mean


def test_names_are_those_of_benchmarks_and_metrics():
    datasets = {benchmark.dataset for benchmark in BENCHMARKS.values()} | {None}
    assert {result.dataset for result in load()} == datasets
    columns = {result.column for result in load()}
    assert columns - {None} <= set(METRIC_COLUMNS)


def test_several_sources_and_targets():
    found = {(result.num_sources, result.num_targets) for result in find(table="V")}
    assert found == {(n, k) for n in (2, 3, 4) for k in range(1, n)}


def test_figures_are_plausible():
    for result in load():
        assert result.std > 0
        assert abs(result.mean) < 30
