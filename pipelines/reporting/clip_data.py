"""The clips of a page as JSON: columns, so that 20,000 rows stay small and quick."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote

from pipelines.reporting.listening import stem_uri_of
from pipelines.reporting.measured import SHOWN_METRICS, TITLES, digits_of
from pipelines.reporting.runs import ReportClip, Run, short

_ID_WIDTH, _NAME_WIDTH, _NUMBER_WIDTH = 230, 140, 112
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def clip_data(runs: Sequence[Run], output: str) -> dict[str, Any]:
    """Everything that the script of the page needs.

    Args:
        runs: what is reported.
        output: where the page will lie; stems are linked relative to it.
    """
    rows = [(run, clip) for run in runs for clip in run.clips]
    provenances, provenance = _coded(
        f"{clip.model or 'unnamed'} {short(clip.model_sha256)}, scorer "
        f"{short(clip.scorer_sha256)}, protocol {clip.setting.protocol}"
        for _, clip in rows
    )
    return {
        "num_rows": len(rows),
        "columns": _columns(runs, rows),
        "reasons": [clip.undefined_reason for _, clip in rows],
        "stems": [_beneath(run, clip, output) for run, clip in rows],
        "folders": [_folder(run.uri, output) or "" for run in runs],
        "provenances": provenances,
        "provenance": provenance,
    }


def script_json(value: Any) -> str:
    """JSON that cannot end the ``<script>`` element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode("utf-8")


_Rows = Sequence[tuple[Run, ReportClip]]


def _columns(runs: Sequence[Run], rows: _Rows) -> list[dict[str, Any]]:
    clips = [clip for _, clip in rows]
    metrics = [
        _numbers(name, TITLES[name], digits_of(name), [clip.value(name) for clip in clips])
        for name in (*SHOWN_METRICS, "sdr_mixture_db")
        if name == "sdri_db" or any(math.isfinite(clip.value(name)) for clip in clips)
    ]
    columns = [
        _text("id", "Id", _ID_WIDTH, [clip.id for clip in clips]),
        metrics[0],
        _names("run", "Run", [run.name for run, _ in rows], [run.name for run in runs]),
        _names("dataset", "Dataset", [clip.setting.dataset or "-" for clip in clips]),
        _names("label", "Label", [clip.label or "-" for clip in clips]),
        _names("query", "Query", [clip.setting.query for clip in clips]),
        *metrics[1:],
    ]
    for name, title, digits, read in _FACTS:
        columns.append(_numbers(name, title, digits, [read(clip) for clip in clips]))
    return columns


def _level(clip: ReportClip) -> float | None:
    return clip.setting.input_snr_db


def _sources(clip: ReportClip) -> float | None:
    return clip.setting.n_sources


def _duration(clip: ReportClip) -> float | None:
    return clip.duration_s


_FACTS: tuple[tuple[str, str, int, Callable[[ReportClip], float | None]], ...] = (
    ("input_snr_db", "Level (dB)", 1, _level),
    ("n_sources", "Sources", 0, _sources),
    ("duration_s", "Length (s)", 2, _duration),
)


def _text(name: str, title: str, width: int, values: list[str]) -> dict[str, Any]:
    return {"name": name, "title": title, "width": width, "values": values}


def _names(
    name: str, title: str, values: list[str], names: Sequence[str] | None = None
) -> dict[str, Any]:
    known, codes = _coded(values, names)
    return {"name": name, "title": title, "width": _NAME_WIDTH, "names": known, "codes": codes}


def _numbers(name: str, title: str, digits: int, values: Sequence[float | None]) -> dict[str, Any]:
    rounded = [
        None if value is None or not math.isfinite(value) else round(float(value), 4)
        for value in values
    ]
    width = max(_NUMBER_WIDTH, 8 * len(title) + 34)
    return {"name": name, "title": title, "width": width, "digits": digits, "values": rounded}


def _coded(
    values: Iterable[str], names: Sequence[str] | None = None
) -> tuple[list[str], list[int]]:
    everything = list(values)
    known = list(names) if names is not None else sorted(set(everything))
    codes = {value: code for code, value in enumerate(known)}
    return known, [codes[value] for value in everything]


def _beneath(run: Run, clip: ReportClip, output: str) -> str | None:
    """The path of a stem from its run folder, or from the page; None where it cannot be linked."""
    uri = stem_uri_of(run, clip)
    if uri is None:
        return None
    folder = _folder(run.uri, output)
    path = uri.removeprefix(f"{run.uri}/")
    if folder is None or path == uri or ".." in path.split("/"):
        return None
    return quote(path)


def _folder(uri: str, output: str) -> str | None:
    """The way from one folder to another on the same storage, to be continued by a path."""
    there, _, path = uri.rpartition("://")
    here, _, base = output.rpartition("://")
    if there != here or (there and path.split("/", 1)[0] != base.split("/", 1)[0]):
        return None
    return f"./{quote(posixpath.relpath(path, base))}/"
