"""Scores stems against references and queries; :data:`METRICS` is the one table of metrics.

Three quantities are called "SDR" in the literature and differ by several dB. `sdr_db` lets a filter
of 512 taps account for part of the error (BSS eval; the CLAPSep paper's); `si_sdr_db` a gain only;
`snr_db` nothing (AudioSep's and DCASE's "SDR"). Everything is computed in float64.

Where a value is undefined, `Undefined` says why, instead of an infinite value or an artefact of an
epsilon. What a metric of the table is computed from has a constant size, so that `PairScorer`
scores a recording of hours block by block; a metric that needs waveforms is for clips alone.

To add a metric, describe its columns in :mod:`manifests.columns` and give it a line in the table.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from model.metrics import distortion
from model.metrics.distortion import MomentAccumulator, Moments, Problem, Ratios, measure


class Undefined(enum.StrEnum):
    """Why a metric has no value.

    A stem *equals* the reference where the error is below -120 dB, as rounding is; it is *without*
    the reference where it holds less than -160 dB of it.
    Embeddings are *not similar* where the cosine of their angle is not above 0. A query is *unknown
    to the scorer* whose text encoder knows nothing of its words.
    """

    NOT_FINITE = "not_finite"
    SILENT_REFERENCE = "silent_reference"
    SILENT_STEM = "silent_stem"
    SILENT_MIXTURE = "silent_mixture"
    STEM_EQUALS_REFERENCE = "stem_equals_reference"
    MIXTURE_EQUALS_REFERENCE = "mixture_equals_reference"
    STEM_WITHOUT_REFERENCE = "stem_without_reference"
    MIXTURE_WITHOUT_REFERENCE = "mixture_without_reference"
    NO_REFERENCE = "no_reference"
    NO_POSITIVE_QUERY = "no_positive_query"
    NO_NEGATIVE_QUERY = "no_negative_query"
    NOT_SIMILAR = "not_similar"
    NOT_SCORED = "not_scored"
    NOT_STREAMED = "not_streamed"
    SCORER_FAILED = "scorer_failed"
    UNKNOWN_TO_SCORER = "unknown_to_scorer"
    OUT_OF_MEMORY = "out_of_memory"
    NO_PRESENCE_OUTPUT = "no_presence_output"
    NOT_SEPARATED = "not_separated"


_STEM_REASONS = {
    Problem.NOT_FINITE: Undefined.NOT_FINITE,
    Problem.SILENT_REFERENCE: Undefined.SILENT_REFERENCE,
    Problem.SILENT_ESTIMATE: Undefined.SILENT_STEM,
    Problem.WITHOUT_DISTORTION: Undefined.STEM_EQUALS_REFERENCE,
    Problem.WITHOUT_REFERENCE: Undefined.STEM_WITHOUT_REFERENCE,
}
_MIXTURE_REASONS = _STEM_REASONS | {
    Problem.SILENT_ESTIMATE: Undefined.SILENT_MIXTURE,
    Problem.WITHOUT_DISTORTION: Undefined.MIXTURE_EQUALS_REFERENCE,
    Problem.WITHOUT_REFERENCE: Undefined.MIXTURE_WITHOUT_REFERENCE,
}


Outcome = float | Undefined
"""The value of a metric, or why it has none."""
Outcomes = dict[str, Outcome]
"""Those of one stem, by column."""

Input = Literal[
    "sums",
    "stem",
    "mixture",
    "reference",
    "stem_power",
    "mixture_power",
    "stem_embedding",
    "mixture_embedding",
    "reference_embedding",
    "positive",
    "negative",
    "presence_odds",
]
"""What a metric may be computed from, for B stems.

