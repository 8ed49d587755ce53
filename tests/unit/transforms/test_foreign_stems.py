from __future__ import annotations

import pytest

from manifests.ids import output_name, version_1_name
from manifests.row import ManifestRow
from transforms.foreign_stems import StemPlaces


def row(row_id: str = "a/b", **given: object) -> ManifestRow:
    return ManifestRow(id=row_id, mixture_uri="/m.wav", positive_text="a", **given)


def test_a_folder_is_searched_by_id_and_by_our_names() -> None:
    old = version_1_name("a/b")
    assert StemPlaces(where="/stems").candidates(row(dataset="x y")) == [
        "/stems/a/b.flac",
        "/stems/a/b.wav",
        "/stems/dataset=x%20y/a/b.flac",
        "/stems/dataset=x%20y/a/b.wav",
        f"/stems/{old}.flac",
        f"/stems/{old}.wav",
        f"/stems/dataset=x%20y/{old}.flac",
        f"/stems/dataset=x%20y/{old}.wav",
    ]


@pytest.mark.parametrize("row_id", ["../x", "/etc/x", "gs://b/x", "a/../../x"])
def test_an_id_does_not_lead_out_of_the_folder(row_id: str) -> None:
    candidates = StemPlaces(where="/stems").candidates(row(row_id))
    assert all(uri.startswith("/stems/") and ".." not in uri for uri in candidates)
    assert not any(row_id in uri for uri in candidates)


def test_a_template_names_columns() -> None:
    places = StemPlaces(where="gs://b/{dataset}/{colour}/{id}_{name}.wav")
    found = places.candidates(row("one", dataset="d", extra={"colour": "red"}))
    assert found == [f"gs://b/d/red/one_{output_name('one')}.wav"]


def test_what_a_template_needs_and_the_row_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="the row has no label"):
        StemPlaces(where="{label}.wav").candidates(row())
    with pytest.raises(ValueError, match="has no column stem_uri"):
        StemPlaces(where=None).candidates(row())


def test_a_value_does_not_lead_out_of_the_template() -> None:
    with pytest.raises(ValueError, match="would lead out"):
        StemPlaces(where="/s/{id}.wav").candidates(row("../../etc/x"))


@pytest.mark.parametrize("where", ["{id.x}", "{0}", "{id[0]}", "{id:>9}", "{}"])
def test_only_plain_fields_are_templates(where: str) -> None:
    with pytest.raises(ValueError, match="is not a plain field"):
        StemPlaces(where=where)
