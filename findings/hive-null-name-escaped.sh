#!/usr/bin/env bash
# A text that is spelt like Hive's null: escaping one of its letters keeps it a text in DuckDB only.
#
# Guess: a partition folder `dataset=%5F_HIVE_DEFAULT_PARTITION__` holds the text
# `__HIVE_DEFAULT_PARTITION__`, since only the folder name that is not escaped stands for null.
# Seen (duckdb 2.0.0, pyarrow 25.0.0, polars 2.1.0): DuckDB gives the text; pyarrow and Polars decode the
# name first and compare it with Hive's word afterwards, and give null. Who writes such folders keeps the
# value as a column of the files too, and reads with hive partitioning off where it matters.
# Fails if one of the three changes its mind.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet duckdb==2.0.0 pyarrow==25.0.0 polars==2.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pathlib
import sys

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

WORD = "__HIVE_DEFAULT_PARTITION__"
for name, value in (("%5F" + WORD[1:], 1), ("birds", 2)):
    folder = pathlib.Path("table") / f"dataset={name}"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"value": [value]}), folder / "part.parquet")

query = "SELECT dataset FROM read_parquet('table/**/*.parquet', hive_partitioning = true) ORDER BY value"
seen = {
    f"duckdb {duckdb.__version__}": [row[0] for row in duckdb.sql(query).fetchall()],
    f"pyarrow {pa.__version__}": ds.dataset("table", partitioning="hive")
    .to_table()
    .sort_by("value")["dataset"]
    .to_pylist(),
    f"polars {polars.__version__}": polars.scan_parquet("table/**/*.parquet", hive_partitioning=True)
    .sort("value")
    .collect()["dataset"]
    .to_list(),
}
for reader, values in seen.items():
    print(f"{reader}: {values}")
expected = [[WORD, "birds"], [None, "birds"], [None, "birds"]]
sys.exit(list(seen.values()) != expected)
PYTHON
