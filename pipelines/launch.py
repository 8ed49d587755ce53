"""Runs a job from its command line to its exit code, the same way for every job and runner.

The order is: check the flags, the runner, the output folder, the manifests and the models; hold the
folder; record the run; run the graph while progress is shown; check that the rows balance; record
what came of it and say so.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.files import ManifestError
from manifests.row import ManifestRow
from model import devices
from model.checkpoints.fetch import CheckpointError
from model.registry import UnknownModelError
from pipelines import console, flags, output_folder, runners
from pipelines.config import CommonConfig, Execution, refused
from pipelines.flags import (
    EXIT_FAILURE_RATE,
    EXIT_INTERRUPTED,
    EXIT_JOB_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    Arguments,
    Command,
    UsageError,
)
from pipelines.output_folder import OutputFolder, contents, record
from pipelines.output_folder.contents import ERROR_FILE, ROW_COUNTS, RUN
from pipelines.output_folder.lock import Lock, LockLostError
from pipelines.preflight import PackageCollisionError, check_packages
from pipelines.runners import JobError, Measurements, Runner, measurements_of
from terminal import screen
from transforms import kept, storage
from transforms.storage import Storage, join
from transforms.storage.access import UriAccess, configure_logging, redact, redacted
from transforms.tables import row_counts as progress
from transforms.tables.row_counts import Resumed, RowCounts, read_resumed, read_row_counts

logger = logging.getLogger(__name__)
_UNUSABLE = (ManifestError, UnknownModelError, CheckpointError, ValueError, OSError, ImportError)
SUBMITTED = "submitted"


class Job(Protocol):
    """What differs between jobs."""

    @property
    def command(self) -> Command:
        """Its command line."""

    @property
    def config(self) -> CommonConfig:
        """What the flags ask for."""

    @property
    def access(self) -> UriAccess:
        """The URIs that rows may name, and that a web server may redirect to."""

    def check(self, storage: Storage) -> None:
        """Checks what only this job has.

        Raises:
            ValueError: something cannot be used.
        """

    def reads(self, row: ManifestRow) -> Iterable[tuple[str, str]]:
        """The URIs that a row makes the job read, each with the column that names it."""

    def load(self) -> Any:
        """Loads models, so that a run without them does not begin; given to the methods below.

        Raises:
            UnknownModelError: a name that no model has.
            CheckpointError: weights cannot be had.
            ValueError: the model cannot be used as it is asked to be.
        """

    def settings(self, loaded: Any, /) -> dict[str, Any]:
        """What decides the results: a run may only be resumed with the same."""

    def graph(self, folder: OutputFolder, loaded: Any, /) -> beam.PTransform[Any, Any]:
        """Reads the manifests; writes everything, and the row counts."""

    def closing(
        self, folder: OutputFolder, loaded: Any, row_counts: RowCounts, measured: Measurements,
        wall_s: float, /,
    ) -> list[str]:  # fmt: skip
        """What is said at the end, a line each."""


class JobGoesOnError(RuntimeError):
    """The wait for a job was interrupted; the job itself still runs, or may."""


class RunFailedError(RuntimeError):
    """A run that had begun did not end well; its message is the cause.

    Attributes:
        details: where the whole story was written, if it could be.
    """

    def __init__(self, cause: str, details: str | None) -> None:
        super().__init__(cause)
        self.details = details


class _ClearingStopped(KeyboardInterrupt):
    """Somebody stopped a run while it deleted earlier results: only --overwrite goes on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended."""

    row_counts: RowCounts
    wall_s: float
    measured: Measurements


def main(
    command: Command,
    build: Callable[[Arguments, Execution], Job],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs the job that a command line asks for.

    Args:
        command: its flags.
        build: makes the job of parsed flags.
        argv: the words; None: those of the process.

    Returns:
        The exit code.
    """
    screen.steady()
    secrets: tuple[str, ...] = ()
    try:
        arguments = runners.parse(command, list(sys.argv[1:] if argv is None else argv))
        job = build(arguments, runners.execution_of(arguments))
        secrets = job.config.secrets
        return _run_and_say(job, runners.Options(list(arguments.beam)))
    except (UsageError, ManifestError) as err:
        return refused(command, err, secrets)


