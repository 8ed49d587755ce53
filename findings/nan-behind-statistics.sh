#!/usr/bin/env bash
# NaN in a Parquet file of pyarrow or Polars: DuckDB's isnan() finds none, and its maximum depends on the writer.
#
# Guess: `WHERE isnan(x)` over a file finds what it finds in a table of the same rows.
# Seen (duckdb 2.0.0, pyarrow 25.0.0, polars 2.1.0): 0 rows, where the table has 1. By Parquet's rule statistics leave NaN
# out, and DuckDB takes them for all values: isnan(x), x = 'nan', x > 100 and NOT (x < 7) are answered with no look at the rows,
# and max(x) is the largest number of pyarrow's file and NaN of Polars', though avg(x) is NaN of both. Files that DuckDB
# writes have no such statistics, and are right. pyarrow's own data sets lose it for ~(x < 7), and find it by is_nan.
# Polars is right. In DuckDB, NOT isfinite(x) and x::VARCHAR = 'nan' find NaN; better is null, written in its place.
# Known as https://github.com/duckdb/duckdb/issues/25521. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet duckdb==2.0.0 pyarrow==25.0.0 polars==2.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import duckdb
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

print(f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}, polars {polars.__version__}")
rows = {"x": [1.0, math.nan, 5.0, 6.0]}
pq.write_table(pa.table(rows), "pyarrow.parquet")
polars.DataFrame(rows).write_parquet("polars.parquet")
duckdb.sql("CREATE TABLE rows AS SELECT unnest([1.0, 'nan'::DOUBLE, 5.0, 6.0]) AS x")
duckdb.sql("COPY rows TO 'duckdb.parquet'")


def value(query):
    return duckdb.sql(query).fetchall()[0][0]


CONDITIONS = ("isnan(x)", "x = 'nan'", "x > 100", "NOT (x < 7)", "NOT isfinite(x)", "x::VARCHAR = 'nan'")
seen = {}
for source in ("rows", "'duckdb.parquet'", "'pyarrow.parquet'", "'polars.parquet'"):
    counts = [value(f"SELECT count(*) FROM {source} WHERE {each}") for each in CONDITIONS]
    highest = value(f"SELECT max(x) FROM {source}")
    mean = value(f"SELECT avg(x) FROM {source}")
    seen[source] = counts, str(highest), str(mean)
    print(f"{source}: {dict(zip(CONDITIONS, counts, strict=True))}; max {highest}, avg {mean}")
right, blind = [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]
expected = {
    "rows": (right, "nan", "nan"),
    "'duckdb.parquet'": (right, "nan", "nan"),
    "'pyarrow.parquet'": (blind, "6.0", "nan"),
    "'polars.parquet'": (blind, "nan", "nan"),
}
x = ds.field("x")
by_pyarrow = [ds.dataset("pyarrow.parquet").to_table(filter=each).num_rows for each in (pc.is_nan(x), ~(x < 7))]
x = polars.col("x")
by_polars = [polars.scan_parquet("pyarrow.parquet").filter(each).collect().height for each in (x.is_nan(), ~(x < 7))]
print(f"is_nan and ~(x < 7) of pyarrow's file, by pyarrow {by_pyarrow}, by Polars {by_polars}")
sys.exit(seen != expected or by_pyarrow != [1, 0] or by_polars != [1, 1])
PYTHON
