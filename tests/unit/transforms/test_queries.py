from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import soundfile
import torch
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that

import tone_clips
import tone_runs
import tones
from model.devices import MachineError
from transforms.elements import EmbeddedQuery, Failure, Query
from transforms.model_cache import ModelChoice, ScorerChoice
from transforms.queries import (
    EmbedQueries,
    asks_of,
    attach,
    embed_query_examples,
    embed_query_texts,
    read_shot,
)
from transforms.storage import Storage


def _table(*pairs: tuple[Query, Sequence[float]]) -> dict[str, list[EmbeddedQuery]]:
    return {
        query.key: [EmbeddedQuery(embedding=np.asarray(values, "<f4").tobytes())]
        for query, values in pairs
    }


def test_a_query_is_a_text_or_clips() -> None:
    for wrong in ({}, {"text": "a", "audio_uris": ("b",)}):
        with pytest.raises(ValueError, match="not both"):
            Query(**wrong)


def test_keys_tell_queries_apart() -> None:
    queries = [
        Query(text="a"),
        Query(text="b"),
        Query(audio_uris=("a",)),
        Query(audio_uris=("a", "b")),
        Query(audio_uris=("b", "a")),
    ]
    assert len({query.key for query in queries}) == len(queries)
    assert Query(text="a").key == queries[0].key


def test_a_row_asks_for_what_it_names() -> None:
    row = tone_clips.row("x", negative_audio_uris=("n.wav",))
    assert list(asks_of(row)) == [Query(text="bell"), Query(audio_uris=("n.wav",))]


def test_text_and_clips_are_fused_by_the_rows_weight() -> None:
    text, audio = Query(text="bell"), Query(audio_uris=("p.wav",))
    table = _table((text, [1, 0]), (audio, [0, 1]))
    for weight, expected in ((None, [0.5, 0.5]), (0.25, [0.25, 0.75]), (1.0, [1, 0])):
        row = tone_clips.row("x", positive_audio_uris=("p.wav",), text_weight=weight)
        found = attach(row, table, table)
        assert not isinstance(found, Failure)
        np.testing.assert_allclose(found.positive, expected)
        np.testing.assert_array_equal(found.negative, [0, 0])
        np.testing.assert_array_equal(found.scorer_positive, [1, 0])  # the words
        assert found.scorer_negative is None


def test_a_row_fails_with_the_query_that_could_not_be_embedded() -> None:
    table = _table((Query(text="bell"), [1, 0]))
    table[Query(audio_uris=("n.wav",)).key] = [
        EmbeddedQuery(error_type="missing", message="n.wav: no such file")
    ]
    found = attach(tone_clips.row("x", negative_audio_uris=("n.wav",)), table, None)
    assert isinstance(found, Failure)
    assert (found.stage, found.error_type) == ("embed_queries", "missing")
    assert found.message == "n.wav: no such file"


class Picky(tones.ToneClap):
    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        if "rain" in texts:
            raise RuntimeError("too wet")
        return super().embed_text(texts)


def test_a_text_that_fails_fails_alone() -> None:
    bell, rain, frog = embed_query_texts(Picky(), ["bell", "rain", "frog"])
    assert bell.error_type is None
    assert frog.error_type is None
    assert (rain.error_type, rain.message) == ("model_error", "'rain': too wet")
    assert embed_query_texts(Picky(), []) == []


def test_an_encoder_that_can_embed_nothing_is_a_broken_machine() -> None:
    class Broken(tones.ToneClap):
        def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
            raise RuntimeError("CUDA error: unspecified launch failure")

        embed_audio = embed_text

    with pytest.raises(MachineError, match="launch failure"):
        embed_query_texts(Broken(), ["bell", "rain"])
    with pytest.raises(MachineError, match="launch failure"):
        embed_query_examples(Broken(), ["a.wav"], iter([tones.tone("bell", 0.5)]))


def test_an_encoder_of_other_labels_is_no_broken_machine() -> None:
    class Closed(tones.ToneClap):
        def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
            raise ValueError("no such label")

    (found,) = embed_query_texts(Closed(), ["bell"])
    assert (found.error_type, found.message) == ("model_error", "'bell': no such label")


def test_shots_are_embedded_one_by_one_and_averaged(tmp_path: Path) -> None:
    labels = ["bell"] * 6 + ["rain"] * 3
    uris = []
    for number, label in enumerate(labels):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.repeat(tones.tone(label, 0.5)[:, None], 2, axis=1), 8_000)
        uris.append(str(path))
    shots = (read_shot(uri, Storage(), 8_000, 10**6) for uri in uris)
    found = embed_query_examples(tones.ToneClap(), uris, shots)
    vector = np.frombuffer(found.embedding, "<f4")
    assert vector[tones.LABELS.index("bell")] == pytest.approx(2 / 3)
    assert vector[tones.LABELS.index("rain")] == pytest.approx(1 / 3)


def test_each_distinct_query_is_embedded_once_whoever_asks(loaded: tone_runs.Loaded) -> None:
    labels = ["bell", "rain", "bell", "frog", "rain", "bell"]
    rows = [tone_clips.row(str(i), label) for i, label in enumerate(labels)]
    rows.append(tone_clips.row("lost", "wind", negative_audio_uris=("nowhere.wav",)))

    def check(found: list[tuple[str, EmbeddedQuery]]) -> None:
        by_key = dict(found)
        assert len(found) == len(by_key) == 5
        assert by_key[Query(audio_uris=("nowhere.wav",)).key].error_type == "missing"
        bell = np.frombuffer(by_key[Query(text="bell").key].embedding, "<f4")
        np.testing.assert_array_equal(bell, np.eye(6)[0])

    encoder = ScorerChoice(model=ModelChoice(name="tones"))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        embedded = pipeline | beam.Create(rows) | EmbedQueries(encoder, Storage(), 10**6, 2, 3)
        assert_that(embedded, check)
    assert sorted(loaded.model.query_encoder.embedded) == ["bell", "frog", "rain", "wind"]
