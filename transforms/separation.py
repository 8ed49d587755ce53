"""Clips in memory → stems: the model handler of ``RunInference``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.metrics.metric import Metrics
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.pvalue import PCollection

from model.inference import (
    ForwardPass,
    Network,
    NetworkSettings,
    SeparationError,
    WindowEstimates,
    WindowQueries,
)
from model.signal import InputGain, input_gain
from model.signal.windowing import OverlapAdder, WindowPlan
from transforms import model_cache
from transforms.elements import (
    Clip,
    Failure,
    Provenance,
    RowQuery,
    Samples,
    SeparatedClip,
    Stem,
    WindowOdds,
    failed,
)
from transforms.tables import dead_letters, row_counts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeparationSettings:
    """What is run, and how.

    Attributes:
        model: which model.
        network: batches, threads, the condition's normalisation.
        overlap: the part of a window that it shares with the next, in [0, 1).
    """

    model: model_cache.ModelChoice
    network: NetworkSettings = dataclasses.field(default_factory=NetworkSettings)
    overlap: float = 0.25


QUERIES_A_WINDOW = 4
"""Stems that a batch may hold for each of its windows: a bound of memory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightedClip:
    """How many windows of a batch a clip counts for.

    A window is encoded once, however many queries it has. So that a batch has windows enough for
    all threads where each has many queries, :data:`QUERIES_A_WINDOW` of them count as one.
    """

    window_samples: int
    overlap: float

    def __call__(self, clip: Clip) -> int:
        """Windows × channels, and more than that where they have many queries."""
        plan = WindowPlan(window_samples=self.window_samples, overlap=self.overlap)
        windows = len(plan.starts(clip.model_audio.shape[1])) * len(clip.model_audio)
        return max(windows, -(-windows * len(clip.queries) // QUERIES_A_WINDOW))


class Separation:
    """A loaded model and its settings: clips in, stems out; no state between calls."""

    def __init__(self, settings: SeparationSettings) -> None:
        """Loads the model."""
        loaded = model_cache.load_model(settings.model)
        device = settings.model.resolved_device()
        self.network = Network(loaded.separator, device, settings.network, passed=_count)
        self.provenance = provenance_of(loaded, settings.model)
        self.plan = WindowPlan(
            window_samples=loaded.separator.window_samples, overlap=settings.overlap
        )

    def gain_of(self, pieces: Iterable[Samples]) -> InputGain:
        """Computes the input gain of a recording: float32[C, n] pieces at the model's rate."""
        separator = self.network.separator
        return input_gain(pieces, separator.sample_rate_hz, separator.input_level_dbfs)

    def window_odds(self, windows: Iterable[tuple[int, float]]) -> tuple[WindowOdds, ...]:
        """Places log odds by the first samples of their windows; leaves out what is not told."""
        rate_hz, length = self.network.separator.sample_rate_hz, self.plan.window_samples
        return tuple(
            WindowOdds(start_s=start / rate_hz, end_s=(start + length) / rate_hz, log_odds=odds)
            for start, odds in windows
            if told(odds) is not None
        )

    def separate(self, clips: Sequence[Clip]) -> list[SeparatedClip]:
        """Separates clips together; one that fails is tried alone, then query by query."""
        try:
            return self._together(clips)
        except SeparationError as err:
            if len(clips) > 1:
                return [result for clip in clips for result in self.separate([clip])]
            (clip,) = clips
            if len(clip.queries) == 1:
                failure = _failed(clip.queries[0], err)
                return [self._result(clip, (), (failure,))]
        parts = [self.separate([_only(clip, i)])[0] for i in range(len(clip.queries))]
        return [
            self._result(
                clip,
                [stem for part in parts for stem in part.stems],
                [failure for part in parts for failure in part.failures],
            )
        ]

    def estimates(
        self, groups: Sequence[Sequence[WindowQueries]]
    ) -> list[list[WindowEstimates] | SeparationError]:
        """Separates windows of several recordings together; those of one that fails, alone.

        Returns:
            For each group of windows its estimates, or why there are none.
        """
        try:
            found = iter(self.network.separate([window for group in groups for window in group]))
            return [[next(found) for _ in group] for group in groups]
        except SeparationError as err:
            if len(groups) == 1:
                return [err]
        return [self.estimates([group])[0] for group in groups]

    def _together(self, clips: Sequence[Clip]) -> list[SeparatedClip]:
        cut = [self._windows(clip) for clip in clips]
        estimates = iter(self.network.separate([window for windows in cut for window in windows]))
        return [
            self._assemble(clip, windows, [next(estimates) for _ in windows])
            for clip, windows in zip(clips, cut, strict=True)
        ]

    def _windows(self, clip: Clip) -> list[WindowQueries]:
        gain = self.gain_of([clip.model_audio])
        cut = [
            (start, self.plan.cut(clip.model_audio, start))
            for start in self.plan.starts(clip.model_audio.shape[1])
        ]
        return [
            window_queries(
                samples,
                clip.queries,
                self._targets(clip, start),
                gain=gain.at(start, samples.shape[1]),
                offset=gain.offset,
            )
            for start, samples in cut
        ]

    def _targets(self, clip: Clip, start: int) -> Samples | None:
        """The references of a window, float32[Q, n]; None where the model must not know them."""
        if not self.network.separator.capabilities.needs_reference:
            return None
        known = [reference for reference in clip.references if reference is not None]
        if len(known) != len(clip.references):
            raise SeparationError("no_reference", "the model needs the reference of every query")
        return self.plan.cut(np.stack(known), start)

    def _assemble(
        self, clip: Clip, windows: Sequence[WindowQueries], estimates: Sequence[WindowEstimates]
    ) -> SeparatedClip:
        starts = self.plan.starts(clip.model_audio.shape[1])
        stems: list[Stem] = []
        failed_rows: list[Failure] = []
        whole = self.network.map(
            lambda index: self._overlap_add(clip, starts, [a.samples[index] for a in estimates]),
            range(len(clip.queries)),
        )
        for index, (query, audio) in enumerate(zip(clip.queries, whole, strict=True)):
            if not np.isfinite(audio).all():
                error = SeparationError("not_finite", "the network's output is not finite")
                failed_rows.append(_failed(query, error))
                continue
            stems.append(
                Stem(
                    query=query,
                    reference=clip.references[index],
                    audio=audio,
                    num_windows=len(starts) * len(clip.model_audio),
                    inference_s=sum(a.inference_s[index] for a in estimates),
                    input_gain_db=mean_gain_db([window.gain for window in windows]),
                    presence_odds=told(max(float(a.presence[index].max()) for a in estimates)),
                    window_odds=self.window_odds(
                        (start, float(a.presence[index].max()))
                        for start, a in zip(starts, estimates, strict=True)
                    ),
                )
            )
        return self._result(clip, stems, failed_rows)

    def _result(
        self, clip: Clip, stems: Sequence[Stem], failed_rows: Sequence[Failure]
    ) -> SeparatedClip:
        return SeparatedClip(
            clip=clip,
            stems=tuple(stems),
            provenance=self.provenance,
            failures=tuple(failed_rows),
        )

    def _overlap_add(
        self, clip: Clip, starts: Sequence[int], estimates: Sequence[Samples]
    ) -> Samples:
        if len(estimates) == 1:  # nothing to fade; the adder would give the same, through float64
            return estimates[0][:, : clip.model_audio.shape[1]]
        adder = OverlapAdder(self.plan, len(clip.model_audio))
        pieces = [adder.push(a, start) for a, start in zip(estimates, starts, strict=True)]
        return np.concatenate([*pieces, adder.flush(clip.model_audio.shape[1])], axis=1)


def _count(forward_pass: ForwardPass) -> None:
    """Enters a forward pass into the counters."""
    took = Metrics.distribution("SeparateClips", "network_msec")
    took.update(round(1_000 * forward_pass.took_s))
    Metrics.distribution("SeparateClips", "batch_windows").update(forward_pass.num_windows)
    row_counts.add(windows=forward_pass.num_windows)  # a sign of life, within long recordings too


def provenance_of(loaded: Any, choice: model_cache.ModelChoice) -> Provenance:
    """What the metrics say of a loaded model."""
    return Provenance(
        model=loaded.name,
        model_sha256=loaded.model_sha256,
        clap_sha256=loaded.clap_sha256,
        device=choice.resolved_device(),
        precision=choice.precision,
    )


def window_queries(
    samples: Samples,
    queries: Sequence[RowQuery],
    references: Samples | None = None,
    *,
    gain: float = 1.0,
    offset: Samples | None = None,
) -> WindowQueries:
    """A window float32[C, n] with its gain and the conditions of all that is asked of it."""
    return WindowQueries(
        samples=samples,
        positive=np.stack([query.positive for query in queries]),
        negative=np.stack([query.negative for query in queries]),
        references=references,
        gain=gain,
        offset=offset,
    )


def told(log_odds: float) -> float | None:
    """Log odds of presence, or None for the NaN of a separator that does not say."""
    return None if math.isnan(log_odds) else log_odds


def mean_gain_db(gains: Sequence[float]) -> float:
    """The gain of a recording as one number: the mean in dB of its windows' gains."""
    return float(np.mean(20.0 * np.log10(gains)))


def _only(clip: Clip, index: int) -> Clip:
    return dataclasses.replace(
        clip, queries=(clip.queries[index],), references=(clip.references[index],)
    )


def _failed(query: RowQuery, error: SeparationError) -> Failure:
    return failed(query.row, "separate", error.code, str(error))


class SeparationHandler(ModelHandler[Clip, SeparatedClip, Separation]):
    """Runs :class:`Separation` in ``RunInference``; batches are full, and counted in windows."""

    def __init__(self, settings: SeparationSettings, window_samples: int) -> None:
        """Nothing is loaded here.

        Args:
            settings: what is run.
            window_samples: of the model, so that a clip's weight is known before it is loaded.
        """
        size = settings.network.batch_size
        super().__init__(
            min_batch_size=size,
            max_batch_size=size,
            element_size_fn=WeightedClip(window_samples=window_samples, overlap=settings.overlap),
        )
        self._settings = settings

    def load_model(self) -> Separation:
        """Loads the model, once a process."""
        return Separation(self._settings)

    def run_inference(
        self,
        batch: Sequence[Clip],
        model: Separation,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterable[SeparatedClip]:
        """One result for each clip, in order.

        Raises:
            RuntimeError: the model gave another number of results.
        """
        results = model.separate(batch)
        if len(results) != len(batch):
            raise RuntimeError(f"{len(results)} results for {len(batch)} clips")
        return results

    def get_num_bytes(self, batch: Sequence[Clip]) -> int:
        """Size of the samples that the network hears."""
        return sum(clip.model_audio.nbytes for clip in batch)

    def get_metrics_namespace(self) -> str:
        """Namespace of the counters."""
        return "SeparateClips"


@dataclasses.dataclass(eq=False)
class SeparateClips(beam.PTransform[Any, Any]):
    """Clips → separated clips.

    In: ``Clip``. Out: ``SeparatedClip`` with at least one stem, and ``Failure`` for each query that
    has none; every query of every clip in one of the two. What comes out does not depend on how
    clips were batched.
    """

    settings: SeparationSettings
    window_samples: int

    def expand(
        self, clips: PCollection[Clip]
    ) -> tuple[PCollection[SeparatedClip], PCollection[Failure]]:
        """Batches clips by their windows, and runs the network on each batch."""
        handler = SeparationHandler(self.settings, self.window_samples)
        outputs = (
            clips
            | "Infer" >> RunInference(handler).with_output_types(SeparatedClip)
            | "Part"
            >> beam.FlatMap(_part)
            .with_output_types(SeparatedClip, **{dead_letters.FAILED: Failure})
            .with_outputs(dead_letters.FAILED, main="separated")
        )
        return outputs["separated"], outputs[dead_letters.FAILED]


def _part(separated: SeparatedClip) -> Iterator[Any]:
    """Takes the failures out of a separated clip."""
    for failure in separated.failures:
        yield dead_letters.dead(failure)
    if separated.stems:
        yield dataclasses.replace(separated, failures=())
