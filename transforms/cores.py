"""How many cores this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Those that it is allowed to run on, where the system says so; else the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
