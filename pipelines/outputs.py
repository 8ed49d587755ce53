"""The output folder: what an earlier run left there, and what a run may do about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from manifests.schema import SCHEMA_VERSION
from pipelines.config import SeparateConfig
from pipelines.options import UsageError
from pipelines.plan import DEAD_LETTERS, JOURNAL, METRICS, STAGING, SUMMARY, WORK
from pipelines.run_record import FILE, differences, read_record
from transforms.access import UriAccess
from transforms.redaction import redacted
from transforms.storage import Storage, join
from transforms.writing import STEMS_FOLDER


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier runs left in an output folder.

    Attributes:
        record: the last run's ``run.json``; None where there was no run.
        metrics_uris: files of metrics.
        journal_uris: files of the journal of a run that did not end.
        dead_letter_uris: files of dead letters.
    """

    record: Mapping[str, Any] | None
    metrics_uris: tuple[str, ...] = ()
    journal_uris: tuple[str, ...] = ()
    dead_letter_uris: tuple[str, ...] = ()

    @property
    def attempt(self) -> int:
        """Of the run that comes now: 0 for the first."""
        return 0 if self.record is None else int(self.record.get("attempt", 0)) + 1


def storage_of(config: SeparateConfig) -> Storage:
    """How the files of a run are reached; local output is staged inside the output folder."""
    access = UriAccess(prefixes=config.allowed_uri_prefix)
    storage = Storage(
        options=access.guarding(config.storage_options),
        isolate_decoder=config.execution.isolate_decoder,
    )
    local = storage.local_path(config.output)
    return storage if local is None else dataclasses.replace(storage, staging=join(local, STAGING))


def examine(config: SeparateConfig, storage: Storage) -> Earlier:
    """Looks at the output folder, and changes nothing.

    Raises:
        UsageError: there is a run, and neither --resume nor --overwrite was given; or --overwrite
            would delete a manifest, or files that are no run's.
    """
    record = read_record(storage, join(config.output, FILE))
    if record is None:
        if config.overwrite and storage.list_files(config.output, ""):
            raise UsageError(
                f"--overwrite: {config.output} has files but no {FILE}: it is not an output folder"
            )
        return Earlier(record=None)
    if config.overwrite:
        for uri in config.manifests:
            if uri.startswith(f"{config.output}/"):
                raise UsageError(f"--overwrite would delete {uri}, which lies in --output")
        return Earlier(record=None)
    if not config.resume:
        raise UsageError(
            f"{config.output} holds the results of a run; add --resume to go on with it, "
            "--overwrite to begin again, or take another --output"
        )
    return Earlier(
        record=record,
        metrics_uris=tuple(storage.list_files(join(config.output, METRICS), ".parquet")),
        journal_uris=tuple(storage.list_files(join(config.output, JOURNAL), ".parquet")),
        dead_letter_uris=tuple(storage.list_files(join(config.output, DEAD_LETTERS), ".parquet")),
    )


def clear(config: SeparateConfig, storage: Storage) -> None:
    """Deletes what a run wrote into the output folder."""
    for name in (FILE, METRICS, SUMMARY, DEAD_LETTERS, WORK, STEMS_FOLDER):
        storage.remove(join(config.output, name))


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
        for uri in earlier.dead_letter_uris:
            storage.remove(uri)
    storage.discard_unfinished(config.output)
    storage.remove(join(config.output, WORK))


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
