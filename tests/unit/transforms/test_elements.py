from __future__ import annotations

import pickle

import numpy as np
import pytest
from apache_beam.coders.typecoders import registry

import tone_clips
from transforms.elements import num_bytes
from transforms.threaded import RECORDS, RecordCoder


@pytest.mark.parametrize("record", RECORDS)
def test_records_do_not_fall_back_to_a_slow_coder(record: type) -> None:
    assert isinstance(registry.get_coder(record), RecordCoder)


def test_a_record_comes_back_from_its_coder() -> None:
    coder = RecordCoder()
    clip = tone_clips.clip("a")
    found = coder.decode(coder.encode(clip))
    assert found.queries[0].row == clip.queries[0].row
    np.testing.assert_array_equal(found.audio, clip.audio)
    row = tone_clips.row("x", extra={"colour": "red"})
    assert coder.decode(coder.encode(row)) == row


def test_the_size_of_a_record_is_that_of_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tone_clips.clip("a", ("bell", "rain"))
    samples = clip.audio.nbytes + clip.model_audio.nbytes
    samples += sum(reference.nbytes for reference in clip.references)
    embeddings = 2 * 3 * clip.queries[0].positive.nbytes
    assert num_bytes(clip) == samples + embeddings
    monkeypatch.setattr(pickle, "dumps", lambda *_, **__: pytest.fail("pickled to be measured"))
    assert RecordCoder().estimate_size(clip) >= samples
