"""Defines what every separation system implements, and what a query is to it.

`Separator` is the interface behind which all systems run in the same pipeline, one module a system.
A `Condition` is a query as embeddings: shots pooled, text and audio fused, positive and negative
side by side, absent parts zero; `embed_texts` and `embed_examples` make the parts. `adapt` says
whether a system supports a kind of query, why not, and the nearest kind that it does support;
`find_labels` does this for systems with a closed list of labels.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.signal import FloatArray, at_level

if TYPE_CHECKING:
    from model.clap import QueryEncoder

Normalisation = Literal["normalised", "unnormalised"]
Fusion = Literal["weighted", "sum"]

EXAMPLES_AT_ONCE = 8
"""Example clips in one forward pass."""
NORMALISATIONS: tuple[Normalisation, ...] = ("normalised", "unnormalised")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """What a batch of queries asks for, and what it asks to keep out."""

    positive: Tensor
    """float32[B, D]; zeros where there is no positive query."""
    negative: Tensor
    """float32[B, D]; zeros where there is no negative query."""
    normalisation: Normalisation = "normalised"
    """The reference trains, and serves its demo, with a normalised concatenation; its evaluation
    script leaves the concatenation of two unit vectors as it is (norm √2): ``unnormalised``
    reproduces that."""
    reference: Tensor | None = None
    """float32[B, T] at the separator's rate: the target itself, for oracles, which need it."""

    def __post_init__(self) -> None:
        """Checks the shapes and the rule's name."""
        if self.positive.ndim != 2 or self.positive.shape != self.negative.shape:
            raise ValueError(
                f"positive {tuple(self.positive.shape)} and negative {tuple(self.negative.shape)} "
                "must both be [B, D]"
            )
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation={self.normalisation!r}: expected one of {NORMALISATIONS}"
            )

    def vector(self) -> Tensor:
        """The decoder's input, float32[B, 2·D]."""
        joint = torch.cat((self.positive, self.negative), dim=-1)
        return F.normalize(joint, dim=-1) if self.normalisation == "normalised" else joint

    def index(self, rows: Tensor) -> Condition:
        """The conditions of some rows of the batch, in a given order."""
        return Condition(
            positive=self.positive[rows],
            negative=self.negative[rows],
            normalisation=self.normalisation,
            reference=None if self.reference is None else self.reference[rows],
        )


def pool_shots(embeddings: Tensor) -> Tensor:
    """The mean of the shots' embeddings, float32[S, D] → float32[D].

    The mean is not normalised again: shots that disagree give a shorter, less certain query, as in
    the reference's mixing of audio and text embeddings.

    Raises:
        ValueError: there is no shot.
    """
    if embeddings.ndim != 2 or embeddings.shape[0] == 0:
        raise ValueError(
            f"expected float[S, D] with at least one shot, found {tuple(embeddings.shape)}"
        )
    return embeddings.mean(dim=0)


def embed_texts(encoder: QueryEncoder, texts: Sequence[str]) -> list[FloatArray]:
    """Embeds captions in one forward pass.

    Returns:
        float32[D] for each.

    Raises:
        ValueError: an embedding is not finite, or the encoder does not know such a text.
        RuntimeError: the encoder failed.
    """
    with torch.inference_mode():
        return [_finite(row) for row in encoder.embed_text(texts)]


def embed_examples(encoder: QueryEncoder, clips: Iterable[FloatArray]) -> FloatArray:
    """Embeds the example clips of one query, at the encoder's level, and pools them.

    Args:
        encoder: embeds them.
        clips: float32[T] each, mono at the encoder's rate, none of them silent; at least one. A few
            are held at a time.

    Returns:
        float32[D].

    Raises:
        ValueError: the embedding is not finite, or there is no clip.
        RuntimeError: the encoder failed.
    """
    rate_hz, level_dbfs = encoder.sample_rate_hz, encoder.input_level_dbfs
    found: list[torch.Tensor] = []
    iterator = iter(clips)
    while group := list(itertools.islice(iterator, EXAMPLES_AT_ONCE)):
        levelled = [torch.from_numpy(at_level(clip, rate_hz, level_dbfs)) for clip in group]
        with torch.inference_mode():
            found.extend(encoder.embed_audio(levelled))
    if not found:
        raise ValueError("there are no example clips to embed")
    return _finite(pool_shots(torch.stack(found)))


def _finite(vector: torch.Tensor) -> FloatArray:
    values: FloatArray = vector.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError("the embedding is not finite")
    return values


