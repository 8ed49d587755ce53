#!/usr/bin/env bash
# One row without a vector fails every list similarity over a Parquet file in DuckDB, WHERE or not.
#
# Guess: `list_cosine_similarity` of a list that is null is null, as it is for a row of VALUES, and what WHERE
# leaves out is not looked at.
# Seen (duckdb 2.0.0, a file written by pyarrow 25.0.0): the whole query fails, "left argument can not contain
# NULL values", although no list holds a null, and with `WHERE vector IS NOT NULL` too. A cast to an array of
# the vectors' length, `array_cosine_similarity(vector::FLOAT[2], …)`, gives null for it, which sorts last.
# A column of the fixed-size lists of pyarrow is no way out: what pyarrow writes with a null in it, it cannot
# read again (apache/arrow#35692).
# Fails if one of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet duckdb==2.0.0 pyarrow==25.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

VECTORS = [[1.0, 2.0], None]
for name, kind in (("plain", pa.list_(pa.float32())), ("fixed", pa.list_(pa.float32(), 2))):
    column = pa.array(VECTORS, kind)
    pq.write_table(pa.table({"id": [0, 1], "vector": column}), f"{name}.parquet")


def seen(query):
    try:
        return duckdb.sql(query).fetchall()
    except duckdb.Error as err:
        return "fails" if "can not contain NULL values" in str(err) else str(err)


LIST = "list_cosine_similarity(vector, [1, 2]::FLOAT[])"
ARRAY = "array_cosine_similarity(vector::FLOAT[2], [1, 2]::FLOAT[2])"
found = {
    "VALUES": seen(f"SELECT id, {LIST} FROM (VALUES (0, [1, 2]::FLOAT[]), (1, NULL)) t(id, vector)"),
    "file": seen(f"SELECT id, {LIST} FROM 'plain.parquet'"),
    "file, WHERE": seen(f"SELECT id, {LIST} FROM 'plain.parquet' WHERE vector IS NOT NULL"),
    "file, cast": seen(f"SELECT id, {ARRAY} AS c FROM 'plain.parquet' ORDER BY c DESC"),
}
try:
    found["pyarrow, fixed"] = pq.read_table("fixed.parquet")["vector"].to_pylist()
except pa.ArrowInvalid:
    found["pyarrow, fixed"] = "fails"
print(f"duckdb {duckdb.__version__}, pyarrow {pa.__version__}")
for what, each in found.items():
    print(f"{what}: {each}")
whole = [(0, 1.0), (1, None)]
sys.exit(list(found.values()) != [whole, "fails", "fails", whole, "fails"])
PYTHON