def _run_and_say(job: Job, options: PipelineOptions) -> int:
    """As :func:`run`, but what goes wrong with the job is said in a line, not raised.

    Raises:
        UsageError: as :func:`run`, or the project's packages are not its own.
    """
    goes_on = "--resume goes on from here"
    try:
        check_packages()
        return run(job, options)
    except JobGoesOnError as err:
        sys.stderr.write(f"no longer waiting: {err}\n")
        return EXIT_INTERRUPTED
    except KeyboardInterrupt as err:
        flag = "--overwrite" if isinstance(err, _ClearingStopped) else "--resume"
        sys.stderr.write(f"interrupted; only complete files are left, {flag} goes on from here\n")
        return EXIT_INTERRUPTED
    except PackageCollisionError as err:
        raise UsageError(str(err)) from err
    except UsageError:
        raise
    except LockLostError as err:
        sys.stderr.write(f"error: this run was stopped: {err}\n")
        return EXIT_JOB_FAILED
    except RunFailedError as err:
        sys.stderr.write(f"error: the job failed: {err}\n")
        details = "" if err.details is None else f"Details are in {redact(err.details)}; "
        sys.stderr.write(f"{details}{goes_on}\n")
        return EXIT_JOB_FAILED
    except Exception as err:
        logger.debug("the job failed", exc_info=err)
        sys.stderr.write(f"error: the job failed: {first_cause(err, job.config.secrets)}\n")
        return EXIT_JOB_FAILED


_HOW_TO_CLOSE = "the same command with --resume closes the run when the job has ended"
"""How a run ends well whose job goes on without this command."""
_HOW_TO_GO_ON = "the same command with --resume --force_unlock goes on when you know that it ended"
"""As that, where nothing can ask whether the job has ended."""


def run(job: Job, options: PipelineOptions) -> int:
    """Runs a job; gives the exit code.

    Raises:
        UsageError: a manifest, a model or the output folder cannot be used.
        RunFailedError: the run began and failed.
        JobGoesOnError: it was interrupted, and the job does not end with it.
    """
    config = job.config
    configure_logging(config.execution.log_level, config.secrets)
    runner = runners.runner_of(config.execution.runner)
    runner.check(config, options)
    storage = output_folder.storage_of(config, job.access)
    require_ended = functools.partial(runners.require_ended, options=options)
    try:
        job.check(storage)
        contents.require_unwritten(config)
        with output_folder.usable(config.output, "read"):
            output_folder.require_same_division(config, storage)
            output_folder.require_free(config, storage, require_ended)
            earlier = output_folder.examine(config, storage, job.command.name)
        output_folder.require_no_job(earlier, config, require_ended)
        manifests = record.manifest_facts(config.manifests, storage)
        if earlier.exists:
            reads = contents.reads_of(config, manifests, storage, job.reads)
            contents.require_apart(config, storage, reads)
        loaded = job.load()
    except _UNUSABLE as err:
        raise UsageError(str(err)) from err
    if runner.only_builds(options):
        folder = OutputFolder(uri=config.output, storage=storage, earlier=earlier)
        with runner.open(config.execution, options, lambda _: None) as opened:
            runners.run_graph(job.graph(folder, loaded), opened, options)
        sys.stdout.write("dry run: the job can be built; nothing was staged or submitted\n")
        return EXIT_OK
    with output_folder.held(config, storage, require_ended) as lock:
        try:
            return _Run(job, options, runner, storage, manifests, loaded, lock).run()
        except KeyboardInterrupt:  # what is unfinished is this run's, while it holds the folder
            storage.discard_unfinished(config.output)
            raise


