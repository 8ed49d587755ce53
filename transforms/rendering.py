"""Mixtures on disk: each row's mixture, reference and interferers as files, and the row of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection

from manifests.files.writing import csv_cell
from manifests.row import (
    EVENTS_COLUMN,
    INTERFERER_COLUMN,
    INTERFERERS,
    MIXTURES,
    REFERENCES,
    SOURCE_COLUMN,
    ManifestRow,
    output_name,
    partition_value,
    stable_seed,
)
from transforms.audio import AudioError
from transforms.audio.files import (
    READ_ERRORS,
    STEM_FORMATS,
    StemFormat,
    describe,
    error_code,
    write_audio,
)
from transforms.audio.mixtures import MixedSources, ReadSettings, mix_row
from transforms.elements import Failure, MetricsRow, Samples, failed
from transforms.storage import Storage, join
from transforms.storage.access import redact
from transforms.tables import dead_letters, row_counts

FROM_MANIFEST = ".."
"""From the folder of the rendered manifest to that of the files."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Where a source sounds in a rendered mixture; a line of ``events.csv``.

    Attributes:
        id: of the row.
        mixture_uri: the file, seen from the output folder.
        role: ``target`` of what is asked for, or ``interferer``.
        label: the class, which is known of targets.
        source_uri: what was mixed, without credentials.
        onset_s: where it begins.
        offset_s: where it ends, or the mixture does.
    """

    id: str
    mixture_uri: str
    role: str
    label: str | None
    source_uri: str
    onset_s: float
    offset_s: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings:
    """How mixtures are rendered, and where to.

    Attributes:
        uri: the output folder.
        storage: how files are reached.
        reading: how sources are read; the rate is that of the files.
        stem_format: one of ``STEM_FORMATS`` that is not lossy.
        seed: of what is drawn.
        level_range_db: levels are drawn from it; None: they are the manifest's.
    """

    uri: str
    storage: Storage
    reading: ReadSettings
    stem_format: StemFormat
    seed: int = 0
    level_range_db: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Checks the range."""
        if self.level_range_db is not None and not (
            -100.0 <= self.level_range_db[0] <= self.level_range_db[1] <= 100.0
        ):
            raise ValueError(f"level_range_db={self.level_range_db}: expected LOW <= HIGH, ±100 dB")


@dataclasses.dataclass(eq=False)
class RenderMixtures(beam.PTransform[Any, Any]):
    """Rows with sources → rows with a mixture and a reference.

    In: ``ManifestRow``. Out: ``ManifestRow`` whose URIs are relative to the rendered manifest, and
    which carries the events of a row with onsets; ``Failure``. Files are named after ids: a retry
    writes the same bytes to the same place.
    """

    settings: RenderSettings

    def expand(
        self, rows: PCollection[ManifestRow]
    ) -> tuple[PCollection[ManifestRow], PCollection[Failure]]:
        """Renders each row by itself; gives the rows that name the files, and the failures."""
        outputs = rows | "Render" >> beam.ParDo(_RenderFn(self.settings)).with_outputs(
            dead_letters.FAILED, main="rows"
        )
        return outputs["rows"], outputs[dead_letters.FAILED]


@dataclasses.dataclass(eq=False)
class WriteEvents(beam.PTransform[Any, Any]):
    """Events → one CSV file, ordered by id and onset; no file where there is no event.

    In: ``Event``. Out: the URI of the file.

    Attributes:
        output: the folder of the run.
        name: of the file in it.
        storage: how it is reached.
    """

    output: str
    name: str
    storage: Storage

    def expand(self, events: PCollection[Event]) -> PCollection[str]:
        """Gathers all events and writes them."""
        return (
            events.pipeline
            | "Once" >> beam.Create([self.name])
            | "Write"
            >> beam.FlatMap(
                _write_events, beam.pvalue.AsList(events), self.output, self.storage
            ).with_output_types(str)
        )


def _write_events(
    name: str, events: Sequence[Event], output: str, storage: Storage
) -> Iterator[str]:
    uri = join(output, name)
    if not events:
        storage.remove_files([uri], output)  # what an earlier attempt wrote is no longer true
        return
    columns = [field.name for field in dataclasses.fields(Event)]
    lines = [columns]
    for event in sorted(events, key=_place):
        values = (getattr(event, name) for name in columns)
        lines.append(["" if value is None else csv_cell(str(value)) for value in values])
    text = "".join(f"{','.join(line)}\n" for line in lines)
    storage.write_bytes(uri, text.encode("utf-8", "surrogatepass"))
    yield uri


def _place(event: Event) -> tuple[str, float, str, str]:
    return event.id, event.onset_s, event.role, event.source_uri


