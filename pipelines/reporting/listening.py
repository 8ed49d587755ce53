"""Clips to listen to: the best, the median and the worst, with what they were made from."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from numpy.typing import NDArray

from manifests.codec import iter_rows
from manifests.errors import ManifestError, RowError
from manifests.row import ManifestRow
from manifests.validation import parse_record
from model.audio import to_mono
from pipelines.reporting import spectrograms
from pipelines.reporting.command import ReportConfig
from pipelines.reporting.runs import ReportClip, Run, RunError
from pipelines.reporting.spectrograms import Picture
from transforms.access import UriAccess
from transforms.audio.parts import AudioError
from transforms.audio_io import READ_ERRORS, describe, held_by, open_audio
from transforms.foreign_stems import fixed_folder
from transforms.mixtures import ReadSettings, read_mixture, read_reference
from transforms.storage import Storage, join
from transforms.writing import STEMS_FOLDER

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
    """A clip that stands for others."""

    kind: str
    run: str
    clip: ReportClip
    row: ManifestRow | None
    signals: tuple[Heard, ...]
    note: str


def choose(clips: Sequence[ReportClip], metric: str, count: int) -> list[tuple[str, ReportClip]]:
    """``count`` clips of each kind by a metric, none of them twice."""
    ranked = sorted(
        (clip for clip in clips if math.isfinite(clip.value(metric))),
        key=lambda clip: (clip.value(metric), clip.id),
    )
    middle = max(0, (len(ranked) - count) // 2)
    parts = {
        "best": ranked[::-1][:count],
        "worst": ranked[:count],
        "median": ranked[middle : middle + count],
    }
    taken: set[str] = set()
    chosen: list[tuple[str, ReportClip]] = []
    for kind in ("best", "worst", "median"):
        for clip in parts[kind]:
            if clip.id not in taken:
                taken.add(clip.id)
                chosen.append((kind, clip))
    return sorted(chosen, key=lambda pair: KINDS.index(pair[0]))


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
    rows = _rows_of(run, {clip.id for _, clip in chosen}, reach)
    return [_example(kind, run, clip, rows.get(clip.id), reach) for kind, clip in chosen]


def stem_uri_of(run: Run, clip: ReportClip) -> str | None:
    """Where a stem is now: a run folder may have been moved after it was written."""
    written = str(run.record.get("config", {}).get("output") or "")
    if clip.stem_uri is None or not written or not clip.stem_uri.startswith(f"{written}/"):
        return clip.stem_uri
    return run.uri + clip.stem_uri.removeprefix(written)


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


def _example(
    kind: str, run: Run, clip: ReportClip, row: ManifestRow | None, reach: Reach
) -> Example:
    signals, notes = [], []
    rate_hz = clip.sample_rate_hz or 32_000
    if row is None:
        notes.append(_NOT_FOUND)
    else:
        try:
            reach.rows.require_row(row)
            signals += _sources(row, rate_hz, reach.storage)
        except READ_ERRORS as err:
            notes.append(f"Mixture or reference: {describe(err, row.mixture_uri or '')}.")
    stem_uri = stem_uri_of(run, clip)
    if stem_uri is not None:
        try:
            reach.stems.require(stem_uri)
            signals.insert(min(1, len(signals)), ("stem", _read(stem_uri, reach.storage)))
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


def _read(uri: str, storage: Storage) -> Signal:
    with open_audio(storage, uri, None, MAX_S) as reader:
        mono: Signal = to_mono(reader.read())
        return mono


def _heard(kind: str, signals: Sequence[tuple[str, Signal]], rate_hz: int) -> Iterator[Heard]:
    cut = [(title, signal[: round(MAX_S * rate_hz)]) for title, signal in signals]
    peak = max((float(np.abs(signal).max(initial=0.0)) for _, signal in cut), default=0.0)
    gain = np.float32(1.0 / peak if peak > 1.0 else 1.0)
    loudest = max((float(spectrograms.power(s * gain).max()) for _, s in cut), default=0.0)
    for title, signal in cut:
        shown = spectrograms.picture(f"{kind}: {title}", signal * gain, rate_hz, loudest)
        yield Heard(
            title=title,
            audio_uri=_audio_uri(signal * gain, rate_hz),
            image_uri=spectrograms.data_uri(shown),
            picture=shown,
        )


def _audio_uri(signal: Signal, rate_hz: int) -> str:
    buffer = io.BytesIO()
    form, _ = held_by("flac", rate_hz, peak=0.0)
    soundfile.write(buffer, signal, rate_hz, format=form.upper(), subtype="PCM_16")
    return f"data:audio/{form};base64," + base64.b64encode(buffer.getvalue()).decode()
