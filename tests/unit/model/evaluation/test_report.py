from __future__ import annotations

import csv
import dataclasses
import json
import math

import pytest

import report_runs
from model.evaluation import report
from model.evaluation.results import Cost, Results, Score, ZeroShot, summarise_scores
from terminal.escaping import markdown


def _score(number: int, dataset: str, sdri_db: float, label: str, phrase: str = "") -> Score:
    return Score(
        id=f"{dataset}-{number}",
        dataset=dataset,
        label=label,
        group=str(number),
        phrase=phrase,
        sdri_db=sdri_db,
        si_sdri_db=sdri_db,
        snri_db=sdri_db,
        undefined_reason="silent_stem" if math.isnan(sdri_db) else "",
    )


def _results() -> Results:
    scores = (
        _score(0, "text_pn", 4.0, "rain"),
        _score(1, "text_pn", 8.0, "bell"),
        _score(2, "text_pn", math.nan, "bell"),
        _score(0, "text_p", 1.5, "rain"),
        _score(0, "dog_phrases", 7.0, "dog_bark", "puppy yapping"),
        _score(1, "dog_phrases", 9.0, "dog_bark", "someone's dog"),
    )
    share = summarise_scores(scores[:2])
    return Results(
        split="test",
        seed=0,
        limit=5,
        scores=scores,
        zero_shot=(
            ZeroShot(
                phrasing="caption", num_classes=86, top1=share, top5=share, per_class={"bell": 0.5}
            ),
        ),
        cost=Cost(
            parameters={"separator.encoder": 1_000, "separator.decoder": 2_000},
            parameters_in_all=3_000,
            file_bytes={"a.safetensors": 2_500_000},
            device="cpu",
            threads=2,
            real_time_factor=30.4,
        ),
    )


def test_tables() -> None:
    text = report.to_markdown(_results())
    lines = text.splitlines()
    assert "the first 5 mixtures of each set" in lines[0]
    assert (
        "| `text_pn` | 6.00 ± 2.83 | 4.00 … 8.00 | 6.00 | 6.00 ± 2.83 | 6.00 ± 2.83 | 2 | 1 |"
        in lines
    )
    assert "| puppy yapping | 7.00 | 7.00 | 1 |" in lines
    assert "| class | `text_pn` | `text_p` | n |" in lines
    assert "| bell | 8.00 | n/a | 2 |" in lines
    assert "| rain | 4.00 | 1.50 | 1 |" in lines
    assert "| caption | 600.0 % (400.0 … 800.0) | 600.0 % (400.0 … 800.0) | 86 | 2 |" in lines
    assert "| parameters, all | 3,000 |" in lines
    assert "| `a.safetensors` | 2.5 MB |" in lines
    assert "| speed on cpu, 2 threads | 30x real time |" in lines


def test_a_record_has_null_for_what_is_undefined() -> None:
    record = json.loads(report.to_json(_results()))
    assert record["datasets"]["text_p"]["sdri_db"] == {
        "n": 1,
        "n_undefined": 0,
        "mean": 1.5,
        "std": None,
        "median": 1.5,
        "low": 1.5,
        "high": 1.5,
    }
    assert record["per_class"]["text_pn"]["bell"]["n_undefined"] == 1
    assert list(record["per_class"]) == ["text_pn", "text_p"]
    assert record["phrases"]["someone's dog"]["mean"] == 9.0
    assert record["zero_shot"]["caption"]["per_class"] == {"bell": 0.5}
    assert record["cost"]["real_time_factor"] == 30.4


def test_rows_as_csv() -> None:
    lines = report.to_csv(_results()).splitlines()
    assert lines[0] == ("id,dataset,label,group,phrase,sdri_db,si_sdri_db,snri_db,undefined_reason")
    assert lines[1] == "text_pn-0,text_pn,rain,0,,4.0,4.0,4.0,"
    assert lines[3] == "text_pn-2,text_pn,bell,2,,,,,silent_stem"


def test_parts_that_were_not_run_have_no_table() -> None:
    text = report.to_markdown(
        Results(split="val", seed=1, limit=None, scores=(_score(0, "levels_0db", 1.0, "rain"),))
    )
    assert "###" not in text
    assert "first" not in text


@pytest.mark.parametrize("name", report_runs.NASTY)
def test_a_label_is_text(name: str) -> None:
    found = dataclasses.replace(_results(), scores=(_score(0, "text_pn", 4.0, name),))
    assert f"| {markdown(name)} | 4.00 | 1 |" in report.to_markdown(found).splitlines()
    (row,) = csv.DictReader(report.to_csv(found).splitlines(), strict=True)
    assert row["label"].lstrip()[0] not in "=+-@\uff1d"
