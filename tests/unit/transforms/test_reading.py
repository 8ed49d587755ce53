from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import soundfile
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

import tone_clips
import tones
from transforms import reading
from transforms.audio.mixtures import ReadSettings
from transforms.elements import Clip, Failure, LongRecording, MixtureQueries
from transforms.reading import ReadAudio, read
from transforms.storage import Storage
from transforms.threaded import Overlap

SETTINGS = ReadSettings(model_rate_hz=tones.RATE_HZ)


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "m.wav", tones.tone("bell", 1.0), tones.RATE_HZ, "FLOAT")
    return str(tmp_path / "m.wav")


def _queries(uri: str, *references: str | None) -> MixtureQueries:
    return MixtureQueries(
        queries=tuple(
            tone_clips.query(f"{i}", mixture_uri=uri, reference_uri=reference)
            for i, reference in enumerate(references)
        )
    )


def test_a_mixture_is_read_once_for_all_its_queries(mixture: str, monkeypatch) -> None:
    opened = []
    real_open = Storage.open
    monkeypatch.setattr(
        Storage, "open", lambda self, uri: opened.append(uri) or real_open(self, uri)
    )
    (clip,) = read(_queries(mixture, None, mixture, None), Storage(), SETTINGS)
    assert isinstance(clip, Clip)
    assert opened == [mixture, mixture]  # once as the mixture, once as a reference
    assert [reference is None for reference in clip.references] == [True, False, True]
    np.testing.assert_array_equal(clip.audio[0], tones.tone("bell", 1.0))


def test_a_bad_mixture_fails_all_its_rows_and_a_bad_reference_its_own(mixture: str) -> None:
    lost = read(_queries("gone.wav", None, None), Storage(), SETTINGS)
    assert [result.row.id for result in lost if isinstance(result, Failure)] == ["0", "1"]
    failure, clip = read(_queries(mixture, None, "gone.wav", mixture), Storage(), SETTINGS)
    assert isinstance(failure, Failure)
    assert (failure.row.id, failure.error_type) == ("1", "missing")
    assert "gone.wav" in failure.message
    assert [query.row.id for query in clip.queries] == ["0", "2"]


def test_many_queries_become_elements_of_a_bounded_size(mixture: str, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MAX_STEM_VALUES", 3 * 8_000 + 1)
    clips = read(_queries(mixture, *[None] * 8), Storage(), SETTINGS)
    assert [len(clip.queries) for clip in clips] == [3, 3, 2]
    assert clips[0].audio is clips[2].audio


def test_what_is_long_goes_another_way(mixture: str) -> None:
    settings = ReadSettings(model_rate_hz=tones.RATE_HZ, max_in_memory_s=0.01)
    (long,) = read(_queries(mixture, None, mixture), Storage(), settings)
    assert isinstance(long, LongRecording)
    assert len(long.queries) == 2


def test_every_query_comes_out_once_whatever_is_still_being_read(
    mixture: str, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "long.wav", tones.tone("bell", 9.0), tones.RATE_HZ)
    uris = [mixture, "gone.wav", str(tmp_path / "long.wav")] * 4
    asked = [
        MixtureQueries(queries=(tone_clips.query(f"{i}", mixture_uri=uri),))
        for i, uri in enumerate(uris)
    ]
    settings = ReadSettings(model_rate_hz=tones.RATE_HZ, max_in_memory_s=0.5)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        clips, long, failed = (
            pipeline
            | beam.Create(asked, reshuffle=False)
            | ReadAudio(Storage(), settings, Overlap(num_threads=3, max_pending=2))
        )

        def ids(found: object, label: str) -> object:
            return found | label >> beam.FlatMap(lambda x: [query.row.id for query in x.queries])

        assert_that(ids(clips, "C"), equal_to([f"{i}" for i in range(0, 12, 3)]), "clips")
        assert_that(ids(long, "L"), equal_to([f"{i}" for i in range(2, 12, 3)]), "long")
        rows = failed | beam.Map(lambda failure: failure.row.id)
        assert_that(rows, equal_to([f"{i}" for i in range(1, 12, 3)]), "failed")


@pytest.mark.parametrize("absent_first", [True, False])
def test_an_absent_target_is_absent_for_its_own_row_alone(
    tmp_path: Path, absent_first: bool
) -> None:
    for label in ("bell", "rain"):
        soundfile.write(tmp_path / f"{label}.wav", tones.tone(label, 1.0), tones.RATE_HZ)
    sources = {
        "mixture_uri": None,
        "target_uri": str(tmp_path / "bell.wav"),
        "interferer_uris": (str(tmp_path / "rain.wav"),),
    }
    queries = [
        tone_clips.query("absent", "frog", **sources, target_absent=True),
        tone_clips.query("present", "bell", **sources),
    ]
    if not absent_first:
        queries.reverse()
    (clip,) = read(MixtureQueries(queries=tuple(queries)), Storage(), SETTINGS)
    found = dict(zip((query.row.id for query in clip.queries), clip.references, strict=True))
    assert not found["absent"].any()
    assert found["present"].any()
    assert len(found["absent"]) == len(found["present"])
