"""``python -m manifests.validate URI``: reports what a manifest holds and what is wrong with it.

A manifest is checked in one pass and in bounded memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.files import ManifestError, StorageOptions
from manifests.files.readers import RowResult, Split, columns_of, files_of, iter_split
from manifests.row import ManifestRow, RowError, misspelt, quoted
from terminal import flags, screen

_MAX_DISTINCT = 1_000
_OTHER = "(other)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found in a manifest.

    Attributes:
        uri: file, folder or pattern.
        num_files: files that it stands for.
        num_rows: rows in them, right or wrong.
        num_invalid: rows that cannot be used.
        num_duplicates: rows whose id an earlier row has.
        errors: the first of both kinds, as many as were asked for.
        counts: rows by ``kind`` (recording, mixed), ``query``, ``polarity``, ``scored`` and
            ``dataset``; beyond 1,000 datasets, the others together.
        extra: rows that have each further column.
        hints: further columns that look like a misspelt one, and which.
    """

    uri: str
    num_files: int
    num_rows: int
    num_invalid: int
    num_duplicates: int
    errors: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    extra: Mapping[str, int]
    hints: Mapping[str, str]

    @property
    def is_valid(self) -> bool:
        """Whether every row can be used."""
        return not self.num_invalid and not self.num_duplicates


def check(uri: str, storage_options: StorageOptions = None, *, max_errors: int = 20) -> Report:
    """Reads a manifest through; a second time where ids occur twice, to say in which rows.

    It keeps 8 bytes for each row. Ids are compared by 64-bit hashes: among a million different ones
    the chance that any two are taken for one is 3e-8.

    Raises:
        ManifestError: a file cannot be read.
    """
    files = files_of(uri, storage_options)
    columns = {name for file in files for name in columns_of(file, storage_options, named_by=uri)}
    tally = _Tally(max_errors)
    for result in _results(files, storage_options):
        tally.add(result)
    repeated = tally.repeated_hashes()
    places = _duplicates(files, storage_options, repeated, max_errors - len(tally.errors))
    return Report(
        uri=uri,
        num_files=len(files),
        num_rows=tally.num_rows,
        num_invalid=tally.num_invalid,
        num_duplicates=len(tally.hashes) - len(np.unique(np.asarray(tally.hashes))),
        errors=(*tally.errors, *places),
        counts={name: dict(sorted(counter.items())) for name, counter in tally.counts.items()},
        extra=dict(sorted(tally.extra.items())),
        hints=misspelt([*tally.extra, *columns]),
    )


class _Tally:
    """Counts of one pass."""

    def __init__(self, max_errors: int) -> None:
        self._max_errors = max_errors
        self.num_rows = self.num_invalid = 0
        self.errors: list[str] = []
        self.hashes = array("Q")
        self.extra: Counter[str] = Counter()
        names = ("kind", "query", "polarity", "scored", "dataset")
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in names}

    def add(self, result: RowResult) -> None:
        self.num_rows += 1
        if isinstance(result, RowError):
            self.num_invalid += 1
            if len(self.errors) < self._max_errors:
                self.errors.append(str(result))
            return
        self.hashes.append(_hash(result.id))
        is_mixed = bool(result.interferer_uris)
        self._count("kind", "mixed" if is_mixed else "recording")
        self._count("query", result.query_type)
        self._count("polarity", result.polarity)
        self._count("scored", "yes" if is_mixed or result.reference_uri else "no")
        self._count("dataset", result.dataset or "(none)")
        for name in result.extra:
            key = name if name in self.extra or len(self.extra) < _MAX_DISTINCT else _OTHER
            self.extra[key] += 1

    def _count(self, name: str, value: str) -> None:
        counter = self.counts[name]
        counter[value if value in counter or len(counter) < _MAX_DISTINCT else _OTHER] += 1

    def repeated_hashes(self) -> set[int]:
        """Hashes that occur more than once; as many as there can be errors to show."""
        ordered = np.sort(np.asarray(self.hashes, dtype=np.uint64))
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        return {int(value) for value in repeated[: max(0, self._max_errors - len(self.errors))]}


def _hash(row_id: str) -> int:
    digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _results(files: tuple[str, ...], storage_options: StorageOptions) -> Iterator[RowResult]:
    for file in files:
        yield from iter_split(Split(uri=file), storage_options)


