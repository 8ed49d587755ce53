"""Scores stems: ratios against their references, CLAPScores against their queries."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.pvalue import PCollection
from torch import Tensor

from manifests.row import ManifestRow
from model import devices, metrics
from model.clap import MAX_WINDOWS, QueryEncoder, cover
from model.devices import cores
from model.inference import MODEL_ERRORS, InPlace, Transfers, transfers_for
from model.metrics import EMBEDDINGS, METRICS, WAVEFORMS, Input, Outcomes, Undefined, score_pair
from model.signal import (
    ActivityOptions,
    Envelope,
    active_stretches,
    envelope_of,
    resampled_length,
    to_mono,
)
from model.signal.stft import sinc_resample
from transforms import model_cache
from transforms.elements import (
    RowQuery,
    Samples,
    ScoredClip,
    Scores,
    Segment,
    SeparatedClip,
    StemEmbedding,
    WindowOdds,
)

logger = logging.getLogger(__name__)
ClapScores = Literal["stem", "all"]
"""Which CLAPScores a run has: those of the stem alone, or those that compare it too."""

Embedded = Samples | Undefined | None
"""The scorer's embedding of a signal, float32[D]; None: it is silent or absent; or why else not."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embeddings:
    """The scorer's embeddings of one query's signals."""

    stem: Embedded
    mixture: Embedded
    reference: Embedded


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
    """The sums of squares of the mono samples of a stem, and of its mixture without its offset."""

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
    found: dict[Input, tuple[Embedded, Undefined]] = {
        "stem_embedding": (embeddings.stem, Undefined.SILENT_STEM),
        "mixture_embedding": (embeddings.mixture, Undefined.SILENT_MIXTURE),
        "reference_embedding": (embeddings.reference, no_reference),
        "positive": (_embedded(query.scorer_positive), Undefined.NO_POSITIVE_QUERY),
        "negative": (_embedded(query.scorer_negative), Undefined.NO_NEGATIVE_QUERY),
    }
    inputs: dict[Input, Any] = {}
    for name, (vector, reason) in found.items():
        known = reason if vector is None else vector
        inputs[name] = known if isinstance(known, Undefined) else torch.from_numpy(known)[None]
    return inputs


def _embedded(query: Samples | str | None) -> Embedded:
    return Undefined(query) if isinstance(query, str) else query


