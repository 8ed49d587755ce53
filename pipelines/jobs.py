"""Jobs beside the main one: their flags, one run of their graph, its books and its record."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import importlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from manifests.errors import ManifestError
from pipelines import flags
from pipelines.config import SeparateConfig, separate_config
from pipelines.runners import DATAFLOW
from terminal import screen
from transforms.storage.access import uris_of
from transforms.storage.redaction import redact

if TYPE_CHECKING:
    from pipelines.output_folder.clearing import Reads
    from pipelines.output_folder.lock import Lock
    from transforms.storage import Storage
    from transforms.tables.row_counts import Books

_RUN_FLAGS = ("progress", "log_level", "num_threads", "isolate_decoder")
_EXIT_CODES = """exit codes:
  0    every row is done, or failed within --max_failure_rate
  1    more rows failed than --max_failure_rate allows; all results are written
  2    a flag, a manifest, a model or the output folder cannot be used; nothing was run
  3    the job itself failed
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A job's command line.

    Attributes:
        name: of the module.
        usage: how it is called.
        description: what it does.
        examples: calls, a line each.
        shared: names of the main job's flags that it has too.
        own: flags of its own.
    """

    name: str
    usage: str
    description: str
    examples: str
    shared: tuple[str, ...]
    own: type[PipelineOptions]

    def parser(self) -> flags.JobParser:
        """The flags; shared ones are those of the main job, declared there."""
        found = flags.JobParser(
            prog=f"python -m {self.name}",
            usage=f"%(prog)s {self.usage}",
            description=self.description,
            epilog=f"examples:\n{self.examples}\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        declare: Any = self.own._add_argparse_args  # Beam annotates its own parser class
        declare(found)
        group = found.add_argument_group(
            "shared with pipelines.separate", "Flags of Beam and its runners work too."
        )
        main = flags.separate_parser()
        found.confidential = main.confidential
        for action in main._actions:
            if action.dest in (*self.shared, *_RUN_FLAGS):
                group._add_action(action)
        return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A graph that is ready to run.

    Attributes:
        command: whose job it is.
        config: what the shared flags say.
        graph: reads the manifests; writes everything, and the books.
        settings: what decides the results, for ``run.json``.
        reads: the URIs that a row makes the job read.
        closing: what in the output folder is named at the end, by what it is called.
    """

    command: str
    config: SeparateConfig
    graph: beam.PTransform[Any, Any]
    settings: Mapping[str, Any]
    closing: Mapping[str, str]
    reads: Reads = uris_of


def main(
    command: Command,
    build: Callable[[PipelineOptions, SeparateConfig], Job],
    argv: Sequence[str] | None,
) -> int:
    """Parses, builds, runs; gives the exit code."""
    screen.steady()
    given = list(sys.argv[1:] if argv is None else argv)
    secrets: tuple[str, ...] = ()
    try:
        options = flags.parse(command.parser(), given)
        config = separate_config(options, ("python", "-m", command.name, *given))
        secrets = config.secrets
        flags.forget_secrets(options)
        return _run_and_report(build(options, config), options)
    except (flags.UsageError, ManifestError) as err:
        sys.stderr.write(
            f"error: {redact(str(err), secrets)}\nSee python -m {command.name} --help\n"
        )
        return flags.EXIT_USAGE
    except SystemExit as err:  # --help
        return int(err.code or 0)


def _run_and_report(job: Job, options: PipelineOptions) -> int:
    from pipelines import execution
    from pipelines.preflight import PackageCollisionError

    try:
        return _run(job, options)
    except PackageCollisionError as err:
        raise flags.UsageError(str(err)) from err
    except (flags.UsageError, ManifestError):
        raise
    except Exception as err:
        return execution.failed(err, job.config.secrets)


