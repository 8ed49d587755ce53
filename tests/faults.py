"""When something that is to fail by turns fails."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(slots=True, kw_only=True)
class Turns:
    """Which of the operations that a pattern finds are to fail.

    Attributes:
        pattern: a regular expression.
        every: one operation in so many, from the first; 1 for all of them.
        after: so many are spared first.
        times: how often at most; None for ever.
    """

    pattern: str = ""
    every: int = 1
    after: int = 0
    times: int | None = None
    seen: int = 0
    done: int = 0

    def takes(self, line: str) -> bool:
        """Whether this operation is one of those."""
        if not re.search(self.pattern, line):
            return False
        self.seen += 1
        number = self.seen - 1 - self.after
        if number < 0 or number % self.every:
            return False
        if self.times is not None and self.done >= self.times:
            return False
        self.done += 1
        return True
