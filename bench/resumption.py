"""Resumes a run of which many small files of the journal are left: how long what is left takes.

``PYTHONPATH=.:tests python bench/resumption.py --files 100000 --folder /tmp/left``

A folder is made in which a run was stopped after FILES files of the journal with ROWS rows each, no
row of which is in a table. The part of the graph that reads and reconciles them is then run, with
the manifest of all rows in memory and no row left to do, as ``--resume`` runs it; nothing is
separated, and tables are not written. Printed are the seconds of the listing, of the graph, and of
processor time, and the bytes of the graph.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.transforms.combiners import Count

import tone_clips
from manifests.row import ManifestRow
from metric_rows import metrics
from transforms.elements import JOURNAL, KeptFile, KeptRules
from transforms.kept import GoOn
from transforms.storage import Storage
from transforms.tables import metrics_rows

STORAGE = Storage()


def _ids(file: int, rows: int) -> list[str]:
    return [f"recordings/{file:06d}/{row:03d}" for row in range(rows)]


def _make(folder: Path, files: int, rows: int) -> None:
    """Writes the journal; one that is there is taken as it is."""
    journal = folder / "journal"
    there = len(list(journal.glob("*.parquet"))) if journal.exists() else 0
    for file in range(there, files):
        metrics_rows.write_piece(STORAGE, str(journal), [metrics(i) for i in _ids(file, rows)])


def _rows(file: int, rows: int) -> list[ManifestRow]:
    return [tone_clips.row(i, dataset="d", split="test", extra={"colour": "red"}) for i in
            _ids(file, rows)]  # fmt: skip


def _print(count: int) -> None:
    print(f"{count} rows found finished")


def _graph(root: Any, listing: str, options: argparse.Namespace) -> None:
    rows = (
        root
        | beam.Create(range(options.files))
        | beam.FlatMap(_rows, options.rows).with_output_types(ManifestRow)
    )
    inputs = {
        "rows": rows,
        "invalid": root | "NoFailures" >> beam.Create([]),
        "names": root | "NoNames" >> beam.Create([]),
    }
    rules = KeptRules(covers=True)
    found = inputs | GoOn(output=str(options.folder), listing=listing, storage=STORAGE, rules=rules)
    _ = found["recovered"] | Count.Globally() | beam.Map(_print)


def run(argv: Sequence[str] | None = None) -> None:
    """Makes what was left, and resumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    _make(options.folder, options.files, options.rows)
    listing = str(options.folder / "earlier.jsonl")
    started_s = time.perf_counter()
    uris = STORAGE.list_files(str(options.folder / "journal"), ".parquet")
    lines = (KeptFile(kind=JOURNAL, uri=uri).to_line() for uri in uris)
    STORAGE.write_bytes(listing, b"".join(lines))
    listed_s = time.perf_counter() - started_s
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _graph(pipeline, listing, options)
    num_bytes = pipeline.to_runner_api().ByteSize()
    started_s, cpu_s = time.perf_counter(), time.process_time()
    pipeline.run().wait_until_finish()
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    print(
        f"{len(uris)} files: listed and written down in {listed_s:.1f} s, graph of {num_bytes:,} "
        f"bytes, read and reconciled in {wall_s:.1f} s ({cpu_s:.1f} s of processor time, "
        f"{1_000 * cpu_s / len(uris):.2f} ms a file)"
    )


if __name__ == "__main__":
    run()
