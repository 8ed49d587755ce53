"""The output folder: what an earlier run left there, and what a run may do about it."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from manifests.row import SCHEMA_VERSION
from model.signal import ActivityOptions
from pipelines.config import CommonConfig
from pipelines.flags import UsageError
from pipelines.output_folder import lock as locking
from pipelines.output_folder.contents import (
    DEAD_LETTERS,
    EMBEDDINGS,
    EXPORT,
    EXPORTED,
    LISTING,
    MANIFEST,
    METRICS,
    RUN,
    SCORE,
    SEGMENTS,
    SEPARATE,
    STAGING,
    SUMMARY,
    SYNTHESIZE,
    Places,
    delete,
    has_results,
    pieces_in,
    tables_in,
    written,
)
from pipelines.output_folder.record import differences, read_record, write_record
from terminal import screen
from transforms.audio.files import describe
from transforms.elements import (
    JOURNAL,
    LETTERS,
    OF_EMBEDDINGS,
    OF_SEGMENTS,
    TABLE,
    KeptFile,
    KeptRules,
    Shard,
)
from transforms.storage import Storage, join, written_to
from transforms.storage.access import UriAccess, redact, redacted

COMMAND_LINE = "the command line"
LOST = "a run whose run.json was lost"
"""What stands for manifests that nobody knows any more: no other manifest covers their rows."""
_ATTEMPT = re.compile(r"^part-(\d+)-")
CLEARING = "clearing"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What earlier runs left in an output folder.

    Attributes:
        record: the last run's ``run.json``; None where there was no run, or it is damaged.
        damage: what is wrong with ``run.json``.
        attempt: of the run that comes now: 0 for the first.
        cleared: whether all of it is deleted before the run that comes now writes anything.
        table_uris: files of metrics, or of the rendered manifest, that it goes on with.
        segment_uris: files of segments.
        embedding_uris: files of embeddings of stems.
        journal_uris: files of the journal of a run that did not end.
        letter_uris: files of dead letters.
        sources: manifests whose rows the output is about, as far as that is known.
        rules: how what is there is held against the manifest.
    """

    record: Mapping[str, Any] | None
    damage: str | None = None
    attempt: int = 0
    cleared: bool = False
    table_uris: tuple[str, ...] = ()
    segment_uris: tuple[str, ...] = ()
    embedding_uris: tuple[str, ...] = ()
    journal_uris: tuple[str, ...] = ()
    letter_uris: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    rules: KeptRules = dataclasses.field(default_factory=KeptRules)

    @property
    def exists(self) -> bool:
        """Whether a run was there."""
        return self.record is not None or self.damage is not None

    @property
    def kept(self) -> bool:
        """Whether it left anything to go on with."""
        return next(self.files(), None) is not None

    def files(self) -> Iterator[KeptFile]:
        """All files that it left."""
        of_kind = {
            TABLE: self.table_uris,
            OF_SEGMENTS: self.segment_uris,
            OF_EMBEDDINGS: self.embedding_uris,
            JOURNAL: self.journal_uris,
            LETTERS: self.letter_uris,
        }
        for kind, uris in of_kind.items():
            for uri in uris:
                yield KeptFile(kind=kind, uri=uri)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The output folder of a run that may begin.

    Attributes:
        uri: of the folder.
        storage: how it is reached.
        earlier: what is there.
    """

    uri: str
    storage: Storage
    earlier: Earlier

    def place(self, name: str) -> str:
        """The URI of something in it, by a name of :mod:`pipelines.output_folder.contents`."""
        return join(self.uri, name)

    @property
    def prefix(self) -> str:
        """The prefix of the names of this attempt's table files."""
        return f"part-{self.earlier.attempt:03d}"


def storage_of(config: CommonConfig, access: UriAccess) -> Storage:
    """How the files of a run are reached; local output is staged inside the output folder.

    Args:
        config: of the run.
        access: what a web server may lead to.
    """
    storage = Storage(
        options=access.guarding(config.storage_options),
        isolate_decoder=config.execution.isolate_decoder,
        decoder_silence_s=min(60.0, config.execution.max_silence_s / 2 or 60.0),
    )
    local = storage.local_path(config.output)
    return storage if local is None else dataclasses.replace(storage, staging=join(local, STAGING))


