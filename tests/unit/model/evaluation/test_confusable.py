from __future__ import annotations

import json
from pathlib import Path

import pytest

from model import training
from model.evaluation.confusable import ALIKE, all_distinct, distinct


@pytest.mark.parametrize(
    ("first", "second"),
    [("stream", "pouring_water"), ("crowd", "speech"), ("goat", "sheep"), ("rain", "rain")],
)
def test_labels_that_sound_alike_are_not_distinct_either_way(first: str, second: str) -> None:
    assert not distinct(first, second)
    assert not distinct(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [("rain", "fire_crackle"), ("trumpet", "saxophone"), ("rain", "pouring_water")],
)
def test_labels_that_merely_resemble_each_other_stay(first: str, second: str) -> None:
    assert distinct(first, second)


def test_a_label_must_be_distinct_from_every_other_one() -> None:
    assert all_distinct("dog_bark", ("rain", "crowd"))
    assert not all_distinct("speech", ("rain", "crowd"))


def test_only_labels_of_the_corpus_are_listed() -> None:
    captions = json.loads((Path(training.__path__[0]) / "captions.json").read_text("utf-8"))
    assert frozenset().union(*(group for group, _ in ALIKE)) <= captions.keys()
