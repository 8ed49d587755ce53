#!/usr/bin/env bash
# Columns that a Parquet file lacks: Beam's reader leaves them out of its rows, though they were asked for by name.
#
# Guess: ReadFromParquet(files, columns=["id", "colour"]) fails where no file has a colour, as pyarrow's data sets do,
# and gives None where some files have none.
# Seen (apache-beam 2.77.0, pyarrow 25.0.0): neither. A row is a dictionary without the key, from the file that lacks it
# and, for a name that nobody has, from all; ReadFromParquetBatched gives tables of unequal schemas. A misspelt name
# that is read by .get() is None in all rows, and the run succeeds. Who names columns compares them with each row's.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet apache-beam==2.77.0 pyarrow==25.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import pathlib
import sys
from importlib.metadata import version

import apache_beam as beam
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

logging.disable(logging.WARNING)
print(f"apache-beam {version('apache-beam')}, pyarrow {pa.__version__}")
pq.write_table(pa.table({"id": ["a"], "colour": ["red"]}), "1.parquet")
pq.write_table(pa.table({"id": ["b"]}), "2.parquet")
here = pathlib.Path.cwd()


def rows(*columns):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromParquet(f"{here}/*.parquet", columns=list(columns))
            | beam.Map(lambda row: (here / f"{row['id']}.row").write_text(repr(row)))
        )
    return [path.read_text() for path in sorted(here.glob("*.row"))]


seen = rows("id", "colour"), rows("id", "colourr")
print(f"asked for a column that one file has: {seen[0]}; that none has: {seen[1]}")
try:
    ds.dataset([str(here / "1.parquet")]).to_table(columns=["id", "colourr"])
    refused = False
except pa.ArrowInvalid as error:
    refused = True
    print(f"pyarrow's own data set: {str(error).splitlines()[0]}")
expected = ["{'id': 'a', 'colour': 'red'}", "{'id': 'b'}"], ["{'id': 'a'}", "{'id': 'b'}"]
sys.exit(seen != expected or not refused)
PYTHON
