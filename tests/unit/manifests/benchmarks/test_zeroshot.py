from __future__ import annotations

import pytest

from manifests.benchmarks.mixtures import split_by, unseen_classes


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("dog", "Two dogs bark"),
        ("chirping birds", "A bird chirps in the rain"),
        ("clapping", "people clap"),
        ("crying baby", "a baby cries"),
        ("vacuum cleaner", "cleaning with a vacuum"),
        ("sea waves", "Waves of the sea."),
    ],
)
def test_a_caption_names_a_class_in_any_inflection(name, caption):
    assert unseen_classes([name], [caption]) == frozenset()


@pytest.mark.parametrize(
    ("name", "caption"),
    [("dog", "a hound howls"), ("car horn", "a car passes"), ("cat", "categories"), ("rain", "")],
)
def test_other_words_do_not_name_it(name, caption):
    assert unseen_classes([name], [caption]) == {name}


def test_captions_are_read_until_every_class_is_seen():
    captions = iter(["a cow moos", "a cat", "not read"])
    assert unseen_classes(["cow", "cat"], captions) == frozenset()
    assert list(captions) == ["not read"]


def test_split_of_a_class():
    split = split_by(["cow"])
    assert [split("cow"), split("cat")] == ["unseen", "seen"]
