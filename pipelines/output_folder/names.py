"""Names what lies in an output folder."""

from __future__ import annotations

RUN = "run.json"
WORK = "_work"
JOURNAL = f"{WORK}/journal"
STAGING = f"{WORK}/staging"
ROW_COUNTS = f"{WORK}/row_counts.json"
ERROR_FILE = f"{WORK}/error.txt"
LISTING = f"{WORK}/earlier.jsonl"
"""Of the files that earlier runs left, for the graph of a run that goes on with them."""
LOCK = f"{WORK}/lock.json"
METRICS, SUMMARY, DEAD_LETTERS = "metrics", "summary", "dead_letters"
MANIFEST = "manifest"
"""Of rendered mixtures."""
EVENTS = "events.csv"
"""Where each source sounds in rendered mixtures, as far as rows say when sources begin."""