def examine(config: CommonConfig, storage: Storage, command: str) -> Earlier:
    """Looks at the output folder, and changes nothing.

    Args:
        config: of the run.
        storage: how files are reached.
        command: which of our commands is to write there.

    Raises:
        UsageError: there is a run, and neither --resume nor --overwrite was given; or the run is
            another command's; or --overwrite was given, and what is there is no run's.
    """
    uri, output = join(config.output, RUN), config.output
    record, damage = _record(storage, uri)
    metrics, rendered, exported = (
        tables_in(storage, output, name) for name in (METRICS, MANIFEST, EXPORTED)
    )
    tables = {SYNTHESIZE: rendered, EXPORT: exported}.get(command, metrics)
    segments, embeddings, letters = (
        tables_in(storage, output, name) for name in (SEGMENTS, EMBEDDINGS, DEAD_LETTERS)
    )
    pieces = pieces_in(storage, output)
    ours = [*metrics, *segments, *embeddings, *rendered, *exported, *letters, *pieces]
    if record is None and damage is None and ours:
        damage = "is missing"
    if record is None and damage is None:
        if config.overwrite and has_results(storage, output):
            raise UsageError(
                f"--overwrite: {output} has files but no {RUN}: it is not an output folder"
            )
        return Earlier(record=None)
    if record is None and not ours:
        raise UsageError(f"{uri} {damage}, and there are no tables of a run: move it away")
    if not (config.resume or config.overwrite):
        also = "" if damage is None else f" (its {RUN} {damage})"
        raise UsageError(
            f"{output} holds the results of a run{also}; "
            "add --resume to go on with it, --overwrite to begin again, or take another --output"
        )
    before = command if record is None else _command_of(record)
    if before != command:
        raise UsageError(
            f"{'--resume' if config.resume else '--overwrite'}: {output} holds what {before} "
            f"wrote, and {command} would not write it again; take another --output"
        )
    # Shards of an unknown selection would stay beside those of this one.
    others = {*ours} - {*exported, *letters, *pieces}
    is_lost = command == EXPORT and record is None and bool(exported) and not others
    if config.overwrite or is_lost:
        return Earlier(record=record, damage=damage, cleared=True)
    if record is not None and record["status"] == CLEARING:
        raise UsageError(
            f"--resume: {output} was left by an --overwrite that was stopped while it "
            "deleted earlier results; repeat it with --overwrite"
        )
    sources = _sources_of(record)
    return Earlier(
        record=record,
        damage=damage,
        attempt=_attempt(record, [*tables, *segments, *embeddings, *letters]),
        table_uris=tuple(tables),
        segment_uris=tuple(segments),
        embedding_uris=tuple(embeddings),
        journal_uris=tuple(pieces),
        letter_uris=tuple(letters),
        sources=sources,
        rules=KeptRules(covers=True)
        if command == EXPORT  # what is selected is all that a data set is about
        else _rules(config, storage, sources),
    )


def _record(storage: Storage, uri: str) -> tuple[Mapping[str, Any] | None, str | None]:
    """The record of the last run, or what is wrong with it."""
    try:
        record: Any = read_record(storage, uri)
    except (ValueError, RecursionError):
        return None, "is not JSON"
    kinds = {"status": str, "settings": dict, "config": dict}
    if record is None or (
        isinstance(record, dict)
        and all(isinstance(record.get(name), kind) for name, kind in kinds.items())
    ):
        return record, None
    return None, "is not the record of a run"


def _attempt(record: Mapping[str, Any] | None, tables: Sequence[str]) -> int:
    """Returns the number of the next attempt, above that of every earlier file and record."""
    before = [int(name) for uri in tables for name in _ATTEMPT.findall(uri.rsplit("/", 1)[-1])]
    known = (record or {}).get("attempt")
    return max([*before, known if isinstance(known, int) else 0]) + 1


