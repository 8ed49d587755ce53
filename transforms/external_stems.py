"""Stems that any system made, found by id and put where stems of ours would be, to be scored."""

from __future__ import annotations

import dataclasses
import itertools
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import PCollection

from manifests.audio_formats import AUDIO_SUFFIXES, OTHER_STEM_SUFFIXES, STEM_SUFFIXES
from manifests.files import is_url, other_spellings
from manifests.row import STEMS_FOLDER, ManifestRow, output_name, partition_value, version_1_name
from model import signal as waveforms
from transforms.audio import AudioPart
from transforms.audio.files import READ_ERRORS, describe, error_code, open_audio
from transforms.audio.mixtures import ReadSettings, require_equal_length, require_short
from transforms.elements import (
    Clip,
    Failure,
    LongRecording,
    MetricsRow,
    MixtureQueries,
    MixtureRows,
    Provenance,
    RowQuery,
    Samples,
    ScoredClip,
    SeparatedClip,
    Stem,
    failed,
)
from transforms.manifest_io import shard_of
from transforms.reading import read
from transforms.storage import Storage, fixed_folder, join
from transforms.storage.access import UriAccess
from transforms.tables import dead_letters, row_counts
from transforms.tables.metrics_rows import StemFacts, metrics_row

STEM_COLUMN = "stem_uri"
_SUFFIXED = re.compile(rf"({'|'.join(map(re.escape, AUDIO_SUFFIXES))})$", re.IGNORECASE)
_NOBODY = Provenance(model="", model_sha256="", clap_sha256="", device="", precision="")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StemPlaces:
    """Where the stem of a row is.

    Attributes:
        where: a folder, or a template with fields; None: the row says it in a column ``stem_uri``.
        access: what rows may name; a stem in the folder of ``where`` is allowed.
        num_shards: so many parts, each with its own ``stems``, are in the folder; 0: it has stems.
    """

    where: str | None
    access: UriAccess = dataclasses.field(default_factory=UriAccess)
    num_shards: int = 0

    def __post_init__(self) -> None:
        """Checks that a template has plain fields only, such as ``{id}``."""
        if self.where is not None:
            for _, name, form, _ in string.Formatter().parse(self.where):
                if name is not None and (not name.isidentifier() or form):
                    raise ValueError(f"{self.where}: {{{name}}} is not a plain field")

    def find(self, row: ManifestRow, storage: Storage) -> str:
        """The URI of a row's stem: in a folder the first candidate that is there.

        Raises:
            AudioError: the row may not name it.
            ValueError: the row lacks what the place needs.
            FileNotFoundError: no candidate is there.
        """
        candidates = self.candidates(row)
        if len(candidates) == 1:  # it is named, and missed by name where it is read
            return candidates[0]
        others = (other for uri in candidates for other in other_spellings(uri))
        for uri in itertools.chain(candidates, others):
            if storage.exists(uri):
                return uri
        names = " or ".join(f"{row.id}{suffix}" for suffix in STEM_SUFFIXES)
        raise FileNotFoundError(
            f"no {names} in {self.where}, nor one that ends in {', '.join(OTHER_STEM_SUFFIXES)}"
        )

    def candidates(self, row: ManifestRow) -> list[str]:
        """URIs to be tried in turn; in a folder, FLAC and WAV come before any other format.

        Raises:
            AudioError: the row may not name one of them.
            ValueError: the row lacks what the place needs.
        """
        found = self._named(row)
        for uri in found:
            self.reachable.require(uri)
        return found

    @property
    def reachable(self) -> UriAccess:
        """What rows may name, and the folder in which all stems are."""
        return self.access if self.where is None else self.access.beside(fixed_folder(self.where))

    def _named(self, row: ManifestRow) -> list[str]:
        if self.where is None:
            if STEM_COLUMN not in row.extra:
                raise ValueError(f"the row has no column {STEM_COLUMN}, and there is no --stems")
            return [row.extra[STEM_COLUMN]]
        if "{" in self.where:
            return [self.where.format_map(_Fields(row))]
        names = [output_name(row.id), version_1_name(row.id)]
        if row.dataset is not None:
            folder = f"dataset={partition_value(row.dataset)}"
            names = [path for name in names for path in (name, join(folder, name))]
        leads_out = ".." in row.id.split("/") or row.id.startswith("/") or is_url(row.id)
        paths = dict.fromkeys([*([] if leads_out else [row.id]), *names])
        others = [form for suffix in OTHER_STEM_SUFFIXES for form in (suffix, suffix.upper())]
        suffixes = (STEM_SUFFIXES, [*map(str.upper, STEM_SUFFIXES), *others])
        found = [f"{path}{suffix}" for some in suffixes for path in paths for suffix in some]
        if not leads_out and _SUFFIXED.search(row.id):
            found.insert(0, row.id)  # the id is a file's name already
        folder = self.where
        if self.num_shards:
            folder = join(folder, shard_of(row, self.num_shards).folder, STEMS_FOLDER)
        return [join(folder, name) for name in found]


