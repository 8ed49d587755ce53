"""What a system makes of a query: supported, or why not, and the nearest setting that is."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from model.labels import find_labels
from model.separator import Capabilities

Policy = Literal["dead_letter", "nearest"]
POLICIES: tuple[Policy, ...] = ("dead_letter", "nearest")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuerySetting:
    """What a query is made of."""

    positive_text: str | None = None
    negative_text: str | None = None
    positive_audio: bool = False
    negative_audio: bool = False
    reference: bool = False
    """Whether the target is known."""

    @property
    def asks(self) -> bool:
        """Whether anything is asked for at all."""
        texts = self.positive_text is not None or self.negative_text is not None
        return texts or self.positive_audio or self.negative_audio


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """How a system can run a query."""

    reasons: tuple[str, ...] = ()
    """What the system cannot use, in words; empty where it can use all of the query."""
    nearest: QuerySetting | None = None
    """The query without what cannot be used; None where nothing is left to run."""

    @property
    def supported(self) -> bool:
        """Whether the query can be run as it is."""
        return not self.reasons


def adapt(capabilities: Capabilities, setting: QuerySetting) -> Adaptation:
    """Compares a query with what a system understands.

    Parts are only ever taken away, never replaced: the nearest setting of a system without negative
    queries is the positive one, and a query of a negative part alone then has none.

    Args:
        capabilities: of the system.
        setting: the query.

    Returns:
        What stands in the way, and the nearest setting that the system can run.
    """
    reasons: list[str] = []
    if capabilities.needs_reference and not setting.reference:
        return Adaptation(reasons=("it needs the reference, and the row has none",))
    kept = setting
    if not capabilities.negative and (kept.negative_text is not None or kept.negative_audio):
        reasons.append("it takes no negative query")
        kept = dataclasses.replace(kept, negative_text=None, negative_audio=False)
    if not capabilities.positive and (kept.positive_text is not None or kept.positive_audio):
        reasons.append("it takes no positive query")
        kept = dataclasses.replace(kept, positive_text=None, positive_audio=False)
    if not capabilities.audio and (kept.positive_audio or kept.negative_audio):
        reasons.append("it takes no example clips")
        kept = dataclasses.replace(kept, positive_audio=False, negative_audio=False)
    for name in ("positive_text", "negative_text"):
        reason = _text_problem(capabilities, getattr(kept, name))
        if reason is not None:
            reasons.append(reason)
            cleared: dict[str, Any] = {name: None}
            kept = dataclasses.replace(kept, **cleared)
    return Adaptation(reasons=tuple(dict.fromkeys(reasons)), nearest=kept if kept.asks else None)


def _text_problem(capabilities: Capabilities, text: str | None) -> str | None:
    if text is None:
        return None
    if not capabilities.text:
        return "it takes no text"
    if capabilities.labels is not None and not find_labels(text, capabilities.labels):
        return f"{text!r} is none of its {len(capabilities.labels)} labels"
    return None