def fuse(
    text: Tensor | None,
    audio: Tensor | None,
    *,
    text_weight: float = 0.5,
    fusion: Fusion = "weighted",
) -> Tensor | None:
    """One polarity's embedding from its text and its example clips.

    Args:
        text: float32[D], or None.
        audio: float32[D], or None.
        text_weight: 1 is text alone, 0 audio alone; used where both are given.
        fusion: ``weighted`` is the paper's ``w·text + (1 − w)·audio``; ``sum`` the plain sum of the
            authors' demo.

    Returns:
        float32[D], or None where there is neither.

    Raises:
        ValueError: the weight is outside [0, 1] or the rule is unknown.
    """
    if not 0.0 <= text_weight <= 1.0:
        raise ValueError(f"text_weight={text_weight}: expected a number from 0 to 1")
    if text is None or audio is None:
        return text if audio is None else audio
    if fusion == "sum":
        return text + audio
    if fusion != "weighted":
        raise ValueError(f"fusion={fusion!r}: expected 'weighted' or 'sum'")
    return text_weight * text + (1.0 - text_weight) * audio


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What kinds of query a system understands."""

    text: bool = True
    audio: bool = True
    positive: bool = True
    negative: bool = True
    labels: tuple[str, ...] | None = None
    """The closed list of labels a text query must come from, where text is not free."""
    needs_reference: bool = False
    """An oracle: it can only answer where the target is known."""


class Separator(Protocol):
    """A target sound extractor. It keeps no state between calls: threads share one instance."""

    name: str
    sample_rate_hz: int
    window_samples: int
    embedding_dim: int
    capabilities: Capabilities
    input_level_dbfs: float | None
    """The level that recordings are brought to before separation (:mod:`model.signal`).

    None: they are separated as they are. The caller scales, and scales back: ``encode`` does not.
    """

    def encode(self, mixture: Tensor) -> Any:
        """Encodes float32[B, T ≤ window_samples]; the result serves any number of queries.

        The result has ``index(rows: int64[Q])``, which repeats and reorders mixtures.
        """

    def decode(self, encoded: Any, condition: Condition) -> Tensor:
        """Extracts what the condition asks for: float32[B, T]."""

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``decode(encode(mixture), condition)``."""


@runtime_checkable
class PresenceDetector(Protocol):
    """A separator that also says whether what it is asked for is there."""

    def presence(self, encoded: Any, condition: Condition) -> Tensor | None:
        """The log odds that what the condition asks for is in a window.

        Returns:
            float32[B], or None where these weights do not say.
        """


class WindowListener(Protocol):
    """What some separators have as ``listener``: it hears windows once, before any query is known.

    What it heard is kept as bytes, from which later queries are answered without the recording.
    """

    def listen(self, waveform: Tensor) -> tuple[Tensor, bytes]:
        """Hears a window in passes float32[P, T] at the rate and of the length of the model's CLAP.

        Returns:
            CLAP's embeddings of the passes, float32[P, D] of unit norm, and what to keep.
        """

    def answer(self, kept: bytes, positive: Tensor) -> float:
        """The log odds that what a positive query float32[D] asks for is in one of the passes.

        Raises:
            ValueError: the bytes are not what was kept.
        """


def listener_of(separator: Separator) -> WindowListener | None:
    """The listener of a separator; None where it has none."""
    found: WindowListener | None = getattr(separator, "listener", None)
    return found


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


Policy = Literal["dead_letter", "nearest"]
POLICIES: tuple[Policy, ...] = ("dead_letter", "nearest")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuerySetting:
    """What a query is made of."""

    positive_text: str | None = None
    negative_text: str | None = None
    positive_audio: bool = False
    negative_audio: bool = False
    reference: bool = False
    """Whether the target is known."""

    @property
    def asks(self) -> bool:
        """Whether anything is asked for at all."""
        texts = self.positive_text is not None or self.negative_text is not None
        return texts or self.positive_audio or self.negative_audio


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """Says which parts of a query a system cannot use, and the nearest query that it can run."""

    reasons: tuple[str, ...] = ()
    """What the system cannot use, in words; empty where it can use all of the query."""
    nearest: QuerySetting | None = None
    """The query without what cannot be used; None where nothing is left to run."""

    @property
    def supported(self) -> bool:
        """Whether the query can be run as it is."""
        return not self.reasons


def adapt(capabilities: Capabilities, setting: QuerySetting) -> Adaptation:
    """Compares a query with what a system understands.

    Parts are only ever taken away, never replaced: the nearest setting of a system without negative
    queries is the positive one, and a query of a negative part alone then has none.

    Args:
        capabilities: of the system.
        setting: the query.

    Returns:
        What stands in the way, and the nearest setting that the system can run.
    """
    reasons: list[str] = []
    if capabilities.needs_reference and not setting.reference:
        return Adaptation(reasons=("it needs the reference, and the row has none",))
    kept = setting
    if not capabilities.negative and (kept.negative_text is not None or kept.negative_audio):
        reasons.append("it takes no negative query")
        kept = dataclasses.replace(kept, negative_text=None, negative_audio=False)
    if not capabilities.positive and (kept.positive_text is not None or kept.positive_audio):
        reasons.append("it takes no positive query")
        kept = dataclasses.replace(kept, positive_text=None, positive_audio=False)
    if not capabilities.audio and (kept.positive_audio or kept.negative_audio):
        reasons.append("it takes no example clips")
        kept = dataclasses.replace(kept, positive_audio=False, negative_audio=False)
    for name in ("positive_text", "negative_text"):
        reason = _text_problem(capabilities, getattr(kept, name))
        if reason is not None:
            reasons.append(reason)
            cleared: dict[str, Any] = {name: None}
            kept = dataclasses.replace(kept, **cleared)
    return Adaptation(reasons=tuple(dict.fromkeys(reasons)), nearest=kept if kept.asks else None)


def _text_problem(capabilities: Capabilities, text: str | None) -> str | None:
    if text is None:
        return None
    if not capabilities.text:
        return "it takes no text"
    if capabilities.labels is not None and not find_labels(text, capabilities.labels):
        return f"{text!r} is none of its {len(capabilities.labels)} labels"
    return None
