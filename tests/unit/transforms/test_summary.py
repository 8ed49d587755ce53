from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from unittest import mock

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from hypothesis import given
from hypothesis import strategies as st

from manifests.columns import METRIC_COLUMNS, SUMMARY_SCHEMA
from metric_rows import metrics
from model.bootstrap import design_effect, summarise
from transforms.elements import MetricsRow
from transforms.storage import Storage
from transforms.tables import summary
from transforms.tables.summary import LEFT_OUT, ROUNDED, Group, SummariseMetrics, coarser, group_of

RNG = np.random.default_rng(0)


def test_the_usual_numbers_are_numpys() -> None:
    values = np.array([3.0, np.nan, -1.0, 7.5, np.inf, 2.0])
    found = summarise(values)
    defined = np.array([3.0, -1.0, 7.5, 2.0])
    assert (found.n, found.n_undefined) == (4, 2)
    assert found.mean == pytest.approx(defined.mean())
    assert found.std == pytest.approx(defined.std(ddof=1))
    assert found.median == pytest.approx(np.median(defined))
    assert summarise(values[::-1]) == found


def test_the_interval_is_that_of_the_normal_law_for_many_values() -> None:
    values = RNG.normal(5.0, 2.0, 4_000)
    found = summarise(values)
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    assert found.ci_low == pytest.approx(values.mean() - half_width, abs=0.01)
    assert found.ci_high == pytest.approx(values.mean() + half_width, abs=0.01)


def _alike(count: int, clips: int) -> tuple[np.ndarray, list[str]]:
    """Values of ``count`` recordings of ``clips`` clips each that differ little in a recording."""
    means = RNG.normal(5.0, 2.0, count)
    values = np.repeat(means, clips) + RNG.normal(0.0, 0.1, count * clips)
    return values, [f"recording {number // clips}" for number in range(count * clips)]


def test_the_interval_draws_recordings_where_they_are_known() -> None:
    values, groups = _alike(60, 9)
    of_recordings = summarise(values.reshape(60, 9).mean(axis=1))
    found = summarise(values, groups)
    assert found.ci_low == pytest.approx(of_recordings.ci_low, abs=0.1)
    assert found.ci_high == pytest.approx(of_recordings.ci_high, abs=0.1)
    alone = summarise(values)
    assert found.ci_high - found.ci_low > 2 * (alone.ci_high - alone.ci_low)
    assert (found.mean, found.std, found.median) == (alone.mean, alone.std, alone.median)


def test_the_order_of_clips_and_names_of_recordings_do_not_matter() -> None:
    values, groups = _alike(20, 3)
    order = RNG.permutation(len(values))
    assert summarise(values[order], [groups[index] for index in order]) == summarise(values, groups)


def test_clips_without_a_recording_are_recordings_of_their_own() -> None:
    values = RNG.normal(size=50)
    assert summarise(values, [None] * 50) == summarise(values)
    assert summarise(values, [str(number) for number in range(50)]).ci_low == pytest.approx(
        summarise(values).ci_low, abs=0.1
    )


