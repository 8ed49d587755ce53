"""Names and seeds that follow from a row's id and from nothing else."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from urllib.parse import quote

_MAX_STEM_CHARS = 80
_HASH_CHARS = 20
_MAX_PARTITION_CHARS = 120
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Directory part that Hive, DuckDB and pyarrow read as null."""


def output_name(row_id: str) -> str:
    """File name, without a suffix, of everything that is written for a row.

    A readable part of the id in ``[A-Za-z0-9_-]``, then 80 bits of its SHA-256 in hexadecimal, at
    most 101 bytes. The hash keeps ids apart that differ only in case, in Unicode form or after the
    80th character; without dots and separators the name cannot leave its folder, nor be hidden,
    nor be a reserved device name of Windows.

    Raises:
        ValueError: the id is empty.
    """
    if not row_id:
        raise ValueError("id is empty; expected a non-empty id")
    plain = unicodedata.normalize("NFKD", row_id).encode("ascii", "ignore").decode("ascii")
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", plain)[:_MAX_STEM_CHARS].strip("_-") or "clip"
    return f"{readable}-{_digest(row_id.encode('utf-8', 'surrogatepass'))[:_HASH_CHARS]}"


def partition_value(value: str | None) -> str:
    """``value`` as the directory part of a Hive partition (``dataset=…``).

    Bytes outside ``[A-Za-z0-9_.-]``, and dots of a value that begins or ends with one, are
    percent-encoded, as pyarrow and Hive read it. A value whose code would be longer than 120 bytes
    is cut and ends in a hash.
    """
    if value is None:
        return NULL_PARTITION
    data = value.encode("utf-8", "surrogatepass")
    code = quote(data, safe="").replace("~", "%7E")
    if code.startswith(".") or code.endswith("."):
        code = code.replace(".", "%2E")
    if len(code) <= _MAX_PARTITION_CHARS:
        return code
    head = re.sub(r"%.?$", "", code[: _MAX_PARTITION_CHARS - _HASH_CHARS - 1])
    return f"{head}-{_digest(data)[:_HASH_CHARS]}"


def stable_seed(run_seed: int, row_id: str) -> int:
    """Seed of a row's random draws: the same on every machine, in every order, in every process.

    Returns:
        An integer in [0, 2**63).
    """
    data = f"{run_seed}\x00".encode() + row_id.encode("utf-8", "surrogatepass")
    return int(_digest(data)[:16], 16) >> 1


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
