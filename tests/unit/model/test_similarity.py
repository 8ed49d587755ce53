"""CLAPScores in closed form, and what absent and broken embeddings leave undefined."""

from __future__ import annotations

import math

import pytest
import torch

from model.metrics import EMBEDDINGS, METRICS, Undefined, cosine, evaluate

SIMILARITIES = [metric for metric in METRICS if EMBEDDINGS.issuperset(metric.needs)]


def _at(*degrees: float) -> torch.Tensor:
    """Unit vectors in a plane: cosines are those of the angles between them."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


EVERYTHING = {
    "stem_embedding": _at(0.0, 90.0),
    "positive": _at(60.0, 45.0),
    "mixture_embedding": _at(90.0, -45.0),
    "negative": _at(120.0, 90.0),
    "reference_embedding": _at(-60.0, 45.0),
}


def test_scores_are_the_cosines_between_embeddings() -> None:
    scores = evaluate(EVERYTHING, 2)
    half, root = 0.5, math.sqrt(0.5)
    expected = {
        "clap_score": [half, root],
        "clap_score_mixture": [math.sqrt(3) / 2, 0.0],
        "clap_score_negative": [-half, 1.0],
        "clap_score_improvement": [half - math.sqrt(3) / 2, root],
        "clap_score_contrast": [1.0, root - 1.0],
        "ref_clap_score": [half, root],
    }
    for index, outcomes in enumerate(scores):
        assert outcomes == pytest.approx(
            {name: values[index] for name, values in expected.items()}, abs=1e-7
        )


def test_reference_score_is_a_harmonic_mean_of_what_is_positive() -> None:
    inputs = {
        "stem_embedding": _at(0.0, 0.0),
        "positive": _at(60.0, 60.0),
        "reference_embedding": _at(0.0, 100.0),
    }
    one, other = evaluate(inputs, 2)
    assert one["ref_clap_score"] == pytest.approx(2 * 0.5 * 1.0 / 1.5, abs=1e-7)
    assert other["ref_clap_score"] is Undefined.NOT_SIMILAR
    broken = {**inputs, "reference_embedding": torch.full((2, 2), torch.nan)}
    assert {each["ref_clap_score"] for each in evaluate(broken, 2)} == {Undefined.NOT_FINITE}


def test_scale_does_not_matter() -> None:
    assert cosine(_at(10.0) * 1e-6, _at(70.0) * 1e6).item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("absent", sorted(EMBEDDINGS))
def test_an_absent_embedding_leaves_what_needs_it_undefined_for_its_reason(absent: str) -> None:
    (outcomes, _) = evaluate({**EVERYTHING, absent: Undefined.NOT_SCORED}, 2)
    for metric in SIMILARITIES:
        (column,) = metric.columns
        assert (outcomes[column] is Undefined.NOT_SCORED) == (absent in metric.needs), column


def test_of_several_reasons_the_first_that_the_metric_needs_counts() -> None:
    (outcomes,) = evaluate(
        {
            "stem_embedding": Undefined.SILENT_STEM,
            "positive": Undefined.NO_POSITIVE_QUERY,
            "mixture_embedding": Undefined.SILENT_MIXTURE,
        }
    )
    assert outcomes == {
        "clap_score": Undefined.SILENT_STEM,
        "clap_score_mixture": Undefined.NO_POSITIVE_QUERY,
        "clap_score_improvement": Undefined.SILENT_STEM,
    }


def test_zeros_and_broken_embeddings_are_undefined_for_their_own_clip_only() -> None:
    positive = _at(0.0, 0.0, 0.0)
    positive[0] = 0.0
    positive[1, 0] = torch.nan
    scores = evaluate({"stem_embedding": _at(60.0, 60.0, 60.0), "positive": positive}, 3)
    assert [clip["clap_score"] for clip in scores[:2]] == [Undefined.NOT_FINITE] * 2
    assert scores[2]["clap_score"] == pytest.approx(0.5, abs=1e-7)


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(2, 2\)"):
        cosine(_at(0.0), _at(0.0, 0.0))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(2,\)"):
        cosine(torch.ones(2), torch.ones(2))
