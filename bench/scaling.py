"""What a second worker of a Dask cluster gives, and what a million rows cost.

    python -m bench.scaling workers                         # the full-size network, random weights
    python -m bench.scaling workers --model clapsep-mini --clips 480
    python -m bench.scaling rows --rows 100000 1000000      # in this process, no audio

Workers have one thread and one core of this machine each: on a second core a lone worker would read
and write beside its network, and the comparison would be with half of a worker more. Each cluster
runs the job once so that models are loaded, then again for the clock; the job in one process on one
core is the base from which the engine's overhead is counted.

Rows go through the whole graph but for reading, separating and writing, for which a stub stands:
manifest, checks, grouping, queries, journal, tables, summary, counts. Each size is a process of its
own, whose peak memory the system says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam

from bench import scale_model
from bench.pipeline import write_clips, write_model
from manifests.columns import METRIC_COLUMNS, METRICS_SCHEMA
from pipelines import separate, separate_graph
from transforms.elements import Failure, MetricsRow, MixtureRows
from transforms.manifest_io import pieces_of
from transforms.tables import Pack, metrics_rows

ROOT = Path(__file__).parents[1]
SINGLE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
CORES = sorted(os.sched_getaffinity(0))
START_WAIT_S = 120.0


@contextmanager
def cluster(folder: Path, num_workers: int) -> Iterator[str]:
    """A scheduler and workers of one thread, started as an operator would; gives the address."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **SINGLE, "PYTHONPATH": path}
    file, processes = folder / f"scheduler{num_workers}.json", []
    with (folder / "dask.log").open("ab") as log:

        def start(*arguments: str) -> int:
            command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
            processes.append(process)
            return process.pid

        try:
            start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
            deadline_s = time.monotonic() + START_WAIT_S
            while not file.exists():
                if time.monotonic() > deadline_s:
                    raise RuntimeError("the Dask scheduler did not start")
                time.sleep(0.1)
            address: str = json.loads(file.read_text(encoding="utf-8"))["address"]
            for core in CORES[:num_workers]:
                one = ("--nworkers", "1", "--nthreads", "1", "--no-nanny")
                os.sched_setaffinity(start("worker", address, *one), {core})
            import distributed

            with distributed.Client(address, set_as_default=False) as client:
                client.wait_for_workers(num_workers, timeout=START_WAIT_S)
            yield address
        finally:
            for process in processes:
                process.kill()
                process.wait()


def job(manifest: Path, output: Path, *flags: str) -> float:
    """Seconds that the graph of the main job took, as its record says."""
    fixed = ["--num_threads", "1", "--progress", "none", "--overwrite"]
    code = separate.run(["--manifest", str(manifest), "--output", str(output), *fixed, *flags])
    if code != 0:
        raise RuntimeError(f"exit code {code}")
    record = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return float(record["wall_s"])


def compare_workers(given: argparse.Namespace) -> None:
    """Prints the speed-up of the second worker and the engine's overhead.

    Raises:
        SystemExit: there are not two cores.
    """
    if len(CORES) < 2:
        raise SystemExit("expected two cores, one for each worker")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or write_model(folder)
        manifest = write_clips(folder, given.clips)
        flags = ["--model", model, "--batch_size", str(given.batch_size)]
        times: dict[str, float] = {}
        os.sched_setaffinity(0, CORES[:1])
        times["one process, one core"] = min(
            job(manifest, folder / "alone", *flags) for _ in range(given.repeats + 1)
        )
        os.sched_setaffinity(0, CORES)
        for count in (1, 2):
            with cluster(folder, count) as address:
                where = ["--runner", "dask", "--dask_client_address", address]
                runs = [
                    job(manifest, folder / f"on{count}", *flags, *where)
                    for _ in range(given.repeats + 1)
                ]
            times[f"Dask, {count} worker{'s' if count > 1 else ''}"] = min(runs[1:])
    for label, seconds in times.items():
        print(f"{label:26} {seconds:8.2f} s for {given.clips} clips of 10 s")
    alone, one, two = times.values()
    print(f"speed-up of the second worker      {one / two:6.2f}")
    print(f"overhead of the engine, a clip     {(one - alone) / given.clips:6.3f} s")
    measured = (
        scale_model.MeasuredRun(
            clips=given.clips, audio_s=10.0 * given.clips, wall_s=wall_s, workers=workers
        )
        for workers, wall_s in ((1, one), (2, two))
    )
    print("the formula of bench.scale_model, without a start-up:")
    scale_model.check(*measured, startup_s=0.0)


