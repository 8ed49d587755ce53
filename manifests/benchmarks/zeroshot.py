"""Which classes a model has never heard of, for the paper's zero-shot figure (Fig. 6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_WORD = re.compile(r"[a-z]+")
_SMALL_WORDS = frozenset(
    ("a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to")
)
_ENDINGS = ("ings", "ing", "ers", "er", "ed", "es", "s", "e")


def unseen_classes(classes: Iterable[str], captions: Iterable[str]) -> frozenset[str]:
    """The classes that no caption of the training data names.

    A caption names a class if it has all of the class's words, in any order and inflection:
    "birds are chirping" names "chirping bird". Synonyms are not known: "hound" does not name "dog".
    """
    wanted = {name: _stems(name) for name in classes}
    unseen = set(wanted)
    for caption in captions:
        stems = _stems(caption)
        unseen -= {name for name in unseen if wanted[name] <= stems}
        if not unseen:
            break
    return frozenset(unseen)


def split_by(unseen: Iterable[str]) -> Callable[[str], str]:
    """From a class to ``unseen`` or ``seen``."""
    names = frozenset(unseen)
    return lambda name: "unseen" if name in names else "seen"


def _stems(text: str) -> frozenset[str]:
    """Words of a text without their endings."""
    words = (word for word in _WORD.findall(text.lower()) if word not in _SMALL_WORDS)
    return frozenset(_stem(word) for word in words)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    # "clapping" and "claps", "humming" and "hums"
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    # "cry" and "cries"
    return f"{word[:-1]}i" if word.endswith("y") else word
