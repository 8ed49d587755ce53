"""``python -m manifests.example > my.csv``: a commented manifest to start from, or queries."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from typing import Final

from manifests.recordings import QUERY_FIELDS
from manifests.row import MANIFEST_COLUMNS, ManifestRow, column_type
from terminal import flags, screen

_INTRODUCTION: Final = """\
A manifest: each row asks for one extraction. Lines before the header that begin with # are notes.
Leave a cell empty where it does not apply, and leave out columns that you do not use.
A relative URI begins at this file; any fsspec URI (gs://, s3://, https://) will do.
Check with: python -m manifests.validate my.csv
"""
_ROWS: Final = (
    "id,mixture_uri,target_uri,interferer_uris,snr_db,reference_uri,positive_text,negative_text,"
    "positive_audio_uris,negative_audio_uris,text_weight,offset_s,duration_s,dataset,split,label,seed",
    "street-dog,audio/street.wav,,,,,a dog barking,traffic,,,,,,street,,dog,",
    'street-voices,audio/street.wav,,,,,"people talking, far away",,,,,30,12.5,street,,speech,',
    "piano-by-example,gs://my-bucket/trio.flac,,,,gs://my-bucket/piano.flac,a piano,,"
    "examples/piano1.wav;examples/piano2.wav,examples/cello.wav,0.5,,,trio,test,piano,",
    "mixed-here,,clips/siren.wav,clips/rain.wav;clips/crowd.wav,0;5,,a siren,rain and a crowd,"
    ",,,0,10,mixed,test,siren,1",
)


def example_csv() -> str:
    """The text of a manifest: what each column means, as comments, and four kinds of rows."""
    lines = [f"# {line}" for line in _INTRODUCTION.splitlines()] + ["#"]
    for name in MANIFEST_COLUMNS:
        lines += _explained(name)
    return "\n".join([*lines, "#", *_ROWS]) + "\n"


def _explained(name: str) -> list[str]:
    """What a column means, as comments."""
    scalar, is_list = column_type(name)
    kind = {str: "text", float: "number", int: "whole number", bool: "true or false"}[scalar]
    several = ", several with ; between" if is_list else ""
    text = f"{name} ({kind}{several}): {_DESCRIPTIONS[name]}"
    return textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="#     ")


_DESCRIPTIONS: Final = {
    field.name: field.metadata["description"]
    for field in dataclasses.fields(ManifestRow)
    if field.name in MANIFEST_COLUMNS
}
_ABOUT_QUERIES: Final = """\
Queries that every recording is asked: pipelines.separate --recordings folder/ --queries my.csv
Lines before the header that begin with # are notes. Leave a cell empty where it does not apply, and
leave out columns that you do not use. A relative URI begins at this file. The id of a result is the
path of its recording below the folder, a slash, and the name.
What this means as a manifest: python -m manifests.recordings --recordings folder/ --queries my.csv
name (text): What the query is called; unique.
"""
_QUERIES: Final = (
    "name,positive_text,negative_text,positive_audio_uris,negative_audio_uris,text_weight,label",
    "dog,a dog barking,traffic,,,,",
    'voices,"people talking, far away",,,,,speech',
    'wren,,,"examples/wren1.wav;examples/long.wav#t=6.3,7.0",examples/robin.wav,,',
    "siren,a siren,,examples/siren.wav,,0.7,",
)


def queries_csv() -> str:
    """The text of a table of queries: what each column means, and four kinds of queries."""
    lines = [f"# {line}" for line in _ABOUT_QUERIES.splitlines()]
    for name in QUERY_FIELDS:
        lines += _explained(name)
    return "\n".join([*lines, "#", *_QUERIES]) + "\n"


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the example to standard output; returns 0, or 1 where it could not be written."""
    screen.steady()
    parser = flags.Parser(
        prog="python -m manifests.example",
        description="Writes a commented CSV manifest to start from. "
        "Example: python -m manifests.example > my.csv",
    )
    parser.add_argument(
        "--queries",
        action="store_true",
        help="Write a table of queries for pipelines.separate --queries instead.",
    )
    given = parser.parse_args(argv)
    sys.stdout.write(queries_csv() if given.queries else example_csv())
    if (error := screen.lost()) is not None:
        sys.stderr.write(f"the example was not written: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