def _sources_of(record: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The manifests of all runs that an output holds."""
    if record is None:
        return (LOST,)
    before = record["config"].get("manifests") or [COMMAND_LINE]
    return tuple(record.get("sources") or before)


def _given(config: CommonConfig, storage: Storage) -> list[str]:
    """The manifests of a run as ``run.json`` names them, but for the output's own dead letters."""
    letters = Places(storage, [join(config.output, DEAD_LETTERS)])
    own = [uri.rstrip("/") for uri in config.manifests if not letters.hold(uri)]
    return list(map(str, redacted(own)))


def _rules(config: CommonConfig, storage: Storage, sources: Sequence[str]) -> KeptRules:
    given = _given(config, storage)
    return KeptRules(
        covers={uri.rstrip("/") for uri in sources} <= set(given),
        retrying=bool(config.manifests) and not given,
        roots=() if config.recordings is None else tuple(redacted(list(config.recordings.roots))),
    )


def sources_after(
    config: CommonConfig, storage: Storage, earlier: Earlier, *, others: int | None = None
) -> list[str]:
    """The manifests whose rows the output is about with this run.

    Args:
        config: of the run.
        storage: how files are reached.
        earlier: what was there.
        others: rows that stay and are not in its manifests; None: not known yet.
    """
    by_flags = config.rows or config.recordings is not None
    given = [COMMAND_LINE] if by_flags else _given(config, storage)
    if given and (others == 0 or earlier.rules.covers):
        return given
    return list(dict.fromkeys([*earlier.sources, *given]))


def outputs_after(config: CommonConfig, earlier: Earlier) -> list[str]:
    """Where the output was when something in it was written: it may have been moved in between."""
    before = written_to(earlier.record or {}) if config.resume else ()
    return list(dict.fromkeys([*before, *map(str, redacted([config.output]))]))


def _command_of(record: Mapping[str, Any]) -> str:
    """The command whose run a record is of."""
    if "cleared_by" in record:  # the record of its run was missing
        return str(record["cleared_by"])
    settings = record.get("settings", {})
    if "mix_seed" in settings:
        return SYNTHESIZE
    if "layout" in settings:
        return EXPORT
    return SCORE if "system" in settings else SEPARATE


@contextmanager
def usable(output: str, done: str = "written") -> Iterator[None]:
    """Turns a storage error while ``--output`` is ``read`` or ``written`` into a UsageError.

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


def clear(config: CommonConfig, storage: Storage, earlier: Earlier, command: str) -> list[str]:
    """Deletes what earlier runs wrote into the output folder; gives lines about what stays."""
    if not earlier.exists:
        return []
    found = written(storage, config.output, earlier.record, command)
    empty: Mapping[str, Any] = {"settings": {}, "config": {}, "cleared_by": command}
    write_record(
        storage, join(config.output, RUN), {**(earlier.record or empty), "status": CLEARING}
    )  # a run that is stopped here is not resumed
    delete(storage, config.output, found)
    flag, said = "--overwrite" if config.overwrite else "--resume", []
    if found.unknown:
        said.append(
            f"{flag} left {screen.counted(len(found.unknown), 'file')} that no table of the "
            f"earlier run names, such as {found.unknown[0]}"
        )
    said += [
        f"{flag}: {uri} could not be read; audio that only it names stays"
        for uri in found.unreadable
    ]
    said += [f"{flag} left {link}, a link, and where it leads" for link in found.links]
    return said


@contextmanager
def held(
    config: CommonConfig, storage: Storage, require_ended: locking.RequireEnded
) -> Iterator[locking.Lock]:
    """Holds the output folder of a run, which no other run may enter meanwhile.

    Raises:
        UsageError: another run holds it, or it cannot be written.
    """
    with ExitStack() as stack:
        with usable(config.output):
            lock = stack.enter_context(
                locking.holding(
                    storage,
                    config.output,
                    locking.this_process(config.command),
                    require_ended,
                    force=config.force_unlock,
                    say=say,
                )
            )
        yield lock


def require_free(
    config: CommonConfig, storage: Storage, require_ended: locking.RequireEnded
) -> None:
    """Raises UsageError where another run writes into the output folder."""
    reason = locking.refusal(storage, config.output, require_ended, force=config.force_unlock)
    if reason is not None:
        raise UsageError(reason)


def require_same_division(config: CommonConfig, storage: Storage) -> None:
    """Refuses to mix results of parts of a manifest with those of other parts, or of a whole one.

    Raises:
        UsageError: the folder has parts of another division, or parts and a whole would be mixed.
    """
    whole = config.output
    if config.shard is not None:
        whole = config.shard.whole_of(whole)
    count = num_shards(storage, whole)
    if config.shard is None:
        if count:
            raise UsageError(
                f"--output {whole} holds parts of a manifest (shard=…-of-{count}): name one with "
                "--shard, or take another --output"
            )
    elif count not in (0, config.shard.count):
        raise UsageError(
            f"--shard {config.shard}: --output {whole} holds parts of {count} "
            f"(shard=…-of-{count}), and rows would be there twice; go on with N={count}, or take "
            "another --output"
        )
    elif storage.exists(join(whole, RUN)):
        raise UsageError(
            f"--shard {config.shard}: --output {whole} holds a run over all rows; take another "
            "--output"
        )


def num_shards(storage: Storage, uri: str | None) -> int:
    """Into how many parts the manifest was divided whose results are in a folder; 0: into none.

    Raises:
        UsageError: parts of several divisions are there.
    """
    if uri is None or "{" in uri:  # a template of stems
        return 0
    shards = map(Shard.in_folder, storage.list_folders(uri))
    counts = sorted({shard.count for shard in shards if shard is not None})
    if len(counts) > 1:
        raise UsageError(
            f"{uri} holds parts of several divisions: shard=…-of-{counts[0]} and "
            f"shard=…-of-{counts[1]}; rows would be there twice"
        )
    return counts[0] if counts else 0


def require_no_job(
    earlier: Earlier, config: CommonConfig, require_ended: locking.RequireEnded
) -> None:
    """Raises UsageError if an earlier run's job still runs on its service, with no lock left.

    Two jobs that write into one folder would give every row twice, and one that runs while its
    results are deleted would leave half of them.
    """
    record = earlier.record or {}
    if "job" in record and record["status"] != "finished" and not config.force_unlock:
        require_ended(record["job"])


def say(line: str) -> None:
    """Says something on standard error, without credentials."""
    sys.stderr.write(f"note: {redact(line)}\n")


_LATER_SETTINGS = {
    "activity": dataclasses.asdict(ActivityOptions()),
    "segment_scores": False,
    "keep_stems": "all",
    "min_presence": 0.5,
    "stem_quality": None,
    "clap_scores": "all",
    "embeddings": False,
    "screen": None,
}
"""Settings that the first runs of this schema version had no name for, and what held for them."""


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
    before = {name: value for name, value in _LATER_SETTINGS.items() if name in settings}
    before |= earlier.record.get("settings", {})
    if before.get("screen") is None and "screen" in settings:
        before["screen"] = settings["screen"]  # what was finished has its stems; the rest is new
    different = differences(before, settings)
    if different:
        raise UsageError(
            "--resume: the run in --output had other settings: " + "; ".join(different)
        )


def begin(folder: OutputFolder) -> None:
    """Writes down which files earlier runs left, where the graph of a run that goes on finds it."""
    if folder.earlier.kept:
        listing = b"".join(file.to_line() for file in folder.earlier.files())
        folder.storage.write_bytes(folder.place(LISTING), listing)


def tidy(config: CommonConfig, storage: Storage, earlier: Earlier, *, has_rows: bool) -> None:
    """Removes what earlier attempts wrote and this one does not write again under its name.

    That is their dead letters, of which those that still stand are among the new ones, and the
    summary of rows that have all left.

    Args:
        config: of the run.
        storage: how files are reached.
        earlier: what was there.
        has_rows: whether any row is finished, by whichever attempt.
    """
    summaries = () if has_rows else tables_in(storage, config.output, SUMMARY)
    storage.remove_files([*earlier.letter_uris, *summaries], config.output)