@pytest.mark.parametrize("value", [0.1, 0.3, 2.7, -1.78807])
def test_the_interval_of_equal_values_holds_them(value: float) -> None:
    # Plots draw from the mean to either end, and no length of that is below 0.
    found = summarise(np.full(15, value), [str(number // 5) for number in range(15)])
    assert found.ci_low <= found.mean <= found.ci_high
    assert (found.ci_low, found.ci_high) == pytest.approx((value, value))


def test_one_recording_gives_no_interval() -> None:
    found = summarise(np.array([1.0, 2.0, 3.0]), ["a", "a", "a"])
    assert found.std == 1.0
    assert found.ci_low is None


def test_the_design_effect_is_that_of_the_variance_of_the_mean() -> None:
    values, groups = _alike(4_000, 5)
    of_means = values.reshape(-1, 5).mean(axis=1)
    expected = (of_means.var(ddof=1) / 4_000) / (values.var(ddof=1) / 20_000)
    assert design_effect(values, groups) == pytest.approx(expected, rel=1e-3)
    assert design_effect(values, [None] * len(values)) == 1.0


@pytest.mark.parametrize("values", [[], [np.nan], [4.0]])
def test_what_too_few_values_leave_open_is_none(values: list[float]) -> None:
    found = summarise(np.array(values))
    assert found.std is None
    assert found.ci_low is None
    assert found.mean == (4.0 if values == [4.0] else None)


def test_groups_tell_datasets_queries_and_models_apart() -> None:
    row = metrics("a")
    other = metrics("b", dataset=None, negative_text="rain", snr_db=(3.0,))
    assert group_of(row) == group_of(metrics("c", sdri_db=None))
    assert group_of(other).dataset is None
    assert (group_of(other).polarity, group_of(other).input_snr_db) == ("P+N", 3.0)
    assert group_of(row).key != group_of(other).key


def _summarised(folder: Path, rows: list) -> list[dict]:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(rows) | SummariseMetrics(uri=str(folder), storage=Storage())
    table = pq.read_table(folder / "summary-00000-of-00001.parquet")
    assert table.schema.equals(SUMMARY_SCHEMA)
    return table.to_pylist()


def test_every_group_has_a_line_for_every_metric_in_any_order(tmp_path: Path) -> None:
    values = RNG.normal(size=20)
    rows = [metrics(f"{i}", value) for i, value in enumerate(values)]
    rows += [metrics("undefined", None), metrics("alone", 3.0, dataset="e")]
    lines = _summarised(tmp_path / "a", rows)
    assert _summarised(tmp_path / "b", rows[::-1]) == lines
    assert [line["metric"] for line in lines] == [*METRIC_COLUMNS] * 2
    sdri = {line["dataset"]: line for line in lines if line["metric"] == "sdri_db"}
    assert (sdri["d"]["n"], sdri["d"]["n_undefined"]) == (20, 1)
    assert sdri["d"]["mean"] == pytest.approx(values.mean())
    assert (sdri["e"]["mean"], sdri["e"]["std"]) == (3.0, None)
    unscored = next(line for line in lines if line["metric"] == "snr_db")
    assert (unscored["n"], unscored["n_undefined"], unscored["mean"]) == (0, 21, None)


def test_many_clips_keep_exact_moments_and_a_sample_by_id(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(summary, "MAX_KEPT", 50)
    values = RNG.normal(2.0, 1.0, 400)
    rows = [metrics(f"{i}", value) for i, value in enumerate(values)]
    lines = _summarised(tmp_path / "a", rows)
    assert _summarised(tmp_path / "b", rows[::-1]) == [
        {k: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for k, v in line.items()}
        for line in lines
    ]
    sdri = next(line for line in lines if line["metric"] == "sdri_db")
    assert sdri["n"] == 400
    assert sdri["mean"] == pytest.approx(values.mean())
    assert sdri["std"] == pytest.approx(values.std(ddof=1))
    assert sdri["median"] == pytest.approx(np.median(values), abs=0.5)
    assert sdri["ci95_low"] < values.mean() < sdri["ci95_high"]


def test_no_rows_give_no_summary(tmp_path: Path) -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create([]) | SummariseMetrics(uri=str(tmp_path), storage=Storage())
    assert list(tmp_path.iterdir()) == []


def _keys(count: int, **fields: list) -> list[str]:
    """Keys of groups whose columns have the given values, in turn."""
    first = dataclasses.asdict(group_of(metrics("a")))
    return [
        Group(**first | {name: values[i % len(values)] for name, values in fields.items()}).key
        for i in range(count)
    ]


def _steps(keys: list[str], parts: int = 1) -> list[tuple[str, str]]:
    """What is made coarser of these groups, found in so many parts."""
    distinct, taken = (summary._GatherFn(kind) for kind in (summary._Distinct, summary._Coarsened))

    def gather(fn: summary._GatherFn, elements: list) -> list:
        gathered = [fn.create_accumulator() for _ in range(parts)]
        for number, element in enumerate(elements):
            fn.add_input(gathered[number % parts], element)
        return fn.extract_output(fn.merge_accumulators(gathered))

    steps = gather(distinct, keys)
    return gather(taken, [(key, steps) for key in keys])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input_snr_db": [0.001 * i for i in range(5_000)]}, {"input_snr_db": ROUNDED}),
        ({"input_snr_db": [1e3 * i for i in range(5_000)]}, {"input_snr_db": LEFT_OUT}),
        ({"dataset": [f"d{i}" for i in range(5_000)]}, {"dataset": LEFT_OUT}),
        ({"n_sources": list(range(1_001))}, {"n_sources": LEFT_OUT}),
        ({"dataset": [f"d{i}" for i in range(1_000)]}, {}),
    ],
)
def test_a_column_of_too_many_values_is_made_coarser(fields: dict, expected: dict) -> None:
    keys = _keys(len(next(iter(fields.values()))), **fields)
    steps = _steps(keys, parts=3)
    assert dict(steps) == expected
    assert len({coarser(key, steps) for key in keys}) <= 1_000


def test_many_groups_of_few_values_lose_their_levels_first() -> None:
    datasets, levels = [f"d{i}" for i in range(41)], [0.5 * i for i in range(40)]
    assert dict(_steps(_keys(41 * 40, dataset=datasets, input_snr_db=levels))) == {
        "input_snr_db": ROUNDED
    }


_VALUES = st.fixed_dictionaries(
    {
        "dataset": st.sampled_from([None, "a", "b", "c"]),
        "n_sources": st.sampled_from([None, 1, 2, 3]),
        "input_snr_db": st.one_of(st.none(), st.floats(-3, 3), st.just(float("inf"))),
    }
)


@given(st.lists(_VALUES, max_size=30), st.randoms(use_true_random=False), st.integers(1, 5))
def test_what_is_made_coarser_depends_on_no_order(rows: list, random, parts: int) -> None:
    first = dataclasses.asdict(group_of(metrics("a")))
    keys = [Group(**first | row).key for row in rows]
    with mock.patch.object(summary, "MAX_GROUPS", 4):
        steps = _steps(keys)
        random.shuffle(keys)
        assert _steps(keys, parts) == steps
    groups = {coarser(key, steps) for key in keys}
    assert len(groups) <= 4
    assert len({coarser(key, steps[:-1]) for key in keys}) > 4 or not steps


def test_a_coarser_summary_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(summary, "MAX_GROUPS", 2)
    rows = [metrics(f"{i}", float(i), snr_db=(0.1 * i,)) for i in range(8)]
    lines = _summarised(tmp_path, rows)
    sdri = {line["input_snr_db"]: line["n"] for line in lines if line["metric"] == "sdri_db"}
    assert sdri == {0.0: 6, 1.0: 2}
    metadata = pq.read_schema(tmp_path / "summary-00000-of-00001.parquet").metadata
    assert json.loads(metadata[b"coarser"]) == {"input_snr_db": ROUNDED}


def test_labels_and_recordings_make_no_groups(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(summary, "MAX_GROUPS", 1)
    rows = [metrics(f"{i}", label=f"label {i}", group=f"recording {i}") for i in range(8)]
    assert len(_summarised(tmp_path, rows)) == len(METRIC_COLUMNS)
    assert b"coarser" not in pq.read_schema(tmp_path / "summary-00000-of-00001.parquet").metadata


@pytest.mark.slow
@pytest.mark.parametrize("column", ["snr_db", "dataset", "label"])
def test_a_hundred_thousand_values_make_a_short_summary(tmp_path: Path, column: str) -> None:
    def row(number: int) -> MetricsRow:
        value = (0.001 * number,) if column == "snr_db" else f"value {number}"
        return metrics(str(number), **{column: value})

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create(range(100_000)) | beam.Map(row)
        _ = rows | SummariseMetrics(uri=str(tmp_path), storage=Storage())
    found = pq.read_table(tmp_path / "summary-00000-of-00001.parquet").to_pylist()
    assert len(found) <= 1_000 * len(METRIC_COLUMNS)
    assert sum(line["n"] for line in found if line["metric"] == "sdri_db") == 100_000
