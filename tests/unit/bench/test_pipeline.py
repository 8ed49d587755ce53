"""The bench of the whole job times the functions that its stages consist of."""

from __future__ import annotations

from bench import pipeline
from transforms import queries


def test_the_stages_that_are_timed_are_there() -> None:
    before = queries.embed_query_texts
    with pipeline.stages_timed() as timer:
        assert queries.embed_query_texts is not before
    assert queries.embed_query_texts is before
    assert timer.spent_s == {}
