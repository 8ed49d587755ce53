from __future__ import annotations

import collections

import pytest

from manifests.benchmarks.corpus_sets import heldout_phrasings
from manifests.benchmarks.sound_classes import ALIKE, FAMILIES, distinct, family_of


@pytest.mark.parametrize(
    ("first", "second"),
    [("stream", "pouring_water"), ("crowd", "speech"), ("goat", "sheep"), ("rain", "rain")],
)
def test_labels_that_sound_alike_are_not_distinct_either_way(first: str, second: str) -> None:
    assert not distinct(first, [second])
    assert not distinct(second, [first])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("rain", "fire_crackle"),
        ("trumpet", "saxophone"),
        ("rain", "pouring_water"),
        ("piano", "drums"),
        ("siren", "rain"),
    ],
)
def test_labels_that_merely_resemble_each_other_stay(first: str, second: str) -> None:
    assert distinct(first, [second])


def test_a_label_must_be_distinct_from_every_other_one() -> None:
    assert distinct("dog_bark", ["rain", "crowd"])
    assert not distinct("speech", ["rain", "crowd"])


def test_families_do_not_overlap_and_have_every_class_of_the_phrasings() -> None:
    members = collections.Counter(label for labels in FAMILIES.values() for label in labels)
    assert set(members.values()) == {1}
    assert heldout_phrasings().keys() <= members.keys()
    assert family_of("rain") == family_of("wind") != family_of("dog_bark")
    assert family_of("siren") is None


def test_what_sounds_alike_is_of_a_known_class() -> None:
    known = {label for labels in FAMILIES.values() for label in labels}
    assert {label for labels, _ in ALIKE for label in labels} - known == {"music"}
