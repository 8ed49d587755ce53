from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluations import results_of, score
from manifests.columns import METRICS_SCHEMA
from pipelines.evaluation.results import (
    Results,
    read_scores,
    record_differences,
    record_of,
    summarised,
    to_json,
)
from transforms.storage import Storage


def test_sets_come_in_their_order_and_intervals_draw_recordings() -> None:
    rows = [score(n, "text_p", float(n % 4), group=str(n % 4)) for n in range(40)]
    rows += [score(n, "text_pn", float(n % 4)) for n in range(40)]
    found = results_of(rows).summaries()
    assert list(found) == ["text_pn", "text_p"]
    one, other = (found[name]["sdri_db"] for name in found)
    assert one.mean == other.mean == 1.5
    assert other.ci_high - other.ci_low > 2 * (one.ci_high - one.ci_low)
    assert found["text_p"]["snri_db"].mean == 4.5


def test_classes_and_phrases_have_figures_of_their_own() -> None:
    rows = [
        score(0, "text_pn", 4.0, label="rain"),
        score(1, "text_pn", 8.0, label="bell"),
        score(2, "text_pn", math.nan, label="bell"),
        score(0, "levels_5db", 1.0, label="rain"),
        score(0, "dog_phrases", 7.0, positive_text="someone's dog"),
        score(1, "dog_phrases", 9.0, positive_text="puppy yapping"),
    ]
    found = results_of(rows)
    assert {name: list(labels) for name, labels in found.by_class().items()} == {
        "text_pn": ["bell", "rain"]
    }
    bell = found.by_class()["text_pn"]["bell"]
    assert (bell.n, bell.n_undefined, bell.mean) == (1, 1, 8.0)
    assert [(phrase, each.mean) for phrase, each in found.by_phrase().items()] == [
        ("puppy yapping", 9.0),
        ("someone's dog", 7.0),
    ]


def _mixture(number: int, dataset: str, **values: Any) -> dict[str, Any]:
    place = {"target_uris": [f"t{number}"], "interferer_uris": [f"i{number}"]}
    return score(number, dataset, 1.0, group=f"g{number % 9}", **place, **values)


def test_presence_compares_the_same_mixtures_by_every_column_that_has_values() -> None:
    rows = [_mixture(n, "text_pn", stem_to_mixture_db=-3.0 - n) for n in range(20)]
    rows += [
        {**_mixture(n, "absent", stem_to_mixture_db=-7.5 - n), "id": f"absent-{n}-{turn}"}
        for n in range(10)
        for turn in range(3)
    ]
    found = results_of(rows).presence()
    assert list(found) == ["absent"]
    (column, detection), *others = found["absent"].items()
    assert (column, others) == ("stem_to_mixture_db", [])
    assert (detection.n_present, detection.n_absent) == (10, 30)
    expected = np.mean([-3.0 - a > -7.5 - b for a in range(10) for b in range(10)])
    assert detection.auroc == pytest.approx(expected)
    assert detection.ci_low < detection.auroc < detection.ci_high


def test_a_silent_stem_is_the_most_absent_of_all() -> None:
    silent = {"undefined_reason": "clap_score=silent_stem; stem_to_mixture_db=silent_stem"}
    unknown = {"undefined_reason": "stem_to_mixture_db=not_measured"}
    rows = [_mixture(n, "text_pn", stem_to_mixture_db=-90.0) for n in range(3)]
    rows += [_mixture(n, "absent", **silent) for n in range(2)]
    rows += [_mixture(2, "absent", **unknown)]
    detection = results_of(rows).presence()["absent"]["stem_to_mixture_db"]
    assert (detection.auroc, detection.n_absent) == (1.0, 2)


def test_suppression_is_of_what_is_absent() -> None:
    rows = [_mixture(0, "text_pn", suppression_db=1.0)]
    rows += [_mixture(n, "absent", suppression_db=4.0 + n) for n in range(3)]
    rows += [_mixture(3, "absent"), _mixture(0, "absent_near")]
    found = results_of(rows).suppression()
    assert list(found) == ["absent"]
    assert (found["absent"].n, found["absent"].n_undefined, found["absent"].mean) == (3, 1, 5.0)
    record = record_of(results_of(rows))
    assert record["suppression"]["absent"]["mean"] == 5.0


def test_presence_is_not_told_without_a_column_or_without_what_is_there() -> None:
    rows = [_mixture(0, "text_pn"), _mixture(0, "absent")]
    assert results_of(rows).presence() == {}
    assert results_of([_mixture(0, "absent", presence=0.5)]).presence() == {}
    assert "absent" not in results_of(rows).summaries()


def test_the_record_is_plain_json_with_null_for_what_is_undefined() -> None:
    rows = [score(0, "text_p", 1.5), score(1, "text_p", math.nan)]
    record = json.loads(to_json(record_of(results_of(rows, limit=2))))
    assert record["limit"] == 2
    assert record["models"] == ["tones abc"]
    assert record["datasets"]["text_p"]["sdri_db"] == {
        "n": 1,
        "n_undefined": 1,
        "mean": 1.5,
        "std": None,
        "median": 1.5,
        "low": None,
        "high": None,
    }
    assert record["presence"] == record["zero_shot"] == {}
    assert "cost" not in record


