from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import soundfile
import torch
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

import tone_clips
import tone_runs
import tones
from model.devices import MachineError
from model.metrics import Undefined, evaluate
from transforms import queries
from transforms.elements import EmbeddedQuery, Failure, MixtureQueries, MixtureRows, Query
from transforms.model_cache import ModelChoice, ScorerChoice
from transforms.queries import (
    AttachQueries,
    EmbedExamples,
    asks_of,
    attach,
    embed_query_examples,
    embed_query_texts,
    read_shot,
)
from transforms.scoring import Embeddings, query_inputs, signals_needed
from transforms.storage import Storage


def _table(*pairs: tuple[Query, Sequence[float]]) -> dict[Query, EmbeddedQuery]:
    return {
        query: EmbeddedQuery(embedding=np.asarray(values, "<f4").tobytes())
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
    lost = EmbeddedQuery(error_type="missing", message="n.wav: no such file")
    table[Query(audio_uris=("n.wav",))] = lost
    found = attach(tone_clips.row("x", negative_audio_uris=("n.wav",)), table, None)
    assert isinstance(found, Failure)
    assert (found.stage, found.error_type) == ("embed_queries", "missing")
    assert found.message == "n.wav: no such file"


@pytest.mark.parametrize(
    ("error_type", "reason"),
    [
        ("unsupported_query", Undefined.UNKNOWN_TO_SCORER),
        ("model_error", Undefined.SCORER_FAILED),
    ],
)
def test_what_the_scorer_alone_cannot_embed_leaves_scores_undefined(
    error_type: str, reason: Undefined
) -> None:
    table = _table((Query(text="bell"), [1, 0]))
    unknown = {Query(text="bell"): EmbeddedQuery(error_type=error_type, message="what?")}
    for embedded, positive in ((table, [1, 0]), (None, [0])):
        found = attach(tone_clips.row("x"), embedded, unknown)
        assert not isinstance(found, Failure)
        np.testing.assert_array_equal(found.positive, positive)
        assert found.scorer_positive is reason
        assert found.scorer_negative is None
        assert "stem_embedding" in signals_needed(found, has_reference=False)
        heard = Embeddings(stem=np.ones(2, np.float32), mixture=None, reference=None)
        inputs = query_inputs(found, heard, has_reference=False)
        (outcomes,) = evaluate(inputs)
        assert outcomes["clap_score"] is reason
        assert outcomes["clap_score_negative"] is Undefined.NO_NEGATIVE_QUERY
    lost = {Query(text="bell"): EmbeddedQuery(error_type="missing", message="no such file")}
    assert isinstance(attach(tone_clips.row("x"), table, lost), Failure)


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


def test_a_constant_offset_is_no_example_of_a_sound(tmp_path: Path) -> None:
    for name, channels in (("dc", [0.25, 0.25]), ("zero", [0.0, 0.0]), ("against", [0.5, -0.5])):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.tile(np.float32(channels), (441, 1)), 44_100, "FLOAT")
        found = read_shot(str(path), Storage(), 8_000, 10**6)
        assert isinstance(found, EmbeddedQuery)
        assert found.error_type == "silent"
        assert ("the same" if name == "dc" else "zero") in found.message


def _pieces(labels: Sequence[str]) -> list[MixtureRows]:
    return [MixtureRows(rows=(tone_clips.row(f"{i}", each),)) for i, each in enumerate(labels)]