``sums``: the `Moments` of stem (estimate 0) and mixture (estimate 1), compared with the reference.
``stem``, ``mixture`` and ``reference``: NumPy arrays, float32[B, T], mono at the model's rate.
``stem_power`` and ``mixture_power``: B floats, the sums of the squares of these samples.
``presence_odds``: B floats, the log odds that a recording holds what the query asks for.
The embeddings by the scorer, of the signals and of the ``positive`` and ``negative`` queries:
tensors, float32[B, D].
"""
WAVEFORMS: frozenset[Input] = frozenset(("stem", "mixture", "reference"))
"""They are not there of a recording that is too long for the memory."""
EMBEDDINGS: frozenset[Input] = frozenset(
    ("stem_embedding", "mixture_embedding", "reference_embedding", "positive", "negative")
)
"""They are there where a run has a scorer."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the table.

    Attributes:
        columns: the columns of the metrics table that it fills.
        needs: what it is computed from; of what is not there, the first says why it is undefined.
        compute: from the inputs, in the order of ``needs``: for each stem an outcome a column.

    Raises:
        ValueError: ``sums``, which are measured by the batch, are asked for beside other inputs.
    """

    columns: tuple[str, ...]
    needs: tuple[Input, ...]
    compute: Callable[..., Sequence[Sequence[Outcome]]]

    def __post_init__(self) -> None:
        """Checks the inputs."""
        if "sums" in self.needs and len(self.needs) > 1:
            raise ValueError(f"{self.columns}: needs {self.needs}; expected sums alone, or others")

    @property
    def streams(self) -> bool:
        """Whether recordings of any length have it."""
        return WAVEFORMS.isdisjoint(self.needs)


def _ratio(compute: Callable[[Moments], Ratios]) -> Callable[[Moments], list[tuple[Outcome, ...]]]:
    """Gives a ratio of the stem, that of the mixture, and the improvement."""

    def outcomes(moments: Moments) -> list[tuple[Outcome, ...]]:
        ratios = compute(moments)
        stem, mixture = ratios.value_db.unbind(dim=1)
        columns = (each.tolist() for each in (stem, mixture, stem - mixture, ratios.problem))
        return [
            _with_reasons(values, _STEM_REASONS.get(ours), _MIXTURE_REASONS.get(others))
            for *values, (ours, others) in zip(*columns, strict=True)
        ]

    return outcomes


def _with_reasons(
    values: Sequence[float], of_stem: Undefined | None, of_mixture: Undefined | None
) -> tuple[Outcome, ...]:
    """Stem, mixture and improvement, or why not; the stem's reason goes first for the last."""
    stem, mixture, improvement = values
    return of_stem or stem, of_mixture or mixture, of_stem or of_mixture or improvement


def _similarity(formula: Callable[..., Tensor]) -> Callable[..., list[tuple[Outcome]]]:
    """Gives what a formula makes of embeddings; NaN is undefined."""

    def outcomes(*embeddings: Tensor) -> list[tuple[Outcome]]:
        values = formula(*embeddings).tolist()
        return [(Undefined.NOT_FINITE if math.isnan(value) else value,) for value in values]

    return outcomes


def cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of the angle between embeddings.

    Args:
        left: float[B, D], any scale.
        right: float[B, D], any scale.

    Returns:
        float64[B] in [-1, 1]; NaN where an embedding is zero or not finite.

    Raises:
        ValueError: shapes differ.
    """
    if left.ndim != 2 or left.shape != right.shape:
        raise ValueError(
            f"embeddings of shapes {tuple(left.shape)} and {tuple(right.shape)} do not match"
        )
    return (_normalise(left) * _normalise(right)).sum(dim=-1).clamp(-1.0, 1.0)


def _normalise(embeddings: Tensor) -> Tensor:
    """To float64[B, D] of unit norm; what is zero or not finite becomes NaN."""
    rows = embeddings.detach().double()
    norms = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where((norms > 0.0) & norms.isfinite(), rows / norms, torch.nan)


def _improvement(stem: Tensor, positive: Tensor, mixture: Tensor) -> Tensor:
    return cosine(stem, positive) - cosine(mixture, positive)


def _contrast(stem: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return cosine(stem, positive) - cosine(stem, negative)


def _with_reference(stem: Tensor, positive: Tensor, reference: Tensor) -> list[tuple[Outcome]]:
    """Gives the harmonic means of the similarities to query and reference."""
    pairs = zip(cosine(stem, positive).tolist(), cosine(stem, reference).tolist(), strict=True)
    return [(_harmonic_mean(*pair),) for pair in pairs]


def _harmonic_mean(left: float, right: float) -> Outcome:
    if math.isnan(left) or math.isnan(right):
        return Undefined.NOT_FINITE
    return 2.0 * left * right / (left + right) if min(left, right) > 0.0 else Undefined.NOT_SIMILAR


def _level(stem_powers: Sequence[float], mixture_powers: Sequence[float]) -> list[tuple[Outcome]]:
    """Gives how loud stems are beside their mixtures."""
    return [(_level_of(*pair),) for pair in zip(stem_powers, mixture_powers, strict=True)]


def _level_of(stem_power: float, mixture_power: float) -> Outcome:
    if not stem_power > 0:
        return Undefined.SILENT_STEM
    if not mixture_power > 0:
        return Undefined.SILENT_MIXTURE
    return 10 * math.log10(stem_power / mixture_power)


def _presence(log_odds: Sequence[float]) -> list[tuple[Outcome]]:
    """Gives how likely it is that mixtures hold what is asked for."""
    return [(Undefined.NOT_FINITE if math.isnan(each) else presence_of(each),) for each in log_odds]


def presence_of(log_odds: float) -> float:
    """How likely something is, in [0, 1], whose log odds are known."""
    return 0.5 * (1.0 + math.tanh(0.5 * log_odds))


METRICS: tuple[Metric, ...] = (
    Metric(
        columns=("sdr_db", "sdr_mixture_db", "sdri_db"),
        needs=("sums",),
        compute=_ratio(distortion.filtered),
    ),
    Metric(
        columns=("si_sdr_db", "si_sdr_mixture_db", "si_sdri_db"),
        needs=("sums",),
        compute=_ratio(distortion.scaled),
    ),
    Metric(
        columns=("snr_db", "snr_mixture_db", "snri_db"),
        needs=("sums",),
        compute=_ratio(distortion.plain),
    ),
    Metric(
        columns=("clap_score",),
        needs=("stem_embedding", "positive"),
        compute=_similarity(cosine),
    ),
    Metric(
        columns=("clap_score_mixture",),
        needs=("positive", "mixture_embedding"),
        compute=_similarity(cosine),
    ),
    Metric(
        columns=("clap_score_negative",),
        needs=("stem_embedding", "negative"),
        compute=_similarity(cosine),
    ),
    Metric(
        columns=("clap_score_improvement",),
        needs=("stem_embedding", "positive", "mixture_embedding"),
        compute=_similarity(_improvement),
    ),
    Metric(
        columns=("clap_score_contrast",),  # what the paper's tables fit
        needs=("stem_embedding", "positive", "negative"),
        compute=_similarity(_contrast),
    ),
    Metric(
        columns=("ref_clap_score",),
        needs=("stem_embedding", "positive", "reference_embedding"),
        compute=_with_reference,
    ),
    Metric(
        columns=("stem_to_mixture_db",),
        needs=("stem_power", "mixture_power"),
        compute=_level,
    ),
    Metric(
        columns=("presence",),
        needs=("presence_odds",),
        compute=_presence,
    ),
)
"""Every metric. The similarities are those of Xiao et al. 2024, arXiv 2407.04936 (CLAPScore,
RefCLAPScore), their improvement and their contrast."""


def evaluate(inputs: Mapping[Input, Any], num_stems: int = 1) -> list[Outcomes]:
    """Computes every metric of the table all of whose inputs are named.

    Args:
        inputs: each by name, for all stems; or the `Undefined` that says why it is not there.
        num_stems: how many stems they are of.

    Returns:
        The outcomes of each stem.
    """
    found: list[Outcomes] = [{} for _ in range(num_stems)]
    for metric in METRICS:
        if not inputs.keys() >= set(metric.needs):
            continue
        given = [inputs[name] for name in metric.needs]
        reason = next((each for each in given if isinstance(each, Undefined)), None)
        if reason is None:
            rows = metric.compute(*given)
        else:
            rows = [(reason,) * len(metric.columns)] * num_stems
        for outcomes, row in zip(found, rows, strict=True):
            outcomes.update(zip(metric.columns, row, strict=True))
    return found


def _of_sums(moments: Moments) -> list[Outcomes]:
    return evaluate({"sums": moments}, len(moments.powers))


FILTER_TAPS = 512


class SdrPair(NamedTuple):
    """SDR before and after separation, each float64[B] in dB."""

    stem: Tensor
    mixture: Tensor


def sdr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Signal-to-distortion ratio that forgives a filter of 512 taps, as in BSS eval.

    Args:
        estimate: float[B, T], any scale.
        reference: float[B, T], on the same device.

    Returns:
        float64[B] in dB; NaN where a signal is silent or not finite, where the distortion is under
        -120 dB of the estimate (as where it equals the reference) or the rest under -160 dB.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        Vincent et al. 2006, IEEE TASLP 14(4); Scheibler 2022, ICASSP (the form in correlations).
        Equals torchmetrics' ``signal_distortion_ratio`` with its defaults from 512 samples on;
        below, its correlations wrap round. Differs: NaN and not an exception or some 130 dB;
        Levinson's recursion and not LU.
    """
    moments = _moments([estimate], reference, FILTER_TAPS)
    return distortion.filtered(moments).value_db[:, 0]