def test_results_of_nothing_separated_have_no_figures() -> None:
    record = record_of(Results(split="test", seed=0, limit=None, scores=None))
    assert record["datasets"] == record["per_class"] == record["phrases"] == {}
    assert record["models"] == []


def test_the_scores_of_a_run_are_read_from_all_its_files(tmp_path: Path) -> None:
    for number, row in enumerate((score(1, "text_p", 2.0), score(0, "text_pn", math.nan))):
        values = {**dict.fromkeys(METRICS_SCHEMA.names), **row}
        values = {
            k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()
        }
        folder = tmp_path / f"metrics/dataset={row['dataset']}/split=test"
        folder.mkdir(parents=True)
        table = pa.Table.from_pylist([values], schema=METRICS_SCHEMA)
        pq.write_table(table, folder / f"{number}.parquet")
    found = read_scores(str(tmp_path), Storage())
    assert found["id"].tolist() == ["text_p-1", "text_pn-0"]
    assert found["sdri_db"].tolist() == [2.0, pytest.approx(math.nan, nan_ok=True)]
    assert found["presence"].dtype == np.float64
    assert summarised(found).mean == 2.0
    with pytest.raises(FileNotFoundError, match="other: has no metrics; expected those of"):
        read_scores(str(tmp_path / "other"), Storage())


def _record() -> dict[str, Any]:
    return {
        "split": "test",
        "seed": 0,
        "limit": None,
        "datasets": {
            "text_pn": {"sdri_db": {"n": 4, "mean": 7.0}, "snri_db": {"n": 4, "mean": None}}
        },
        "presence": {"absent": {"presence": {"n_present": 4, "n_absent": 12, "auroc": 0.8}}},
        "zero_shot": {"caption": {"phrasing": "caption", "top1": {"n": 9, "mean": 0.5}}},
        "cost": {"real_time_factor": 20.0},
    }


def test_equal_records_match_whatever_they_cost() -> None:
    found = _record()
    found["cost"]["real_time_factor"] = 40.0
    found["datasets"]["text_pn"]["sdri_db"]["mean"] = 7.04
    assert record_differences(_record(), found) == []


def test_figures_beyond_the_tolerance_differ() -> None:
    found = _record()
    found["datasets"]["text_pn"]["sdri_db"]["mean"] = 7.06
    assert record_differences(_record(), found) == ["text_pn.sdri_db: recorded 7.0, found 7.06"]
    assert record_differences(_record(), found, tolerance_db=0.1) == []
    found = _record()
    found["zero_shot"]["caption"]["top1"]["mean"] = 0.52
    found["presence"]["absent"]["presence"]["auroc"] = 0.7
    assert record_differences(_record(), found) == [
        "absent.presence: recorded 0.8, found 0.7",
        "caption.top1: recorded 0.5, found 0.52",
    ]


def test_counts_settings_and_what_was_not_measured_differ() -> None:
    found = copy.deepcopy(_record())
    found["datasets"]["text_pn"]["sdri_db"]["n"] = 3
    found["presence"]["absent"] = {"presence": {"n_present": 4, "n_absent": 11, "auroc": 0.8}}
    found["seed"] = 1
    found["zero_shot"] = {}
    assert record_differences(_record(), found) == [
        "seed: recorded 0, found 1",
        "text_pn.sdri_db.n: recorded 4, found 3",
        "absent.presence.n_absent: recorded 12, found 11",
        "caption: recorded, but not measured",
    ]
    del found["presence"]["absent"]["presence"]
    assert "absent.presence: recorded, but not measured" in record_differences(_record(), found)


def test_undefined_means_differ_from_defined_ones() -> None:
    found = _record()
    found["datasets"]["text_pn"]["snri_db"]["mean"] = 1.0
    assert record_differences(_record(), found) == ["text_pn.snri_db: recorded None, found 1.0"]


def test_a_record_of_before_presence_was_measured_can_be_compared() -> None:
    recorded = _record()
    del recorded["presence"]
    assert record_differences(recorded, _record()) == []


def test_frames_of_scores_are_not_changed() -> None:
    rows = [_mixture(0, "text_pn", stem_to_mixture_db=-1.0)]
    rows += [_mixture(0, "absent", undefined_reason="stem_to_mixture_db=silent_stem")]
    results = results_of(rows)
    before = results.scores.copy()
    results.presence()
    pd.testing.assert_frame_equal(results.scores, before)


def test_a_record_with_the_means_only_is_compared_by_them() -> None:
    recorded = {**_record(), "datasets": {"text_pn": {"sdri_db": {"mean": 7.0}}}}
    recorded |= {"presence": {}, "zero_shot": {}}
    assert record_differences(recorded, _record()) == []
    recorded["datasets"]["text_pn"]["sdri_db"]["mean"] = 8.0
    assert record_differences(recorded, _record()) == ["text_pn.sdri_db: recorded 8.0, found 7.0"]
