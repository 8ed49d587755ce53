"""The interface that every system implements, so that all run in the same pipeline."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from torch import Tensor

from model.conditioning import Condition


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What kinds of query a system understands."""

    text: bool = True
    audio: bool = True
    positive: bool = True
    negative: bool = True
    labels: tuple[str, ...] | None = None
    """The closed list of labels a text query must come from, where text is not free."""
    needs_reference: bool = False
    """An oracle: it can only answer where the target is known."""


class Separator(Protocol):
    """A target sound extractor. It keeps no state between calls: threads share one instance."""

    name: str
    sample_rate_hz: int
    window_samples: int
    embedding_dim: int
    capabilities: Capabilities
    input_level_dbfs: float | None
    """The level that a recording is brought to before it is heard (:mod:`model.levels`); None: it
    is heard as it is. Whoever runs the separator scales, and scales back: ``encode`` does not."""

    def encode(self, mixture: Tensor) -> Any:
        """Hears float32[B, T ≤ window_samples]; the result serves any number of queries.

        The result has ``index(rows: int64[Q])``, which repeats and reorders mixtures.
        """

    def answer(self, encoded: Any, condition: Condition) -> Tensor:
        """Extracts what the condition asks for: float32[B, T]."""

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``answer(encode(mixture), condition)``."""
