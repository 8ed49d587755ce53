from __future__ import annotations

import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

import tone_clips
from manifests.row import ManifestRow
from transforms.manifest_io import AdmitRows, ReadManifest


def test_rows_and_what_is_wrong_with_others_come_out_apart(tmp_path: Path) -> None:
    good = [{"id": f"{i}", "mixture_uri": "a.wav", "positive_text": "bell"} for i in range(5)]
    for name, rows in (("a.jsonl", good[:3]), ("b.jsonl", [*good[3:], {"id": "bad"}])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(lines, encoding="utf-8")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows, failed = pipeline | ReadManifest(uris=(str(tmp_path),))
        assert_that(rows | beam.Map(lambda r: r.id), equal_to(list("01234")), "rows")
        told = failed | beam.Map(lambda f: (f.stage, f.error_type, f.manifest_row, f.row))
        assert_that(told, equal_to([("manifest", "invalid_row", 3, None)]), "failed")


def test_a_manifest_is_files_or_rows() -> None:
    row = tone_clips.row("x")
    for arguments in ({}, {"uris": ("a.csv",), "rows": (row,)}):
        with pytest.raises(ValueError, match="not both"):
            ReadManifest(**arguments)


def _placed(row_id: str, file: str, number: int) -> ManifestRow:
    return tone_clips.row(row_id, manifest_uri=file, manifest_row=number)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_row_of_an_id_is_admitted_in_whatever_order_they_come(seed: int) -> None:
    rows = [
        _placed("twice", "b", 1),
        _placed("twice", "a", 7),
        _placed("twice", "a", 2),
        _placed("once", "b", 2),
        _placed("thrice", "a", 3),
        _placed("thrice", "a", 4),
        _placed("TWICE", "a", 5),
    ]
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        admitted, duplicates = pipeline | "Rows" >> beam.Create(rows) | AdmitRows()

        def places(found: object, label: str) -> object:
            return found | label >> beam.Map(
                lambda x: (getattr(x, "id", None), x.manifest_uri, x.manifest_row)
            )

        assert_that(
            places(admitted, "A"),
            equal_to([("twice", "a", 2), ("once", "b", 2), ("thrice", "a", 3), ("TWICE", "a", 5)]),
            "admitted",
        )
        assert_that(
            places(duplicates, "B"),
            equal_to([(None, "a", 7), (None, "b", 1), (None, "a", 4)]),
            "duplicates",
        )


def test_no_rows_are_no_rows() -> None:
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        admitted, duplicates = pipeline | "Rows" >> beam.Create([]) | AdmitRows()
        for label, found in (("a", admitted), ("d", duplicates)):
            assert_that(found, equal_to([]), label)
