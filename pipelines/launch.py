"""From a configuration to an exit code: checks, the run, the books, what is said at the end."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult

from manifests.errors import ManifestError
from model.fetch import CheckpointError
from model.registry import UnknownModelError
from model.separator import Capabilities
from pipelines.closing import closing_lines
from pipelines.config import SeparateConfig
from pipelines.local_runner import WORKER_DIED, local_runner
from pipelines.options import (
    EXIT_FAILURE_RATE,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_OK,
    UsageError,
)
from pipelines.outputs import (
    Earlier,
    clear,
    examine,
    require_same_settings,
    storage_of,
    tidy,
)
from pipelines.preflight import PackageCollisionError, check_packages
from pipelines.progress import ProgressDisplay
from pipelines.run_record import FILE, code_version, manifest_facts, new_record, write_record
from pipelines.wiring import (
    BOOKS,
    WORK,
    Plan,
    SeparateManifest,
    model_choice,
    scorer_choice,
)
from transforms import models, tally
from transforms.books import Books, read_books
from transforms.storage import Storage, join

logger = logging.getLogger(__name__)
ERROR_FILE = f"{WORK}/error.txt"
WORKER_DEATH_WAIT_S = 15.0
"""How long the engine has to notice by itself that a worker died."""


class JobError(RuntimeError):
    """The job itself failed; not one of its rows."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the launcher must know of the models."""

    rate_hz: int
    window_samples: int
    scorer: str
    capabilities: Capabilities
    digests: Mapping[str, str | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    books: Books
    wall_s: float
    audio_s: float
    counters: Mapping[str, int]


def separate(config: SeparateConfig, options: PipelineOptions) -> int:
    """Runs the main job; gives the exit code.

    Raises:
        UsageError: a manifest, a model or the output folder cannot be used.
    """
    configure_logging(config.execution.log_level)
    storage = storage_of(config)
    earlier = examine(config, storage)
    try:
        manifests = manifest_facts(config.manifests, storage)
        facts = model_facts(config)
    except (ManifestError, UnknownModelError, CheckpointError, ValueError) as err:
        raise UsageError(str(err)) from err
    config = dataclasses.replace(config, scorer=facts.scorer)
    settings = {**config.settings(), **facts.digests}
    require_same_settings(earlier, settings)
    record = new_record(
        config=config.to_json(),
        settings=settings,
        manifests=manifests,
        attempt=earlier.attempt,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    if config.overwrite:
        clear(config, storage)
    write_record(storage, join(config.output, FILE), record)
    plan = Plan(
        config=config,
        storage=storage,
        attempt=earlier.attempt,
        metrics_uris=earlier.metrics_uris,
        journal_uris=earlier.journal_uris,
        model_rate_hz=facts.rate_hz,
        window_samples=facts.window_samples,
        capabilities=facts.capabilities,
        code_version=code_version(),
    )
    known = [each.rows for each in manifests] if manifests else [len(config.rows)]
    total = sum(rows for rows in known if rows is not None) if None not in known else None
    with _recorded(storage, config.output, record):
        outcome = _run(plan, options, total)
        if not outcome.books.balanced:
            raise JobError(f"the books do not balance: {outcome.books}")
    return _finish(plan, earlier, record, outcome)


def model_facts(config: SeparateConfig) -> ModelFacts:
    """Loads the models: in this process they are then there; elsewhere they are let go of again.

    Raises:
        UnknownModelError: a name that no model has.
        CheckpointError: weights cannot be had.
        ValueError: the model cannot be used as it is asked to be.
    """
    loaded = models.load_model(model_choice(config))
    if config.scorer == models.OWN:  # a baseline has no CLAP of its own, but says whose to take
        config = dataclasses.replace(config, scorer=loaded.card.scorer)
    scorer = scorer_choice(config)
    facts = ModelFacts(
        rate_hz=loaded.separator.sample_rate_hz,
        window_samples=loaded.separator.window_samples,
        scorer=config.scorer,
        capabilities=loaded.separator.capabilities,
        digests={
            "model_sha256": loaded.model_sha256,
            "clap_sha256": loaded.clap_sha256,
            "scorer_sha256": None if scorer is None else models.load_scorer(scorer).digest,
        },
    )
    if not config.execution.in_process:
        models.forget()
    return facts


def configure_logging(level: str) -> None:
    """Log lines on standard error; Beam's own only where they are errors, or wanted."""
    logging.basicConfig(
        level=level.upper(), format="%(levelname)s %(name)s: %(message)s", force=True
    )
    logging.captureWarnings(True)
    debug = level == "debug"
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    logging.getLogger("apache_beam").setLevel(logging.DEBUG if debug else logging.CRITICAL)


def _run(plan: Plan, options: PipelineOptions, total: int | None) -> Outcome:
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
    counters = counters_of(result)
    return Outcome(
        books=read_books(plan.storage, plan.uri(BOOKS)),
        wall_s=time.monotonic() - started_s,
        audio_s=counters.get("WriteStems/audio_msec", 0) / 1_000,
        counters=counters,
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
    if execution.runner == "FnApiRunner":
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


def counters_of(result: PipelineResult) -> dict[str, int]:
    """The job's counters, ``namespace/name``, summed over its steps."""
    found: dict[str, int] = {}
    for entry in result.metrics().query(MetricsFilter())["counters"]:
        name = f"{entry.key.metric.namespace}/{entry.key.metric.name}"
        value = entry.committed if entry.committed is not None else entry.attempted
        found[name] = found.get(name, 0) + int(value or 0)
    return dict(sorted(found.items()))


@contextmanager
def _recorded(storage: Storage, folder: str, record: dict[str, Any]) -> Iterator[None]:
    """Writes into ``run.json`` how a run ended that did not end well."""
    uri = join(folder, FILE)
    try:
        yield
    except KeyboardInterrupt:
        write_record(storage, uri, {**record, "status": "interrupted"})
        raise
    except BaseException as err:
        write_record(storage, uri, {**record, "status": "failed", "error": first_cause(err)})
        details = "".join(traceback.format_exception(err))
        storage.write_bytes(join(folder, ERROR_FILE), details.encode("utf-8", "replace"))
        raise


def first_cause(error: BaseException) -> str:
    """What went wrong, without the traceback that a runner puts into its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def _finish(plan: Plan, earlier: Earlier, record: dict[str, Any], outcome: Outcome) -> int:
    config, books = plan.config, outcome.books
    write_record(
        plan.storage,
        plan.uri(FILE),
        {
            **record,
            "status": "finished",
            "books": dataclasses.asdict(books),
            "counters": dict(outcome.counters),
            "audio_s": outcome.audio_s,
            "wall_s": round(outcome.wall_s, 3),
        },
    )
    tidy(config, plan.storage, earlier)
    for text in closing_lines(plan, books, audio_s=outcome.audio_s, wall_s=outcome.wall_s):
        sys.stdout.write(text + "\n")
    if books.failure_rate > config.max_failure_rate:
        sys.stdout.write(
            f"{books.failure_rate:.1%} of the rows failed; "
            f"--max_failure_rate allows {config.max_failure_rate:.1%}\n"
        )
        return EXIT_FAILURE_RATE
    return EXIT_OK


def run_separate(config: SeparateConfig, options: PipelineOptions) -> int:
    """As :func:`separate`, but what goes wrong with the job is said in a line, not raised.

    Raises:
        UsageError: as :func:`separate`, or the project's packages are not its own.
    """
    try:
        check_packages()
        return separate(config, options)
    except KeyboardInterrupt:
        staging = storage_of(config).staging
        for file in Path(staging).glob(".writing-*") if staging is not None else ():
            file.unlink(missing_ok=True)
        sys.stderr.write("interrupted; only complete files are left, --resume goes on from here\n")
        return EXIT_INTERRUPTED
    except PackageCollisionError as err:
        raise UsageError(str(err)) from err
    except UsageError:
        raise
    except Exception as err:
        sys.stderr.write(f"error: the job failed: {first_cause(err)}\n")
        details = join(config.output, ERROR_FILE)
        sys.stderr.write(f"Details are in {details}; --resume goes on from here\n")
        return EXIT_JOB_FAILED
