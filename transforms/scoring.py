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

from manifests.row import ManifestRow
from model import devices, metrics
from model.clap import QueryEncoder
from model.devices import cores
from model.inference import InPlace, Transfers, transfers_for
from model.metrics import WAVEFORMS, Input, Outcomes, Undefined, score_pair
from model.signal import ActivityOptions, Envelope, active_stretches, envelope_of, to_mono
from model.signal.stft import sinc_resample
from transforms import model_cache
from transforms.elements import (
    RowQuery,
    Samples,
    ScoredClip,
    Scores,
    Segment,
    SeparatedClip,
    WindowOdds,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """The scorer's embeddings of one query's signals, float32[D] each; None: silent or absent."""

    stem: Samples | None
    mixture: Samples | None
    reference: Samples | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signals:
    """What waveforms a stem is scored by, mono at the model's rate, float32[T] each.

    ``reference`` is None where there is none.
    """

    stem: Samples
    mixture: Samples
    reference: Samples | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Powers:
    """The sums of squares of the mono samples of a stem and of its mixture."""

    stem: float
    mixture: float


def query_inputs(
    query: RowQuery, embeddings: Embeddings, *, has_reference: bool
) -> dict[Input, Any]:
    """The embeddings by which a stem is scored, or why one of them is not there.

    Args:
        query: with the scorer's embeddings of its texts, or of its example clips.
        embeddings: the scorer's embeddings of the signals.
        has_reference: whether the row has a reference, be it silent.
    """
    no_reference = Undefined.SILENT_REFERENCE if has_reference else Undefined.NO_REFERENCE
    found: dict[Input, tuple[Samples | None, Undefined]] = {
        "stem_embedding": (embeddings.stem, Undefined.SILENT_STEM),
        "mixture_embedding": (embeddings.mixture, Undefined.SILENT_MIXTURE),
        "reference_embedding": (embeddings.reference, no_reference),
        "positive": (query.scorer_positive, Undefined.NO_POSITIVE_QUERY),
        "negative": (query.scorer_negative, Undefined.NO_NEGATIVE_QUERY),
    }
    return {
        name: reason if vector is None else torch.from_numpy(vector)[None]
        for name, (vector, reason) in found.items()
    }


def waveform_inputs(signals: Signals | None) -> dict[Input, Any]:
    """The waveforms by which a stem is scored; None: the recording is not held in memory."""
    if signals is None:
        return dict.fromkeys(WAVEFORMS, Undefined.NOT_STREAMED)
    reference = Undefined.NO_REFERENCE if signals.reference is None else signals.reference[None]
    return {"stem": signals.stem[None], "mixture": signals.mixture[None], "reference": reference}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoringSettings:
    """How stems are scored.

    Attributes:
        scorer: the CLAP that gives the CLAPScores; None for none.
        model_rate_hz: the rate at which stems come.
        device: where ratios are computed: by the batch on CUDA, elsewhere on the CPU, clip by clip.
        batch_size: clips the scorer hears at once.
        num_threads: threads on a CPU; 0: as many as the machine it runs on has cores.
        activity: when a stem counts as active.
        score_segments: whether each segment has a CLAPScore of its own.
    """

    scorer: model_cache.ScorerChoice | None
    model_rate_hz: int
    device: str = "cpu"
    batch_size: int = 8
    num_threads: int = 1
    activity: ActivityOptions = dataclasses.field(default_factory=ActivityOptions)
    score_segments: bool = False


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
        """The digest of the scorer's weights; None where there is no scorer."""
        return self.encoder.digest if self.encoder is not None else None

    def score(self, clips: Sequence[SeparatedClip]) -> list[ScoredClip]:
        """Scores every stem of every clip."""
        stems = [stem for clip in clips for stem in clip.stems]
        mids = self._mapped(_mid, [stem.audio for stem in stems])
        mixtures = self._mapped(_mid, [clip.clip.model_audio for clip in clips])
        owners = [index for index, clip in enumerate(clips) for _ in clip.stems]
        signals = [
            Signals(stem=mid, mixture=mixtures[owner], reference=stem.reference)
            for mid, owner, stem in zip(mids, owners, stems, strict=True)
        ]
        ratios = self.ratios(signals)
        vectors = self.embed([*mixtures, *mids, *(stem.reference for stem in stems)])
        envelopes = self._mapped(self.envelope, mixtures)
        scores = []
        for index, stem in enumerate(stems):
            embeddings = Embeddings(
                mixture=vectors[owners[index]],
                stem=vectors[len(clips) + index],
                reference=vectors[len(clips) + len(stems) + index],
            )
            powers = Powers(
                stem=power_of(signals[index].stem), mixture=power_of(signals[index].mixture)
            )
            others = self.others(
                stem.query,
                embeddings,
                powers,
                signals[index],
                has_reference=stem.reference is not None,
                presence_odds=stem.presence_odds,
            )
            segments = self.segments(
                stem.query,
                self.envelope(mids[index]),
                envelopes[owners[index]],
                stem.window_odds,
                functools.partial(self._embed_part, mids[index]),
            )
            scores.append(scores_of(ratios[index] | others, segments))
        return self._by_clip(clips, scores)

    def envelope(self, samples: Samples) -> Envelope:
        """The envelope of a recording in memory, float32[T] mono at the model's rate."""
        return envelope_of(samples, self.model_rate_hz)

    def segments(
        self,
        query: RowQuery,
        stem: Envelope,
        mixture: Envelope,
        window_odds: Sequence[WindowOdds],
        embed: Callable[[float, float], Samples | None],
    ) -> tuple[Segment, ...]:
        """The stretches in which a stem is active.

        Args:
            query: with the scorer's embeddings.
            stem: its envelope.
            mixture: the envelope of what it was taken from.
            window_odds: of the windows that tell how likely the sound is there.
            embed: gives the scorer's embedding of the stem between two times; None for silence.
        """
        found = []
        for stretch in active_stretches(stem, mixture, self._settings.activity):
            score = None
            if self._settings.score_segments and query.scorer_positive is not None:
                score = _cosine(embed(stretch.start_s, stretch.end_s), query.scorer_positive)
            met = [
                each.log_odds
                for each in window_odds
                if each.start_s < stretch.end_s and stretch.start_s < each.end_s
            ]
            likely = metrics.presence_of(max(met)) if met and "P" in query.row.polarity else None
            stands = dataclasses.asdict(stretch)
            found.append(Segment(**stands, presence=likely, clap_score=score))
        return tuple(found)

    def _embed_part(self, stem: Samples, start_s: float, end_s: float) -> Samples | None:
        begin, end = (round(time_s * self.model_rate_hz) for time_s in (start_s, end_s))
        (vector,) = self.embed([stem[begin:end]])
        return vector

    def others(
        self,
        query: RowQuery,
        embeddings: Embeddings,
        powers: Powers,
        signals: Signals | None,
        *,
        has_reference: bool,
        presence_odds: float | None,
    ) -> Outcomes:
        """The metrics of one stem that are not computed from sums.

        Args:
            query: with the scorer's embeddings of its texts, or of its example clips.
            embeddings: the scorer's embeddings of the signals.
            powers: of stem and mixture.
            signals: the waveforms; None where they are not held in memory.
            has_reference: whether the row has a reference, be it silent.
            presence_odds: that the recording holds what is asked for; None where nobody says.
        """
        inputs = query_inputs(query, embeddings, has_reference=has_reference)
        if self.encoder is None:
            inputs = dict.fromkeys(inputs, Undefined.NOT_SCORED)
        inputs |= {"stem_power": [powers.stem], "mixture_power": [powers.mixture]}
        inputs["presence_odds"] = _presence_input(query.row, presence_odds)
        (outcomes,) = metrics.evaluate(inputs | waveform_inputs(signals))
        return outcomes

    def embed(self, signals: Sequence[Samples | None]) -> list[Samples | None]:
        """Embeds mono signals at the model's rate with the scorer; None for silent ones."""
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

    def ratios(self, signals: Sequence[Signals]) -> list[Outcomes]:
        """The metrics of each stem that are computed from sums over time."""
        if self._on_device is None:
            return self._mapped(_ratios_of, signals)
        return _ratios_by_length(signals, self._on_device, self._settings.batch_size)

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


def _presence_input(row: ManifestRow, log_odds: float | None) -> Any:
    """The log odds of presence, or why there are none: a negative query names nothing to find."""
    if log_odds is None:
        return Undefined.NO_PRESENCE_OUTPUT
    return [log_odds] if "P" in row.polarity else Undefined.NO_POSITIVE_QUERY


def _mid(audio: Samples) -> Samples:
    return to_mono(audio)


def _ratios_of(signals: Signals) -> Outcomes:
    return _ratios_by_length([signals], InPlace(), 1)[0]


def _ratios_by_length(
    signals: Sequence[Signals], transfers: Transfers, batch_size: int
) -> list[Outcomes]:
    """The metrics of sums of all stems; those of one length share a batch on the device."""
    found = [without_reference() for _ in signals]
    by_length: dict[int, list[int]] = {}
    for index, each in enumerate(signals):
        if each.reference is not None:
            by_length.setdefault(len(each.stem), []).append(index)
    for indices in by_length.values():
        for begin in range(0, len(indices), batch_size):
            batch = indices[begin : begin + batch_size]
            stacked = [
                transfers.up(np.stack([getattr(signals[i], name) for i in batch]))
                for name in ("stem", "mixture", "reference")
            ]
            with torch.inference_mode():
                outcomes = score_pair(*stacked)
            for index, of_stem in zip(batch, outcomes, strict=True):
                found[index] = of_stem
    return found


def without_reference() -> Outcomes:
    """Why the metrics of sums are undefined for a stem that there is no reference for."""
    (outcomes,) = metrics.evaluate({"sums": Undefined.NO_REFERENCE})
    return outcomes


def power_of(samples: Samples) -> float:
    """The sum of squares of samples."""
    return float(np.square(samples, dtype=np.float64).sum())


def _cosine(left: Samples | None, right: Samples) -> float | None:
    """The similarity of two embeddings float32[D]; None where one of them is silence's."""
    if left is None:
        return None
    value = float(metrics.cosine(torch.from_numpy(left)[None], torch.from_numpy(right)[None]))
    return None if math.isnan(value) else value


def scores_of(outcomes: Outcomes, segments: tuple[Segment, ...] | None = None) -> Scores:
    """The values among the outcomes, and the reasons among them; and the segments."""
    return Scores(
        values={k: v for k, v in outcomes.items() if not isinstance(v, Undefined)},
        reasons={k: v.value for k, v in outcomes.items() if isinstance(v, Undefined)},
        segments=segments,
    )


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
        infer = RunInference(ScoringHandler(self.settings)).with_output_types(ScoredClip)
        return separated | "Infer" >> infer
