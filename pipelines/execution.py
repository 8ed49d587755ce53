"""A graph run to its end: by which runner, watched how, and what came of it."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import threading
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from pipelines.config import IN_PROCESS
from pipelines.local_runner import WORKER_DIED, local_runner
from pipelines.measurements import Measurements, measurements_of
from pipelines.plan import BOOKS, Plan
from pipelines.progress import ProgressDisplay
from pipelines.wiring import SeparateManifest
from transforms import tally
from transforms.books import Books, read_books

WORKER_DEATH_WAIT_S = 15.0
"""How long the engine has to notice by itself that a worker died."""


class JobError(RuntimeError):
    """The job itself failed; not one of its rows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    books: Books
    wall_s: float
    measurements: Measurements


def configure_logging(level: str) -> None:
    """Log lines on standard error; Beam's own only where they are errors, or wanted."""
    logging.basicConfig(
        level=level.upper(), format="%(levelname)s %(name)s: %(message)s", force=True
    )
    logging.captureWarnings(True)
    debug = level == "debug"
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    logging.getLogger("apache_beam").setLevel(logging.DEBUG if debug else logging.CRITICAL)


def run_plan(plan: Plan, options: PipelineOptions, total: int | None) -> Outcome:
    """Runs the graph and shows how far it is.

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
            with ProgressDisplay(execution.progress, total, lambda: tally.snapshot(shared)):
                result = _wait_for(_Job(plan, options))
        finally:
            os.environ.pop(tally.FOLDER_VARIABLE, None)
    return Outcome(
        books=read_books(plan.storage, plan.uri(BOOKS)),
        wall_s=time.monotonic() - started_s,
        measurements=measurements_of(result),
    )


class _Job(threading.Thread):
    """The pipeline in a thread of its own, so that an interrupt is heard at once."""

    def __init__(self, plan: Plan, options: PipelineOptions) -> None:
        super().__init__(name="pipeline", daemon=True)
        self._plan, self._options = plan, options
        self.result: PipelineResult | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = run_pipeline(self._plan, self._options)
        except BaseException as err:  # handed to the thread that waits
            self.error = err


def _wait_for(job: _Job) -> PipelineResult:
    job.start()
    died_at_s: float | None = None
    while job.is_alive():
        job.join(timeout=0.2)
        if WORKER_DIED.is_set() and died_at_s is None:
            died_at_s = time.monotonic()
        if died_at_s is not None and time.monotonic() - died_at_s > WORKER_DEATH_WAIT_S:
            raise JobError("a worker process ended before its work did")
    if job.error is not None:
        raise job.error
    if job.result is None:
        raise JobError("the pipeline gave no result")
    return job.result


def run_pipeline(plan: Plan, options: PipelineOptions) -> PipelineResult:
    """Builds the graph, runs it to its end.

    Raises:
        JobError: it did not succeed.
    """
    execution = plan.config.execution
    if execution.runner == IN_PROCESS:
        with local_runner(options, execution.num_workers) as runner:
            pipeline = beam.Pipeline(runner=runner, options=options)
            _ = pipeline | "SeparateManifest" >> SeparateManifest(plan)
            result = pipeline.run()
    else:
        pipeline = beam.Pipeline(options=options)
        _ = pipeline | "SeparateManifest" >> SeparateManifest(plan)
        result = pipeline.run()
        result.wait_until_finish()
    if result.state not in (None, "DONE"):
        raise JobError(f"the runner says {result.state}")
    return result


def first_cause(error: BaseException) -> str:
    """What went wrong, without the traceback that a runner puts into its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"
