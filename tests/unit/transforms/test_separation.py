from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import tone_clips
import tone_runs
import tones
from model.inference import NetworkSettings
from model.signal.windowing import WindowPlan, separate_array
from transforms.model_cache import ModelChoice
from transforms.separation import Separation, SeparationHandler, SeparationSettings, WeightedClip


class Moody(tones.ToneSeparator):
    """Fails on a poisoned sample, and answers a query for frogs with what is no number."""

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        if (mixture == 0.123).any():
            raise RuntimeError("poisoned")
        return super().encode(mixture)

    def decode(self, encoded: tones.ToneEncoded, condition: tones.Condition) -> torch.Tensor:
        answer = super().decode(encoded, condition)
        answer[condition.positive[:, tones.LABELS.index("frog")] > 0] = torch.nan
        return answer


@pytest.fixture(autouse=True)
def loaded() -> Iterator[tone_runs.Loaded]:
    with tone_runs.tones_as_models() as found:
        found.model = dataclasses.replace(found.model, separator=Moody())
        yield found


def _settings(batch_size: int = 4) -> SeparationSettings:
    return SeparationSettings(
        model=ModelChoice(name="tones"), network=NetworkSettings(batch_size=batch_size)
    )


def _poisoned(name: str) -> tone_clips.Clip:
    clip = tone_clips.clip(name)
    audio = clip.model_audio.copy()
    audio[0, 5] = 0.123
    return dataclasses.replace(clip, model_audio=audio)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_stems_are_those_of_each_clip_alone(batch_size: int) -> None:
    clips = [
        tone_clips.clip("a", ("bell", "rain"), 1.0),
        tone_clips.clip("b", ("rain",), 2.3),
        tone_clips.clip("c", ("bell",), 0.2),
    ]
    separation = Separation(_settings(batch_size))
    plan = WindowPlan(window_samples=4_000, overlap=0.25)
    for clip, result in zip(clips, separation.separate(clips), strict=True):
        assert result.failures == ()
        for query, stem in zip(clip.queries, result.stems, strict=True):
            condition = tones.Condition(
                positive=torch.from_numpy(query.positive)[None],
                negative=torch.from_numpy(query.negative)[None],
            )
            alone = separate_array(
                clip.model_audio, lambda x, c=condition: Moody().separate(x, c), plan
            )
            np.testing.assert_allclose(stem.audio, alone, atol=1e-5)
            assert stem.audio.shape == clip.model_audio.shape
            assert stem.num_windows == len(plan.starts(clip.model_audio.shape[1]))
            assert stem.inference_s > 0


def test_one_bad_clip_of_a_batch_fails_alone() -> None:
    clips = [tone_clips.clip("a"), _poisoned("b"), tone_clips.clip("c")]
    results = Separation(_settings()).separate(clips)
    assert [len(result.stems) for result in results] == [1, 0, 1]
    (failure,) = results[1].failures
    assert (failure.row.id, failure.stage) == ("b-bell", "separate")
    assert (failure.error_type, failure.message) == ("model_error", "RuntimeError: poisoned")


def test_one_bad_query_of_a_clip_fails_alone() -> None:
    (result,) = Separation(_settings()).separate([tone_clips.clip("a", ("bell", "frog", "rain"))])
    assert [stem.query.row.id for stem in result.stems] == ["a-bell", "a-rain"]
    (failure,) = result.failures
    assert (failure.row.id, failure.error_type) == ("a-frog", "not_finite")


def test_a_clip_weighs_its_windows_and_channels_and_every_four_queries_as_one_more() -> None:
    weight = WeightedClip(window_samples=4_000, overlap=0.25)
    assert weight(tone_clips.clip("a", ("bell",), 0.5)) == 1
    assert weight(tone_clips.clip("a", ("bell", "rain"), 1.0)) == 3
    assert weight(tone_clips.clip("a", ("bell", "rain") * 4, 1.0)) == 3 * 2
    assert weight(tone_clips.clip("a", ("bell", "rain") * 5, 0.5)) == 3
    clip = tone_clips.clip("a", ("bell",), 0.5)
    stereo = dataclasses.replace(clip, model_audio=np.repeat(clip.model_audio, 2, axis=0))
    assert weight(stereo) == 2


def test_a_handler_refuses_another_number_of_results() -> None:
    class Short(Separation):
        def separate(self, clips):
            return super().separate(clips)[:-1]

    handler = SeparationHandler(_settings(), window_samples=4_000)
    with pytest.raises(RuntimeError, match="1 results for 2 clips"):
        handler.run_inference([tone_clips.clip("a"), tone_clips.clip("b")], Short(_settings()))