def _duplicates(
    files: tuple[str, ...], storage_options: StorageOptions, repeated: set[int], max_errors: int
) -> Iterator[str]:
    """Messages about rows whose id's hash is one of ``repeated``, after the first such row."""
    first: dict[int, ManifestRow] = {}
    if not repeated or max_errors <= 0:
        return
    num_errors = 0
    for row in _results(files, storage_options):
        if isinstance(row, RowError) or (key := _hash(row.id)) not in repeated:
            continue
        if key not in first:
            first[key] = row
            continue
        place = f"{first[key].manifest_uri}, row {first[key].manifest_row}"
        yield (
            f"{row.manifest_uri}, row {row.manifest_row}, id: found {quoted(row.id)}; "
            f"expected an id that no other row has, as {place} does"
        )
        num_errors += 1
        if num_errors == max_errors:
            return


def as_dict(report: Report) -> dict[str, object]:
    """The report as JSON types."""
    return {"valid": report.is_valid, **dataclasses.asdict(report)}


def report_text(report: Report) -> str:
    """The report for a terminal: what there is, then what is wrong, a line each."""
    files = screen.counted(report.num_files, "file")
    lines = [f"{report.uri}: {screen.counted(report.num_rows, 'row')} in {files}"]
    for name, counter in report.counts.items():
        shown = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:8]
        more = f" and {len(counter) - 8} more" if len(counter) > 8 else ""
        if shown:
            text = ", ".join(f"{_plain(value)} {count:,}" for value, count in shown)
            lines.append(f"  {name:<9} {text}{more}")
    columns = sorted(report.extra.items(), key=lambda column: column[0] not in report.hints)
    for name, count in columns[:20]:
        hint = f"; did you mean {report.hints[name]}?" if name in report.hints else ""
        lines.append(
            f"  column {_plain(name)} is carried as extra_{_plain(name)} "
            f"({screen.counted(count, 'row')}){hint}"
        )
    if len(columns) > 20:
        lines.append(f"  and {screen.counted(len(columns) - 20, 'more column')}")
    for name, near in report.hints.items():
        if name not in report.extra:  # no row could be used, perhaps for that
            lines.append(f"  column {_plain(name)} is not used; did you mean {near}?")
    lines.extend(report.errors)
    hidden = report.num_invalid + report.num_duplicates - len(report.errors)
    if hidden > 0:
        lines.append(f"… and {hidden:,} more")
    if report.is_valid:
        lines.append("valid")
    else:
        lines.append(
            f"not valid: {screen.counted(report.num_invalid, 'row')} cannot be used, "
            f"{report.num_duplicates:,} {'repeats' if report.num_duplicates == 1 else 'repeat'} "
            "an id"
        )
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """``text`` as it is if it is plain, else quoted."""
    return text if text.isprintable() and len(text) <= 100 else quoted(text)


def run(argv: Sequence[str] | None = None) -> int:
    """Checks a manifest.

    Args:
        argv: command line without the program's name; None for that of the process.

    Returns:
        0 if every row can be used, 1 if a row cannot or repeats an id, 2 if a file cannot be read
        or the report in JSON cannot be written.
    """
    screen.steady()
    parser = flags.Parser(
        prog="python -m manifests.validate",
        description="Says what a manifest holds and what is wrong with it, row by row.",
        epilog="Exit code: 0 valid, 1 rows that cannot be used, 2 a file that cannot be read. "
        "Example: python -m manifests.validate gs://bucket/m.parquet --max_errors 100",
    )
    parser.add_argument(
        "uri", help="CSV, JSONL or Parquet: a file, folder or pattern; any fsspec URI"
    )
    parser.add_argument("--max_errors", type=int, default=20, help="how many to show (default 20)")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default text")
    options = parser.parse_args(argv)
    if options.max_errors < 0:
        parser.error(f"--max_errors {options.max_errors}; expected 0 or more")
    try:
        report = check(options.uri, max_errors=options.max_errors)
    except ManifestError as err:
        sys.stderr.write(f"{err}\n")
        return 2
    if options.format == "json":
        sys.stdout.write(json.dumps(as_dict(report), indent=2) + "\n")
        if (error := screen.lost()) is not None:
            sys.stderr.write(f"the report was not written: {error.strerror}\n")
            return 2
    else:
        sys.stdout.write(report_text(report))
    return 0 if report.is_valid else 1


if __name__ == "__main__":
    sys.exit(run())
