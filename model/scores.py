"""What scoring a stem gives: ratios before and after separation, or why there are none."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping

from torch import Tensor

from model import ratios
from model.moments import Moments
from model.ratios import Problem


class Undefined(enum.StrEnum):
    """Why a ratio has no value, the strongest reason first.

    A stem *equals* the reference where the error is none or, for ratios that forgive a filter or a
    gain, below -120 dB; it is *without* the reference where it holds less than -160 dB of it.
    """

    NOT_FINITE = "not_finite"
    SILENT_REFERENCE = "silent_reference"
    SILENT_STEM = "silent_stem"
    SILENT_MIXTURE = "silent_mixture"
    STEM_EQUALS_REFERENCE = "stem_equals_reference"
    MIXTURE_EQUALS_REFERENCE = "mixture_equals_reference"
    STEM_WITHOUT_REFERENCE = "stem_without_reference"
    MIXTURE_WITHOUT_REFERENCE = "mixture_without_reference"


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """The ratios of one clip in dB, named as in the output's schema; undefined ones are None.

    ``reasons`` says of every undefined ratio, by name, why it is.
    """

    sdr_db: float | None
    sdr_mixture_db: float | None
    sdri_db: float | None
    si_sdr_db: float | None
    si_sdr_mixture_db: float | None
    si_sdri_db: float | None
    snr_db: float | None
    snr_mixture_db: float | None
    snri_db: float | None
    reasons: Mapping[str, Undefined]

    @property
    def undefined_reason(self) -> Undefined | None:
        """The strongest of the reasons; None where every ratio is defined."""
        return next((reason for reason in Undefined if reason in self.reasons.values()), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairScores:
    """The ratios of stem and mixture, and the improvement of one over the other.

    Every tensor is float64[B] in dB, NaN where undefined; ``reasons`` says for each clip why, by
    the ratio's name.
    """

    sdr_db: Tensor
    sdr_mixture_db: Tensor
    sdri_db: Tensor
    si_sdr_db: Tensor
    si_sdr_mixture_db: Tensor
    si_sdri_db: Tensor
    snr_db: Tensor
    snr_mixture_db: Tensor
    snri_db: Tensor
    reasons: tuple[Mapping[str, Undefined], ...]

    def clips(self) -> tuple[ClipScore, ...]:
        """The scores clip by clip, as plain numbers."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "reasons"]
        columns = [getattr(self, name).tolist() for name in names]
        return tuple(
            ClipScore(
                **{
                    name: None if math.isnan(value) else value
                    for name, value in zip(names, values, strict=True)
                },
                reasons=reasons,
            )
            for *values, reasons in zip(*columns, self.reasons, strict=True)
        )


def pair_scores(moments: Moments) -> PairScores:
    """The scores that moments of stem (estimate 0) and mixture (estimate 1) give.

    Args:
        moments: with the lagged products of the 512-tap filter.

    Returns:
        The scores of every clip.
    """
    kinds = {
        "sdr": ratios.filtered(moments),
        "si_sdr": ratios.scaled(moments),
        "snr": ratios.plain(moments),
    }
    columns: dict[str, Tensor] = {}
    reasons: list[dict[str, Undefined]] = [{} for _ in moments.powers]
    for name, kind in kinds.items():
        stem, mixture = kind.value_db.unbind(dim=1)
        columns |= {
            f"{name}_db": stem,
            f"{name}_mixture_db": mixture,
            f"{name}i_db": stem - mixture,
        }
        for clip, problems in zip(reasons, kind.problem.tolist(), strict=True):
            clip.update(_reasons(name, *problems))
    return PairScores(**columns, reasons=tuple(reasons))


def _reasons(name: str, stem_problem: int, mixture_problem: int) -> dict[str, Undefined]:
    """The reasons of one ratio's three columns; the stem's goes first for the improvement."""
    reasons = {}
    if mixture_problem:
        reason = _MIXTURE_REASONS[Problem(mixture_problem)]
        reasons = {f"{name}_mixture_db": reason, f"{name}i_db": reason}
    if stem_problem:
        reason = _STEM_REASONS[Problem(stem_problem)]
        reasons |= {f"{name}_db": reason, f"{name}i_db": reason}
    return reasons