@dataclasses.dataclass
class _Run:
    """What happens while the output folder is this run's."""

    job: Job
    options: PipelineOptions
    runner: Runner
    storage: Storage
    manifests: Sequence[record.ManifestFacts]
    loaded: Any
    lock: Lock

    def run(self) -> int:
        """Runs the job; gives the exit code."""
        job, config, storage = self.job, self.job.config, self.storage
        # Examined again: a run may have ended meanwhile.
        earlier = output_folder.examine(config, storage, job.command.name)
        settings = redacted(job.settings(self.loaded))
        if config.resume:
            output_folder.require_same_settings(earlier, settings)
        entry = record.new_record(
            command=config.command,
            config=config.to_json(),
            settings=settings,
            manifests=self.manifests,
            attempt=earlier.attempt,
            started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        entry["sources"] = output_folder.sources_after(config, storage, earlier)
        entry["outputs"] = output_folder.outputs_after(config, earlier)
        if config.resume and earlier.damage is not None:
            output_folder.say(
                f"{join(config.output, RUN)} {earlier.damage}: what its rows were made with is not "
                "known, and those of this manifest are done again"
            )
        if (device := _device(config)) is not None:
            entry["device"] = device
        folder = OutputFolder(uri=config.output, storage=storage, earlier=earlier)
        with output_folder.usable(config.output):
            if earlier.cleared:
                try:
                    said = output_folder.clear(config, storage, earlier, job.command.name)
                except KeyboardInterrupt as err:
                    raise _ClearingStopped from err
                for line in said:
                    output_folder.say(line)
            _put_in_order(folder, job.command.name)
            output_folder.begin(folder)
            record.write_record(storage, folder.place(RUN), entry)
        with self._recorded(folder, entry):
            outcome = self._compute(folder, entry)
            if outcome is None:
                return EXIT_OK
            self.lock.check()
            row_counts = outcome.row_counts
            if not row_counts.balanced:
                raise JobError(f"the row counts do not balance: {row_counts}")
            resumed = read_resumed(storage, folder.place(ROW_COUNTS))
            has_rows = row_counts.stems + row_counts.finished_before + resumed.others > 0
            output_folder.tidy(config, storage, earlier, has_rows=has_rows)
            others = resumed.others + resumed.letters
            entry["sources"] = output_folder.sources_after(config, storage, earlier, others=others)
            if earlier.kept:
                entry["resumed"] = dataclasses.asdict(resumed)
            record.write_record(storage, folder.place(RUN), _finished(entry, outcome))
        return self._finish(folder, resumed, outcome)

    def _compute(self, folder: OutputFolder, entry: dict[str, Any]) -> Outcome | None:
        """Runs the graph while progress is shown; None where the job was left for others."""
        execution = self.job.config.execution
        graph = self.job.graph(folder, self.loaded)

        def submitted(there: Mapping[str, Any]) -> None:
            entry.update(status=SUBMITTED, job={**there, "runner": execution.runner})
            self.lock.name_job(entry["job"])
            record.write_record(self.storage, folder.place(RUN), entry)
            sys.stderr.write(
                "  This command waits for it and closes the run. The job goes on without it; after "
                f"an interruption, {_HOW_TO_CLOSE}.\n"
            )

        started_s = time.monotonic()
        with self.runner.open(execution, self.options, submitted) as opened:
            if (left_at := self.runner.left_at(self.options)) is not None:
                runners.run_graph(graph, opened, self.options)
                record.write_record(self.storage, folder.place(RUN), {**entry, "status": SUBMITTED})
                self.lock.leave_to(f"the template {left_at}")
                sys.stdout.write(f"the job was left at {left_at}, to be submitted from there\n")
                return None
            with _progress(execution, self._total_rows(), opened.counts):
                result = runners.run_graph(graph, opened, self.options, self.lock.check)
        return Outcome(
            row_counts=read_row_counts(self.storage, folder.place(ROW_COUNTS)),
            wall_s=time.monotonic() - started_s,
            measured=measurements_of(result).adding(storage.take_uncounted()),
        )

    def _total_rows(self) -> int | None:
        """Of all manifests, for the progress display; None where they would have to be read."""
        if self.job.config.shard is not None or self.job.config.recordings is not None:
            return None
        if not self.manifests:
            return len(self.job.config.rows) or None
        known = [each.rows for each in self.manifests if each.rows is not None]
        return sum(known) if len(known) == len(self.manifests) else None

    @contextmanager
    def _recorded(self, folder: OutputFolder, entry: dict[str, Any]) -> Iterator[None]:
        """Writes into ``run.json`` how a run ended that did not end well."""
        config, storage = self.job.config, self.storage
        try:
            yield
        except LockLostError:  # what is there is another run's by now
            raise
        except KeyboardInterrupt:
            if "job" in entry:
                self.lock.leave_to()
                job = entry["job"]
                where = f"job {job['id']} of {job['runner']}"
                raise JobGoesOnError(f"{where} goes on; {_HOW_TO_CLOSE}") from None
            place = None if self.runner.ends_with_launcher else config.execution.runner
            if place is not None:
                self.lock.leave_to(place)
            record.write_record(storage, folder.place(RUN), {**entry, "status": "interrupted"})
            if place is None:
                raise
            raise JobGoesOnError(f"the job may go on at {place}; {_HOW_TO_GO_ON}") from None
        except BaseException as err:
            cause = first_cause(err, config.secrets)
            details: str | None = folder.place(ERROR_FILE)
            story = redact("".join(traceback.format_exception(err)), config.secrets)
            try:
                failed = {**entry, "status": "failed", "error": cause}
                record.write_record(storage, folder.place(RUN), failed)
                storage.write_bytes(folder.place(ERROR_FILE), story.encode("utf-8", "replace"))
            except OSError:  # a full disk, say: what is told on the screen must then do
                details = None
            raise RunFailedError(cause, details) from err

    def _finish(self, folder: OutputFolder, resumed: Resumed, outcome: Outcome) -> int:
        """Tidies up and says what came of a run that ``run.json`` calls finished."""
        config, row_counts = self.job.config, outcome.row_counts
        with _finishing(config.secrets):
            contents.remove_working_files(folder.storage, config.output)
        outcome.measured.log()
        with _finishing(config.secrets):
            for line in (*console.resumed_lines(resumed), *console.skipped_lines(row_counts)):
                output_folder.say(line)
            for text in self.job.closing(
                folder, self.loaded, row_counts, outcome.measured, outcome.wall_s
            ):
                sys.stdout.write(redact(text) + "\n")
        # Of a part nobody expects that a recording falls to it.
        if config.recordings is not None and config.shard is None and not row_counts.rows:
            roots = " ".join(redact(uri) for uri in config.recordings.roots)
            sys.stderr.write(f"error: --recordings {roots}: no recordings are there\n")
            return EXIT_USAGE
        if row_counts.failure_rate > config.max_failure_rate:
            sys.stdout.write(
                f"{row_counts.failure_rate:.1%} of the rows failed; "
                f"--max_failure_rate allows {config.max_failure_rate:.1%}\n"
            )
            return EXIT_FAILURE_RATE
        return EXIT_OK


def _put_in_order(folder: OutputFolder, command: str) -> None:
    """Puts the files of earlier runs in order, before there is another record.

    Where theirs is lost, nobody knows what made their rows. These lose their digests: the new
    record would be taken for theirs, and they would pass for finished.
    """
    earlier, storage = folder.earlier, folder.storage
    if earlier.damage is not None:
        table = kept.RENDERED_KEPT if command == flags.SYNTHESIZE.name else kept.METRICS_KEPT
        kept.forget_origin((*earlier.table_uris, *earlier.journal_uris), table.digest, storage)
    kept.leave_letters_once(earlier.letter_uris, storage)


def _device(config: CommonConfig) -> dict[str, str] | None:
    """The device that was asked for and the one that is taken; what ``auto`` chose is said too."""
    asked: str | None = getattr(config, "device", None)
    if asked is None:
        return None
    if config.execution.is_local:
        taken = devices.chosen(asked, every=not config.execution.in_process)
    elif "accelerator" in config.execution.resource_hints:
        taken = "the GPU of each worker that separates; one without it fails"
    else:
        taken = "of each worker: its GPU where it has one" if asked == devices.AUTO else asked
    if asked == devices.AUTO:
        output_folder.say(f"--device auto: {taken}")
    return {"asked": asked, "taken": taken}


@contextmanager
def _progress(
    execution: Execution, total: int | None, counts: console.Snapshot | None
) -> Iterator[None]:
    """Shows how far a run is; worker processes of this machine leave their counts in a folder."""
    progress.clear()
    with tempfile.TemporaryDirectory(prefix="clapsep-tally-") as name:
        shared = None if execution.in_process else name
        if shared is not None:
            os.environ[progress.FOLDER_VARIABLE] = shared
        interval_s = console.LINE_INTERVAL_S if counts is None else console.REMOTE_LINE_INTERVAL_S
        snapshot = counts or functools.partial(progress.snapshot, shared)
        try:
            with console.ProgressDisplay(execution.progress, total, snapshot, interval_s):
                yield
        finally:
            os.environ.pop(progress.FOLDER_VARIABLE, None)


def _finished(entry: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The record of a run that has done its work."""
    return {
        **entry,
        "status": "finished",
        "row_counts": dataclasses.asdict(outcome.row_counts),
        **outcome.measured.to_json(),
        "audio_s": outcome.measured.audio_s,
        "wall_s": round(outcome.wall_s, 3),
    }


@contextmanager
def _finishing(secrets: Sequence[str]) -> Iterator[None]:
    """Says what goes wrong after a run has done its work and recorded that; does not fail it."""
    try:
        yield
    except Exception as err:
        logger.debug("an error occurred after the run had finished", exc_info=err)
        sys.stderr.write(
            f"warning: the run has finished; after that: {first_cause(err, secrets)}\n"
        )


def first_cause(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """What went wrong, without the traceback that a runner puts into its message, or secrets."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return redact(f"{type(error).__name__}: {lines[-1].strip() if lines else ''}", secrets)
