"""The output folder: what an earlier run left there, and what a run may do about it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from manifests.schema import SCHEMA_VERSION
from pipelines import locks
from pipelines.clearing import (
    SCORE,
    SEPARATE,
    SYNTHESIZE,
    delete,
    pieces_in,
    remove_working_files,
    tables_in,
    written,
)
from pipelines.config import SeparateConfig
from pipelines.options import UsageError
from pipelines.plan import DEAD_LETTERS, METRICS, STAGING
from pipelines.run_record import FILE, differences, read_record, write_record
from transforms.access import UriAccess
from transforms.audio_io import describe
from transforms.redaction import redact, redacted
from transforms.storage import Storage, join

CLEARING = "clearing"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier runs left in an output folder.

    Attributes:
        record: the last run's ``run.json``; None where there was no run.
        attempt: of the run that comes now: 0 for the first.
        metrics_uris: files of metrics that it goes on with.
        journal_uris: files of the journal of a run that did not end.
        dead_letter_uris: files of dead letters.
    """

    record: Mapping[str, Any] | None
    attempt: int = 0
    metrics_uris: tuple[str, ...] = ()
    journal_uris: tuple[str, ...] = ()
    dead_letter_uris: tuple[str, ...] = ()


def storage_of(config: SeparateConfig, access: UriAccess | None = None) -> Storage:
    """How the files of a run are reached; local output is staged inside the output folder.

    Args:
        config: of the run.
        access: what a web server may lead to; None: what the run's rows may name.
    """
    if access is None:
        access = UriAccess(prefixes=config.allowed_uri_prefix)
    storage = Storage(
        options=access.guarding(config.storage_options),
        isolate_decoder=config.execution.isolate_decoder,
    )
    local = storage.local_path(config.output)
    return storage if local is None else dataclasses.replace(storage, staging=join(local, STAGING))


def examine(config: SeparateConfig, storage: Storage, command: str) -> Earlier:
    """Looks at the output folder, and changes nothing.

    Args:
        config: of the run.
        storage: how files are reached.
        command: which of our commands is to write there.

    Raises:
        UsageError: there is a run, and neither --resume nor --overwrite was given; or --overwrite
            was, and the run is another command's, or what is there is no run's.
    """
    record = read_record(storage, join(config.output, FILE))
    if record is None:
        if config.overwrite and storage.list_files(config.output, ""):
            raise UsageError(
                f"--overwrite: {config.output} has files but no {FILE}: it is not an output folder"
            )
        return Earlier(record=None)
    if not (config.resume or config.overwrite):
        raise UsageError(
            f"{config.output} holds the results of a run; add --resume to go on with it, "
            "--overwrite to begin again, or take another --output"
        )
    if config.overwrite:
        before = _command_of(record)
        if before != command:
            raise UsageError(
                f"--overwrite: {config.output} holds what {before} wrote, and {command} would not "
                "write it again; take another --output"
            )
        return Earlier(record=record)
    if record.get("status") == CLEARING:
        raise UsageError(
            f"--resume: {config.output} was left by an --overwrite that was stopped while it "
            "deleted earlier results; repeat it with --overwrite"
        )
    return Earlier(
        record=record,
        attempt=int(record.get("attempt", 0)) + 1,
        metrics_uris=tuple(tables_in(storage, config.output, METRICS)),
        journal_uris=tuple(pieces_in(storage, config.output)),
        dead_letter_uris=tuple(tables_in(storage, config.output, DEAD_LETTERS)),
    )


def _command_of(record: Mapping[str, Any]) -> str:
    """The command whose run a record is of."""
    settings = record.get("settings", {})
    if "mix_seed" in settings:
        return SYNTHESIZE
    return SCORE if "system" in settings else SEPARATE


