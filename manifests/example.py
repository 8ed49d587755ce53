"""``python -m manifests.example > my.csv``: a commented manifest to start from."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from typing import Final

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
    for field in dataclasses.fields(ManifestRow):
        if field.name not in MANIFEST_COLUMNS:
            continue
        scalar, is_list = column_type(field.name)
        kind = {str: "text", float: "number", int: "whole number", bool: "true or false"}[scalar]
        description = field.metadata["description"]
        text = (
            f"{field.name} ({kind}{', several with ; between' if is_list else ''}): {description}"
        )
        lines += textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="#     ")
    return "\n".join([*lines, "#", *_ROWS]) + "\n"


def run(argv: Sequence[str] | None = None) -> int:
    """Writes the example to standard output; returns 0, or 1 where it could not be written."""
    screen.steady()
    flags.Parser(
        prog="python -m manifests.example",
        description="Writes a commented CSV manifest to start from. "
        "Example: python -m manifests.example > my.csv",
    ).parse_args(argv)
    sys.stdout.write(example_csv())
    if (error := screen.lost()) is not None:
        sys.stderr.write(f"the example was not written: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