class _RenderFn(beam.DoFn):
    def __init__(self, settings: RenderSettings) -> None:
        self._settings = settings

    def process(self, row: ManifestRow) -> Iterator[Any]:
        result = render(row, self._settings)
        if isinstance(result, Failure):
            yield dead_letters.dead(result)
            return
        yield result


def render(row: ManifestRow, settings: RenderSettings) -> ManifestRow | Failure:
    """Writes the files of a row and counts it; gives the row that names them."""
    if not row.targets:
        return failed(row, "read", "no_sources", "the row has a mixture; expected its sources")
    further = {SOURCE_COLUMN: row.sha256}
    row = dataclasses.replace(row, snr_db=_levels_db(row, settings))
    try:
        signals = mix_row(row, settings.storage, settings.reading)
    except READ_ERRORS as err:
        return failed(row, "read", error_code(err), describe(err, ", ".join(row.targets)))
    try:
        names = _write(row, signals, settings)
    except READ_ERRORS as err:
        return failed(row, "write", error_code(err), describe(err, settings.uri))
    row_counts.done("RenderMixtures", len(signals.mixture) / settings.reading.model_rate_hz)
    mixture_uri, reference_uri, *interferer_uris = (join(FROM_MANIFEST, name) for name in names)
    if row.onsets_s:
        further[EVENTS_COLUMN] = json.dumps(_events(row, signals, settings))
    return dataclasses.replace(
        row,
        mixture_uri=mixture_uri,
        reference_uri=reference_uri,
        target_uri=None,
        target_uris=(),
        interferer_uris=(),
        snr_db=tuple(dict.fromkeys(row.levels_db)) if len(set(row.levels_db)) == 1 else (),
        offset_s=None,
        duration_s=None,
        n_sources=row.num_sources,
        extra={**row.extra, INTERFERER_COLUMN: ";".join(interferer_uris), **further},
    )


def _events(
    row: ManifestRow, signals: MixedSources, settings: RenderSettings
) -> list[dict[str, Any]]:
    """Each source of a row with onsets: the fields of an :class:`Event` that the row lacks."""
    rate_hz, num_targets = settings.reading.model_rate_hz, len(row.targets)
    return [
        {
            "role": "target" if number < num_targets and not row.target_absent else "interferer",
            "source_uri": redact(source_uri),
            "onset_s": row.onsets_s[number],
            "offset_s": round(signals.extents[number].stop / rate_hz, 6),
        }
        for number, source_uri in enumerate((*row.targets, *row.interferer_uris))
    ]


def events_of(row: MetricsRow) -> Iterator[Event]:
    """The events of a row of the rendered manifest; none where it was not said when they begin."""
    if not row.values["onsets_s"]:  # a column of that name is then the manifest's own
        return
    for event in json.loads(row.extra[EVENTS_COLUMN]):
        yield Event(
            id=row.id,
            mixture_uri=row.values["mixture_uri"].removeprefix(f"{FROM_MANIFEST}/"),
            label=row.values["label"] if event["role"] == "target" else None,
            **event,
        )


def _levels_db(row: ManifestRow, settings: RenderSettings) -> tuple[float, ...]:
    if settings.level_range_db is None:
        return row.snr_db
    seed = stable_seed(settings.seed, row.id if row.seed is None else f"{row.seed}/{row.id}")
    low, high = settings.level_range_db
    return (round(float(np.random.default_rng(seed).uniform(low, high)), 3),)


def _write(row: ManifestRow, signals: MixedSources, settings: RenderSettings) -> list[str]:
    form = settings.stem_format
    ending = STEM_FORMATS[form].ending
    folder = f"dataset={partition_value(row.dataset)}" if row.dataset is not None else ""
    name = output_name(row.id)
    files: list[tuple[str, Samples]] = [
        (join(MIXTURES, folder, f"{name}.{ending}"), signals.mixture),
        (join(REFERENCES, folder, f"{name}.{ending}"), signals.reference),
    ]
    for number, interferer in enumerate(signals.interferers):
        files.append((join(INTERFERERS, folder, f"{name}.{number}.{ending}"), interferer))
    _require_room(files, form)
    for path, samples in files:
        rate_hz, storage = settings.reading.model_rate_hz, settings.storage
        folder, uri = path.partition("/")[0], join(settings.uri, path)
        write_audio(storage, uri, samples[None], rate_hz, form, within=join(settings.uri, folder))
    settings.storage.settle(join(settings.uri, path) for path, _ in files)
    return [path for path, _ in files]


def _require_room(files: Sequence[tuple[str, Samples]], form: StemFormat) -> None:
    for path, samples in files:
        if STEM_FORMATS[form].is_fixed and float(np.abs(samples).max(initial=0.0)) > 1.0:
            raise AudioError(
                "over_full_scale",
                f"{path}: a part is louder than {form} holds; use --stem_format wav",
            )
