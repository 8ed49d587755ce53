from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import tone_clips
import tones
from manifests.columns import METRIC_COLUMNS
from model.inference import InPlace
from model.metrics import METRICS, Outcomes, evaluate, sdr_db, si_sdr_db, snr_db
from transforms import scoring
from transforms.elements import Clip, Provenance, SeparatedClip, Stem
from transforms.model_cache import ModelChoice, ScorerChoice
from transforms.scoring import Scoring, ScoringSettings

pytestmark = pytest.mark.usefixtures("loaded")
OWN = ScorerChoice(model=ModelChoice(name="tones"))
PROVENANCE = Provenance(
    model="tones", model_sha256="", clap_sha256="", device="cpu", precision="fp32"
)


def _scoring(scorer: ScorerChoice | None = OWN, **settings: int | str) -> Scoring:
    return Scoring(ScoringSettings(scorer=scorer, model_rate_hz=tones.RATE_HZ, **settings))


def _separated(clip: Clip, stems: list[np.ndarray]) -> SeparatedClip:
    return SeparatedClip(
        clip=clip,
        stems=tuple(
            Stem(query=q, reference=r, audio=a, num_windows=1, inference_s=0.1)
            for q, r, a in zip(clip.queries, clip.references, stems, strict=True)
        ),
        provenance=PROVENANCE,
    )


def _leaky(label: str, duration_s: float = 1.0) -> np.ndarray:
    other = "rain" if label == "bell" else "bell"
    return (tones.tone(label, duration_s) + 0.1 * tones.tone(other, duration_s, 2.0))[None]


def test_ratios_compare_the_mid_of_stem_and_mixture_with_the_reference() -> None:
    clip = tone_clips.clip("a")
    stereo = dataclasses.replace(clip, model_audio=np.repeat(clip.model_audio, 2, axis=0))
    left, right = _leaky("bell"), tones.tone("bell", 1.0)[None]
    (scored,) = _scoring().score([_separated(stereo, [np.concatenate([left, right])])])
    (scores,) = scored.scores
    mid = torch.from_numpy((left + right) / 2)
    mixture = torch.from_numpy(clip.model_audio)
    reference = torch.from_numpy(clip.references[0])[None]
    for name, metric in (("sdr", sdr_db), ("si_sdr", si_sdr_db), ("snr", snr_db)):
        stem_db, mixture_db = float(metric(mid, reference)), float(metric(mixture, reference))
        assert scores.values[f"{name}_db"] == pytest.approx(stem_db, abs=1e-6)
        assert scores.values[f"{name}_mixture_db"] == pytest.approx(mixture_db, abs=1e-6)
        improvement = "sdri_db" if name == "sdr" else f"{name}i_db"
        assert scores.values[improvement] == pytest.approx(stem_db - mixture_db, abs=1e-6)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 3, "num_threads": 2}])
def test_scores_do_not_depend_on_batches(settings: dict[str, int]) -> None:
    clips = [
        _separated(tone_clips.clip("a", ("bell", "rain")), [_leaky("bell"), _leaky("rain")]),
        _separated(tone_clips.clip("b", ("rain",), 0.4), [_leaky("rain", 0.4)]),
    ]
    together = _scoring().score(clips)
    otherwise = _scoring(**settings).score(clips)
    assert [clip.scores for clip in otherwise] == [clip.scores for clip in together]
    assert together[0].scorer_sha256 == "tones"


def test_on_a_device_ratios_are_those_of_each_clip_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [
        _separated(tone_clips.clip("a", ("bell", "rain")), [_leaky("bell"), _leaky("rain")]),
        _separated(tone_clips.clip("b", ("rain",), 0.4), [_leaky("rain", 0.4)]),
        _separated(tone_clips.clip("c", ("bell",)), [_leaky("bell")]),
    ]
    clips[2] = dataclasses.replace(
        clips[2], stems=(dataclasses.replace(clips[2].stems[0], reference=None),)
    )
    expected = _scoring(scorer=None).score(clips)
    shapes = []
    measured = scoring.score_pair

    def noted(*signals: torch.Tensor) -> list[Outcomes]:
        shapes.append({tuple(signal.shape) for signal in signals})
        return measured(*signals)

    monkeypatch.setattr(scoring.devices, "resolved", lambda device: device)
    monkeypatch.setattr(scoring, "transfers_for", lambda _: InPlace())
    monkeypatch.setattr(scoring, "score_pair", noted)
    found = _scoring(scorer=None, device="cuda").score(clips)
    assert shapes == [{(2, 8_000)}, {(1, 3_200)}]
    for one, other in zip(found, expected, strict=True):
        for left, right in zip(one.scores, other.scores, strict=True):
            assert left.reasons == right.reasons
            assert left.values == pytest.approx(right.values, abs=1e-6)


