"""CLAPScores in closed form, and what absent embeddings leave undefined."""

from __future__ import annotations

import math

import pytest
import torch

from model.metrics import clap_scores


def _at(*degrees: float) -> torch.Tensor:
    """Unit vectors in a plane: cosines are those of the angles between them."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def test_scores_are_the_cosines_between_embeddings() -> None:
    scores = clap_scores(
        _at(0.0, 90.0),
        positive=_at(60.0, 45.0),
        mixture=_at(90.0, -45.0),
        negative=_at(120.0, 90.0),
        reference=_at(-60.0, 45.0),
    )
    half, root = 0.5, math.sqrt(0.5)
    expected = {
        "clap_score": [half, root],
        "clap_score_mixture": [math.sqrt(3) / 2, 0.0],
        "clap_score_negative": [-half, 1.0],
        "clap_score_improvement": [half - math.sqrt(3) / 2, root],
        "clap_score_contrast": [1.0, root - 1.0],
        "ref_clap_score": [half, root],
    }
    for name, values in expected.items():
        actual = getattr(scores, name)
        assert actual.dtype == torch.float64
        assert actual.tolist() == pytest.approx(values, abs=1e-7), name


def test_reference_score_is_a_harmonic_mean_of_what_is_positive() -> None:
    scores = clap_scores(_at(0.0, 0.0), positive=_at(60.0, 60.0), reference=_at(0.0, 100.0))
    assert scores.ref_clap_score[0].item() == pytest.approx(2 * 0.5 * 1.0 / 1.5, abs=1e-7)
    assert scores.ref_clap_score[1].isnan()


def test_scale_does_not_matter() -> None:
    small = clap_scores(_at(10.0) * 1e-6, positive=_at(70.0) * 1e6)
    assert small.clap_score.item() == pytest.approx(0.5, abs=1e-6)


def test_absent_embeddings_leave_their_scores_undefined() -> None:
    scores = clap_scores(_at(0.0, 30.0), positive=_at(0.0, 0.0), mixture=_at(10.0, 20.0))
    assert scores.clap_score_improvement.isfinite().all()
    for name in ("clap_score_negative", "clap_score_contrast", "ref_clap_score"):
        assert getattr(scores, name).isnan().all(), name
    unasked = clap_scores(_at(0.0), mixture=_at(0.0), negative=_at(60.0))
    assert unasked.clap_score_mixture.isnan().all()
    assert unasked.clap_score_negative.item() == pytest.approx(0.5, abs=1e-7)


def test_zeros_and_broken_embeddings_are_undefined_for_their_own_clip_only() -> None:
    positive = _at(0.0, 0.0, 0.0)
    positive[0] = 0.0
    positive[1, 0] = torch.nan
    scores = clap_scores(_at(60.0, 60.0, 60.0), positive=positive)
    assert scores.clap_score[:2].isnan().all()
    assert scores.clap_score[2].item() == pytest.approx(0.5, abs=1e-7)


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"shapes \(1, 2\) and \(2, 2\)"):
        clap_scores(_at(0.0), positive=_at(0.0, 0.0))
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(2,\)"):
        clap_scores(torch.ones(2), positive=torch.ones(2))
