from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.row import output_name, partition_value, stable_seed, version_1_name

PLAIN = [
    *("a", "A", "a/b", "dog-1", "2024.01.05_rec", "a.", "CON", "-rf", "x" * 200, "a.residual/b"),
    *("a.flacs", "residual", "_"),
]
HOSTILE = [
    *("../../etc/x", "a\\b", "nul.wav", ".", "..", "...", " ", "~", "/a", "a/", "a//b", "a/./b"),
    *("a/.b", "a.flac", "a.FLAC/b", "a.wav/b/c", "b.mp3", "b.opus/x", "a.residual", "x/a.residual"),
    *(
        "x" * 201,
        "x" * 4000,
        "x" * 4001,
        "a\nb",
        "é",
        "e\u0301",
        "中文",
        "a:b",
        "a?b",
        "*",
        "%2e%2e",
    ),
    *("$HOME", "a;b", "\u202eabc", "\ud800", "a "),
    *("a_b~" + "0" * 20, "a/b~" + "0" * 20, "dataset=x/a"),
]


def _is_safe(name: str) -> bool:
    """A path that stays in its folder, and that no stem or residual of another name can be."""
    parts = name.split("/")
    return bool(
        re.fullmatch(r"[A-Za-z0-9._~/-]{1,200}", name)
        and not name.endswith(".residual")
        and all(part and part[0] != "." for part in parts)
        and not any(part.lower().endswith((".flac", ".wav")) for part in parts)
    )


@pytest.mark.parametrize("row_id", PLAIN)
def test_plain_ids_are_names_as_they_are(row_id):
    assert output_name(row_id) == row_id


@pytest.mark.parametrize("row_id", HOSTILE)
def test_hostile_ids_are_escaped_and_get_a_digest(row_id):
    name = output_name(row_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}~[0-9a-f]{20}", name)
    assert name != row_id


@given(st.text(st.characters(), min_size=1))
def test_any_id_gives_a_safe_name(row_id):
    assert _is_safe(output_name(row_id))


def _files(row_id: str) -> set[str]:
    """All that may be written for a row, and the folders in which it is."""
    name = output_name(row_id)
    return {f"{name}{middle}.{end}" for middle in ("", ".residual") for end in ("flac", "wav")}


def _folders(row_id: str) -> set[str]:
    parts = output_name(row_id).split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}


def _may_stand_together(first: str, second: str) -> bool:
    taken = _files(second) | _folders(second)
    return not _files(first) & taken and not _folders(first) & _files(second)


def test_no_file_of_a_row_is_a_file_or_folder_of_another():
    ids = [*PLAIN, *HOSTILE, "a.residual.flac", "a.residual.flac/b", *map(output_name, HOSTILE)]
    for first in ids:
        assert [second for second in ids if not _may_stand_together(first, second)] in (
            [first],
            [first, first],
        )


_IDS = st.one_of(st.text(min_size=1), st.text("aA./~-_flcwvresidu", min_size=1, max_size=12))


@given(_IDS, _IDS)
def test_two_ids_never_share_a_path(first, second):
    assert _may_stand_together(first, second) == (first != second)


def test_names_are_stable_across_releases():
    assert output_name("a dog/1") == "a_dog_1~3be8ea6e194e6f691869"
    assert output_name("../../etc/x") == "etc_x~56da1a2ef2dfa53b6fb3"
    assert version_1_name("CON") == "CON-a3dbc4b644a9a2c51e74"


def test_empty_id_is_refused():
    with pytest.raises(ValueError, match="non-empty id"):
        output_name("")


@given(st.text(st.characters(), min_size=1))
def test_partition_values_stay_in_their_folder(value):
    code = partition_value(value)
    assert re.fullmatch(r"[A-Za-z0-9_.%-]{1,120}", code)
    assert not code.startswith(".")
    assert not code.endswith(".")


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_values_never_share_a_partition(first, second):
    assert (partition_value(first) == partition_value(second)) == (first == second)


@given(value=st.text(st.characters(exclude_categories=["Cs"]), min_size=20, max_size=200))
def test_a_long_value_is_cut_between_two_characters(value):
    code = partition_value(value)
    assert len(code) <= 120
    found = unquote_to_bytes(code).decode("utf-8")  # raises where a character was cut
    if found != value:
        head, _, digest = found.rpartition("-")
        assert value.startswith(head)
        assert re.fullmatch(r"[0-9a-f]{20}", digest)


@pytest.mark.parametrize("character", ["é", "日", "🐕", "x", "~", "%", "."])
def test_a_cut_value_keeps_all_characters_that_fit(character):
    code = partition_value(character * 200)
    assert 120 - len(partition_value(character)) < len(code) <= 120


def test_a_value_called_like_null_is_no_null():
    assert partition_value("__HIVE_DEFAULT_PARTITION__") == "%5F_HIVE_DEFAULT_PARTITION__"
    assert partition_value("__hive_default_partition__") == "__hive_default_partition__"


def test_partition_values_of_ordinary_names_are_those_names():
    assert partition_value("ESC-50") == "ESC-50"
    assert partition_value("v1.2_x") == "v1.2_x"
    assert partition_value("a b/c") == "a%20b%2Fc"
    assert partition_value("..") == "%2E%2E"
    assert partition_value(None) == "__HIVE_DEFAULT_PARTITION__"


def test_seeds_depend_on_run_and_id_only():
    assert stable_seed(0, "a") == 3426483283761622585
    assert stable_seed(0, "a") != stable_seed(1, "a")
    assert stable_seed(0, "a") != stable_seed(0, "b")
    assert stable_seed(1, "2a") != stable_seed(12, "a")


@given(st.integers(), st.text())
def test_seeds_fit_a_numpy_generator(run_seed, row_id):
    assert 0 <= stable_seed(run_seed, row_id) < 2**63
