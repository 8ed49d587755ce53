from __future__ import annotations

import pytest
import torch

from model.systems import find_labels, label_vectors

LABELS = ("Acoustic_guitar", "Bark", "Burping_or_eructation", "Hi-hat")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bark", (1,)),
        ("bark", (1,)),
        ("acoustic guitar", (0,)),
        ("The sound of Acoustic_guitar", (0,)),
        ("the sound of a hi hat.", (3,)),
        ("burping or eructation", (2,)),
        ("The sounds of Hi-hat, Bark and Acoustic guitar", (0, 1, 3)),
        ("Bark and rain", ()),
        ("a dog barking", ()),
        ("", ()),
    ],
)
def test_labels_are_found_in_the_phrases_of_the_benchmarks(
    text: str, expected: tuple[int, ...]
) -> None:
    assert find_labels(text, LABELS) == expected


def test_vectors_have_a_one_for_each_label() -> None:
    vectors = label_vectors(["Bark", "hi-hat and bark"], LABELS)
    assert torch.equal(vectors, torch.tensor([[0.0, 1, 0, 0], [0, 1, 0, 1]]))


def test_another_text_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'rain' is none of the 4 labels: Acoustic_guitar, Bark"):
        label_vectors(["Bark", "rain"], LABELS)
