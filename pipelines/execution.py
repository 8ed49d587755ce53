"""A graph run to its end: by which runner, watched how, and what came of it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from pipelines.console import LINE_INTERVAL_S, REMOTE_LINE_INTERVAL_S, ProgressDisplay, Snapshot
from pipelines.flags import EXIT_JOB_FAILED
from pipelines.plan import BOOKS, Plan
from pipelines.runners import Execution
from pipelines.runners.local import local_runner
from pipelines.runners.measurements import Measurements, measurements_of
from pipelines.separate_graph import SeparateManifest
from transforms import tally
from transforms.storage import retries
from transforms.storage.redaction import redact
from transforms.tables.row_counts import Books, read_books

logger = logging.getLogger(__name__)
Graph = beam.PTransform[Any, Any]


def _nothing() -> None:
    return


class JobError(RuntimeError):
    """The job itself failed; not one of its rows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    books: Books
    wall_s: float
    measurements: Measurements


def run_plan(
    plan: Plan,
    options: PipelineOptions,
    total: int | None,
    runner: PipelineRunner | None = None,
    counts: Snapshot | None = None,
    check: Callable[[], None] = _nothing,
) -> Outcome:
    """Runs the graph and shows how far it is.

    Args:
        plan: what to run.
        options: of Beam.
        total: rows, where it is known.
        runner: None for the one that ``plan`` names.
        counts: how far a job elsewhere is.
        check: called again and again; raises where the run must end.

    Raises:
        JobError: it did not succeed.
    """
    execution = plan.config.execution
    tally.clear()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clapsep-tally-") as folder:
        shared = None if execution.in_process else folder
        if shared is not None:
            os.environ[tally.FOLDER_VARIABLE] = shared
        try:
            interval_s = LINE_INTERVAL_S if counts is None else REMOTE_LINE_INTERVAL_S
            counts = counts or functools.partial(tally.snapshot, shared)
            with ProgressDisplay(execution.progress, total, counts, interval_s):
                result = run_graph(SeparateManifest(plan), execution, options, runner, check)
        finally:
            os.environ.pop(tally.FOLDER_VARIABLE, None)
    return Outcome(
        books=read_books(plan.storage, plan.uri(BOOKS)),
        wall_s=time.monotonic() - started_s,
        measurements=measurements_of(result).adding(retries.take_uncounted()),
    )


def run_graph(
    graph: Graph,
    execution: Execution,
    options: PipelineOptions,
    runner: PipelineRunner | None = None,
    check: Callable[[], None] = _nothing,
) -> PipelineResult:
    """Runs a graph to its end, on ``runner`` or the engine that is asked for.

    ``check`` is called again and again while it runs, and raises where it must end.

    Raises:
        JobError: it did not succeed.
        WorkerError: a worker process died, or the engine does not end.
    """
    with _engine(execution, options, runner) as (engine, check_engine):
        job = _Job(graph, engine, options)
        job.start()
        while job.is_alive():
            job.join(timeout=0.2)
            check_engine()
            check()
    if job.error is not None:
        raise job.error
    if job.result is None:
        raise JobError("the pipeline gave no result")
    if job.result.state not in (None, "DONE"):
        raise JobError(f"the runner says {job.result.state}")
    return job.result


@contextmanager
def _engine(
    execution: Execution, options: PipelineOptions, given: PipelineRunner | None
) -> Iterator[tuple[PipelineRunner | None, Callable[[], None]]]:
    """What runs the graph (None: what the options say), and a check whether it still does."""
    if execution.is_local:
        with local_runner(options, execution.num_workers) as (runner, watch):
            yield runner, watch.check if watch is not None else _nothing
    elif execution.cluster is not None:
        from pipelines.runners.dask.runner import DaskRunner

        yield DaskRunner(execution.cluster), _nothing
    else:
        yield given, _nothing


class _Job(threading.Thread):
    """The pipeline in a thread of its own, so that an interrupt is heard at once."""

    def __init__(
        self, graph: Graph, runner: PipelineRunner | None, options: PipelineOptions
    ) -> None:
        super().__init__(name="pipeline", daemon=True)
        self._graph, self._runner, self._options = graph, runner, options
        self.result: PipelineResult | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            pipeline = beam.Pipeline(runner=self._runner, options=self._options)
            _ = pipeline | self._graph
            result = pipeline.run()
            result.wait_until_finish()
            self.result = result
        except BaseException as err:  # handed to the thread that waits
            self.error = err


def failed(error: Exception, secrets: Sequence[str]) -> int:
    """Says that a job failed of which nothing more is written; gives the exit code."""
    logger.debug("the job failed", exc_info=error)
    sys.stderr.write(f"error: the job failed: {first_cause(error, secrets)}\n")
    return EXIT_JOB_FAILED


@contextmanager
def finishing(secrets: Sequence[str]) -> Iterator[None]:
    """What goes wrong after a run has done its work and recorded that is said, and no more."""
    try:
        yield
    except Exception as err:
        logger.debug("after the run had finished", exc_info=err)
        sys.stderr.write(
            f"warning: the run has finished; after that: {first_cause(err, secrets)}\n"
        )


def first_cause(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """What went wrong, without the traceback that a runner puts into its message, or secrets."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(f"{type(error).__name__}: {lines[-1].strip() if lines else ''}", secrets)