class _Stub(beam.PTransform[Any, Any]):
    """Says that every query was done; reads, computes and writes nothing."""

    def __init__(self, folder: Any) -> None:
        super().__init__()
        self._folder = folder

    def expand(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Stands in for the steps that touch samples."""
        groups = inputs[0]
        done = (
            groups
            | "Stub" >> beam.FlatMap(_rows).with_output_types(MetricsRow)
            | "Journal"
            >> metrics_rows.WriteJournal(self._folder.place("_work/journal"), self._folder.storage)
            | "Pack" >> Pack()
        )
        none = beam.Create([], reshuffle=False).with_output_types(Failure)
        return (done, *(groups.pipeline | f"None{n}" >> none for n in range(5)))


def _rows(group: tuple[str, Iterable[MixtureRows]]) -> Iterator[MetricsRow]:
    for row in (row for piece in pieces_of(group) for row in piece.rows):
        values = dict.fromkeys(METRICS_SCHEMA.names)
        values.update(dict.fromkeys(METRIC_COLUMNS, float(len(row.id))), label=row.label)
        for key in ("id", "dataset", "split"):
            del values[key]
        yield MetricsRow(
            id=row.id, dataset=row.dataset, split=row.split, values=values, extra=row.extra
        )


def run_rows(given: argparse.Namespace) -> None:
    """Prints time and peak memory for each number of rows."""
    for count in given.rows:
        command = [sys.executable, "-m", "bench.scaling", "one", "--rows", str(count),
                   "--model", given.model]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **SINGLE})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"exit code {process.returncode}")
        print(f"{count:9} rows: peak memory {usage.ru_maxrss / 1024:7.0f} MiB")


def run_one(given: argparse.Namespace) -> None:
    """One number of rows, in this process."""
    (count,) = given.rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = folder / "rows.jsonl"
        with manifest.open("w", encoding="utf-8") as file:
            for number in range(count):
                row = {
                    "id": f"clip-{number:08d}",
                    "mixture_uri": f"/nowhere/mixtures/{number // 3:08d}.flac",
                    "positive_text": f"sound {number % 97}",
                    "dataset": "made",
                }
                file.write(json.dumps(row) + "\n")
        stub = mock.patch.object(
            separate_graph, "SeparateMixtures", lambda _, folder, *rest: _Stub(folder)
        )
        with stub:
            seconds = job(manifest, folder / "out", "--model", given.model)
    print(f"{count:9} rows: {seconds:8.1f} s, {1e6 * seconds / count:6.0f} µs a row", flush=True)


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    modes = parser.add_subparsers(required=True)
    workers = modes.add_parser("workers")
    workers.set_defaults(function=compare_workers)
    workers.add_argument("--model", help="default: the full-size network with random weights")
    workers.add_argument("--clips", type=int, default=96)
    workers.add_argument("--batch_size", type=int, default=1)
    workers.add_argument("--repeats", type=int, default=1)
    for name, function in (("rows", run_rows), ("one", run_one)):
        rows = modes.add_parser(name)
        rows.set_defaults(function=function)
        rows.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
        rows.add_argument("--model", default="clapsep-mini")
    given = parser.parse_args(argv)
    given.function(given)


if __name__ == "__main__":
    run()
