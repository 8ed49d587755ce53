from __future__ import annotations

import numpy as np
import pytest

from pipelines.closing import Pooled, pooled


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
