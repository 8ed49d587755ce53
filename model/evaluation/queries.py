"""Queries of many rows as embeddings: every distinct caption and example clip is embedded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from model.clap import QueryEncoder
from model.evaluation.rows import Query
from model.signal import resample
from model.signal.levels import at_level
from model.systems import Condition, stack
from model.training.corpus import Corpus

_TEXTS_AT_ONCE = 256
_CLIPS_AT_ONCE = 16


class EmbeddedQueries:
    """Looks queries up."""

    def __init__(self, queries: Iterable[Query], clap: QueryEncoder, corpus: Corpus) -> None:
        """Embeds everything.

        Args:
            queries: all that will be asked for.
            clap: embeds them.
            corpus: holds the example clips.
        """
        wanted = list(queries)
        texts = {text for query in wanted for text in (query.positive_text, query.negative_text)}
        clips = {path for query in wanted for path in (query.positive_clip, query.negative_clip)}
        self._dim = clap.embedding_dim
        self._texts = embed_texts(sorted(text for text in texts if text is not None), clap)
        self._clips = embed_clips(sorted(path for path in clips if path is not None), clap, corpus)

    def condition(self, queries: Sequence[Query]) -> Condition:
        """The condition that asks for one query a row, float32[B, D] for each polarity."""
        return stack(
            [self._one(query.positive_text, query.positive_clip) for query in queries],
            [self._one(query.negative_text, query.negative_clip) for query in queries],
            self._dim,
        )

    def _one(self, text: str | None, path: str | None) -> Tensor | None:
        if text is not None:
            return self._texts[text]
        return None if path is None else self._clips[path]


@torch.inference_mode()
def embed_texts(texts: Sequence[str], clap: QueryEncoder) -> Mapping[str, Tensor]:
    """Each text's embedding, float32[D] of unit norm, on the CPU."""
    known: dict[str, Tensor] = {}
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chunk = texts[start : start + _TEXTS_AT_ONCE]
        known.update(zip(chunk, clap.embed_text(chunk).cpu(), strict=True))
    return known


@torch.inference_mode()
def embed_clips(paths: Sequence[str], clap: QueryEncoder, corpus: Corpus) -> Mapping[str, Tensor]:
    """Each clip's embedding, float32[D] of unit norm, on the CPU."""
    index_of = {clip.path: index for index, clip in enumerate(corpus.clips)}
    known: dict[str, Tensor] = {}
    for start in range(0, len(paths), _CLIPS_AT_ONCE):
        chunk = paths[start : start + _CLIPS_AT_ONCE]
        resampled = [
            resample(corpus.audio(index_of[path]), corpus.sample_rate_hz, clap.sample_rate_hz)
            for path in chunk
        ]
        waveforms = [
            at_level(clip, clap.sample_rate_hz, clap.input_level_dbfs) for clip in resampled
        ]
        embedded = clap.embed_audio([torch.from_numpy(waveform) for waveform in waveforms])
        known.update(zip(chunk, embedded.cpu(), strict=True))
    return known
