"""Names and seeds that follow from a row's id and from nothing else."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from urllib.parse import quote

_MAX_PLAIN_BYTES = 200
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")
_STEM_ENDINGS = (".flac", ".wav", ".mp3", ".ogg", ".opus")
"""Of every format that stems have or may come to have: names do not change when one is added."""
_RESIDUAL_ENDING = ".residual"
_MAX_READABLE_CHARS = 80
_HASH_CHARS = 20
_MAX_PARTITION_CHARS = 120
STEMS_FOLDER = "stems"
MIXTURES, REFERENCES, INTERFERERS = "mixtures", "references", "interferers"
"""Folders of what is written for rows."""
INTERFERER_COLUMN = "interferer_files"
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""Directory part that Hive, DuckDB and pyarrow read as null."""


def output_name(row_id: str) -> str:
    """Path, without a suffix, of everything that is written for a row, below the output folder.

    A plain id is the path as it is, and its slashes make folders: at most 200 bytes of
    ``[A-Za-z0-9._/-]``, no part of which is empty, begins with a dot or ends like a stem (the stem
    of ``a`` and the folder of ``a.flac/b`` would be one), and which does not end in ``.residual``.
    Any other id becomes a readable part in ``[A-Za-z0-9_-]``, ``~`` and 80 bits of its SHA-256: no
    plain id has a ``~``, so two ids never share a path, whatever else the manifest holds. A path
    never leaves its folder. Case distinguishes, as it does on object stores and on Linux.

    Raises:
        ValueError: the id is empty.
    """
    if not row_id:
        raise ValueError("id is empty; expected a non-empty id")
    return row_id if _is_plain(row_id) else f"{_readable(row_id)}~{_id_hash(row_id)}"


def version_1_name(row_id: str) -> str:
    """The file name, without a suffix, that runs of schema version 1 gave a row."""
    return f"{_readable(row_id)}-{_id_hash(row_id)}"


def _is_plain(row_id: str) -> bool:
    return (
        len(row_id) <= _MAX_PLAIN_BYTES
        and _PLAIN.fullmatch(row_id) is not None
        and not row_id.endswith(_RESIDUAL_ENDING)
        and all(
            part and not part.startswith(".") and not part.lower().endswith(_STEM_ENDINGS)
            for part in row_id.split("/")
        )
    )


def _readable(row_id: str) -> str:
    plain = unicodedata.normalize("NFKD", row_id).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[^A-Za-z0-9-]+", "_", plain)[:_MAX_READABLE_CHARS].strip("_-") or "clip"


def _id_hash(row_id: str) -> str:
    return _digest(row_id.encode("utf-8", "surrogatepass"))[:_HASH_CHARS]


def partition_value(value: str | None) -> str:
    """``value`` as the directory part of a Hive partition (``dataset=…``).

    Bytes outside ``[A-Za-z0-9_.-]``, and dots of a value that begins or ends with one, are
    percent-encoded, as pyarrow and Hive read it. A value that is called like the directory of null
    has its first character encoded too. A value whose code would be longer than 120 bytes is cut,
    between two characters, and ends in a hash.
    """
    if value is None:
        return NULL_PARTITION
    dots = "%2E" if value.startswith(".") or value.endswith(".") else "."
    codes = [_percent_encoded(character).replace(".", dots) for character in value]
    if value == NULL_PARTITION:
        codes[0] = f"%{ord(value[0]):02X}"
    if sum(map(len, codes)) <= _MAX_PARTITION_CHARS:
        return "".join(codes)
    lengths = itertools.accumulate(map(len, codes))
    fitting = sum(length < _MAX_PARTITION_CHARS - _HASH_CHARS for length in lengths)
    digest = _digest(value.encode("utf-8", "surrogatepass"))[:_HASH_CHARS]
    return f"{''.join(codes[:fitting])}-{digest}"


def _percent_encoded(character: str) -> str:
    return quote(character.encode("utf-8", "surrogatepass"), safe="").replace("~", "%7E")


def stable_seed(run_seed: int, row_id: str) -> int:
    """Seed of a row's random draws: the same on every machine, in every order, in every process.

    Returns:
        An integer in [0, 2**63).
    """
    data = f"{run_seed}\x00".encode() + row_id.encode("utf-8", "surrogatepass")
    return int(_digest(data)[:16], 16) >> 1


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
