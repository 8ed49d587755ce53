from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.pvalue import TaggedOutput
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

import tone_clips
from manifests.row import ManifestRow
from metric_rows import metrics
from transforms import kept
from transforms.elements import JOURNAL, TABLE, Failure, KeptFile
from transforms.kept import (
    Damage,
    KeptLetter,
    KeptRow,
    KeptRules,
    KeptSegments,
    ReadKept,
    ReadListing,
)
from transforms.storage import Storage
from transforms.tables.metrics_rows import write_piece

STORAGE = Storage()
SAME: dict[str, Any] = {"dataset": "d", "split": "test", "extra": {"colour": "red"}}
ROOTS = KeptRules(roots=("/a", "/b/*.tar"))
COVERS, RETRYING = KeptRules(covers=True), KeptRules(retrying=True)
PLAIN = KeptRules()


def _row(number: int = 1, **fields: Any) -> ManifestRow:
    return tone_clips.row("x", manifest_uri="m", manifest_row=number, **{**SAME, **fields})


OTHER = _row(label="rain")


def _kept(
    uri: str = "t", *, in_table: bool = True, broken: str | None = None, sha256: str | None = None
) -> KeptRow:
    return KeptRow(
        id="x", row_sha256=sha256 or _row().sha256, uri=uri, in_table=in_table, broken=broken
    )


def _segments(uri: str = "s", count: int = 2) -> KeptSegments:
    return KeptSegments(id="x", uri=uri, count=count)


def _letter(number: int = 1, error_type: str = "missing") -> KeptLetter:
    second = error_type == "duplicate_id"
    return KeptLetter(key="x", place=f"m\x00{number:012d}", uri="l", is_second=second)


def _unlisted(place: str) -> KeptLetter:
    return dataclasses.replace(_letter(), key="\x00y", listed=place)


def _said(element: Any) -> str:
    """A decision in a word or two."""
    if isinstance(element, ManifestRow):
        return "do"
    assert isinstance(element, TaggedOutput)
    value = element.value
    if isinstance(value, Failure):
        return f"{value.error_type} {value.manifest_row}"
    if element.tag == "kept":
        return f"keep of {value.uri}" + ("" if value.asked else ", not asked for")
    if element.tag == "letters":
        return "letter stays"
    if element.tag == "segments":
        return f"segments leave {value.uri}"
    return f"{value.why} leaves {value.uri}" + (" but once" if value.but_one else "")


