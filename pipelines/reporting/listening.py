"""Chooses the clips to listen to, with their sources and spectrograms, and writes clips as JSON.

The examples are the best, the median and the worst clips. The JSON holds columns, so that 20,000
rows stay small and quick. Spectrograms are small pictures, and one figure of several clips (the
paper's Fig. 9).
"""

from __future__ import annotations

import base64
import io
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
import soundfile
from matplotlib import image
from matplotlib.figure import Figure
from numpy.typing import NDArray

from manifests.columns import LOWER_IS_BETTER, SHOWN_METRICS, TITLES
from manifests.files import ManifestError
from manifests.files.readers import iter_rows
from manifests.row import STEMS_FOLDER, ManifestRow, RowError, parse_record
from model.signal import resample, to_mono
from pipelines.reporting.measured import digits_of
from pipelines.reporting.runs import ReportConfig, Run, RunError, or_none
from terminal import screen
from transforms.audio import AudioError
from transforms.audio.files import READ_ERRORS, describe, held_by, open_audio
from transforms.audio.mixtures import ReadSettings, read_mixture, read_reference
from transforms.storage import Storage, fixed_folder, join, now_at, written_to
from transforms.storage.access import UriAccess, redact

_N_FFT = 1024
_MAX_COLUMNS = 500
_ROWS = 128
_RANGE_DB = 70.0
_COLOURS = "magma"
_FLOOR = 1e-10
_NO_SOFTWARE: Any = {"Software": None}  # the version of matplotlib would change the bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """A spectrogram in dB below the loudest bin of its mixture, float64[rows, columns]."""

    title: str
    levels_db: NDArray[np.float64]
    duration_s: float
    rate_hz: int


