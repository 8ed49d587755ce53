"""Manifests: the rows that ask for extractions and the tables that come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

QUERY_FLAGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "--recordings": {
        "nargs": "+",
        "action": "extend",
        "metavar": "URI",
        "help": "Recordings without a manifest: files, folders with all below them, patterns, tar "
        "and Parquet shards, lists of NeMo (.jsonl) and Kaldi (.scp). Each is asked every query. "
        "Example: --recordings 'gs://bucket/**/*.flac' folder/",
    },
    "--positive": {
        "action": "append",
        "metavar": "TEXT",
        "help": "What to extract. Given several times, each is extracted into a stem of its own. "
        'Example: --positive "a dog barking" --positive speech',
    },
    "--negative": {
        "metavar": "TEXT",
        "help": "What to suppress, with every query that says nothing of it. The word 'others' "
        "stands for the texts of the other queries of the command; to suppress the text 'others' "
        'itself, write a manifest. Example: "rain"',
    },
    "--positive_audio": {
        "nargs": "+",
        "metavar": "URI",
        "help": "Example clips of what to extract; rec.wav#t=6.3,7.0 is a stretch of a file.",
    },
    "--negative_audio": {
        "nargs": "+",
        "metavar": "URI",
        "help": "Example clips of what to suppress.",
    },
    "--text_weight": {
        "type": float,
        "metavar": "0..1",
        "help": "0 = example clips only, 1 = text only. Default 0.5 where a query has both.",
    },
    "--queries": {
        "metavar": "URI",
        "help": "A table of queries, each with a name: CSV, JSONL or Parquet. "
        "python -m manifests.example --queries prints one to start from.",
    },
    "--audio_column": {
        "metavar": "NAME",
        "help": "With Parquet files in --recordings: the column of the recordings. Default: the "
        "one that is of Hugging Face's type Audio, or has bytes and path.",
    },
}
"""The flags that say which recordings are asked what, as ``add_argument`` takes them: here, where a
wrong flag need not wait for what reads recordings."""
