"""Compares the Dask tasks and the time of a shuffle with bundles split one by one, and joined.

    python bench/dask_shuffle.py --rows 100000 --parts 19 --repeats 3

Rows of a manifest are grouped by their mixture on a Dask cluster of two worker processes on this
machine, as the main job does it. `--parts` is the number of parts of the shuffle; a million rows of
300 bytes have 19. Wall times compare within one run only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import apache_beam as beam
import distributed
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.row import ManifestRow
from pipelines import runners
from pipelines.runners.dask import runner as dask_runner
from pipelines.runners.dask.cluster import Cluster
from transforms.manifest_io import GroupByMixture


def row(number: int) -> ManifestRow:
    """A row like those of a large manifest, each of a mixture of its own."""
    name = f"2026/11/28/recorder-{number % 97:03d}/{number:09d}"
    return ManifestRow(
        id=name, mixture_uri=f"gs://some-bucket/recordings/{name}.flac", positive_text="a dog barks"
    )


def run(rows: int, address: str) -> tuple[Counter[str], float]:
    """Groups so many rows; gives the tasks by what they do, and the seconds."""
    tasks: Counter[str] = Counter()
    submit = Cluster.submit

    def counted(self: Cluster, run_id: str, function: Any, *given: Any, **how: Any) -> Any:
        tasks[function.__name__] += 1
        return submit(self, run_id, function, *given, **how)

    with mock.patch.object(Cluster, "submit", counted):
        started_s = time.perf_counter()
        pipeline = beam.Pipeline(
            runner=dask_runner.DaskRunner(address), options=PipelineOptions([])
        )
        grouped = (
            pipeline
            | beam.Create(list(range(rows)))
            | "Rows" >> beam.Map(row).with_output_types(ManifestRow)
            | GroupByMixture()
        )
        _ = grouped | beam.combiners.Count.Globally()
        runners.measurements_of(pipeline.run())
        return tasks, time.perf_counter() - started_s


def main() -> None:
    """Prints both ways, alternating, as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=19)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("one by one", "joined"), help="One way, not both.")
    given = parser.parse_args()
    dask_runner.PART_BYTES, dask_runner.MAX_PARTS = 1, given.parts
    ways = {"one by one": 0, "joined": dask_runner.JOINED_BYTES}
    if given.only:
        ways = {given.only: ways[given.only]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    tasks: dict[str, Counter[str]] = {}
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        for _ in range(given.repeats):
            for name, joined_bytes in ways.items():
                dask_runner.JOINED_BYTES = joined_bytes
                tasks[name], took_s = run(given.rows, cluster.scheduler_address)
                times[name].append(took_s)
    shuffle = ("split", "part_of", "regroup")
    found = {
        name: {
            "tasks": sum(tasks[name].values()),
            "tasks_of_shuffles": sum(tasks[name][each] for each in shuffle),
            "seconds": [round(each, 1) for each in times[name]],
        }
        for name in ways
    }
    medians = [statistics.median(times[name]) for name in ways]
    ratio = {} if given.only else {"time_ratio": round(medians[0] / medians[1], 2)}
    print(json.dumps({"rows": given.rows, "parts": given.parts, **found, **ratio}))


if __name__ == "__main__":
    main()