class _Fields(Mapping[str, str]):
    """Gives a template the fields of a row; refuses values with ``..`` in their path."""

    def __init__(self, row: ManifestRow) -> None:
        known = {"id": row.id, "dataset": row.dataset, "split": row.split, "label": row.label}
        self._values = {**row.extra, **{k: v for k, v in known.items() if v is not None}}
        self._values["name"] = output_name(row.id)

    def __getitem__(self, name: str) -> str:
        if name not in self._values:
            raise ValueError(f"the row has no {name}, which --stems names")
        value = self._values[name]
        if ".." in value.split("/"):
            raise ValueError(f"{name}={value!r} would lead out of the folder of the stems")
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclasses.dataclass(eq=False)
class TakeStems(beam.PTransform[Any, Any]):
    """Mixtures and their queries → clips with the stems that were made elsewhere.

    In: ``MixtureQueries``. Out: ``SeparatedClip``; ``Failure`` for each row whose mixture,
    reference or stem cannot be used. Stems are resampled to the rate of the clips.

    Attributes:
        places: where stems are.
        storage: how files are reached.
        reading: how they are read.
    """

    places: StemPlaces
    storage: Storage
    reading: ReadSettings

    def expand(
        self, mixtures: PCollection[MixtureQueries]
    ) -> tuple[PCollection[SeparatedClip], PCollection[Failure]]:
        """Reads each stem beside its mixture and reference."""
        take = beam.ParDo(_TakeFn(self.places, self.storage, self.reading))
        typed = take.with_output_types(SeparatedClip, **{dead_letters.FAILED: Failure})
        outputs = mixtures | "Take" >> typed.with_outputs(dead_letters.FAILED, main="clips")
        return outputs["clips"], outputs[dead_letters.FAILED]


class _TakeFn(beam.DoFn):
    def __init__(self, places: StemPlaces, storage: Storage, reading: ReadSettings) -> None:
        self._places, self._storage, self._reading = places, storage, reading

    def process(self, mixture: MixtureQueries) -> Iterator[Any]:
        for result in read(mixture, self._storage, self._reading):
            if isinstance(result, Failure):
                yield dead_letters.dead(result)
            elif isinstance(result, LongRecording):
                for query in result.queries:
                    yield dead_letters.dead(_too_long(query.row))
            else:
                yield from self._taken(result)

    def _taken(self, clip: Clip) -> Iterator[Any]:
        queries, stems = [], []
        for query, reference in zip(clip.queries, clip.references, strict=True):
            uri = self._places.where or ""
            try:
                uri = self._places.find(query.row, self._storage)
                samples = self._stem(uri, clip.model_audio.shape[1])
            except READ_ERRORS as err:
                code, message = f"stem_{error_code(err)}", describe(err, uri)
                yield dead_letters.dead(failed(query.row, "read", code, message))
                continue
            found = dataclasses.replace(query, row=_with_stem(query.row, uri))
            queries.append((found, reference))
            stems.append(_stem(found, reference, samples))
        if stems:
            kept = dataclasses.replace(
                clip,
                queries=tuple(query for query, _ in queries),
                references=tuple(reference for _, reference in queries),
            )
            yield SeparatedClip(clip=kept, stems=tuple(stems), provenance=_NOBODY)

    def _stem(self, uri: str, num_samples: int) -> Samples:
        rate_hz = self._reading.model_rate_hz
        with open_audio(self._storage, uri) as reader:
            require_short(reader.part, uri, rate_hz, self._reading.max_values)
            samples = waveforms.resample(reader.read(), reader.part.sample_rate_hz, rate_hz)
        require_equal_length(uri, samples.shape[1] / rate_hz, num_samples / rate_hz)
        return waveforms.fit_length(samples, num_samples)


def _with_stem(row: ManifestRow, uri: str) -> ManifestRow:
    """The row with the URI of its stem; the digest stays that of the manifest's row."""
    extra = {**row.extra, STEM_COLUMN: uri}
    return dataclasses.replace(row, extra=extra, manifest_sha256=row.sha256)


def _too_long(row: ManifestRow) -> Failure:
    return failed(row, "read", "too_long", "longer than --max_clip_in_memory_s allows")


def _stem(query: RowQuery, reference: Samples | None, samples: Samples) -> Stem:
    return Stem(query=query, reference=reference, audio=samples, num_windows=0, inference_s=0.0)


def without_embeddings(mixture: MixtureRows) -> MixtureQueries:
    """The rows as they are, for scoring without a scorer."""
    none = np.zeros(1, dtype=np.float32)
    return MixtureQueries(
        queries=tuple(RowQuery(row=row, positive=none, negative=none) for row in mixture.rows)
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOf:
    """Scored clips → rows of metrics of another system's stems.

    Attributes:
        system: what made them.
        rate_hz: at which they were scored.
        code_version: for the metrics.
    """

    system: str
    rate_hz: int
    code_version: str

    def __call__(self, scored: ScoredClip) -> Iterator[MetricsRow]:
        """A row for each stem."""
        for stem, scores in zip(scored.separated.stems, scored.scores, strict=True):
            row = stem.query.row
            part = AudioPart(
                sample_rate_hz=self.rate_hz,
                num_channels=len(stem.audio),
                start=0,
                num_samples=stem.audio.shape[1],
            )
            facts = StemFacts(
                duration_s=part.duration_s,
                sample_rate_hz=part.sample_rate_hz,
                n_channels=part.num_channels,
                n_windows=0,
                peak=float(np.abs(stem.audio).max(initial=0.0)),
                inference_s=None,
                stem_uri=row.extra[STEM_COLUMN],
                residual_uri=None,
            )
            extra = {name: text for name, text in row.extra.items() if name != STEM_COLUMN}
            scored_row = metrics_row(
                dataclasses.replace(row, extra=extra),
                facts,
                scores,
                None,
                scorer_sha256=scored.scorer_sha256,
                code_version=self.code_version,
            )
            row_counts.done("ScoreManifest", part.duration_s)
            yield dataclasses.replace(
                scored_row, values={**scored_row.values, "model": self.system}
            )
