"""Manifests as files, and what is read of them."""

from __future__ import annotations

import json

from manifests.files.readers import iter_rows
from manifests.row import ManifestRow

HEADER = "id,mixture_uri,positive_text"


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def rows(uri):
    return list(iter_rows(str(uri)))


def ids(results):
    return [r.id if isinstance(r, ManifestRow) else None for r in results]


def numbered(num_rows, form, text="rain"):
    if form == "csv":
        return "\n".join([HEADER, *(f'{i},m.wav,"{text}, {i}"' for i in range(num_rows))]) + "\n"
    record = {"mixture_uri": "m.wav", "positive_text": text}
    return "".join(json.dumps({"id": str(i), **record}) + "\n" for i in range(num_rows))
