from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from model.config import TINY
from model.evaluation.queries import EmbeddedQueries
from model.evaluation.rows import EvaluationRow, Query, Sources
from model.evaluation.runner import Answer, Runner
from model.signal import fit_length, resample
from model.signal.mixing import mix
from model.signal.windowing import WindowPlan, separate_array
from model.systems import Condition
from model.systems.clapsep.network import ClapSep
from model.training.corpus import Corpus
from tones import RATE_HZ, ToneClap, ToneSeparator, tone

BELL, RAIN, FROG, WIND = (f"{name}-test-a.wav" for name in ("bell", "rain", "frog", "wind"))


def _row(
    number: int, paths: tuple[str, ...], query: Query, num_targets: int = 1, level_db: float = 0.0
) -> EvaluationRow:
    return EvaluationRow(
        id=str(number),
        dataset="d",
        split="test",
        label="",
        group="",
        sources=Sources(paths=paths, levels_db=(level_db,) * (len(paths) - 1)),
        num_targets=num_targets,
        query=query,
    )


def _tones(corpus: Corpus, rows: list[EvaluationRow], **options: float) -> Runner:
    queries = EmbeddedQueries([row.query for row in rows], ToneClap(), corpus)
    return Runner(ToneSeparator(), queries, corpus, duration_s=1.5, **options)


def _energy_at(answer: Answer, label: str) -> float:
    carrier = np.exp(-2j * np.pi * np.arange(len(answer.stem)) * _cycles(label))
    return float(abs(np.mean(answer.stem * carrier)))


def _cycles(label: str) -> float:
    spectrum = np.abs(np.fft.rfft(tone(label, 1.0)))
    return float(spectrum.argmax()) / RATE_HZ


@pytest.mark.parametrize(
    ("query", "kept", "removed"),
    [
        (Query(positive_text="a bell", negative_text="rain"), "bell", "rain"),
        (Query(negative_text="a bell"), "rain", "bell"),
        (Query(positive_clip="rain-test-b.wav"), "rain", "bell"),
    ],
)
def test_a_row_gets_what_it_asks_for(corpus: Corpus, query: Query, kept: str, removed: str) -> None:
    rows = [_row(0, (BELL, RAIN), query)]
    (answer,) = _tones(corpus, rows).answer(rows)
    assert _energy_at(answer, kept) > 50 * _energy_at(answer, removed)


def test_mixture_and_reference_are_those_of_the_benchmark(corpus: Corpus) -> None:
    paths = (BELL, RAIN, FROG)
    rows = [
        _row(0, paths, Query(positive_text="bell"), level_db=5.0),
        _row(1, paths, Query(positive_text="bell and rain"), num_targets=2, level_db=5.0),
    ]
    one, two = _tones(corpus, rows).answer(rows)
    index_of = {clip.path: index for index, clip in enumerate(corpus.clips)}
    clips = [fit_length(corpus.audio(index_of[path]), 12_000) for path in paths]
    expected = mix(clips[0], clips[1:], 5.0)
    for answer in (one, two):
        np.testing.assert_array_equal(answer.mixture, expected.mixture)
    np.testing.assert_array_equal(one.reference, expected.target)
    both = expected.target + expected.interferers[0]
    np.testing.assert_allclose(two.reference, both, atol=1e-6)


def test_each_mixture_is_heard_once_and_silence_not_at_all(corpus: Corpus) -> None:
    texts = ["bell", "rain", "frog", "wind"]
    mixtures = [(BELL, RAIN), (FROG, WIND)]
    rows = [
        _row(number, paths, Query(positive_text=text))
        for number, (text, paths) in enumerate(itertools.product(texts, mixtures))
    ]
    queries = EmbeddedQueries([row.query for row in rows], ToneClap(), corpus)
    separator = ToneSeparator(window_samples=4_000)
    runner = Runner(separator, queries, corpus, duration_s=3.0)
    (batch,) = runner.batches(rows)
    answers = runner.answer(batch)
    assert {answer.row.id for answer in answers} == {row.id for row in rows}
    # Clips last 0.8 s, 6,400 samples: windows begin at 0, 3000 and 6000 of 24,000.
    assert separator.heard == 2 * 3
    assert not answers[0].stem[10_000:].any()
    assert len(answers[0].stem) == 24_000


def test_batches_keep_the_rows_of_a_mixture_together(corpus: Corpus) -> None:
    mixtures = [(BELL, RAIN), (FROG, WIND), (RAIN, BELL)]
    rows = [
        _row(number, paths, Query(positive_text=text))
        for number, (text, paths) in enumerate(itertools.product(["bell", "rain"], mixtures))
    ]
    batches = _tones(corpus, rows, mixtures_at_once=2).batches(rows)
    assert [[row.id for row in batch] for batch in batches] == [["0", "3", "1", "4"], ["2", "5"]]


class _AnyClap(ToneClap):
    """Different unit vectors for different texts."""

    embedding_dim = TINY.clap.embedding_dim

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.eye(self.embedding_dim)[ord(text[0]) % 16] for text in texts])


def test_the_network_answers_as_it_does_alone_whatever_the_batch(corpus: Corpus) -> None:
    torch.manual_seed(0)
    signal = dataclasses.replace(TINY.signal, n_fft=512)
    network = ClapSep(dataclasses.replace(TINY, signal=signal)).prepare()
    rows = [
        _row(number, paths, Query(positive_text=text, negative_text="x"))
        for number, (text, paths) in enumerate(
            itertools.product(["a", "b", "c"], [(BELL, RAIN), (FROG, WIND, RAIN)])
        )
    ]
    clap = _AnyClap()
    queries = EmbeddedQueries([row.query for row in rows], clap, corpus)
    plan = WindowPlan(window_samples=network.window_samples)
    stems: list[dict[str, np.ndarray]] = []
    for at_once in (1, 5):
        runner = Runner(
            network, queries, corpus, duration_s=1.0,
            mixtures_at_once=at_once, answers_at_once=at_once,
        )  # fmt: skip
        answers = [answer for batch in runner.batches(rows) for answer in runner.answer(batch)]
        stems.append({answer.row.id: answer.stem for answer in answers})
    for answer in answers:
        condition = Condition(
            positive=clap.embed_text([answer.row.query.positive_text]),
            negative=clap.embed_text(["x"]),
        )
        alone = separate_array(
            answer.mixture[None],
            lambda window, condition=condition: network.separate(window, condition),
            plan,
        )[0]
        assert alone.shape == (32_000,)
        for by_id in stems:
            np.testing.assert_allclose(by_id[answer.row.id], alone, atol=1e-5)
    different = [
        np.abs(stems[0][one] - stems[0][two]).max() for one, two in (("0", "2"), ("0", "4"))
    ]
    assert min(different) > 1e-4


def test_clips_are_brought_to_the_models_rate(corpus: Corpus) -> None:
    rows = [_row(0, (BELL, RAIN), Query(positive_text="bell"))]
    queries = EmbeddedQueries([rows[0].query], ToneClap(), corpus)
    separator = ToneSeparator()
    separator.sample_rate_hz = 2 * RATE_HZ
    (answer,) = Runner(separator, queries, corpus, duration_s=0.5).answer(rows)
    index_of = {clip.path: index for index, clip in enumerate(corpus.clips)}
    bell, rain = (
        fit_length(resample(corpus.audio(index_of[path]), RATE_HZ, 2 * RATE_HZ), 8_000)
        for path in (BELL, RAIN)
    )
    np.testing.assert_array_equal(answer.mixture, mix(bell, [rain]).mixture)
