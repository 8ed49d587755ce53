from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import tone_clips
import tones
from golden import pairs
from manifests.columns import METRIC_COLUMNS
from model.config import TINY
from model.devices import MachineError
from model.inference import InPlace
from model.metrics import METRICS, Outcomes, evaluate, sdr_db, si_sdr_db, snr_db
from transforms import model_cache, scoring
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


class _Heard:
    """Notes how many windows each call of an encoder gets, and fails where it is told to."""

    def __init__(self, encoder: Any, most: int = 10**9) -> None:
        self.batches: list[int] = []
        self._encoder, self._most = encoder, most
        self.error: Exception = torch.OutOfMemoryError("not enough memory")
        self.poison: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def embed_audio(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        self.batches.append(len(clips))
        if len(clips) > self._most:
            raise self.error
        if self.poison is not None and any(float(clip.max()) > self.poison for clip in clips):
            raise self.error
        return self._encoder.embed_audio(clips)


def _listening(most: int = 10**9, **settings: Any) -> tuple[Scoring, _Heard]:
    made = _scoring(**settings)
    heard = _Heard(made.encoder, most)
    made.encoder = heard
    return made, heard


def _three_ways(name: str) -> SeparatedClip:
    """P, N and P+N on one mixture, with one and the same reference."""
    clip = tone_clips.clip(name, ("bell", "bell", "bell"))
    positive, negative = (
        np.eye(len(tones.LABELS), dtype=np.float32)[tones.LABELS.index(label)]
        for label in ("bell", "rain")
    )
    asked = ((positive, None), (None, negative), (positive, negative))
    queries = tuple(
        dataclasses.replace(query, scorer_positive=one, scorer_negative=other)
        for query, (one, other) in zip(clip.queries, asked, strict=True)
    )
    stems = [(0.9 + 0.01 * n) * _leaky("bell") for n in range(3)]
    return _separated(dataclasses.replace(clip, queries=queries), stems)


def test_each_distinct_signal_is_embedded_once() -> None:
    scoring_, heard = _listening(batch_size=100)
    scoring_.score([_three_ways("a")])
    assert sum(heard.batches) == 1 + 3 + 1  # the mixture, three stems, one reference
    scoring_.score([_three_ways("a"), _three_ways("a")])  # two recordings that are the same
    assert sum(heard.batches) == 2 * 5


def test_what_no_column_needs_is_not_embedded_and_no_outcome_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = _three_ways("a")
    negative = dataclasses.replace(whole, stems=whole.stems[1:2])
    unreferenced = dataclasses.replace(
        whole, stems=tuple(dataclasses.replace(stem, reference=None) for stem in whole.stems)
    )
    clips = [whole, negative, unreferenced]
    counts, found = [], []
    for clip in clips:
        scoring_, heard = _listening(batch_size=100)
        found.append(scoring_.score([clip])[0].scores)
        counts.append(sum(heard.batches))
    assert counts == [5, 1, 4]
    everything = frozenset(("stem_embedding", "mixture_embedding", "reference_embedding"))
    monkeypatch.setattr(scoring, "signals_needed", lambda query, has_reference: everything)
    assert found == [_scoring().score([clip])[0].scores for clip in clips]


def test_scores_of_the_stem_alone_embed_the_stem_alone() -> None:
    scoring_, heard = _listening(batch_size=100, clap_scores="stem")
    (found,) = scoring_.score([_three_ways("a")])
    assert sum(heard.batches) == 3
    (expected,) = _scoring().score([_three_ways("a")])
    compared = ("clap_score_mixture", "clap_score_improvement", "ref_clap_score")
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        kept = {name: value for name, value in theirs.values.items() if name not in compared}
        assert ours.values == kept
        for name in compared:
            reason = theirs.reasons.get(name, "not_scored")
            assert ours.reasons[name] == reason


@pytest.mark.parametrize("most", [1, 2, 3])
def test_batches_are_counted_in_windows_and_halved_when_memory_is_short(most: int) -> None:
    clips = [
        _separated(tone_clips.clip("a", ("bell",), 3.5), [_leaky("bell", 3.5)]),  # 4 windows
        _separated(tone_clips.clip("b", ("rain",), 0.4), [_leaky("rain", 0.4)]),
    ]
    scoring_, heard = _listening(batch_size=3)
    expected = scoring_.score(clips)
    assert max(heard.batches) == 3
    assert sum(heard.batches) == 3 * 4 + 3
    short, heard = _listening(most, batch_size=3)
    found = short.score(clips)
    assert [clip.scores for clip in found] == [clip.scores for clip in expected]
    assert max(heard.batches) == 3


def test_a_long_signal_is_embedded_as_the_scorer_does_it() -> None:
    clap = pairs.networks(TINY).clap
    made = Scoring(ScoringSettings(scorer=OWN, model_rate_hz=clap.sample_rate_hz, batch_size=2))
    made.encoder = clap
    rng = np.random.default_rng(0)
    length = clap.clip_samples
    signals = [
        0.1 * rng.standard_normal(n).astype(np.float32) for n in (5 * length // 2, 7_000, length)
    ]
    with torch.inference_mode():
        expected = clap.embed_audio([torch.from_numpy(each) for each in signals]).numpy()
    found = np.stack(made.embed(signals))
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("not enough"), RuntimeError("unheard of"), ValueError("odd")]
)
def test_a_scorer_that_fails_leaves_nulls_with_a_reason(error: Exception) -> None:
    loud = tone_clips.clip("b")
    clips = [
        _separated(tone_clips.clip("a"), [_leaky("bell")]),
        _separated(loud, [3 * _leaky("bell")]),
    ]
    scoring_, heard = _listening(batch_size=8)
    heard.error, heard.poison = error, 0.9
    fine, failed = scoring_.score(clips)
    assert fine.scores == _scoring().score(clips[:1])[0].scores
    scores = failed.scores[0]
    assert scores.reasons["clap_score"] == "scorer_failed"
    assert scores.values["clap_score_mixture"] == fine.scores[0].values["clap_score_mixture"]
    assert scores.values["sdr_db"] > 10


