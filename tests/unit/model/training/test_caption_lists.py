from __future__ import annotations

import collections
import itertools
import json
import re
from pathlib import Path

from manifests.benchmarks import corpus_sets
from model import training

FOLDER = Path(training.__path__[0])
TRAINED = json.loads((FOLDER / "captions.json").read_text(encoding="utf-8"))
HELDOUT = corpus_sets.heldout_phrasings()
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\S+",
        "a an the of in on at to with and or by into from someone somebody someone's is are be "
        "being it its his her their up off out as that through along one something sound noise",
    )
)


def _content(caption: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", caption.lower())) - FUNCTION_WORDS


def test_the_107_labels_have_phrasings_in_both_lists() -> None:
    assert len(TRAINED) == 107
    assert list(TRAINED) == list(HELDOUT) == sorted(TRAINED)
    assert {label for label, captions in TRAINED.items() if not 10 <= len(captions) <= 16} == set()
    assert {label for label, captions in HELDOUT.items() if not 3 <= len(captions) <= 4} == set()


def test_no_phrasing_stands_for_two_labels_or_in_both_lists() -> None:
    owners: dict[str, list[str]] = collections.defaultdict(list)
    for phrasings in (TRAINED, HELDOUT):
        for label, captions in phrasings.items():
            for caption in captions:
                owners[caption.lower()].append(label)
    assert {caption: labels for caption, labels in owners.items() if len(labels) > 1} == {}


def test_phrasings_are_plain() -> None:
    every = itertools.chain(*TRAINED.values(), *HELDOUT.values())
    assert [text for text in every if text != text.strip() or not 2 < len(text) < 60] == []


def test_training_leaves_the_templates_to_the_code() -> None:
    words = re.compile(r"\bsound of\b|\bin the background\b|\bI hear\b|\bnoise\b")
    assert [text for text in itertools.chain(*TRAINED.values()) if words.search(text)] == []


def test_heldout_phrasings_share_few_content_words_with_training() -> None:
    shared = total = 0
    for label, captions in HELDOUT.items():
        trained = frozenset().union(*map(_content, TRAINED[label]))
        for words in map(_content, captions):
            shared += len(words & trained)
            total += len(words)
    assert shared / total < 0.2


def test_dogs_are_asked_for_as_the_requirements_say() -> None:
    asked = ["puppy yapping", "someone's dog", "the sound of a barking dog"]
    assert HELDOUT["dog_bark"] == asked
