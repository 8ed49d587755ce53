"""Labels that a text query may be: a closed list, whatever the case and the phrase around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

_PHRASE = re.compile(r"^the sounds? of (?:an? |the )?", re.IGNORECASE)
_SEPARATOR = re.compile(r",\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)


def find_labels(text: str, labels: Sequence[str]) -> tuple[int, ...]:
    """Indices of the labels that a query names; empty where any part of it is no label.

    Case, underscores and hyphens do not matter, nor does "The sound of …" or "The sounds of A, B
    and C" around them, which is how the paper's benchmarks phrase class names.
    """
    index = {_plain(label): position for position, label in enumerate(labels)}
    phrase = _PHRASE.sub("", text.strip())
    if _plain(phrase) in index:
        return (index[_plain(phrase)],)
    found = [index.get(_plain(part)) for part in _SEPARATOR.split(phrase)]
    known = [position for position in found if position is not None]
    return tuple(sorted(set(known))) if len(known) == len(found) else ()


def label_vectors(texts: Sequence[str], labels: Sequence[str]) -> Tensor:
    """One row for each query, float32[N, L]: 1 for each label that it names.

    Raises:
        ValueError: a query names something else.
    """
    vectors = torch.zeros(len(texts), len(labels))
    for row, text in enumerate(texts):
        found = find_labels(text, labels)
        if not found:
            raise ValueError(f"{text!r} is none of the {len(labels)} labels: {', '.join(labels)}")
        vectors[row, list(found)] = 1.0
    return vectors


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", " ", text).strip(" .").casefold()
