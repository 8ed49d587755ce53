"""Shards of recordings as other programs write them: tar, Parquet, lists of NeMo and Kaldi."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Member = tuple[str, bytes]


def write_tar(path: Path, members: Iterable[Member], mode: str = "w") -> Path:
    """A tar with files in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


HF_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def hugging_face_schema(**columns: Any) -> pa.Schema:
    """A schema as ``datasets`` writes it: a column of audio is declared in the metadata."""
    features = {
        name: {"sampling_rate": 8_000, "_type": "Audio"} if kind == HF_AUDIO else {"_type": "Value"}
        for name, kind in columns.items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema(list(columns.items()), metadata=metadata)


def write_parquet(
    path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, group: int = 100
) -> Path:
    """A Parquet file with so many rows in a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(table, path, row_group_size=group)
    return path
