"""Scores stems: ratios against their references, CLAPScores against their queries."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.pvalue import PCollection

from manifests.columns import METRIC_COLUMNS
from model import devices, metrics
from model.clap import QueryEncoder
from model.devices import cores
from model.inference import InPlace, Transfers, transfers_for
from model.metrics import ClipScore, score_pair
from model.signal import to_mono
from model.signal.stft import sinc_resample
from transforms import model_cache
from transforms.elements import RowQuery, Samples, ScoredClip, Scores, SeparatedClip

CLAP_COLUMNS = tuple(name for name in METRIC_COLUMNS if "clap_score" in name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """What the scorer hears in one query's signals, float32[D] each; None: silent or absent."""

    stem: Samples | None
    mixture: Samples | None
    reference: Samples | None


def clap_scores(query: RowQuery, embeddings: Embeddings, *, has_reference: bool) -> Scores:
    """The CLAPScores that there is something for, and why the others are undefined.

    Args:
        query: with the scorer's embeddings of its texts, or of its example clips.
        embeddings: the scorer's embeddings of the signals.
        has_reference: whether the row has a reference, be it silent.
    """
    positive, negative = query.scorer_positive, query.scorer_negative
    values: dict[str, float] = {}
    if embeddings.stem is not None:
        found = metrics.clap_scores(
            _row(embeddings.stem),
            positive=_optional(positive),
            mixture=_optional(embeddings.mixture),
            negative=_optional(negative),
            reference=_optional(embeddings.reference),
        )
        columns = {name: float(getattr(found, name)) for name in CLAP_COLUMNS}
        values = {name: value for name, value in columns.items() if value == value}
    elif embeddings.mixture is not None and positive is not None:
        # The mixture's score does not need the stem.
        before = metrics.clap_scores(_row(embeddings.mixture), positive=_row(positive))
        values = {"clap_score_mixture": float(before.clap_score)}
    return Scores(
        values=values,
        reasons={
            name: _reason(name, query, embeddings, has_reference)
            for name in CLAP_COLUMNS
            if name not in values
        },
    )


def _reason(name: str, query: RowQuery, embeddings: Embeddings, has_reference: bool) -> str:
    """Why one of the scores is undefined, the strongest reason first."""
    if name != "clap_score_mixture" and embeddings.stem is None:
        return "silent_stem"
    if name != "clap_score_negative" and query.scorer_positive is None:
        return "no_positive_query"
    if name in ("clap_score_negative", "clap_score_contrast"):
        return "no_negative_query"
    if name == "ref_clap_score":
        return "silent_reference" if has_reference else "no_reference"
    return "silent_mixture"


def _row(embedding: Samples) -> torch.Tensor:
    return torch.from_numpy(embedding)[None]


def _optional(embedding: Samples | None) -> torch.Tensor | None:
    return None if embedding is None else _row(embedding)


RATIO_COLUMNS = tuple(name for name in METRIC_COLUMNS if name not in CLAP_COLUMNS)
_LEVEL = "stem_to_mixture_db"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings:
    """How stems are scored.

    Attributes:
        scorer: the CLAP that gives the CLAPScores; None for none.
        model_rate_hz: the rate at which stems come.
        device: where ratios are computed: by the batch on CUDA, elsewhere on the CPU, clip by clip.
        batch_size: clips the scorer hears at once.
        num_threads: threads on a CPU; 0: as many as the machine it runs on has cores.
    """

    scorer: model_cache.ScorerChoice | None
    model_rate_hz: int
    device: str = "cpu"
    batch_size: int = 8
    num_threads: int = 1


