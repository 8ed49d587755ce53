from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import tone_clips
from model.metrics import METRICS, evaluate
from transforms.elements import RowQuery, Scores
from transforms.scoring import Embeddings, query_inputs, scores_of

A = np.array([1, 0, 0, 0, 0, 0], np.float32)
B = np.array([0.6, 0.8, 0, 0, 0, 0], np.float32)
CLAP_COLUMNS = [name for metric in METRICS for name in metric.columns if "clap_score" in name]


def clap_scores(query: RowQuery, heard: Embeddings, *, has_reference: bool) -> Scores:
    (outcomes,) = evaluate(query_inputs(query, heard, has_reference=has_reference))
    return scores_of(outcomes)


def test_scores_are_cosines_and_their_differences() -> None:
    query = dataclasses.replace(tone_clips.query("x"), scorer_positive=A, scorer_negative=B)
    heard = Embeddings(stem=3 * A, mixture=B, reference=B)
    scores = clap_scores(query, heard, has_reference=True)
    assert scores.reasons == {}
    expected = {
        "clap_score": 1.0,
        "clap_score_mixture": 0.6,
        "clap_score_negative": 0.6,
        "clap_score_improvement": 0.4,
        "clap_score_contrast": 0.4,
        "ref_clap_score": 2 * 1.0 * 0.6 / 1.6,
    }
    assert scores.values == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("missing", "reasons"),
    [
        ({"stem": None}, dict.fromkeys(set(CLAP_COLUMNS) - {"clap_score_mixture"}, "silent_stem")),
        (
            {"mixture": None},
            dict.fromkeys(("clap_score_mixture", "clap_score_improvement"), "silent_mixture"),
        ),
        ({"reference": None}, {"ref_clap_score": "silent_reference"}),
    ],
)
def test_what_cannot_be_heard_leaves_scores_undefined(
    missing: dict[str, None], reasons: dict[str, str]
) -> None:
    query = dataclasses.replace(tone_clips.query("x"), scorer_positive=A, scorer_negative=B)
    heard = dataclasses.replace(Embeddings(stem=A, mixture=B, reference=B), **missing)
    scores = clap_scores(query, heard, has_reference=True)
    assert scores.reasons == reasons
    assert scores.values.keys() == set(CLAP_COLUMNS) - reasons.keys()


def test_a_query_of_one_polarity_leaves_the_other_undefined() -> None:
    heard = Embeddings(stem=A, mixture=B, reference=None)
    positive = dataclasses.replace(tone_clips.query("x"), scorer_positive=A)
    scores = clap_scores(positive, heard, has_reference=False)
    assert scores.reasons == {
        "clap_score_negative": "no_negative_query",
        "clap_score_contrast": "no_negative_query",
        "ref_clap_score": "no_reference",
    }
    negative = dataclasses.replace(positive, scorer_positive=None, scorer_negative=A)
    scores = clap_scores(negative, heard, has_reference=False)
    assert scores.values == {"clap_score_negative": pytest.approx(1.0)}
    assert set(scores.reasons.values()) == {"no_positive_query"}