@contextmanager
def usable(output: str, done: str = "written") -> Iterator[None]:
    """Names ``--output`` in what a storage has against it, as it is ``read`` or ``written``.

    Raises:
        UsageError: its scheme is not known, needs a package that is not installed, or the folder
            cannot be reached or written.
    """
    try:
        yield
    except UsageError:
        raise
    except NotADirectoryError as err:
        reason = "is a file, or lies in one; expected a folder"
        raise UsageError(f"--output {output}: {reason}") from err
    except ImportError as err:
        extra = "; this project's extra s3 brings it" if output.startswith("s3") else ""
        raise UsageError(f"--output {output}: {err}{extra}") from err
    except (OSError, ValueError) as err:
        raise UsageError(f"--output: cannot be {done}: {describe(err, output)}") from err


def clear(config: SeparateConfig, storage: Storage, earlier: Earlier, command: str) -> list[str]:
    """Deletes what earlier runs wrote into the output folder; gives lines about what stays."""
    if earlier.record is None:
        return []
    found = written(storage, config.output, earlier.record, command)
    write_record(
        storage, join(config.output, FILE), {**earlier.record, "status": CLEARING}
    )  # a run that is stopped here is not resumed
    delete(storage, config.output, found)
    said = []
    if found.unknown:
        said.append(
            f"--overwrite left {len(found.unknown)} files that no table of the earlier run names, "
            f"such as {found.unknown[0]}"
        )
    said += [
        f"--overwrite: {uri} could not be read; stems that only it names stay"
        for uri in found.unreadable
    ]
    return said


@contextmanager
def held(
    config: SeparateConfig, storage: Storage, require_ended: locks.RequireEnded
) -> Iterator[locks.Lock]:
    """Holds the output folder of a run, which no other run may enter meanwhile.

    Raises:
        UsageError: another run holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        with usable(config.output):
            lock = stack.enter_context(
                locks.holding(
                    storage,
                    config.output,
                    locks.this_process(config.command),
                    require_ended,
                    force=config.force_unlock,
                    say=say,
                )
            )
        yield lock


def require_free(
    config: SeparateConfig, storage: Storage, require_ended: locks.RequireEnded
) -> None:
    """Raises UsageError where another run writes into the output folder."""
    reason = locks.refusal(storage, config.output, require_ended, force=config.force_unlock)
    if reason is not None:
        raise UsageError(reason)


def require_no_job(
    earlier: Earlier, config: SeparateConfig, require_ended: locks.RequireEnded
) -> None:
    """Raises UsageError where a job of the earlier run goes on, whose lock is not there any more.

    Two jobs that write into one folder would give every row twice, and one that runs while its
    results are deleted would leave half of them.
    """
    record = earlier.record or {}
    if "job" in record and record["status"] != "finished" and not config.force_unlock:
        require_ended(record["job"])


def say(line: str) -> None:
    """Says something on standard error, without credentials."""
    sys.stderr.write(f"note: {redact(line)}\n")


def require_same_settings(earlier: Earlier, settings: Mapping[str, Any]) -> None:
    """Refuses to mix results that do not compare.

    Raises:
        UsageError: a setting differs from the earlier run's, with its name and both values.
    """
    if earlier.record is None:
        return
    version = earlier.record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"--resume: the tables in --output have schema version {version}, and this release "
            f"writes version {SCHEMA_VERSION}, which has other columns and file names; take "
            "another --output, or --overwrite to begin again"
        )
    different = differences(earlier.record.get("settings", {}), settings)
    if different:
        raise UsageError(
            "--resume: the run in --output had other settings: " + "; ".join(different)
        )


def tidy(config: SeparateConfig, storage: Storage, earlier: Earlier) -> None:
    """Removes what only a running job needs, and dead letters that were tried again."""
    if _same_rows(config, earlier):
        storage.remove_files(earlier.dead_letter_uris, config.output)
    remove_working_files(storage, config.output)


def _same_rows(config: SeparateConfig, earlier: Earlier) -> bool:
    """Whether this run took the rows of the earlier one, or its dead letters."""
    if earlier.record is None:
        return False
    before = earlier.record.get("config", {})
    manifests, rows = redacted(config.manifests), [row.to_record() for row in config.rows]
    if manifests == before.get("manifests") and not rows:
        return True
    dead_letters = join(config.output, DEAD_LETTERS)
    return [uri.rstrip("/") for uri in config.manifests] == [dead_letters] or (
        bool(rows) and redacted(rows) == before.get("rows")
    )
