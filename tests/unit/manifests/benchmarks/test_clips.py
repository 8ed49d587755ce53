from __future__ import annotations

import unicodedata

import fsspec
import pytest

from manifests.benchmarks.clips import PresenceFilter, clip_uri, listing
from manifests.files import ManifestError, absolute
from manifests.row import ManifestRow


def mixed(row_id, *interferers, shots=()):
    return ManifestRow(
        id=row_id,
        target_uri="/t",
        interferer_uris=interferers,
        positive_text="x",
        positive_audio_uris=shots,
    )


def test_a_root_is_made_absolute_without_asking_a_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b/") == f"{tmp_path}/a/b"
    assert absolute("gs://bucket/a/") == "gs://bucket/a"
    assert clip_uri("gs://bucket/a", "b/c.wav") == "gs://bucket/a/b/c.wav"
    with pytest.raises(ManifestError, match="leaves"):
        clip_uri("gs://bucket/a", "../../x.wav")


def test_listing_names_files_as_rows_do(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.wav").touch()
    assert listing(str(tmp_path)) == {f"{tmp_path}/a/b.wav"}
    memory = fsspec.filesystem("memory")
    memory.pipe("/clips/a/b.wav", b"")
    root = absolute("memory://clips/")
    assert listing(root) == {clip_uri(root, "a/b.wav")} == {"memory://clips/a/b.wav"}
    memory.rm("/clips", recursive=True)


def test_listing_of_nothing(tmp_path):
    with pytest.raises(ManifestError, match="no such folder"):
        listing(f"{tmp_path}/none")


def test_rows_with_missing_clips_are_left_out_and_counted():
    rows = [mixed("a", "/x"), mixed("b", "/x", "/y"), mixed("c", "/x", shots=("/y", "/z"))]
    keep = PresenceFilter(present=frozenset({"/t", "/x"}))
    assert [row.id for row in keep(rows)] == ["a"]
    assert (keep.num_skipped, list(keep.missing)) == (2, ["/y", "/z"])
    assert keep.describe() == "missing: /y\nmissing: /z"


@pytest.mark.parametrize(("there", "named"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_clips_in_another_unicode_form_are_there(there, named, tmp_path):
    disk, row = (unicodedata.normalize(form, "Löwe.wav") for form in (there, named))
    (tmp_path / disk).touch()
    keep = PresenceFilter(present=listing(str(tmp_path)))
    rows = [
        ManifestRow(id=name, mixture_uri=clip_uri(str(tmp_path), name), positive_text="x")
        for name in (row, "Lowe.wav")
    ]
    assert [each.id for each in keep(rows)] == [row]


def test_mixtures_on_disk_are_looked_for_too():
    row = ManifestRow(id="a", mixture_uri="/m", reference_uri="/r", positive_text="x")
    keep = PresenceFilter(present=frozenset({"/m"}))
    assert list(keep([row])) == []
    assert list(keep.missing) == ["/r"]


def test_without_looking_every_row_passes():
    keep = PresenceFilter(present=None)
    assert len(list(keep([mixed("a", "/x")]))) == 1
    assert keep.describe() == ""


def test_many_missing_clips_are_cut_short():
    keep = PresenceFilter(present=frozenset({"/t"}))
    assert list(keep([mixed("a", *(f"/{i:02}" for i in range(25)))])) == []
    assert keep.describe().splitlines()[-2:] == ["missing: /19", "… and 5 more missing"]
