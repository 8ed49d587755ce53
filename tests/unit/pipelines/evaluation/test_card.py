from __future__ import annotations

import math

import numpy as np
import pytest

import report_runs
from evaluations import results_of, score
from model.bootstrap import summarise
from pipelines.evaluation import card
from pipelines.evaluation.model_figures import Cost, ZeroShot
from pipelines.evaluation.results import Results
from terminal.screen import markdown


def _results() -> Results:
    rows = [
        score(0, "text_pn", 4.0, label="rain", presence=0.9),
        score(1, "text_pn", 8.0, presence=0.8),
        score(2, "text_pn", math.nan),
        score(0, "text_p", 1.5, label="rain"),
        score(0, "absent", -3.0, label="rain", presence=0.1, suppression_db=7.5),
        score(0, "dog_phrases", 7.0, positive_text="puppy yapping"),
        score(1, "dog_phrases", 9.0, positive_text="someone's dog"),
    ]
    share = summarise(np.array([0.0, 1.0]), ["a", "b"])
    return results_of(
        rows,
        limit=5,
        zero_shot=(
            ZeroShot(
                phrasing="caption", num_classes=86, top1=share, top5=share, per_class={"bell": 0.5}
            ),
        ),
        cost=Cost(
            parameters={"separator.encoder": 1_000, "separator.decoder": 2_000, "clap.text": 0},
            parameters_in_all=3_000,
            file_bytes={"a.safetensors": 2_500_000},
            device="cpu",
            threads=2,
            real_time_factor=30.4,
        ),
    )


def test_tables() -> None:
    lines = card.card_tables(_results()).splitlines()
    assert "the first 5 mixtures of each set" in lines[0]
    assert (
        "| `text_pn` | 6.00 ± 2.83 | [4.00, 8.00] | 6.00 | 12.00 ± 5.66 | 18.00 ± 8.49 | 2 | 1 "
        "| the corpus's captions, P+N |"
    ) in lines
    assert not any(line.startswith("| `absent` | -3") for line in lines)
    assert "| `absent` | `presence` | 1.000 |  | 1 | 1 |" in lines
    assert "| `absent` | 7.50 |  | 7.50 | 1 | 0 |" in lines
    assert "| puppy yapping | 7.00 | 7.00 | 1 |" in lines
    assert "| class | `text_pn` | `text_p` | n |" in lines
    assert "| bell | 8.00 | n/a | 2 |" in lines
    assert "| rain | 4.00 | 1.50 | 1 |" in lines
    assert "| caption | 50.0 % [0.0, 100.0] | 50.0 % [0.0, 100.0] | 86 | 2 |" in lines
    assert "| parameters, `clap.text` | none of its own |" in lines
    assert "| parameters, all | 3,000 |" in lines
    assert "| `a.safetensors` | 2.5 MB |" in lines
    assert "| speed on cpu, 2 threads | 30x real time |" in lines


def test_parts_that_were_not_run_have_no_table() -> None:
    text = card.card_tables(results_of([score(0, "levels_0db", 1.0)], split="val"))
    assert text.startswith("Split `val`, seed 0. ")
    assert "###" not in text
    assert text.count("\n| --- |") == 1


def test_nothing_defined_is_not_a_number() -> None:
    text = card.card_tables(results_of([score(0, "levels_0db", math.nan)]))
    assert "| `levels_0db` | n/a |  | n/a | n/a | n/a | 0 | 1 |" in text


@pytest.mark.parametrize("name", report_runs.NASTY)
def test_a_label_is_text(name: str) -> None:
    found = results_of([score(0, "text_pn", 4.0, label=name)])
    assert f"| {markdown(name)} | 4.00 | 1 |" in card.card_tables(found).splitlines()