def _attached(step: AttachQueries, pieces: list[MixtureRows]) -> None:
    """Runs the step; checks that each row gets the embedding of its own caption."""

    def check(found: list[MixtureQueries]) -> None:
        queries = {query.row.id: query for each in found for query in each.queries}
        assert len(queries) == sum(len(piece.rows) for piece in pieces)
        for query in queries.values():
            expected = np.eye(6)[tones.LABELS.index(query.row.positive_text)]
            np.testing.assert_array_equal(query.positive, expected)
            np.testing.assert_array_equal(query.scorer_positive, expected)

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        nothing = pipeline | "None" >> beam.Create([])
        mixtures = pipeline | beam.Create(pieces, reshuffle=False)
        attached, failed = (mixtures, nothing, nothing) | step
        assert_that(attached, check)
        assert_that(failed, equal_to([]), "failed")


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_caption_is_embedded_once_whoever_asks(loaded: tone_runs.Loaded, batch_size: int) -> None:
    encoder = ScorerChoice(model=ModelChoice(name="tones", device="cpu"))
    pieces = _pieces(["bell", "rain", "bell", "frog", "rain", "bell", "bell"])
    _attached(AttachQueries(encoder, encoder, 2, batch_size), pieces)
    assert sorted(loaded.model.query_encoder.embedded) == ["bell", "frog", "rain"]


def test_captions_are_not_looked_up(loaded: tone_runs.Loaded) -> None:
    """A look-up is a request to the runner for which a thread waits."""

    class NoTable(dict[str, list[EmbeddedQuery]]):
        def __getitem__(self, key: str) -> list[EmbeddedQuery]:
            raise AssertionError(f"{key} was looked up")

    encoder = ScorerChoice(model=ModelChoice(name="tones", device="cpu"))
    attaching = queries._AttachFn(AttachQueries(encoder, encoder, 1))
    attaching.setup()
    attaching.start_bundle()
    for piece in _pieces(["bell", "rain"]):
        assert list(attaching.process(piece, NoTable(), NoTable())) == []
    assert len(list(attaching.finish_bundle())) == 2
    attaching.teardown()


def test_example_clips_are_looked_up_once(loaded: tone_runs.Loaded) -> None:
    query = Query(audio_uris=("p.wav",))
    vector = EmbeddedQuery(embedding=np.eye(6, dtype="<f4")[2].tobytes())
    asked = []

    class Table(dict[str, list[EmbeddedQuery]]):
        def __getitem__(self, key: str) -> list[EmbeddedQuery]:
            asked.append(key)
            return [vector]

    book = queries.QueryBook(tones.ToneClap(), None)
    assert [book.look_up(query, Table()) for _ in range(3)] == [vector] * 3
    assert asked == [query.key]


def test_the_longest_unused_embedding_is_forgotten() -> None:
    remembered = queries.Remembered(max_queries=2)
    for key in ("a", "b"):
        remembered.put(key, EmbeddedQuery(message=key))
    assert remembered.get("a") is not None
    remembered.put("c", EmbeddedQuery(message="c"))
    assert remembered.get("b") is None
    assert len(remembered) == 2


def test_each_set_of_example_clips_is_embedded_once(
    loaded: tone_runs.Loaded, tmp_path: Path
) -> None:
    uris = {}
    for label in ("bell", "rain"):
        uris[label] = str(tmp_path / f"{label}.wav")
        soundfile.write(uris[label], tones.tone(label, 0.5), 8_000)
    rows = [
        tone_clips.row(str(i), "wind", positive_audio_uris=(uris[label],))
        for i, label in enumerate(["bell", "rain", "bell", "bell"])
    ]
    rows.append(tone_clips.row("lost", "wind", negative_audio_uris=("nowhere.wav",)))

    def check(found: list[tuple[str, EmbeddedQuery]]) -> None:
        by_key = dict(found)
        assert len(found) == len(by_key) == 3
        assert by_key[Query(audio_uris=("nowhere.wav",)).key].error_type == "missing"
        bell = np.frombuffer(by_key[Query(audio_uris=(uris["bell"],)).key].embedding, "<f4")
        assert bell.argmax() == tones.LABELS.index("bell")

    encoder = ScorerChoice(model=ModelChoice(name="tones"))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        embedded = pipeline | beam.Create(rows) | EmbedExamples(encoder, Storage(), 10**6)
        assert_that(embedded, check)
    assert loaded.model.query_encoder.embedded == []  # captions are embedded elsewhere