def test_a_handler_counts_what_it_hears_and_fills_batches() -> None:
    handler = SeparationHandler(_settings(), window_samples=4_000)
    assert handler.get_num_bytes([tone_clips.clip("a")]) == 8_000 * 4
    kwargs = handler.batch_elements_kwargs()
    assert kwargs["min_batch_size"] == kwargs["max_batch_size"] == 4


def test_provenance_names_the_model() -> None:
    provenance = Separation(_settings()).provenance
    assert (provenance.model, provenance.model_sha256) == ("tones", "m" * 64)
    assert (provenance.device, provenance.precision) == ("cpu", "fp32")


LEVEL_DBFS = -24.0


class Levelled(tones.ToneSeparator):
    """Hears at a level, keeps what it heard, and answers loud sounds otherwise than quiet ones."""

    input_level_dbfs = LEVEL_DBFS

    def __init__(self) -> None:
        super().__init__()
        self.levels_dbfs: list[float] = []

    def encode(self, mixture: torch.Tensor) -> tones.ToneEncoded:
        power = mixture.square().mean(dim=1)
        self.levels_dbfs += (10 * power.log10()).tolist()
        return super().encode(torch.tanh(10 * mixture) / 10)


def _scaled(clip: tone_clips.Clip, gain_db: float) -> tone_clips.Clip:
    samples = (clip.model_audio * 10 ** (gain_db / 20)).astype(np.float32)
    return dataclasses.replace(clip, audio=samples, model_audio=samples)


@pytest.mark.parametrize("gain_db", [-60.0, -40.0, -7.0, 12.0])
@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_quiet_recording_gives_the_same_stems(
    loaded: tone_runs.Loaded, gain_db: float, batch_size: int
) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=Levelled())
    labels = ("bell", "rain", "frog", "singing")
    clips = [tone_clips.clip("a", labels, 1.3), tone_clips.clip("b", ("rain",), 0.2)]
    separation = Separation(_settings(batch_size))
    as_loud = separation.separate(clips)
    quiet = separation.separate([_scaled(clip, gain_db) for clip in clips])
    loaded_level = loaded.model.separator.levels_dbfs
    np.testing.assert_allclose(loaded_level, LEVEL_DBFS, atol=0.5)
    for one, other in zip(as_loud, quiet, strict=True):
        for stem, same in zip(one.stems, other.stems, strict=True):
            np.testing.assert_allclose(same.audio * 10 ** (-gain_db / 20), stem.audio, atol=1e-6)
            assert same.input_gain_db == pytest.approx(stem.input_gain_db - gain_db, abs=1e-4)


def test_silence_beside_a_sound_stays_silence(loaded: tone_runs.Loaded) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=Levelled())
    clip = _scaled(tone_clips.clip("a", ("bell",), 3.0), -60.0)
    samples = clip.model_audio.copy()
    samples[:, 8_000:] = 0.0
    silent = dataclasses.replace(clip, audio=0 * samples, model_audio=0 * samples)
    found = Separation(_settings()).separate(
        [dataclasses.replace(clip, audio=samples, model_audio=samples), silent]
    )
    assert not found[0].stems[0].audio[:, 12_000:].any()
    assert not found[1].stems[0].audio.any()
    assert found[1].stems[0].input_gain_db == 0.0


def test_a_system_without_a_level_hears_recordings_as_they_are() -> None:
    clip = _scaled(tone_clips.clip("a", ("bell",), 0.5), -40.0)
    (result,) = Separation(_settings()).separate([clip])
    assert result.stems[0].input_gain_db == 0.0
    alone = Moody().separate(
        torch.from_numpy(clip.model_audio),
        tones.Condition(
            positive=torch.from_numpy(clip.queries[0].positive)[None],
            negative=torch.zeros(1, len(tones.LABELS)),
        ),
    )
    np.testing.assert_array_equal(result.stems[0].audio, alone.numpy())


@pytest.mark.parametrize("batch_size", [1, 100])
def test_presence_is_that_of_the_likeliest_window_and_channel(
    batch_size: int, loaded: tone_runs.Loaded
) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=tones.SuspiciousSeparator())
    clip = tone_clips.clip("a", ("bell", "frog"), 2.0)
    late = tones.tone("bell", 2.0) * (np.arange(clip.model_audio.shape[1]) > 14_000)
    heard = np.stack([0 * late, late.astype(np.float32)])
    clip = dataclasses.replace(clip, model_audio=heard)
    (separated,) = Separation(_settings(batch_size)).separate([clip])
    there, absent = (stem.presence_odds for stem in separated.stems)
    assert there is not None
    assert absent is not None
    assert there > 2 > -2 > absent


def test_a_separator_that_does_not_tell_presence_gives_none() -> None:
    (separated,) = Separation(_settings()).separate([tone_clips.clip("a")])
    assert [stem.presence_odds for stem in separated.stems] == [None]
