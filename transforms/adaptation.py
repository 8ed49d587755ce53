"""Rows whose query a system cannot use as it is: dead letters, or the nearest setting it can."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from manifests.row import ManifestRow
from model.adaptation import POLICIES, Policy, QuerySetting, adapt
from model.separator import Capabilities
from transforms import failures
from transforms.elements import Failure, failed

UNSUPPORTED = "unsupported_query"


@dataclasses.dataclass(eq=False)
class AdaptQueries(beam.PTransform[Any, Any]):
    """Rows → rows that the system can run.

    In: ``ManifestRow``. Out: the row as it is, where the system can use all of its query; else,
    with ``nearest``, the row without what it cannot use, so that all that follows (metrics
    included) speaks of the query that was really run; else, and where nothing is left, a failure
    with the reason.

    Attributes:
        capabilities: of the system.
        policy: ``dead_letter`` or ``nearest``.
    """

    capabilities: Capabilities
    policy: Policy = "dead_letter"

    def __post_init__(self) -> None:
        """Checks the policy's name."""
        super().__init__()
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: expected one of {POLICIES}")

    def expand(self, rows: Any) -> tuple[Any, Any]:
        """Wires the step."""
        outputs = rows | "Adapt" >> beam.FlatMap(
            _routed, self.capabilities, self.policy
        ).with_outputs(failures.FAILED, main="rows")
        return outputs["rows"], outputs[failures.FAILED]


def adapted(row: ManifestRow, capabilities: Capabilities, policy: Policy) -> ManifestRow | Failure:
    """The row as it can be run, or why it cannot."""
    setting = setting_of(row)
    adaptation = adapt(capabilities, setting)
    if adaptation.supported:
        return row
    reasons, nearest = "; ".join(adaptation.reasons), adaptation.nearest
    if capabilities.needs_reference and not setting.reference:
        message = f"the model cannot run this row: {reasons}; give reference_uri, or sources to mix"
        return failed(row, "separate", "no_reference", message)
    if policy == "dead_letter" or nearest is None:
        message = f"the model cannot use this query: {reasons}"
        return failed(row, "embed_queries", UNSUPPORTED, message)
    return dataclasses.replace(
        row,
        manifest_sha256=row.sha256,
        positive_text=nearest.positive_text,
        negative_text=nearest.negative_text,
        positive_audio_uris=row.positive_audio_uris if nearest.positive_audio else (),
        negative_audio_uris=row.negative_audio_uris if nearest.negative_audio else (),
    )


def setting_of(row: ManifestRow) -> QuerySetting:
    """What the query of a row is made of."""
    return QuerySetting(
        positive_text=row.positive_text,
        negative_text=row.negative_text,
        positive_audio=bool(row.positive_audio_uris),
        negative_audio=bool(row.negative_audio_uris),
        reference=row.reference_uri is not None or row.mixture_uri is None,
    )


def _routed(row: ManifestRow, capabilities: Capabilities, policy: Policy) -> Iterator[Any]:
    result = adapted(row, capabilities, policy)
    yield failures.dead(result) if isinstance(result, Failure) else result
