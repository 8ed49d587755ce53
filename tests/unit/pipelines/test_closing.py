from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import report_runs
from pipelines.console import Pooled, pooled, table_text
from terminal.screen import one_line


def _group(values: np.ndarray) -> dict[str, object]:
    n = len(values)
    std = float(values.std(ddof=1)) if n > 1 else None
    return {"n": n, "mean": float(values.mean()) if n else None, "std": std}


def test_groups_pool_to_the_numbers_of_all_their_clips() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(i, i + 1, n) for i, n in enumerate((5, 1, 40, 0))]
    found = pooled(_group(part) for part in parts)
    whole = np.concatenate(parts)
    assert found.n == 46
    assert found.mean == pytest.approx(whole.mean())
    assert found.std == pytest.approx(whole.std(ddof=1))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Pooled(n=0, mean=None, std=None), "-"),
        (Pooled(n=1, mean=2.0, std=None), "2.00"),
        (Pooled(n=9, mean=2.346, std=0.5), "2.35 ± 0.50"),
    ],
)
def test_what_is_not_known_is_not_shown(found: Pooled, text: str) -> None:
    assert str(found) == text


def test_one_clip_has_no_deviation() -> None:
    assert pooled([_group(np.array([3.0]))]) == Pooled(n=1, mean=3.0, std=None)
    assert pooled([]) == Pooled(n=0, mean=None, std=None)


def _line(dataset: str | None, metric: str = "sdri_db") -> dict[str, Any]:
    numbers = {"n": 1, "n_undefined": 0, "mean": 2.0, "std": None}
    return {
        "dataset": dataset,
        "query_type": "text",
        "polarity": "P",
        "metric": metric,
        **numbers,
    }


@pytest.mark.parametrize("name", report_runs.NASTY)
def test_a_dataset_is_shown_as_it_is_called(name: str) -> None:
    line = table_text([_line(name)]).splitlines()[1]
    assert line.split("  ")[0] == one_line(name)
    assert line.isprintable()


def test_a_mean_over_fewer_clips_says_over_how_many() -> None:
    sdri = {**_line("a"), "n_undefined": 2}
    score = {**_line("a", "clap_score"), "n": 3, "std": 0.0}
    assert table_text([sdri, score]).splitlines()[1].split() == (
        ["a", "text", "P", "3", "2.00", "(n", "=", "1)", "2.00", "±", "0.00"]
    )


def test_a_dataset_cannot_steer_the_terminal() -> None:
    shown = table_text([_line("a\x1b[2Jb\r\nc\u202ed\x9bK")])
    assert shown.splitlines()[1].startswith("a�[2Jb c�d�K ")


def test_datasets_that_look_alike_are_not_put_together() -> None:
    shown = table_text([_line("a b"), _line("a\nb"), _line(None)])
    assert [line.split()[-3] for line in shown.splitlines()[1:4]] == ["1", "1", "1"]
    assert shown.splitlines()[4].startswith("all ")
