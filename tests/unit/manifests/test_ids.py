from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.ids import output_name, partition_value, stable_seed

HOSTILE = [
    *("../../etc/x", "a/b", "a\\b", "CON", "con", "nul.wav", "COM1", ".", "..", "...", " ", "~"),
    *("x" * 4000, "x" * 4001, "a\nb", "-rf", "é", "e\u0301", "中文", "a:b", "a?b", "*", "%2e%2e"),
    *("$HOME", "a;b", "\u202eabc", "\ud800", "a.", "a ", "A", "a"),
]
RESERVED = {"con", "prn", "aux", "nul"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}


def _is_safe(name: str) -> bool:
    return bool(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)
        and len(name.encode()) <= 120
        and name.lower() not in RESERVED
    )


@pytest.mark.parametrize("row_id", HOSTILE)
def test_hostile_ids_give_safe_names(row_id):
    assert _is_safe(output_name(row_id))


@given(st.text(st.characters(), min_size=1))
def test_any_id_gives_a_safe_name(row_id):
    assert _is_safe(output_name(row_id))


def test_no_two_hostile_ids_share_a_name_even_where_case_does_not_count():
    names = {unicodedata.normalize("NFC", output_name(row_id)).lower() for row_id in HOSTILE}
    assert len(names) == len(HOSTILE)


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_ids_never_share_a_name(first, second):
    same = output_name(first).lower() == output_name(second).lower()
    assert same == (first == second)


def test_names_are_stable_across_releases():
    assert output_name("CON") == "CON-a3dbc4b644a9a2c51e74"
    assert output_name("../../etc/x") == "etc_x-56da1a2ef2dfa53b6fb3"


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
