from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from manifests.row import ManifestRow, output_name, version_1_name
from transforms.external_stems import StemPlaces
from transforms.storage import Storage


def row(row_id: str = "a/b", **given: object) -> ManifestRow:
    return ManifestRow(id=row_id, mixture_uri="/m.wav", positive_text="a", **given)


def test_a_folder_is_searched_by_id_and_by_our_names() -> None:
    old = version_1_name("a/b")
    found = StemPlaces(where="/stems").candidates(row(dataset="x y"))
    assert found[:8] == [
        "/stems/a/b.flac",
        "/stems/a/b.wav",
        "/stems/dataset=x%20y/a/b.flac",
        "/stems/dataset=x%20y/a/b.wav",
        f"/stems/{old}.flac",
        f"/stems/{old}.wav",
        f"/stems/dataset=x%20y/{old}.flac",
        f"/stems/dataset=x%20y/{old}.wav",
    ]
    assert found[8:11] == ["/stems/a/b.FLAC", "/stems/a/b.WAV", "/stems/a/b.wave"]
    assert found[-1] == f"/stems/dataset=x%20y/{old}.MTS"


def find(folder: Path, row_id: str = "dog", **given: object) -> str:
    return StemPlaces(where=str(folder)).find(row(row_id, **given), Storage())


@pytest.mark.parametrize(
    "suffix", ["flac", "wav", "aiff", "ogg", "opus", "mp3", "m4a", "WAV", "MP3"]
)
def test_a_stem_of_any_format_that_is_read_is_found(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"dog.{suffix}").touch()
    assert find(tmp_path) == f"{tmp_path}/dog.{suffix}"


def test_of_several_stems_the_first_by_a_fixed_order_is_taken(tmp_path: Path) -> None:
    order = [
        "dog.flac",
        "dog.wav",
        f"{version_1_name('dog')}.wav",
        "dog.aiff",
        "dog.ogg",
        "dog.mp3",
    ]
    for name in reversed(order):
        (tmp_path / name).touch()
    for name in order:
        assert find(tmp_path) == f"{tmp_path}/{name}"
        (tmp_path / name).unlink()


def test_a_missing_stem_is_said_in_the_terms_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "dog.txt").touch()
    expected = f"^no dog.flac or dog.wav in {tmp_path}, nor one that ends in .wave, .*.aiff, .*$"
    with pytest.raises(FileNotFoundError, match=expected):
        find(tmp_path)


def test_an_id_that_is_a_file_name_is_found_as_such(tmp_path: Path) -> None:
    (tmp_path / "Dog.Wav").touch()
    assert find(tmp_path, "Dog.Wav") == f"{tmp_path}/Dog.Wav"


def test_a_stem_is_found_in_its_other_unicode_form(tmp_path: Path) -> None:
    name = unicodedata.normalize("NFD", "Vögel")
    (tmp_path / f"{name}.wav").touch()
    assert find(tmp_path, unicodedata.normalize("NFC", name)) == f"{tmp_path}/{name}.wav"


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
