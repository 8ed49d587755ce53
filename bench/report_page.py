"""How long the page of a report over 20,000 rows takes until its lists are painted, in Chromium.

    python -m bench.report_page                 # needs chromium and chromedriver; a minute
    python -m bench.report_page --rows 2000 --repeats 3

The page is that of a run without references: 20,000 recordings of two queries, two segments each.
From the navigation to it, Chromium says when something was first painted (first contentful paint);
a script that is put into the page before its own says when the frame has been drawn in which the
first ranked list was there, and the one in which the list of all rows was. The limit is 2 s.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipeline"))

from test_report_found import write_archive

import browser
from pipelines import report

LIMIT_S = 2.0
LISTS = {"the first ranked list": "#found td", "the list of all rows": "#rows tr[data-place] td"}
WATCH = """
window.painted = {};
const sought = %s;
const look = () => {
  for (const [name, selector] of Object.entries(sought))
    if (!(name in window.painted) && document.querySelector(selector)) {
      window.painted[name] = 0;
      requestAnimationFrame(() => setTimeout(() => window.painted[name] = performance.now()));
    }
  if (Object.keys(window.painted).length < Object.keys(sought).length) requestAnimationFrame(look);
};
look();
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        archive = write_archive(Path(name) / "run", given.rows)
        with contextlib.redirect_stdout(io.StringIO()):
            code = report.run([str(archive), "--output", str(Path(name) / "report")])
        if code != 0:
            raise SystemExit(f"the report ended with {code}")
        page = Path(name) / "report" / "report.html"
        size_mb, load = page.stat().st_size / 1e6, os.getloadavg()[0]
        print(f"{given.rows:,} rows: {size_mb:.1f} MB; load {load:.1f}")
        found = measure(page, Path(name), given.repeats)
    slow = False
    for what, seconds in found.items():
        middle = float(np.median(seconds))
        slow = slow or middle > LIMIT_S
        each = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{what:24}: {middle:.2f} s after the navigation (median of {each})")
    print(f"more than {LIMIT_S:g} s" if slow else f"all within {LIMIT_S:g} s")
    return int(slow)


def measure(page: Path, profile: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds from the navigation on, for each thing that is waited for."""
    found: dict[str, list[float]] = {"something": [], **{name: [] for name in LISTS}}
    names = list(LISTS)
    with browser.chromium(profile) as chromium:
        chromium.devtools("Page.enable")
        script = WATCH % repr(LISTS)
        chromium.devtools("Page.addScriptToEvaluateOnNewDocument", source=script)
        for _ in range(repeats):
            chromium.open("about:blank")
            chromium.open(page.as_uri())
            chromium.until(f"return {names!r}.every(name => window.painted[name] > 0)")
            paint = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            found["something"].append(float(chromium.until(paint)) / 1_000)
            for name in names:
                found[name].append(float(chromium.js(f"return window.painted[{name!r}]")) / 1_000)
    return found


if __name__ == "__main__":
    sys.exit(run())