def sdr_pair_db(stem: Tensor, mixture: Tensor, reference: Tensor) -> SdrPair:
    """`sdr_db` of stem and mixture, sharing what depends on the reference only.

    Args:
        stem: float[B, T], any scale.
        mixture: float[B, T].
        reference: float[B, T].

    Returns:
        Both ratios; NaN as in `sdr_db`.

    Raises:
        ValueError: shapes differ, or T is 0.
    """
    moments = _moments([stem, mixture], reference, FILTER_TAPS)
    pair_db = distortion.filtered(moments).value_db
    return SdrPair(stem=pair_db[:, 0], mixture=pair_db[:, 1])


def si_sdr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant SDR, without mean removal.

    Args:
        estimate: float[B, T], any scale.
        reference: float[B, T].

    Returns:
        float64[B] in dB; NaN as in `sdr_db`.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        Le Roux et al. 2019, ICASSP. Differs from torchmetrics: NaN, not an epsilon.
    """
    return distortion.scaled(_moments([estimate], reference)).value_db[:, 0]


def si_snr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Scale-invariant SDR after the mean of each signal is removed.

    Args:
        estimate: float[B, T], any scale and offset.
        reference: float[B, T].

    Returns:
        float64[B] in dB; NaN as in `sdr_db`, and where a signal is constant.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        Luo and Mesgarani 2018, ICASSP. Differs from torchmetrics: NaN, not an epsilon.
    """
    moments = distortion.without_mean(_moments([estimate], reference))
    return distortion.scaled(moments).value_db[:, 0]


def snr_db(estimate: Tensor, reference: Tensor) -> Tensor:
    """Power of the reference over that of the estimate's difference from it.

    Args:
        estimate: float[B, T]; its scale matters.
        reference: float[B, T].

    Returns:
        float64[B] in dB; NaN where a signal is silent or not finite, or where their difference is
        under -120 dB of the reference.

    Raises:
        ValueError: shapes differ, or T is 0.

    Source:
        AudioSep's and DCASE 2024 Task 9's "SDR". A silent estimate would formally have 0 dB.
    """
    return distortion.plain(_moments([estimate], reference)).value_db[:, 0]


def score_pair(stem: Tensor, mixture: Tensor, reference: Tensor) -> list[Outcomes]:
    """All metrics of sums at once, at little more than the cost of `sdr_pair_db`.

    Args:
        stem: float[B, T].
        mixture: float[B, T].
        reference: float[B, T].

    Returns:
        The outcomes of each clip, by column.

    Raises:
        ValueError: shapes differ, or T is 0.
    """
    return _of_sums(_moments([stem, mixture], reference, FILTER_TAPS))


class PairScorer:
    """`score_pair` for recordings that arrive in blocks, in memory for one block."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._moments = MomentAccumulator(FILTER_TAPS)

    def update(self, stem: Tensor, mixture: Tensor, reference: Tensor) -> None:
        """Adds a block.

        Args:
            stem: float[B, n]; n may change from block to block, B and the device may not.
            mixture: float[B, n].
            reference: float[B, n].

        Raises:
            ValueError: shapes differ.
        """
        _check([stem, mixture], reference)
        self._moments.update(torch.stack([stem, mixture], dim=1), reference)

    def scores(self) -> list[Outcomes]:
        """The outcomes of each clip for all blocks so far: those of the blocks put together.

        Raises:
            ValueError: there were no samples.
        """
        return _of_sums(self._moments.result())


def _check(estimates: Sequence[Tensor], reference: Tensor) -> None:
    if reference.ndim != 2:
        raise ValueError(f"expected [clips, samples], got shape {tuple(reference.shape)}")
    for estimate in estimates:
        if estimate.shape != reference.shape:
            raise ValueError(
                f"an estimate of shape {tuple(estimate.shape)} cannot be scored against a "
                f"reference of shape {tuple(reference.shape)}"
            )


def _moments(estimates: Sequence[Tensor], reference: Tensor, num_lags: int = 0) -> Moments:
    _check(estimates, reference)
    return measure(torch.stack(list(estimates), dim=1), reference, num_lags)
