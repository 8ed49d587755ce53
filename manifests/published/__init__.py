"""The figures of the CLAPSep paper, to show beside measured ones."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Final

_FILE: Final = "clapsep_paper_results.csv"
_QUERY_TYPES: Final = {"Text": "text", "Audio": "audio", "Audio+Text": "both", "Label": "label"}
METRICS: Final = {
    "SDRi": "sdri_db",
    "SISDRi": "si_sdri_db",
    "CLAPScore": "clap_score",
    "delta_CLAPScore": None,
}
"""From the paper's metrics to columns of the metrics table; None where it is unclear which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedResult:
    """One figure of a table.

    Attributes:
        table: Roman numeral.
        method: the system, as the paper writes it.
        query_type: ``text``, ``audio``, ``both`` or ``label``.
        polarity: ``P``, ``N`` or ``P+N``.
        shots: example clips; None for queries without.
        dataset: as in the metrics table; None where the table does not say (V).
        num_sources: sources of each mixture.
        num_targets: targets among them.
        input_snr_db: level, in dB; None where the table does not vary it.
        metric: the paper's name of it.
        mean: over the mixtures; dB for SDRi and SISDRi.
        std: over the mixtures.
    """

    table: str
    method: str
    query_type: str
    polarity: str
    shots: int | None
    dataset: str | None
    num_sources: int
    num_targets: int
    input_snr_db: float | None
    metric: str
    mean: float
    std: float

    @property
    def column(self) -> str | None:
        """The column of the metrics table that measures the same; None where none does."""
        return METRICS[self.metric]


def load() -> tuple[PublishedResult, ...]:
    """Every figure of tables II to VII, in the order of the tables."""
    text = resources.files("manifests.published").joinpath(_FILE).read_text(encoding="utf-8")
    return tuple(_result(cells) for cells in csv.DictReader(text.splitlines()))


def _result(cells: dict[str, str]) -> PublishedResult:
    shots, level = cells["shots"], cells["input_sdr_db"]
    return PublishedResult(
        table=cells["table"],
        method=cells["method"],
        query_type=_QUERY_TYPES[cells["query_modality"]],
        polarity=cells["query_polarity"],
        shots=int(shots) if shots else None,
        dataset=cells["dataset"] or None,
        num_sources=int(cells["n_sources"]),
        num_targets=int(cells["n_targets"]),
        input_snr_db=float(level) if level else None,
        metric=cells["metric"],
        mean=float(cells["mean"]),
        std=float(cells["std"]),
    )
