"""What a condition is made of, by which rule, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.systems import Condition, fuse, pool_shots

ONE = torch.tensor([[0.6, 0.8]])
TWO = torch.tensor([[0.0, 1.0]])
NONE = torch.zeros(1, 2)


def test_normalised_vector_has_unit_norm() -> None:
    vector = Condition(positive=ONE, negative=TWO).vector()
    expected = torch.tensor([[0.6, 0.8, 0.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(vector, expected)


def test_unnormalised_vector_is_the_concatenation() -> None:
    condition = Condition(positive=ONE, negative=TWO, normalisation="unnormalised")
    assert condition.vector().tolist() == torch.tensor([[0.6, 0.8, 0.0, 1.0]]).tolist()


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        (ONE, NONE, [0.6, 0.8, 0, 0]),
        (NONE, TWO, [0, 0, 0, 1]),
        (3 * ONE, NONE, [0.6, 0.8, 0, 0]),
        (NONE, NONE, [0, 0, 0, 0]),
    ],
)
def test_absent_polarity_leaves_zeros(
    positive: Tensor, negative: Tensor, expected: list[float]
) -> None:
    vector = Condition(positive=positive, negative=negative).vector()
    torch.testing.assert_close(vector, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Condition(positive=ONE, negative=torch.zeros(2, 2)), r"must both be \[B, D\]"),
        (lambda: Condition(positive=ONE[0], negative=TWO[0]), r"positive \(2,\) and negative"),
        (
            lambda: Condition(positive=ONE, negative=TWO, normalisation="max"),
            "normalisation='max': expected one of",
        ),
        (lambda: pool_shots(torch.zeros(0, 2)), "at least one shot, found"),
        (lambda: pool_shots(torch.zeros(2)), "at least one shot, found"),
        (lambda: fuse(ONE[0], TWO[0], text_weight=1.5), "text_weight=1.5: expected a number"),
        (lambda: fuse(ONE[0], None, text_weight=-0.1), "text_weight=-0.1: expected a number"),
        (lambda: fuse(ONE[0], TWO[0], fusion="max"), "fusion='max': expected"),
    ],
)
def test_wrong_input_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_rows_are_chosen_in_order_with_their_rule_and_reference() -> None:
    condition = Condition(
        positive=torch.eye(3),
        negative=2 * torch.eye(3),
        normalisation="unnormalised",
        reference=torch.arange(3.0)[:, None],
    )
    chosen = condition.index(torch.tensor([2, 0, 2]))
    assert torch.equal(chosen.positive, torch.eye(3)[[2, 0, 2]])
    assert torch.equal(chosen.negative, 2 * torch.eye(3)[[2, 0, 2]])
    assert chosen.normalisation == "unnormalised"
    assert chosen.reference is not None
    assert chosen.reference.flatten().tolist() == [2, 0, 2]
    assert Condition(positive=ONE, negative=TWO).index(torch.tensor([0])).reference is None


def test_pooled_shots_are_the_mean_not_made_longer() -> None:
    pooled = pool_shots(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert pooled.tolist() == [0.5, 0.5]
    assert torch.equal(pool_shots(ONE), ONE[0])


@given(weight=st.floats(0, 1))
def test_weighted_fusion_goes_from_audio_to_text(weight: float) -> None:
    text, audio = ONE[0], TWO[0]
    fused = fuse(text, audio, text_weight=weight)
    assert fused is not None
    torch.testing.assert_close(fused, weight * text + (1 - weight) * audio)


def test_fusion_of_one_is_itself_whatever_the_weight() -> None:
    for weight in (0.0, 0.3, 1.0):
        assert torch.equal(fuse(ONE[0], None, text_weight=weight), ONE[0])
        assert torch.equal(fuse(None, TWO[0], text_weight=weight), TWO[0])
    assert fuse(None, None) is None


def test_sum_fusion_is_the_demo_applications() -> None:
    summed = fuse(ONE[0], TWO[0], fusion="sum", text_weight=0.1)
    assert summed is not None
    torch.testing.assert_close(summed, ONE[0] + TWO[0])


def test_inputs_are_left_alone() -> None:
    positive, negative = ONE.clone(), TWO.clone()
    condition = Condition(positive=positive, negative=negative)
    condition.vector().zero_()
    fused = fuse(positive[0], negative[0], fusion="sum")
    assert fused is not None
    fused.zero_()
    assert torch.equal(positive, ONE)
    assert torch.equal(negative, TWO)
