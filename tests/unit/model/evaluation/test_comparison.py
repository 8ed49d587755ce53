from __future__ import annotations

import copy
from typing import Any

from model.evaluation.comparison import differences


def _record() -> dict[str, Any]:
    return {
        "split": "test",
        "seed": 0,
        "limit": None,
        "datasets": {
            "text_pn": {"sdri_db": {"n": 4, "mean": 7.0}, "snri_db": {"n": 4, "mean": None}}
        },
        "zero_shot": {"caption": {"phrasing": "caption", "top1": {"n": 9, "mean": 0.5}}},
        "cost": {"real_time_factor": 20.0},
    }


def test_equal_records_match_whatever_they_cost() -> None:
    found = _record()
    found["cost"]["real_time_factor"] = 40.0
    found["datasets"]["text_pn"]["sdri_db"]["mean"] = 7.04
    assert differences(_record(), found) == []


def test_means_beyond_the_tolerance_differ() -> None:
    found = _record()
    found["datasets"]["text_pn"]["sdri_db"]["mean"] = 7.06
    assert differences(_record(), found) == ["text_pn.sdri_db: recorded 7.0, found 7.06"]
    assert differences(_record(), found, tolerance_db=0.1) == []
    found = _record()
    found["zero_shot"]["caption"]["top1"]["mean"] = 0.52
    assert differences(_record(), found) == ["caption.top1: recorded 0.5, found 0.52"]


def test_counts_settings_and_missing_sets_differ() -> None:
    found = copy.deepcopy(_record())
    found["datasets"]["text_pn"]["sdri_db"]["n"] = 3
    found["seed"] = 1
    found["zero_shot"] = {}
    assert differences(_record(), found) == [
        "seed: recorded 0, found 1",
        "text_pn.sdri_db.n: recorded 4, found 3",
        "caption: recorded, but not measured",
    ]


def test_undefined_means_differ_from_defined_ones() -> None:
    found = _record()
    found["datasets"]["text_pn"]["snri_db"]["mean"] = 1.0
    assert differences(_record(), found) == ["text_pn.snri_db: recorded None, found 1.0"]