def signals_needed(query: RowQuery, *, has_reference: bool) -> frozenset[Input]:
    """The signals that some metric of a row cannot do without.

    A metric that compares with a query that the row does not have is undefined anyway, so nothing
    has to be embedded for it.

    Args:
        query: with the scorer's embeddings of its texts, or of its example clips.
        has_reference: whether the row has a reference.
    """
    asked = {"positive": query.scorer_positive, "negative": query.scorer_negative}
    absent: set[Input] = {name for name in _QUERIES if asked[name] is None}
    if not has_reference:
        absent.add("reference_embedding")
    needed = [set(metric.needs) & EMBEDDINGS for metric in METRICS]
    return frozenset(
        itertools.chain.from_iterable(each - _QUERIES for each in needed if not each & absent)
    )


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
        batch_size: windows that the scorer hears at once.
        num_threads: threads on a CPU; 0: as many as the machine it runs on has cores.
        activity: when a stem counts as active.
        score_segments: whether each segment has a CLAPScore of its own.
        clap_scores: which CLAPScores there are.
        keep_embeddings: whether the scorer's embedding of each stem is kept.
    """

    scorer: model_cache.ScorerChoice | None
    model_rate_hz: int
    device: str = "cpu"
    batch_size: int = 8
    num_threads: int = 1
    activity: ActivityOptions = dataclasses.field(default_factory=ActivityOptions)
    score_segments: bool = False
    clap_scores: ClapScores = "all"
    keep_embeddings: bool = False


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
        embedded = self._embedded([stem.query for stem in stems], signals)
        centred = functools.partial(self.envelope, centred=True)
        of_mixtures = self._mapped(centred, mixtures)
        energies = [
            envelope.centred_energy(power)
            for envelope, power in zip(of_mixtures, self._mapped(power_of, mixtures), strict=True)
        ]
        of_stems = self._mapped(self.envelope, mids)
        powers_of_stems = self._mapped(power_of, mids)
        scores = []
        for index, (stem, embeddings) in enumerate(zip(stems, embedded, strict=True)):
            owner = owners[index]
            powers = Powers(stem=powers_of_stems[index], mixture=energies[owner])
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
                of_stems[index],
                of_mixtures[owner],
                stem.window_odds,
                functools.partial(self._embed_part, mids[index]),
            )
            kept = self.kept(embeddings.stem)
            scores.append(scores_of(ratios[index] | others, segments, kept))
        return self._by_clip(clips, scores)

    def envelope(self, samples: Samples, *, centred: bool = False) -> Envelope:
        """The envelope of a recording in memory, float32[T] mono at the model's rate."""
        return envelope_of(samples, self.model_rate_hz, centred=centred)

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
            asked = query.scorer_positive
            if self._settings.score_segments and isinstance(asked, np.ndarray):
                score = _cosine(embed(stretch.start_s, stretch.end_s), asked)
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
        return None if isinstance(vector, Undefined) else vector

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
        elif self._settings.clap_scores == "stem":
            inputs |= dict.fromkeys(_COMPARED, Undefined.NOT_SCORED)
        inputs |= {"stem_power": [powers.stem], "mixture_power": [powers.mixture]}
        inputs["presence_odds"] = _presence_input(query.row, presence_odds)
        (outcomes,) = metrics.evaluate(inputs | waveform_inputs(signals))
        return outcomes

    def needs(self, query: RowQuery, *, has_reference: bool) -> frozenset[Input]:
        """The signals to embed for a row: what a column of it that this run has needs."""
        if self.encoder is None:
            return frozenset()
        needed = signals_needed(query, has_reference=has_reference)
        if self._settings.clap_scores == "stem":
            needed -= _COMPARED
        return needed | {"stem_embedding"} if self._settings.keep_embeddings else needed

    def kept(self, stem: Embedded) -> StemEmbedding | None:
        """The embedding of a stem for the table of embeddings; None where nobody wants it."""
        if not self._settings.keep_embeddings:
            return None
        if stem is None or isinstance(stem, Undefined):
            return StemEmbedding(undefined_reason=(stem or Undefined.SILENT_STEM).value)
        if not np.isfinite(stem).all():
            return StemEmbedding(undefined_reason=Undefined.NOT_FINITE.value)
        return StemEmbedding(vector=stem.astype("<f4").tobytes())

    def _embedded(
        self, queries: Sequence[RowQuery], signals: Sequence[Signals]
    ) -> list[Embeddings]:
        """Embeds what the rows need, each distinct signal once, however many rows have it."""
        wanted: dict[tuple[int, Input], bytes] = {}
        distinct: dict[bytes, Samples] = {}
        names: dict[int, bytes] = {}  # rows of a mixture share arrays
        for index, (query, each) in enumerate(zip(queries, signals, strict=True)):
            found: dict[Input, Samples | None] = {
                "stem_embedding": each.stem,
                "mixture_embedding": each.mixture,
                "reference_embedding": each.reference,
            }
            for name in self.needs(query, has_reference=each.reference is not None):
                samples = found[name]
                if samples is None:
                    continue
                if id(samples) not in names:
                    names[id(samples)] = _name_of(samples)
                wanted[index, name] = names[id(samples)]
                distinct.setdefault(names[id(samples)], samples)
        vectors = dict(zip(distinct, self.embed(list(distinct.values())), strict=True))

        def vector(index: int, name: Input) -> Embedded:
            return vectors[wanted[index, name]] if (index, name) in wanted else None

        return [
            Embeddings(
                stem=vector(index, "stem_embedding"),
                mixture=vector(index, "mixture_embedding"),
                reference=vector(index, "reference_embedding"),
            )
            for index in range(len(signals))
        ]

    def embed(
        self, signals: Sequence[Samples | None], *, silence_too: bool = False
    ) -> list[Embedded]:
        """Embeds mono signals at the model's rate with the scorer; None for silent ones.

        With ``silence_too`` silence has an embedding: as it has in a window of a longer signal.
        Batches are counted in windows of the scorer, so that long signals take no more memory at a
        time than short ones; what memory is too small for is halved, down to one window.

        Raises:
            MachineError: the scorer fails, and fails on silence too.
        """
        found: list[Embedded] = [None] * len(signals)
        encoder = self.encoder
        if encoder is None:
            return found
        wanted = [
            index
            for index, signal in enumerate(signals)
            if signal is not None and (silence_too or signal.any())
        ]
        counts = {index: self._num_windows(encoder, signals[index]) for index in wanted}
        size = self._settings.batch_size
        if self._pool is not None:
            size = min(size, -(-sum(counts.values()) // self._num_threads) or 1)
        batches = _batches(counts, size)
        results = self._mapped(
            functools.partial(self._embed_batch, encoder, size),
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

    def _num_windows(self, encoder: QueryEncoder, signal: Any) -> int:
        """How many windows of the scorer :func:`model.clap.cover` makes of a signal."""
        heard = resampled_length(len(signal), self._settings.model_rate_hz, encoder.sample_rate_hz)
        return min(-(-heard // encoder.clip_samples), MAX_WINDOWS)

    def _embed_batch(
        self, encoder: QueryEncoder, size: int, signals: Sequence[Samples]
    ) -> list[Embedded]:
        """Embeds signals by their windows, at most ``size`` at a time."""
        up = torch.from_numpy if self._on_device is None else self._on_device.up
        rate_hz = self._settings.model_rate_hz
        with torch.inference_mode():
            pieces = [
                cover(
                    sinc_resample(up(signal), rate_hz, encoder.sample_rate_hz),
                    encoder.clip_samples,
                )
                for signal in signals
            ]
        windows = [window for each in pieces for window in each]
        vectors = itertools.chain.from_iterable(
            self._embed_windows(encoder, windows[begin : begin + size])
            for begin in range(0, len(windows), size)
        )
        return [_mean_of(list(itertools.islice(vectors, len(each)))) for each in pieces]

    def _embed_windows(
        self, encoder: QueryEncoder, windows: Sequence[Tensor]
    ) -> list[Samples | Undefined]:
        """Embeds windows together; those that memory is too small for in halves."""
        try:
            return self._embed_together(encoder, windows)
        except MODEL_ERRORS as err:
            if not devices.is_out_of_memory(err):
                silence = torch.zeros_like(windows[0])
                devices.require_working(lambda: self._embed_together(encoder, [silence]), err)
                logger.warning("the scorer cannot embed a stem: %s", devices.first_line(err))
            elif len(windows) == 1:
                logger.warning("memory is too small for the scorer: %s", devices.first_line(err))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(windows) == 1:
            return [Undefined.SCORER_FAILED]
        half = len(windows) // 2
        return [
            *self._embed_windows(encoder, windows[:half]),
            *self._embed_windows(encoder, windows[half:]),
        ]

    def _embed_together(
        self, encoder: QueryEncoder, windows: Sequence[Tensor]
    ) -> list[Samples | Undefined]:
        with torch.inference_mode():
            return list(encoder.embed_audio(windows).float().cpu().numpy())

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


_QUERIES: Final[frozenset[Input]] = frozenset(("positive", "negative"))
_COMPARED: Final[frozenset[Input]] = frozenset(("mixture_embedding", "reference_embedding"))
"""What a stem is compared with; ``--clap_scores stem`` leaves it out."""


def _name_of(samples: Samples) -> bytes:
    """Equal for equal samples."""
    return hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).digest()


def _batches(counts: Mapping[int, int], size: int) -> list[list[int]]:
    """Signals in batches of at most ``size`` windows; what has more is a batch of its own."""
    batches: list[list[int]] = []
    room = 0
    for index, count in counts.items():
        if not batches or count > room:
            batches.append([])
            room = size
        batches[-1].append(index)
        room -= count
    return batches


def _mean_of(vectors: Sequence[Samples | Undefined]) -> Samples | Undefined:
    """The embedding of a signal by those of its windows, as :meth:`model.clap.Clap.embed_audio`."""
    known = [vector for vector in vectors if not isinstance(vector, Undefined)]
    if len(known) < len(vectors):
        return Undefined.SCORER_FAILED
    if len(known) == 1:
        return known[0]
    mean = torch.from_numpy(np.stack(known)).mean(dim=0)
    unit: Samples = torch.nn.functional.normalize(mean, dim=-1).numpy()
    return unit


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
            outcomes = _ratios_together([signals[i] for i in batch], transfers)
            for index, of_stem in zip(batch, outcomes, strict=True):
                found[index] = of_stem
    return found


def _ratios_together(signals: Sequence[Signals], transfers: Transfers) -> list[Outcomes]:
    """The metrics of sums of stems of one length; in halves where memory is too small."""
    try:
        stacked = [
            transfers.up(np.stack([getattr(each, name) for each in signals]))
            for name in ("stem", "mixture", "reference")
        ]
        with torch.inference_mode():
            return score_pair(*stacked)
    except MODEL_ERRORS as err:
        if not devices.is_out_of_memory(err):
            raise
        logger.debug("memory is too small to compare %d stems: halved", len(signals))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(signals) == 1:
        return metrics.evaluate({"sums": Undefined.OUT_OF_MEMORY})
    half = len(signals) // 2
    return [
        *_ratios_together(signals[:half], transfers),
        *_ratios_together(signals[half:], transfers),
    ]


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


def scores_of(
    outcomes: Outcomes,
    segments: tuple[Segment, ...] | None = None,
    embedding: StemEmbedding | None = None,
) -> Scores:
    """The values among the outcomes, and the reasons among them; and what has tables of its own."""
    return Scores(
        values={k: v for k, v in outcomes.items() if not isinstance(v, Undefined)},
        reasons={k: v.value for k, v in outcomes.items() if isinstance(v, Undefined)},
        segments=segments,
        embedding=embedding,
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
