"""What a GPU computes against the CPU; run where there is one, by ``pytest -m gpu``."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tone_clips
import tones
from model.inference import NetworkSettings, transfers_for
from model.signal import resample
from model.systems import Separator
from transforms.elements import Samples, SeparatedClip
from transforms.model_cache import ModelChoice, ScorerChoice
from transforms.scoring import Scoring, ScoringSettings
from transforms.separation import Separation, SeparationSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_arrays_come_back_from_the_device_as_they_went() -> None:
    there = transfers_for("cuda")
    arrays = [np.full((4, 1_000), number, dtype=np.float32) for number in range(20)]
    arriving = [there.down(there.up(array) * 2) for array in arrays]
    for array, wait in zip(arrays, arriving, strict=True):
        np.testing.assert_array_equal(wait(), 2 * array)


def _separated(
    device: str, settings: NetworkSettings, compiled: bool, repeats: int = 1
) -> list[SeparatedClip]:
    choice = ModelChoice(name="clapsep-mini", device=device, compile=compiled)
    separation = Separation(SeparationSettings(model=choice, network=settings))
    separator = separation.network.separator
    rng = np.random.default_rng(0)
    clips = []
    for number in range(5):
        vectors = rng.standard_normal((2, separator.embedding_dim)).astype(np.float32)
        positive, negative = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        clip = tone_clips.clip(f"{number}")
        query = dataclasses.replace(
            clip.queries[0],
            positive=positive,
            negative=negative,
            scorer_positive=positive,
            scorer_negative=negative,
        )
        clips.append(
            dataclasses.replace(
                clip,
                queries=(query,),
                references=tuple(_at(reference, separator) for reference in clip.references),
                model_audio=_at(clip.model_audio, separator),
            )
        )
    for _ in range(repeats - 1):  # until all that comes again is recorded
        separation.separate(clips)
    found = separation.separate(clips)
    recorded = getattr(separation.network._forward, "recorded", 0)
    assert (recorded > 0) == (device != "cpu" and settings.graphs and repeats > 1)
    return found


def _at(signal: Samples | None, separator: Separator) -> Samples:
    assert signal is not None
    return resample(signal, tones.RATE_HZ, separator.sample_rate_hz)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_stems_and_scores_are_those_of_the_cpu(compiled: bool, graphs: bool) -> None:
    settings = NetworkSettings(batch_size=2, fixed_shapes=compiled, graphs=graphs)
    on_cpu = _separated("cpu", NetworkSettings(batch_size=2), compiled=False)
    on_gpu = _separated("cuda", settings, compiled, repeats=5 if graphs else 1)
    for one, other in zip(on_cpu, on_gpu, strict=True):
        np.testing.assert_allclose(other.stems[0].audio, one.stems[0].audio, rtol=0, atol=1e-3)
    scores = {}
    for device in ("cpu", "cuda"):
        choice = ScorerChoice(model=ModelChoice(name="clapsep-mini", device=device))
        scoring = Scoring(ScoringSettings(scorer=choice, device=device, model_rate_hz=32_000))
        scores[device] = [clip.scores[0] for clip in scoring.score(on_cpu)]
    for one, other in zip(scores["cpu"], scores["cuda"], strict=True):
        assert one.reasons == other.reasons
        for name, value in one.values.items():
            assert other.values[name] == pytest.approx(
                value, abs=0.05 if name.endswith("_db") else 1e-3
            )
