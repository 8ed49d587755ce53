"""Every undefined ratio has a reason, and only those have one."""

from __future__ import annotations

import math

import pytest
import torch

from model.metrics import METRICS, Metric, Outcomes, Undefined, evaluate, score_pair

RATIOS = [name for metric in METRICS if metric.needs == ("sums",) for name in metric.columns]


def _noise(seed: int, num_samples: int = 2000) -> torch.Tensor:
    return torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))


REFERENCE, OTHER = _noise(0), _noise(1)
STEM, MIXTURE, SILENCE = REFERENCE + 0.1 * OTHER, REFERENCE + OTHER, torch.zeros(1, 2000)
BROKEN = torch.full((1, 2000), torch.nan)
EARLY, LATE = REFERENCE.clone(), OTHER.clone()
EARLY[:, 700:], LATE[:, :1300] = 0.0, 0.0


def _only(*names: str, reason: Undefined) -> dict[str, Undefined]:
    return dict.fromkeys(names, reason)


OF_STEM = ["sdr_db", "sdri_db", "si_sdr_db", "si_sdri_db", "snr_db", "snri_db"]
OF_MIXTURE = [
    *("sdr_mixture_db", "sdri_db", "si_sdr_mixture_db"),
    *("si_sdri_db", "snr_mixture_db", "snri_db"),
]
CASES = {
    "defined": (STEM, MIXTURE, REFERENCE, {}),
    "silent reference": (
        *(STEM, MIXTURE, SILENCE),
        _only(*RATIOS, reason=Undefined.SILENT_REFERENCE),
    ),
    "silent stem": (SILENCE, MIXTURE, REFERENCE, _only(*OF_STEM, reason=Undefined.SILENT_STEM)),
    "silent mixture": (
        *(STEM, SILENCE, REFERENCE),
        _only(*OF_MIXTURE, reason=Undefined.SILENT_MIXTURE),
    ),
    "stem equals reference": (
        *(REFERENCE, MIXTURE, REFERENCE),
        _only(*OF_STEM, reason=Undefined.STEM_EQUALS_REFERENCE),
    ),
    "stem equals reference but for rounding": (
        *(REFERENCE + 1e-7 * OTHER, MIXTURE, REFERENCE),
        _only(*OF_STEM, reason=Undefined.STEM_EQUALS_REFERENCE),
    ),
    "mixture equals reference": (
        *(STEM, REFERENCE, REFERENCE),
        _only(*OF_MIXTURE, reason=Undefined.MIXTURE_EQUALS_REFERENCE),
    ),
    "scaled copy: only plain SNR sees a difference": (
        *(0.5 * REFERENCE, MIXTURE, REFERENCE),
        _only(*OF_STEM[:4], reason=Undefined.STEM_EQUALS_REFERENCE),
    ),
    "stem without any of the reference": (
        *(LATE, MIXTURE, EARLY),
        _only(*OF_STEM[:4], reason=Undefined.STEM_WITHOUT_REFERENCE),
    ),
    "broken stem": (BROKEN, MIXTURE, REFERENCE, _only(*OF_STEM, reason=Undefined.NOT_FINITE)),
    "broken reference": (STEM, MIXTURE, BROKEN, _only(*RATIOS, reason=Undefined.NOT_FINITE)),
    "broken mixture and silent stem": (
        *(SILENCE, BROKEN, REFERENCE),
        _only(*OF_MIXTURE, reason=Undefined.NOT_FINITE)
        | _only(*OF_STEM, reason=Undefined.SILENT_STEM),
    ),
}


def _score(names: list[str]) -> list[Outcomes]:
    return score_pair(*(torch.cat([CASES[name][part] for name in names]) for part in range(3)))


def _reasons(outcomes: Outcomes) -> dict[str, Undefined]:
    return {name: why for name, why in outcomes.items() if isinstance(why, Undefined)}


@pytest.mark.parametrize("name", list(CASES))
def test_reasons_name_what_is_undefined(name: str) -> None:
    (clip,) = _score([name])
    assert list(clip) == RATIOS
    assert _reasons(clip) == CASES[name][3]
    assert all(math.isfinite(value) for value in clip.values() if isinstance(value, float))


def test_clips_of_a_batch_keep_their_own_reasons() -> None:
    names = list(CASES)
    for name, clip in zip(names, _score(names), strict=True):
        (alone,) = _score([name])
        assert _reasons(clip) == _reasons(alone) == CASES[name][3]
        for ratio in RATIOS:
            if ratio not in CASES[name][3]:
                assert clip[ratio] == pytest.approx(alone[ratio], abs=1e-9), ratio


def test_a_metric_whose_inputs_are_not_named_is_left_out() -> None:
    assert (
        evaluate({"sums": Undefined.NO_REFERENCE}, 2)
        == [dict.fromkeys(RATIOS, Undefined.NO_REFERENCE)] * 2
    )
    assert evaluate({}) == [{}]


def test_a_metric_streams_unless_it_needs_waveforms() -> None:
    powers, waveforms = (
        Metric(columns=("x",), needs=needs, compute=lambda *_: [])
        for needs in (("stem_power",), ("stem_power", "reference"))
    )
    assert powers.streams
    assert not waveforms.streams


def test_sums_are_asked_for_alone() -> None:
    with pytest.raises(ValueError, match=r"\('x',\): needs .*; expected sums alone, or others"):
        Metric(columns=("x",), needs=("sums", "stem"), compute=lambda *_: [])


def test_improvement_is_the_difference() -> None:
    (clip,) = _score(["defined"])
    for name, gain in (("sdr", "sdri_db"), ("si_sdr", "si_sdri_db"), ("snr", "snri_db")):
        assert clip[gain] == clip[f"{name}_db"] - clip[f"{name}_mixture_db"]
    assert clip["snri_db"] == pytest.approx(20.0, abs=1e-4)
