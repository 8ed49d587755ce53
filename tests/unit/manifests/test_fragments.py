"""What a URI says behind its ``#``: a stretch of time, or a recording in a shard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.files import Fragment, absolute, member_uri, resolve, split_fragment, without_span
from manifests.row import ManifestRow, RowError, parse_record


@pytest.mark.parametrize(
    ("text", "start_s", "end_s"),
    [
        ("t=6.3,7.0", 6.3, 7.0),
        ("t=6.3", 6.3, None),
        ("t=,7", 0.0, 7.0),
        ("t=npt:10,20", 10.0, 20.0),
        ("t=1:06.5,0:02:00", 66.5, 120.0),
        ("t=01:00:00,", None, None),
    ],
)
def test_a_stretch_of_time_is_read_as_w3c_says(
    text: str, start_s: float | None, end_s: float | None
) -> None:
    if start_s is None:
        with pytest.raises(ValueError, match="is no time"):
            split_fragment(f"rec.wav#{text}")
        return
    assert split_fragment(f"gs://b/rec.wav#{text}") == (
        "gs://b/rec.wav",
        Fragment(start_s=start_s, end_s=end_s),
    )


@pytest.mark.parametrize(
    "name", ["take #3.wav", "song#t=a.wav", "C#.wav", "a#", "list.parquet#3", "#", "a#b#c.flac"]
)
def test_other_names_with_a_number_sign_are_names(name: str) -> None:
    assert split_fragment(name) == (name, Fragment())


def test_recordings_in_shards_and_stretches_of_them() -> None:
    assert split_fragment("gs://b/x.tar#a/b.wav&t=1,2") == (
        "gs://b/x.tar",
        Fragment(member="a/b.wav", start_s=1.0, end_s=2.0),
    )
    assert split_fragment("https://h/x.TGZ?sig=1#b.wav")[1].member == "b.wav"
    assert split_fragment("f.parquet#row=17&column=my%20voice") == (
        "f.parquet",
        Fragment(row=17, column="my voice"),
    )


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("rec.wav#t=7,6", "ends before it begins"),
        ("rec.wav#t=7,7", "ends before it begins"),
        ("rec.wav#t=1:99", "is no time"),
        ("rec.wav#t=,", "no stretch of time"),
        ("x.tar#a.wav&row=3", "in its fragment"),
        ("f.parquet#row=-1", "is no number"),
        ("f.parquet#row=1&row=2", "in its fragment"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_what_is_expected(uri: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"{why}.*expected shard.tar#member"):
        split_fragment(uri)
    values = {"id": "a", "mixture_uri": uri, "positive_text": "a dog"}
    error = parse_record(values, uri="m.csv", row=1, folder="/d")
    assert isinstance(error, RowError)
    assert (error.field, why in str(error)) == ("mixture_uri", True)


@given(st.text(min_size=1) | st.binary(min_size=1))
def test_every_member_has_a_uri_that_leads_back_to_it(raw: str | bytes) -> None:
    encoded = raw.encode("utf-8") if isinstance(raw, str) else raw
    name = encoded.decode("utf-8", "surrogateescape")
    uri = member_uri("gs://b/x.tar", name)
    assert split_fragment(uri) == ("gs://b/x.tar", Fragment(member=name))
    assert not set(";\n ") & set(uri)
    assert uri.encode("utf-8")


def test_relative_addresses_keep_their_fragments_as_they_are() -> None:
    assert resolve("/d", "../x.tar#a/../b.wav") == "/x.tar#a/../b.wav"
    assert resolve("gs://b/d", "rec.wav#t=1,2") == "gs://b/d/rec.wav#t=1,2"
    assert absolute("/d/../x.tar#a/../b.wav") == "/x.tar#a/../b.wav"


def test_lists_of_examples_hold_stretches() -> None:
    values = {
        "id": "a",
        "mixture_uri": "m.wav#t=10,20",
        "positive_audio_uris": "rec.wav#t=6.3,7.0;other.wav#t=1",
    }
    row = parse_record(values, uri="m.csv", row=1, folder="/d")
    assert isinstance(row, ManifestRow)
    assert row.mixture_uri == "/d/m.wav#t=10,20"
    assert row.positive_audio_uris == ("/d/rec.wav#t=6.3,7.0", "/d/other.wav#t=1")


@pytest.mark.parametrize(
    ("uri", "recording"),
    [
        ("rec.wav#t=1,2", "rec.wav"),
        ("x.tar#a.wav&t=1,2", "x.tar#a.wav"),
        ("x.parquet#row=3&t=1,2&column=audio", "x.parquet#row=3&column=audio"),
        ("http://h/a.wav?k=1&t=9#t=1,2", "http://h/a.wav?k=1&t=9"),
    ],
)
def test_the_recording_of_a_stretch_is_found_wherever_the_stretch_is_named(
    uri: str, recording: str
) -> None:
    found, fragment = without_span(uri)
    assert found == recording
    assert (fragment.start_s, fragment.end_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("uri", "recording"),
    [
        ("rec.wav#t=0", "rec.wav"),
        ("x.tar#a.wav&t=0", "x.tar#a.wav"),
        ("x.tar#t=6.3.wav", "x.tar#t=6.3.wav"),
        ("x.tar#t=6.3.wav&t=0", "x.tar#t=6.3.wav"),
        ("rec.wav#t=abc", "rec.wav#t=abc"),
    ],
)
def test_a_stretch_from_the_start_on_is_all_of_its_recording(uri: str, recording: str) -> None:
    assert without_span(uri)[0] == recording