class Scoring:
    """A loaded scorer and its settings; no state between calls."""

    def __init__(self, settings: ScoringSettings) -> None:
        """Loads the scorer."""
        self._settings = settings
        self.model_rate_hz = settings.model_rate_hz
        self.encoder: QueryEncoder | None = None
        device = devices.resolved(settings.device)
        if settings.scorer is not None:
            self.encoder = model_cache.load_scorer(settings.scorer)
            device = settings.scorer.model.resolved_device()
        self._on_device = transfers_for(device) if device.startswith("cuda") else None
        threads = (settings.num_threads or cores()) if device == "cpu" else 1
        self._num_threads = threads
        self._pool = ThreadPoolExecutor(threads, "score") if threads > 1 else None

    @property
    def digest(self) -> str | None:
        """Of the scorer's weights."""
        return self.encoder.digest if self.encoder is not None else None

    def score(self, clips: Sequence[SeparatedClip]) -> list[ScoredClip]:
        """Scores every stem of every clip."""
        stems = [stem for clip in clips for stem in clip.stems]
        mids = self._mapped(_mid, [stem.audio for stem in stems])
        mixtures = self._mapped(_mid, [clip.clip.model_audio for clip in clips])
        owners = [index for index, clip in enumerate(clips) for _ in clip.stems]
        ratios = self.ratios(
            mids, [mixtures[owner] for owner in owners], [stem.reference for stem in stems]
        )
        vectors = self.embed([*mixtures, *mids, *(stem.reference for stem in stems)])
        scores = []
        for index, stem in enumerate(stems):
            embeddings = Embeddings(
                mixture=vectors[owners[index]],
                stem=vectors[len(clips) + index],
                reference=vectors[len(clips) + len(stems) + index],
            )
            similarity = self.similarity(stem.query, embeddings, stem.reference is not None)
            level = level_scores(power_of(mids[index]), power_of(mixtures[owners[index]]))
            scores.append(joined(ratios[index], similarity, level))
        return self._by_clip(clips, scores)

    def similarity(self, query: RowQuery, embeddings: Embeddings, has_reference: bool) -> Scores:
        """The CLAPScores of one stem."""
        if self.encoder is None:
            return Scores(values={}, reasons=dict.fromkeys(CLAP_COLUMNS, "not_scored"))
        return clap_scores(query, embeddings, has_reference=has_reference)

    def embed(self, signals: Sequence[Samples | None]) -> list[Samples | None]:
        """What the scorer hears in mono signals at the model's rate; None for silent ones."""
        found: list[Samples | None] = [None] * len(signals)
        encoder = self.encoder
        if encoder is None:
            return found
        audible = [i for i, signal in enumerate(signals) if signal is not None and signal.any()]
        size = self._settings.batch_size
        if self._pool is not None:
            size = min(size, -(-len(audible) // self._num_threads) or 1)
        batches = [audible[begin : begin + size] for begin in range(0, len(audible), size)]
        results = self._mapped(
            functools.partial(self._embed_batch, encoder),
            [[signals[i] for i in batch] for batch in batches],
        )
        for batch, result in zip(batches, results, strict=True):
            for index, embedding in zip(batch, result, strict=True):
                found[index] = embedding
        return found

    def ratios(
        self,
        stems: Sequence[Samples],
        mixtures: Sequence[Samples],
        references: Sequence[Samples | None],
    ) -> list[Scores]:
        """The ratios of mono signals float32[T], each stem with its mixture and reference."""
        triples = [
            _Triple(stem=stem, mixture=mixture, reference=reference)
            for stem, mixture, reference in zip(stems, mixtures, references, strict=True)
        ]
        if self._on_device is None:
            return self._mapped(_ratios_of, triples)
        return _ratios_by_length(triples, self._on_device, self._settings.batch_size)

    def _embed_batch(self, encoder: QueryEncoder, signals: Sequence[Samples]) -> list[Samples]:
        rate_hz = self._settings.model_rate_hz
        up = torch.from_numpy if self._on_device is None else self._on_device.up
        with torch.inference_mode():
            clips = [
                sinc_resample(up(signal), rate_hz, encoder.sample_rate_hz) for signal in signals
            ]
            return list(encoder.embed_audio(clips).float().cpu().numpy())

    def _mapped(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._pool.map(function, items) if self._pool else map(function, items))

    def _by_clip(
        self, clips: Sequence[SeparatedClip], scores: Sequence[Scores]
    ) -> list[ScoredClip]:
        left = iter(scores)
        return [
            ScoredClip(
                separated=clip,
                scores=tuple(next(left) for _ in clip.stems),
                scorer_sha256=self.digest,
            )
            for clip in clips
        ]


def _mid(audio: Samples) -> Samples:
    return to_mono(audio)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Triple:
    """What ratios compare, float32[T] each."""

    stem: Samples
    mixture: Samples
    reference: Samples | None


def _ratios_of(triple: _Triple) -> Scores:
    return _ratios_by_length([triple], InPlace(), 1)[0]


def _ratios_by_length(
    triples: Sequence[_Triple], transfers: Transfers, batch_size: int
) -> list[Scores]:
    """The ratios of all triples; those of one length share a batch on the device."""
    found = [without_reference()] * len(triples)
    by_length: dict[int, list[int]] = {}
    for index, triple in enumerate(triples):
        if triple.reference is not None:
            by_length.setdefault(len(triple.stem), []).append(index)
    for indices in by_length.values():
        for begin in range(0, len(indices), batch_size):
            batch = indices[begin : begin + batch_size]
            signals = [
                transfers.up(np.stack([getattr(triples[i], name) for i in batch]))
                for name in ("stem", "mixture", "reference")
            ]
            with torch.inference_mode():
                scores = score_pair(*signals).clips()
            for index, score in zip(batch, scores, strict=True):
                found[index] = ratio_scores(score)
    return found


def without_reference() -> Scores:
    """The ratios of a stem that has nothing to be compared with."""
    return Scores(values={}, reasons=dict.fromkeys(RATIO_COLUMNS, "no_reference"))


def ratio_scores(found: ClipScore) -> Scores:
    """The ratios that are defined, and why the others are not."""
    columns = {name: getattr(found, name) for name in RATIO_COLUMNS}
    return Scores(
        values={name: value for name, value in columns.items() if value is not None},
        reasons={name: str(found.reasons[name]) for name in columns if columns[name] is None},
    )


def power_of(samples: Samples) -> float:
    """The sum of squares of samples."""
    return float(np.square(samples, dtype=np.float64).sum())


def level_scores(stem_power: float, mixture_power: float) -> Scores:
    """How loud a stem is beside its mixture, from the powers of the means of their channels."""
    if stem_power > 0 and mixture_power > 0:
        return Scores(values={_LEVEL: 10 * math.log10(stem_power / mixture_power)}, reasons={})
    reason = "silent_mixture" if stem_power > 0 else "silent_stem"
    return Scores(values={}, reasons={_LEVEL: reason})


def joined(*parts: Scores) -> Scores:
    """Scores of different kinds as one."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for part in parts:
        values.update(part.values)
        reasons.update(part.reasons)
    return Scores(values=values, reasons=reasons)


class ScoringHandler(ModelHandler[SeparatedClip, ScoredClip, Scoring]):
    """Runs :class:`Scoring` in ``RunInference``; batches are counted in stems."""

    def __init__(self, settings: ScoringSettings) -> None:
        """Nothing is loaded here."""
        size = settings.batch_size
        super().__init__(min_batch_size=size, max_batch_size=size, element_size_fn=_num_stems)
        self._settings = settings

    def load_model(self) -> Scoring:
        """Loads the scorer, once a process."""
        return Scoring(self._settings)

    def run_inference(
        self,
        batch: Sequence[SeparatedClip],
        model: Scoring,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[ScoredClip]:
        """One result for each clip, in order.

        Raises:
            RuntimeError: there is another number of results.
        """
        results = model.score(batch)
        if len(results) != len(batch):
            raise RuntimeError(f"{len(results)} results for {len(batch)} clips")
        return results

    def get_num_bytes(self, batch: Sequence[SeparatedClip]) -> int:
        """Size of the stems."""
        return sum(stem.audio.nbytes for clip in batch for stem in clip.stems)

    def get_metrics_namespace(self) -> str:
        """Namespace of the counters."""
        return "ScoreStems"


def _num_stems(clip: SeparatedClip) -> int:
    return len(clip.stems)


@dataclasses.dataclass(eq=False)
class ScoreStems(beam.PTransform[Any, Any]):
    """Separated clips → scored clips.

    In: ``SeparatedClip``. Out: ``ScoredClip``, one for each, in which every metric has a value or a
    reason. Ratios and levels are computed on the mean of the channels, at the model's rate.
    """

    settings: ScoringSettings

    def expand(self, separated: PCollection[SeparatedClip]) -> PCollection[ScoredClip]:
        """Scores clips in the batches in which they come."""
        return separated | "Infer" >> RunInference(ScoringHandler(self.settings))