def test_ratios_are_halved_when_memory_is_short_and_null_when_it_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = [_separated(tone_clips.clip(name), [_leaky("bell")]) for name in "abc"]
    expected = _scoring(scorer=None).score(clips)
    sizes: list[int] = []
    measured, most = scoring.score_pair, 1

    def short(stem: torch.Tensor, *others: torch.Tensor) -> list[Outcomes]:
        sizes.append(len(stem))
        if len(stem) > most:
            raise torch.OutOfMemoryError("not enough memory")
        return measured(stem, *others)

    monkeypatch.setattr(scoring.devices, "resolved", lambda device: device)
    monkeypatch.setattr(scoring, "transfers_for", lambda _: InPlace())
    monkeypatch.setattr(scoring, "score_pair", short)
    found = _scoring(scorer=None, device="cuda").score(clips)
    assert sizes == [3, 1, 2, 1, 1]
    for one, other in zip(found, expected, strict=True):
        assert one.scores[0].values == pytest.approx(other.scores[0].values, abs=1e-6)
    most = 0
    for one in _scoring(scorer=None, device="cuda").score(clips):
        assert one.scores[0].reasons["sdri_db"] == "out_of_memory"
        assert one.scores[0].values.keys() == {"stem_to_mixture_db"}


def test_a_machine_that_fails_on_silence_too_ends_the_run() -> None:
    scoring_, heard = _listening(0, batch_size=8)
    heard.error = RuntimeError("the card is gone")
    with pytest.raises(MachineError, match="the card is gone"):
        scoring_.score([_separated(tone_clips.clip("a"), [_leaky("bell")])])


def test_the_precision_of_the_run_reaches_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "model.registry.load_scorer",
        lambda name, device, precision: asked.append(precision) or tones.ToneClap(),
    )
    choice = ModelChoice(name="tones", device="cpu", precision="bf16")
    model_cache.load_scorer(ScorerChoice(model=choice, name="another"))
    assert asked == ["bf16"]


def test_an_audio_tower_computes_in_bfloat16_and_gives_float32() -> None:
    clips = [0.1 * torch.randn(7_000, generator=torch.Generator().manual_seed(0))]
    exact, coarse = (pairs.networks(TINY).clap.prepare(each) for each in ("fp32", "bf16"))
    assert coarse.audio_branch.layers[0].blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    with torch.inference_mode():
        expected, found = exact.embed_audio(clips), coarse.embed_audio(clips)
    assert found.dtype == torch.float32
    assert 1e-6 < (found - expected).abs().max() < 0.1