def power(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Power over frequency and time, float64[128, at most 500]; the ends are padded with zeros.

    Args:
        samples: float32[T].
    """
    hop = max(_N_FFT // 4, -(-len(samples) // _MAX_COLUMNS))
    padded = np.pad(samples.astype(np.float64), (_N_FFT // 2, _N_FFT))
    starts = np.arange(0, max(1, len(samples)), hop)
    frames = padded[starts[:, None] + np.arange(_N_FFT)] * np.hanning(_N_FFT)
    bins = np.abs(np.fft.rfft(frames, axis=1))[:, : _N_FFT // 2] ** 2
    pooled: NDArray[np.float64] = bins.reshape(len(starts), _ROWS, -1).max(axis=2).T
    return pooled


def picture(title: str, samples: NDArray[np.float32], rate_hz: int, loudest: float) -> Picture:
    """The spectrogram of a signal beside a mixture whose loudest bin has power ``loudest``."""
    levels = 10.0 * np.log10(np.maximum(power(samples), _FLOOR) / max(loudest, _FLOOR))
    return Picture(
        title=title, levels_db=levels, duration_s=len(samples) / rate_hz, rate_hz=rate_hz
    )


def data_uri(shown: Picture) -> str:
    """The picture as a PNG in a URI."""
    buffer = io.BytesIO()
    image.imsave(
        buffer,
        shown.levels_db,
        cmap=_COLOURS,
        vmin=-_RANGE_DB,
        vmax=0.0,
        origin="lower",
        format="png",
        metadata=_NO_SOFTWARE,
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def grid(rows: Sequence[Sequence[Picture]], caption: str) -> bytes:
    """A PNG with a line of pictures for each clip."""
    columns = max(len(row) for row in rows)
    style: Any = {"text.parse_math": False, "font.family": "sans-serif", "font.size": 8}
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.0 * columns, 1.9 * len(rows) + 0.4), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row, places in zip(rows, axes, strict=True):
            for place in places[len(row) :]:
                place.set_axis_off()
            for shown, place in zip(row, places, strict=False):
                place.imshow(
                    shown.levels_db,
                    cmap=_COLOURS,
                    vmin=-_RANGE_DB,
                    vmax=0.0,
                    origin="lower",
                    aspect="auto",
                    extent=(0.0, shown.duration_s, 0.0, shown.rate_hz / 2000.0),
                )
                place.set_title(shown.title, fontsize=8)
                place.set_xlabel("s")
                place.set_ylabel("kHz")
        figure.supxlabel(screen.one_line(caption), fontsize=5.5, x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, facecolor="white", metadata=_NO_SOFTWARE)
    return buffer.getvalue()


MAX_S = 10.0
KINDS = ("best", "median", "worst")
_NOT_FOUND = (
    "The manifest of the run cannot be read any more, or may not be: mixture and reference are not "
    "shown."
)
Signal = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heard:
    """A signal to hear and to see.

    Attributes:
        title: mixture, stem or reference.
        audio_uri: 16-bit FLAC in a URI, the first 10 s.
        image_uri: its spectrogram.
        picture: the same as numbers.
    """

    title: str
    audio_uri: str
    image_uri: str
    picture: Picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A clip that stands for others; ``clip`` is its line of the run's clips."""

    kind: str
    run: str
    clip: pd.DataFrame
    row: ManifestRow | None
    signals: tuple[Heard, ...]
    note: str


def choose(clips: pd.DataFrame, metric: str, count: int) -> pd.DataFrame:
    """``count`` clips of each kind by a metric, none of them twice; the kind is in ``kind``."""
    ranked = clips[np.isfinite(clips[metric])].sort_values(
        [metric, "id"], ascending=[metric not in LOWER_IS_BETTER, True]
    )
    middle = max(0, (len(ranked) - count) // 2)
    parts = {
        "best": ranked[::-1][:count],
        "worst": ranked[:count],
        "median": ranked[middle : middle + count],
    }
    chosen = pd.concat([part.assign(kind=kind) for kind, part in parts.items()])
    chosen = chosen.drop_duplicates("id")
    return chosen.sort_values("kind", key=lambda kind: kind.map(KINDS.index), kind="stable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a report reads for a run, and how.

    Attributes:
        rows: what the rows of its manifests may name.
        stems: what its metrics may name as stems: the same, and what lies in the run folder.
        manifests: what its record may name as manifests; None: anything, as the run could.
        storage: how it is read; a web server cannot lead out of what is allowed.
    """

    rows: UriAccess
    stems: UriAccess
    manifests: UriAccess | None
    storage: Storage


def reach_of(run: Run, config: ReportConfig) -> Reach:
    """By the report's own prefixes, or else by those that the run had.

    A run folder is believed where the command line says nothing: the stems to which it leads by a
    link, and those that it scored, are allowed then too.

    Raises:
        RunError: the record has something else than prefixes.
    """
    prefixes = config.allowed_uri_prefix or _prefixes_of(run)
    try:
        rows = UriAccess(prefixes=prefixes)
    except ValueError as err:
        raise RunError(f"{run.uri}/run.json: allowed_uri_prefix: {err}") from err
    stems = rows.beside(run.uri)
    if not config.allowed_uri_prefix:
        stems = stems.beside(join(run.uri, STEMS_FOLDER))  # may be a link to another disk
        scored = run.record.get("settings", {}).get("stems")
        stems = stems.beside(fixed_folder(scored)) if isinstance(scored, str) else stems
    options = stems.guarding(config.storage_options)
    return Reach(
        rows=rows,
        stems=stems,
        manifests=stems if config.allowed_uri_prefix else None,
        storage=Storage(options=options),
    )


def _prefixes_of(run: Run) -> tuple[str, ...]:
    found = run.record.get("config", {}).get("allowed_uri_prefix") or []
    if not isinstance(found, list) or not all(isinstance(prefix, str) for prefix in found):
        raise RunError(f"{run.uri}/run.json: allowed_uri_prefix: expected a list of URIs")
    return tuple(found)


def examples_of(run: Run, config: ReportConfig) -> list[Example]:
    """The chosen clips of a run, with whatever of them can still be read, and may be.

    Raises:
        RunError: the run's record is not one.
    """
    chosen = choose(run.clips, config.metric, config.listen)
    reach = reach_of(run, config)
    rows = _rows_of(run, set(chosen["id"]), reach)
    found = [chosen.iloc[[place]] for place in range(len(chosen))]
    return [_example(run, clip, rows.get(clip["id"].item()), reach) for clip in found]


def stem_uris_of(run: Run, clips: pd.DataFrame) -> list[str | None]:
    """Where stems are now: a run folder may have been moved after it was written."""
    places = written_to(run.record)
    return [
        None if uri is None else now_at(uri, places, run.uri) for uri in or_none(clips["stem_uri"])
    ]


def _rows_of(run: Run, wanted: set[str], reach: Reach) -> dict[str, ManifestRow]:
    found: dict[str, ManifestRow] = {}
    for row in _all_rows(run, reach):
        if row.id in wanted:
            found.setdefault(row.id, row)
            if len(found) == len(wanted):
                break
    return found


def _all_rows(run: Run, reach: Reach) -> Iterator[ManifestRow]:
    for record in run.record.get("config", {}).get("rows") or ():
        yield from _valid([parse_record(record, uri="run.json", row=1, folder="/")])
    for facts in run.record.get("manifests", ()):
        uri = facts["uri"]
        try:
            if reach.manifests is not None:
                reach.manifests.require(uri)
            yield from _valid(iter_rows(uri, reach.storage.options_for(uri)))
        except (ManifestError, OSError, AudioError):  # the example says so
            continue


def _valid(rows: Iterable[ManifestRow | RowError]) -> Iterator[ManifestRow]:
    for row in rows:
        if not isinstance(row, RowError):
            yield row


def _example(run: Run, clip: pd.DataFrame, row: ManifestRow | None, reach: Reach) -> Example:
    signals, notes = [], []
    kind = clip["kind"].item()
    rate_hz = int(clip["sample_rate_hz"].fillna(0).item()) or 32_000
    if row is None:
        notes.append(_NOT_FOUND)
    else:
        try:
            reach.rows.require_row(row)
            signals += _sources(row, rate_hz, reach.storage)
        except READ_ERRORS as err:
            notes.append(f"Mixture or reference: {describe(err, row.mixture_uri or '')}.")
    (stem_uri,) = stem_uris_of(run, clip)
    if stem_uri is not None:
        try:
            reach.stems.require(stem_uri)
            stem, stem_hz = read_part(stem_uri, 0.0, reach.storage)
            # Those of pipelines.score have another rate than they were scored at.
            heard = resample(stem, stem_hz, rate_hz)
            signals.insert(min(1, len(signals)), ("stem", heard))
        except READ_ERRORS as err:
            notes.append(f"Stem: {describe(err, stem_uri)}.")
    return Example(
        kind=kind,
        run=run.name,
        clip=clip,
        row=row,
        signals=tuple(_heard(kind, signals, rate_hz)),
        note=" ".join(notes),
    )


def _sources(row: ManifestRow, rate_hz: int, storage: Storage) -> list[tuple[str, Signal]]:
    settings = ReadSettings(model_rate_hz=rate_hz)
    mixture = read_mixture(row, storage, settings)
    if mixture is None:
        raise ValueError("the recording is too long to be shown")
    heard = to_mono(mixture.model_audio)
    reference = mixture.reference
    if reference is None:
        reference = read_reference(row, len(heard), storage, settings)
    found = [("mixture", heard)]
    return found if reference is None else [*found, ("reference", reference)]


def _heard(kind: str, signals: Sequence[tuple[str, Signal]], rate_hz: int) -> Iterator[Heard]:
    cut = [(title, signal[: round(MAX_S * rate_hz)]) for title, signal in signals]
    peak = max((float(np.abs(signal).max(initial=0.0)) for _, signal in cut), default=0.0)
    gain = np.float32(1.0 / peak if peak > 1.0 else 1.0)
    loudest = max((float(power(s * gain).max()) for _, s in cut), default=0.0)
    for title, signal in cut:
        shown = picture(f"{kind}: {title}", signal * gain, rate_hz, loudest)
        yield Heard(
            title=title,
            audio_uri=audio_uri(signal * gain, rate_hz),
            image_uri=data_uri(shown),
            picture=shown,
        )


def read_part(uri: str, start_s: float, storage: Storage) -> tuple[Signal, int]:
    """Reads at most 10 s of a file: float32[T], the mean of its channels, and their rate.

    Raises:
        OSError: it cannot be read; an AudioError, a ValueError, where it is not such audio.
    """
    with open_audio(storage, uri, start_s or None, MAX_S) as reader:
        mono: Signal = to_mono(reader.read())
        return mono, reader.part.sample_rate_hz


def audio_uri(signal: Signal, rate_hz: int) -> str:
    """A signal as 16-bit FLAC in a URI, or as WAV where FLAC lacks the rate.

    Args:
        signal: float32[T], within full scale.
        rate_hz: its rate.
    """
    buffer = io.BytesIO()
    form, _ = held_by("flac", rate_hz, peak=0.0)
    soundfile.write(buffer, signal, rate_hz, format=form.upper(), subtype="PCM_16")
    return f"data:audio/{form};base64," + base64.b64encode(buffer.getvalue()).decode()


_ID_WIDTH, _NAME_WIDTH, _NUMBER_WIDTH = 230, 140, 112
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def clip_data(
    runs: Sequence[Run], output: str, segments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that the script of the page needs.

    Args:
        runs: what is reported.
        output: where the page will lie; stems are linked relative to it.
        segments: of :func:`pipelines.reporting.found.segment_data`.
    """
    clips = pd.concat([run.clips.assign(run=run.name) for run in runs])
    provenance = pd.Categorical(
        clips["made_by"] + ", scorer " + clips["scorer"] + ", protocol " + clips["protocol"]
    )
    return {
        "num_rows": len(clips),
        "columns": _columns(clips, [run.name for run in runs]),
        "reasons": or_none(clips["undefined_reason"]),
        "stems": [
            _beneath(run, uri, output) for run in runs for uri in stem_uris_of(run, run.clips)
        ],
        "runs": [redact(run.uri) for run in runs],
        "folders": [_folder(run.uri, output) or "" for run in runs],
        "provenances": provenance.categories.tolist(),
        "provenance": provenance.codes.tolist(),
        "segments": segments,
    }


def script_json(value: Any) -> str:
    """JSON that cannot end the ``<script>`` element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode("utf-8")


def _columns(clips: pd.DataFrame, runs: Sequence[str]) -> list[dict[str, Any]]:
    metrics = [
        _numbers(name, TITLES[name], digits_of(name), clips[name])
        for name in (*SHOWN_METRICS, "sdr_mixture_db")
        if name == SHOWN_METRICS[0] or np.isfinite(clips[name]).any()
    ]
    queries = [setting.query for setting in clips["setting"]]
    found = list(_found_columns(clips))
    has_references = np.isfinite(clips[SHOWN_METRICS[0]]).any()
    return [
        _text("id", "Id", _ID_WIDTH, clips["id"].tolist()),
        *([metrics[0]] if has_references else found),
        _names("run", "Run", pd.Categorical(clips["run"], dtype=pd.CategoricalDtype(list(runs)))),
        _names("dataset", "Dataset", pd.Categorical(clips["dataset"].fillna("-"))),
        _names("label", "Label", pd.Categorical(clips["label"].fillna("-"))),
        _names("query", "Query", pd.Categorical(queries)),
        *(found if has_references else [metrics[0]]),
        *metrics[1:],
        _numbers("input_snr_db", "Level (dB)", 1, clips["input_snr_db"]),
        _numbers("n_sources", "Sources", 0, clips["n_sources"]),
        _numbers("duration_s", "Length (s)", 2, clips["duration_s"]),
    ]


def _found_columns(clips: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What was asked for and found, as far as any clip says so."""
    if clips["positive_text"].notna().any():
        yield _names("asked", "Asked for", pd.Categorical(clips["positive_text"].fillna("-")))
    for name, title, digits in _FOUND:
        if np.isfinite(clips[name].to_numpy(np.float64, na_value=np.nan)).any():
            yield _numbers(name, title, digits, clips[name])


_FOUND = (("presence", "Presence", 2), ("active_s", "Found (s)", 1), ("n_segments", "Segments", 0))


def _text(name: str, title: str, width: int, values: list[str]) -> dict[str, Any]:
    return {"name": name, "title": title, "width": width, "values": values}


def _names(name: str, title: str, values: pd.Categorical[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "width": _NAME_WIDTH,
        "names": values.categories.tolist(),
        "codes": values.codes.tolist(),
    }


def _numbers(name: str, title: str, digits: int, values: pd.Series[Any]) -> dict[str, Any]:
    rounded = [round(value, 4) if math.isfinite(value) else None for value in _floats(values)]
    width = max(_NUMBER_WIDTH, 8 * len(title) + 34)
    return {"name": name, "title": title, "width": width, "digits": digits, "values": rounded}


def _floats(values: pd.Series[Any]) -> list[float]:
    found: list[float] = values.to_numpy(np.float64, na_value=np.nan).tolist()
    return found


def _beneath(run: Run, uri: str | None, output: str) -> str | None:
    """The path of a stem from its run folder, or from the page; None where it cannot be linked."""
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
