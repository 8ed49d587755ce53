from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.systems import Capabilities, QuerySetting, adapt

ALL = QuerySetting(
    positive_text="Bark",
    negative_text="rain",
    positive_audio=True,
    negative_audio=True,
    reference=True,
)
TEXT_P = Capabilities(audio=False, negative=False)
AUDIO_P = Capabilities(text=False, negative=False)
LABELS_P = Capabilities(audio=False, negative=False, labels=("Bark", "Meow"))


def test_a_system_that_takes_everything_changes_nothing() -> None:
    found = adapt(Capabilities(), ALL)
    assert found.supported
    assert found.nearest == ALL


@pytest.mark.parametrize(
    ("capabilities", "setting", "reasons", "nearest"),
    [
        (
            TEXT_P,
            ALL,
            ("it takes no negative query", "it takes no example clips"),
            QuerySetting(positive_text="Bark", reference=True),
        ),
        (
            TEXT_P,
            QuerySetting(positive_text="Bark", negative_text="rain"),
            ("it takes no negative query",),
            QuerySetting(positive_text="Bark"),
        ),
        (TEXT_P, QuerySetting(negative_text="rain"), ("it takes no negative query",), None),
        (TEXT_P, QuerySetting(positive_audio=True), ("it takes no example clips",), None),
        (AUDIO_P, QuerySetting(positive_text="Bark"), ("it takes no text",), None),
        (
            AUDIO_P,
            QuerySetting(positive_text="Bark", positive_audio=True),
            ("it takes no text",),
            QuerySetting(positive_audio=True),
        ),
        (
            LABELS_P,
            QuerySetting(positive_text="a dog barking"),
            ("'a dog barking' is none of its 2 labels",),
            None,
        ),
        (
            Capabilities(positive=False),
            QuerySetting(positive_text="Bark", negative_text="rain"),
            ("it takes no positive query",),
            QuerySetting(negative_text="rain"),
        ),
        (
            Capabilities(needs_reference=True),
            QuerySetting(positive_text="Bark"),
            ("it needs the reference, and the row has none",),
            None,
        ),
    ],
)
def test_what_a_system_cannot_use_is_named_and_taken_away(
    capabilities: Capabilities,
    setting: QuerySetting,
    reasons: tuple[str, ...],
    nearest: QuerySetting | None,
) -> None:
    found = adapt(capabilities, setting)
    assert not found.supported
    assert found.reasons == reasons
    assert found.nearest == nearest


def test_a_label_is_supported_however_it_is_written() -> None:
    assert adapt(LABELS_P, QuerySetting(positive_text="The sound of bark")).supported


_SETTINGS = st.builds(
    QuerySetting,
    positive_text=st.sampled_from([None, "Bark", "rain"]),
    negative_text=st.sampled_from([None, "Meow", "rain"]),
    positive_audio=st.booleans(),
    negative_audio=st.booleans(),
    reference=st.booleans(),
)
_CAPABILITIES = st.builds(
    Capabilities,
    text=st.booleans(),
    audio=st.booleans(),
    positive=st.booleans(),
    negative=st.booleans(),
    labels=st.sampled_from([None, ("Bark", "Meow")]),
    needs_reference=st.booleans(),
)


@given(capabilities=_CAPABILITIES, setting=_SETTINGS)
def test_the_nearest_setting_is_supported_and_only_ever_smaller(
    capabilities: Capabilities, setting: QuerySetting
) -> None:
    nearest = adapt(capabilities, setting).nearest
    if nearest is None:
        return
    assert adapt(capabilities, nearest).supported
    for field in dataclasses.fields(QuerySetting):
        kept, asked = getattr(nearest, field.name), getattr(setting, field.name)
        assert kept == asked or not kept