def test_every_metric_has_a_value_or_a_reason() -> None:
    clip = tone_clips.clip("a", ("bell", "rain"))
    clip = dataclasses.replace(clip, references=(None, np.zeros(8_000, np.float32)))
    silent = np.zeros((1, 8_000), np.float32)
    (scored,) = _scoring().score([_separated(clip, [_leaky("bell"), silent])])
    without, quiet = scored.scores
    for scores in (without, quiet):
        found = scores.values.keys() | scores.reasons.keys()
        assert found == {name for metric in METRICS for name in metric.columns}
        assert not scores.values.keys() & scores.reasons.keys()
    assert without.reasons["sdr_db"] == without.reasons["ref_clap_score"] == "no_reference"
    assert without.values["clap_score"] == pytest.approx(1.0)
    assert quiet.reasons["clap_score"] == "silent_stem"
    assert quiet.reasons["sdr_db"] == "silent_reference"
    assert quiet.values.keys() == {"clap_score_mixture"}
    assert quiet.reasons["stem_to_mixture_db"] == "silent_stem"


def test_the_level_of_a_stem_is_its_power_over_the_mixtures() -> None:
    clip = tone_clips.clip("a")
    stem = 0.1 * clip.model_audio
    (scored,) = _scoring(scorer=None).score([_separated(clip, [stem])])
    assert scored.scores[0].values["stem_to_mixture_db"] == pytest.approx(-20.0, abs=1e-5)
    levels = evaluate({"stem_power": [0.0, 1.0], "mixture_power": [0.0, 0.0]}, 2)
    assert [level["stem_to_mixture_db"] for level in levels] == ["silent_stem", "silent_mixture"]


def test_presence_is_a_probability_of_what_a_positive_query_names() -> None:
    separated = _separated(tone_clips.clip("a", ("bell", "rain")), [_leaky("bell"), _leaky("rain")])
    told, silent = separated.stems
    negative = dataclasses.replace(silent.query.row, positive_text=None, negative_text="rain")
    stems = (
        dataclasses.replace(told, presence_odds=math.log(3.0)),
        dataclasses.replace(
            silent, presence_odds=9.0, query=dataclasses.replace(silent.query, row=negative)
        ),
        silent,
    )
    (scored,) = _scoring(scorer=None).score([dataclasses.replace(separated, stems=stems)])
    likely, negated, unsaid = scored.scores
    assert likely.values["presence"] == pytest.approx(0.75)
    assert negated.reasons["presence"] == "no_positive_query"
    assert unsaid.reasons["presence"] == "no_presence_output"
    odds = evaluate({"presence_odds": [1e4, -1e4, math.nan]}, 3)
    assert [each["presence"] for each in odds] == [1.0, 0.0, "not_finite"]


def test_the_table_of_metrics_fills_the_measured_columns_once_each() -> None:
    filled = [name for metric in METRICS for name in metric.columns]
    assert sorted(filled) == sorted([*METRIC_COLUMNS, "stem_to_mixture_db", "presence"])
    assert all(metric.streams for metric in METRICS)


def test_nothing_is_loaded_where_no_scorer_is_wanted() -> None:
    unscored = _scoring(scorer=None)
    (scored,) = unscored.score([_separated(tone_clips.clip("a"), [_leaky("bell")])])
    assert unscored.encoder is None
    assert scored.scorer_sha256 is None
    assert scored.scores[0].reasons["clap_score"] == "not_scored"
    assert scored.scores[0].values["sdr_db"] > 10