CASES: dict[str, tuple[KeptRules, dict[str, list[Any]], list[str]]] = {
    "a new row": (PLAIN, {"rows": [_row()]}, ["do"]),
    "a finished row": (PLAIN, {"rows": [_row()], "kept": [_kept()]}, ["keep of t"]),
    "other content": (
        PLAIN, {"rows": [OTHER], "kept": [_kept()]}, ["changed leaves t", "do"],
    ),
    "made from nobody knows which row": (
        PLAIN, {"rows": [_row()], "kept": [dataclasses.replace(_kept(), row_sha256=None)]},
        ["unknown leaves t", "do"],
    ),
    "a broken stem": (
        PLAIN, {"rows": [_row()], "kept": [_kept(broken="cut")]}, ["broken leaves t", "do"],
    ),
    "not in a manifest that covers": (COVERS, {"kept": [_kept()]}, ["gone leaves t"]),
    "not in another manifest": (PLAIN, {"kept": [_kept()]}, ["keep of t, not asked for"]),
    "in two tables": (
        PLAIN, {"rows": [_row()], "kept": [_kept("u"), _kept("t")]},
        ["double leaves u", "keep of t"],
    ),
    "twice in one table": (
        PLAIN, {"rows": [_row()], "kept": [_kept(), _kept()]},
        ["double leaves t but once", "keep of t"],
    ),
    "in table and journal": (
        PLAIN, {"rows": [_row()], "kept": [_kept("j", in_table=False), _kept()]}, ["keep of t"],
    ),
    "old in the table, new in the journal": (
        PLAIN, {"rows": [_row()], "kept": [
            _kept("j", in_table=False), _kept(sha256="of another label")]},
        ["changed leaves t", "keep of j"],
    ),
    "with all its segments": (
        PLAIN, {"rows": [_row()], "kept": [dataclasses.replace(_kept(), num_segments=3)],
        "segments": [_segments("s", 2), _segments("r", 1)]}, ["keep of t"],
    ),
    "without some of its segments": (
        PLAIN, {"rows": [_row()], "kept": [dataclasses.replace(_kept(), num_segments=3)],
        "segments": [_segments("s", 2)]}, ["unfound leaves t", "segments leave s", "do"],
    ),
    "in the journal, and with segments of a table that was not completed": (
        PLAIN, {"rows": [_row()], "kept": [_kept("j", in_table=False)],
        "segments": [_segments()]}, ["segments leave s", "keep of j"],
    ),
    "segments of a row that is gone": (
        PLAIN, {"segments": [_segments(), _segments("r")]},
        ["segments leave r", "segments leave s"],
    ),
    "of an earlier release, which knew no segments": (
        PLAIN, {"rows": [_row()], "kept": [_kept()], "segments": []}, ["keep of t"],
    ),
    "two rows of one id": (
        PLAIN, {"rows": [_row(2, label="rain"), _row()], "kept": [_kept()]},
        ["duplicate_id 2", "keep of t"],
    ),
    "the second row of an id among the dead letters": (
        RETRYING, {"rows": [OTHER], "kept": [_kept()], "letters": [_letter()]},
        ["duplicate_id 1", "keep of t, not asked for"],
    ),
    "a dead letter that is tried again": (
        RETRYING, {"rows": [_row()], "letters": [_letter()]}, ["do"],
    ),
    "a row that no longer validates": (
        PLAIN, {"invalid": [True], "kept": [_kept()]}, ["changed leaves t"],
    ),
    "an invalid row beside a finished one of its id": (
        RETRYING, {"invalid": [True], "kept": [_kept()]}, ["keep of t, not asked for"],
    ),
    "a dead letter of another manifest": (PLAIN, {"letters": [_letter()]}, ["letter stays"]),
    "the same dead letter twice": (
        PLAIN, {"letters": [_letter(), _letter()]}, ["letter stays"],
    ),
    "a dead letter that a manifest that covers has not": (COVERS, {"letters": [_letter()]}, []),
    "a dead letter of a row that is finished": (
        PLAIN, {"letters": [_letter()], "kept": [_kept()]}, ["keep of t, not asked for"],
    ),
    "a dead letter of the second row of an id that is finished": (
        PLAIN, {"letters": [_letter(2, "duplicate_id")], "kept": [_kept()]},
        ["keep of t, not asked for", "letter stays"],
    ),
    "folders and shards that are listed now": (
        ROOTS, {"letters": [_unlisted("/a/x"), _unlisted("/a"), _unlisted("/b/x.tar")]}, [],
    ),
    "a folder that is not looked into": (
        ROOTS, {"letters": [_unlisted("/ab"), _unlisted("/b/x/y.tar"), _unlisted("/b")]},
        ["letter stays"],
    ),
    "a dead letter of a row that is asked for": (
        PLAIN, {"rows": [_row()], "letters": [_letter()]}, ["do"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rules", "given", "expected"), CASES.values(), ids=CASES.keys())
def test_each_case_is_decided_whatever_comes_first(
    rules: KeptRules, given: dict[str, list[Any]], expected: list[str], seed: int
) -> None:
    order = np.random.default_rng(seed)
    kinds = ("rows", "invalid", "kept", "segments", "letters")
    found: dict[str, list[Any]] = {name: [] for name in kinds}
    for name, values in given.items():
        found[name] = [values[i] for i in order.permutation(len(values))]
    assert sorted(map(_said, kept._decided(("x", found), rules))) == sorted(expected)


@pytest.mark.parametrize(
    ("row_id", "row_json", "same_as"),
    [
        ("a", None, "a"),
        (None, '{"id": "a", "offset_s": -1}', "a"),
        ("a", '{"id": "b"}', "a"),
    ],
)
def test_a_row_is_known_by_its_id(row_id: str | None, row_json: str | None, same_as: str) -> None:
    assert kept._key(row_id, row_json) == same_as


@pytest.mark.parametrize(
    "row_json", [None, "", "[", '["a"]', '{"id": 7}', '{"id": ""}', "[" * 9999]
)
def test_a_row_without_an_id_is_known_by_what_was_read(row_json: str | None) -> None:
    key = kept._key(None, row_json)
    assert key == kept._key(None, row_json)
    assert key.startswith("\x00")
    assert key != kept._key(None, "something else")


def test_files_are_read_whole_or_said_to_be_damaged(tmp_path: Path) -> None:
    write_piece(STORAGE, str(tmp_path / "t"), [metrics("a", 1.0), metrics("b", 1.0)])
    write_piece(STORAGE, str(tmp_path / "j"), [metrics("b", 2.0), metrics("c", 2.0)])
    table, piece = (str(next((tmp_path / name).iterdir())) for name in "tj")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(Path(table).read_bytes()[:-9])
    tables = [table, str(cut), str(tmp_path / "gone.parquet")]
    listing = _listing(tmp_path, **{TABLE: tables, JOURNAL: [piece]})
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows, segments, letters, damaged, names = (
            pipeline | ReadListing(listing, STORAGE) | ReadKept(STORAGE)
        )
        facts = rows | "A" >> beam.Map(lambda k: (k.id, k.in_table, k.uri))
        expected = [("a", True, table), ("b", True, table), ("b", False, piece),
                    ("c", False, piece)]  # fmt: skip
        assert_that(facts, equal_to(expected), "rows")
        assert_that(letters, equal_to([]), "letters")
        assert_that(segments, equal_to([]), "segments")
        assert_that(names | beam.Distinct(), equal_to(["colour"]), "names")
        assert_that(damaged | "B" >> beam.Map(_uri), equal_to([str(cut)]), "damaged")


def _listing(folder: Path, **uris: list[str]) -> str:
    files = [KeptFile(kind=kind, uri=uri) for kind, found in uris.items() for uri in found]
    listing = folder / "earlier.jsonl"
    listing.write_bytes(b"".join(file.to_line() for file in files))
    return str(listing)


def _uri(damage: Damage) -> str:
    assert damage.reason
    json.dumps(damage.reason)
    return damage.uri
