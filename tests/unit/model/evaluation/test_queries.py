from __future__ import annotations

import torch

from model.evaluation.queries import EmbeddedQueries
from model.evaluation.rows import Query
from model.training.corpus import Corpus
from tones import LABELS, ToneClap


def _unit(label: str) -> list[float]:
    return [float(label == other) for other in LABELS]


def test_absent_polarities_are_zeros(corpus: Corpus) -> None:
    asked = [
        Query(positive_text="bell"),
        Query(negative_text="rain"),
        Query(positive_clip="frog-test-a.wav", negative_clip="wind-test-a.wav"),
    ]
    condition = EmbeddedQueries(asked, ToneClap(), corpus).condition(asked)
    silent = [0.0] * len(LABELS)
    assert condition.positive.tolist() == [_unit("bell"), silent, _unit("frog")]
    assert condition.negative.tolist() == [silent, _unit("rain"), _unit("wind")]


def test_each_text_is_embedded_once(corpus: Corpus) -> None:
    clap = ToneClap()
    asked = [Query(positive_text="bell", negative_text="rain"), Query(positive_text="rain")] * 3
    EmbeddedQueries(asked, clap, corpus)
    assert sorted(clap.embedded) == ["bell", "rain"]


def test_clips_are_embedded_at_the_encoders_rate(corpus: Corpus) -> None:
    heard = []

    class Listening(ToneClap):
        sample_rate_hz = 2 * ToneClap.sample_rate_hz

        def embed_audio(self, clips: list[torch.Tensor]) -> torch.Tensor:
            heard.extend(len(clip) for clip in clips)
            return torch.zeros(len(clips), self.embedding_dim)

    EmbeddedQueries([Query(positive_clip="bell-test-a.wav")], Listening(), corpus)
    assert heard == [12_800]