def _run(job: Job, options: PipelineOptions) -> int:
    from pipelines import console, output_folder
    from pipelines.output_folder import clearing
    from pipelines.output_folder import record as records
    from pipelines.preflight import check_packages

    config = job.config
    check_packages()
    console.configure_logging(config.execution.log_level, config.secrets)
    if config.execution.runner == DATAFLOW:
        _dataflow().check(config, options)
    storage = output_folder.storage_of(config)
    require_ended = functools.partial(_require_ended, options=options)
    with output_folder.usable(config.output, "read"):
        output_folder.require_free(config, storage, require_ended)
        earlier = output_folder.examine(config, storage, job.command)
    output_folder.require_no_job(earlier, config, require_ended)
    try:
        manifests = records.manifest_facts(config.manifests, storage)
        if earlier.exists:
            reads = clearing.reads_of(config, manifests, storage, job.reads)
            clearing.require_apart(config, storage, reads)
    except (OSError, ValueError) as err:
        raise flags.UsageError(str(err)) from err
    record = records.new_record(
        command=config.command,
        config=config.to_json(),
        settings=job.settings,
        manifests=manifests,
        attempt=0,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    with output_folder.held(config, storage, require_ended) as lock:
        earlier = output_folder.examine(
            config, storage, job.command
        )  # a run may have ended meanwhile
        with output_folder.usable(config.output):
            for line in (
                output_folder.clear(config, storage, earlier, job.command)
                if config.overwrite
                else ()
            ):
                output_folder.say(line)
        return _run_alone(job, options, storage, record, lock)


def _run_alone(
    job: Job, options: PipelineOptions, storage: Storage, record: dict[str, Any], lock: Lock
) -> int:
    """What happens while the output folder is this run's."""
    from pipelines import console, dead_letters, execution, output_folder
    from pipelines.output_folder import clearing
    from pipelines.output_folder import record as records
    from pipelines.output_folder.lock import LockLostError
    from pipelines.plan import BOOKS, DEAD_LETTERS
    from pipelines.runners import measurements
    from transforms.storage import join
    from transforms.tables.row_counts import read_books

    config = job.config
    run_uri = join(config.output, records.FILE)
    with output_folder.usable(config.output):
        records.write_record(storage, run_uri, record)

    def submitted(there: Any) -> None:
        record.update(status="submitted", job=dataclasses.asdict(there))
        lock.name_job(record["job"])
        records.write_record(storage, run_uri, record)

    on_dataflow = config.execution.runner == DATAFLOW
    runner = _dataflow().runner_for(config.execution, submitted) if on_dataflow else None
    started_s = time.monotonic()
    try:
        result = execution.run_graph(job.graph, config.execution, options, runner, lock.check)
        measured = measurements.measurements_of(result)
        books = read_books(storage, join(config.output, BOOKS))
        lock.check()
        if not books.balanced:
            raise execution.JobError(f"the books do not balance: {books}")
        end = {
            "status": "finished",
            "books": dataclasses.asdict(books),
            **measured.to_json(),
            "wall_s": round(time.monotonic() - started_s, 3),
        }
        records.write_record(storage, run_uri, {**record, **end})
    except LockLostError:  # what is there is another run's by now
        raise
    except KeyboardInterrupt:
        if not config.execution.ends_with_launcher:
            lock.leave_to(None if "job" in record else config.execution.runner)
        raise
    except BaseException as err:
        cause = execution.first_cause(err, config.secrets)
        with contextlib.suppress(OSError):  # a full disk, say: the screen says the cause too
            failed = {**record, "status": "failed", "error": cause}
            records.write_record(storage, run_uri, failed)
        raise
    measured.log()
    with execution.finishing(config.secrets):
        clearing.remove_working_files(storage, config.output)
    with execution.finishing(config.secrets):
        named = {**job.closing, **({"failures": DEAD_LETTERS} if books.dead_letters else {})}
        reasons = dead_letters.reasons(books, storage, config.output)
        _say(books, [*reasons, *console.places(storage, config.output, named)])
    over = books.failure_rate > config.max_failure_rate
    return flags.EXIT_FAILURE_RATE if over else flags.EXIT_OK


def _dataflow() -> ModuleType:
    """Imported where it is needed: it brings Google's libraries, which take seconds."""
    return importlib.import_module("pipelines.runners.dataflow")


def _require_ended(job: Mapping[str, Any], options: PipelineOptions) -> None:
    _dataflow().require_ended(job, options)


def _say(books: Books, lines: Sequence[str]) -> None:
    from pipelines.console import NOTHING_TO_DO

    done = f"{books.stems} of {books.rows} rows done, {books.dead_letters} failed"
    sys.stdout.write(redact("\n".join([done if books.rows else NOTHING_TO_DO, *lines])) + "\n")
