"""Registers the coder of every record that crosses a PCollection."""

from __future__ import annotations

import pickle

from apache_beam.coders import Coder
from apache_beam.coders.typecoders import registry

from manifests.row import ManifestRow
from transforms import elements
from transforms.elements import num_bytes


class RecordCoder(Coder):
    """Pickles a record; the size is estimated from its arrays and not by pickling it."""

    def encode(self, value: object) -> bytes:
        """Bytes of a record."""
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> object:
        """The record again."""
        return pickle.loads(encoded)  # noqa: S301 - Beam's own shuffle files, written by `encode`

    def estimate_size(self, value: object) -> int:
        """Approximate size in bytes."""
        return 512 + num_bytes(value)

    def is_deterministic(self) -> bool:
        """Not used for keys."""
        return False


RECORDS = (
    ManifestRow, elements.Failure, elements.Query, elements.EmbeddedQuery, elements.MixtureRows,
    elements.MetricsRow, elements.RowQuery, elements.MixtureQueries, elements.Clip,
    elements.LongRecording, elements.Stem, elements.SeparatedClip, elements.Scores,
    elements.ScoredClip, elements.KeptRow, elements.KeptLetter, elements.Damage, elements.Leaving,
)  # fmt: skip

for _record in RECORDS:
    registry.register_coder(_record, RecordCoder)
