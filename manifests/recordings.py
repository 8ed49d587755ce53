"""``python -m manifests.recordings``: prints the manifest that recordings and queries mean.

Every recording is asked every query. Recordings are found in folders, by patterns and in shards, a
folder at a time and never from a client's cache; what the pipelines do with ``--recordings`` is
made of the same parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import json
import os
import posixpath
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

from fsspec.implementations.local import LocalFileSystem

from manifests import QUERY_FLAGS
from manifests.audio_formats import AUDIO_SUFFIXES
from manifests.files import (
    IS_NEITHER,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    ManifestError,
    StorageOptions,
    absolute,
    connect,
    existing_path,
    filesystem,
    folder_of,
    links_of,
    local_path,
    reading,
    reason_of,
    split_fragment,
)
from manifests.files.readers import tabular
from manifests.files.writing import cell_of, csv_cell
from manifests.row import (
    MAX_NAME_CHARS,
    ManifestRow,
    RowError,
    is_nothing,
    nearest_column,
    parse_record,
    quoted,
)
from manifests.shards import (
    HIDDEN,
    NO_COLUMN,
    NOT_A_FILE,
    NOT_AUDIO,
    OUTPUT,
    SPARSE,
    Broken,
    Form,
    Listed,
    Opened,
    Recording,
    Skipped,
    index,
)
from terminal import flags, screen

OTHERS: Final = "others"
"""As --negative: the texts of the other queries."""
MAX_QUERIES: Final = 1_000
QUERY_FIELDS: Final = (
    *("positive_text", "negative_text", "positive_audio_uris", "negative_audio_uris"),
    *("text_weight", "label"),
)
"""The columns of manifests that a query has, beside its name."""
_MAX_SLUG_CHARS = 80
_PATTERN = re.compile(r"[*?\[]")
_LISTS: Final[Mapping[str, Form]] = {
    ".jsonl": "nemo",
    ".ndjson": "nemo",
    ".json": "nemo",
    ".scp": "kaldi",
}
_SHARDS: Final[Mapping[str, Form]] = {
    **dict.fromkeys(TAR_SUFFIXES, "tar"),
    **dict.fromkeys(PARQUET_SUFFIXES, "parquet"),
}
_MARKERS = frozenset({"_SUCCESS"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NamedQuery:
    """A query that every recording is asked: a name for ids, and its columns of a manifest."""

    name: str
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recordings:
    """What a command line asks of which recordings.

    Attributes:
        roots: files, folders and patterns, absolute.
        queries: that each recording is asked.
        audio_column: of Parquet files; None: the one that is found.
        output: a folder that is not looked into.
    """

    roots: tuple[str, ...]
    queries: tuple[NamedQuery, ...]
    audio_column: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        """Checks that something is asked of something."""
        if not self.roots or not self.queries:
            raise ValueError("expected recordings, and at least one query for them")


def rows_of(
    recording: Recording, queries: Sequence[NamedQuery]
) -> Iterator[ManifestRow | RowError]:
    """A row for each query: its id is the recording's path and the query's name."""
    for number, query in enumerate(queries, 1):
        values = {
            "label": query.name,
            **query.fields,
            "id": f"{recording.path}/{query.name}",
            "mixture_uri": recording.uri,
            "offset_s": recording.offset_s,
            "duration_s": recording.duration_s,
            "group": recording.path,
        }
        row = recording.number * len(queries) + number
        parsed = parse_record(values, uri=recording.listed_in, row=row, folder="/")
        if isinstance(parsed, ManifestRow) and recording.place is not None:
            parsed = dataclasses.replace(parsed, place=recording.place)
        yield parsed


# ----- queries ---------------------------------------------------------------------------------


def queries_of(
    *,
    texts: Sequence[str] = (),
    negative: str | None = None,
    positive_audio_uris: Sequence[str] = (),
    negative_audio_uris: Sequence[str] = (),
    text_weight: float | None = None,
    uri: str | None = None,
    storage_options: StorageOptions = None,
) -> tuple[NamedQuery, ...]:
    """The queries of a command line, each with a name; messages call things by their flags.

    Args:
        texts: each of them is a query of its own.
        negative: goes with every query that has no negative part of its own; ``others`` stands
            for the texts of all other queries.
        positive_audio_uris: go with every one of ``texts``; without any they are a query.
        negative_audio_uris: likewise.
        text_weight: of those.
        uri: a table of further queries.
        storage_options: keyword arguments of its file system.

    Raises:
        ValueError: something is empty, said twice or missing.
        ManifestError: the table cannot be read or used.
    """
    texts = [text.strip() for text in texts]
    if "" in texts:
        raise ValueError("--positive: found an empty text; expected what to extract")
    if repeated := [text for text, count in Counter(texts).items() if count > 1]:
        raise ValueError(f"--positive: {repeated[0]!r} is given twice; give each text once")
    negative = negative.strip() if negative is not None else None
    if negative == "":
        raise ValueError("--negative: found an empty text; expected what to suppress, or no flag")
    others = negative is not None and negative.lower() == OTHERS
    found = list(read_queries(uri, storage_options)) if uri is not None else []
    if not others and negative is not None:
        found = [
            query if _has_negative(query.fields) else _with(query, negative) for query in found
        ]
    shared = {
        "negative_text": None if others else negative,
        "positive_audio_uris": list(positive_audio_uris) or None,
        "negative_audio_uris": list(negative_audio_uris) or None,
        "text_weight": text_weight,
    }
    given = [
        NamedQuery(name=name, fields={"positive_text": text, **_present(shared)})
        for text, name in zip(texts, slugs(texts), strict=True)
    ]
    examples = [*positive_audio_uris, *negative_audio_uris]
    if not texts and (examples or (uri is None and shared["negative_text"] is not None)):
        name = _name_without_text(positive_audio_uris, negative, negative_audio_uris)
        given = [NamedQuery(name=name, fields=_present(shared))]
    if text_weight is not None and not given:
        raise ValueError("--text_weight goes with --positive_audio; a table of queries has its own")
    for query in given:
        _require_query(query)
    queries = [*given, *found]
    if repeated := [name for name, count in Counter(q.name for q in queries).items() if count > 1]:
        raise ValueError(f"{uri}: the name {repeated[0]!r} is another query's; give each its own")
    if len(queries) > MAX_QUERIES:
        raise ValueError(f"{len(queries)} queries; expected at most {MAX_QUERIES}")
    if not others:
        return tuple(queries)
    keeping = frozenset(query.name for query in found if _has_negative(query.fields))
    return tuple(_against_others(queries, keeping, negative or ""))


def _require_query(query: NamedQuery) -> None:
    """Raises ValueError, naming the flag, where no recording could be asked this."""
    record = {**query.fields, "id": query.name, "mixture_uri": "/any.wav"}
    row = parse_record(record, uri="command line", row=1, folder="/")
    if isinstance(row, RowError):
        flag = "--" + re.sub("_(text|uris)$", "", row.field or "positive")
        raise ValueError(f"{flag}: found {row.value}; expected {row.expected}")


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _has_negative(fields: Mapping[str, Any]) -> bool:
    return any(fields.get(name) for name in ("negative_text", "negative_audio_uris"))


def _with(query: NamedQuery, negative_text: str) -> NamedQuery:
    return dataclasses.replace(query, fields={**query.fields, "negative_text": negative_text})


def _against_others(
    queries: Sequence[NamedQuery], keeping: frozenset[str], said: str
) -> list[NamedQuery]:
    """The queries, each to suppress what all others ask for in words; those to keep as they are.

    What differs in case, blanks and punctuation alone is one text: nothing is to be extracted and
    suppressed at once.
    """
    texts: dict[str, str] = {}
    for query in queries:
        if (text := query.fields.get("positive_text")) is not None:
            texts.setdefault(_plain(text), text)
    if len(texts) < 2:
        raise ValueError(
            f"--negative {said} stands for the other --positive texts of the command, and it "
            "has no others; give several --positive, or say what to suppress"
        )
    against = []
    for query in queries:
        own = _plain(query.fields.get("positive_text") or "")
        others = " and ".join(text for plain, text in texts.items() if plain != own)
        against.append(query if query.name in keeping else _with(query, others))
    return against


def _plain(text: str) -> str:
    """A text for comparison: its words in small letters, or itself where it has none."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def slugs(texts: Sequence[str]) -> list[str]:
    """A short name for each text in ``[a-z0-9_]``; where two are the same, with a digest each."""
    plain = [_slug(text) for text in texts]
    count = Counter(plain)
    return [
        slug if slug and count[slug] == 1 else f"{slug or 'query'}_{_digest(text)}"
        for slug, text in zip(plain, texts, strict=True)
    ]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    return slug[:_MAX_SLUG_CHARS].strip("_")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _name_without_text(
    positive_audio_uris: Sequence[str], negative: str | None, negative_audio_uris: Sequence[str]
) -> str:
    """The name of a query that says in no words what to extract."""
    if positive_audio_uris:
        (name,) = slugs([stem_of(positive_audio_uris[0])])
        return name
    (name,) = slugs([negative or stem_of(negative_audio_uris[0])])
    return f"without_{name}"


def stem_of(uri: str) -> str:
    """The last part of a path, without what follows its last dot."""
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    return name.rpartition(".")[0] or name


def read_queries(uri: str, storage_options: StorageOptions = None) -> Iterator[NamedQuery]:
    """Queries of a table with the column ``name`` and those of :data:`QUERY_FIELDS`.

    Raises:
        ManifestError: it cannot be read, has another column, or a row that is no query.
    """
    folder = folder_of(uri)
    is_empty = True
    for record in tabular(uri, "name", storage_options):
        is_empty = False
        if record.error is not None:
            raise ManifestError(str(record.error))
        values = {n: v for n, v in (record.values or {}).items() if not is_nothing(v)}
        place = f"{uri}, row {record.row}"
        name = values.pop("name", None)
        if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS:
            expected = f"a name of 1 to {MAX_NAME_CHARS} characters"
            raise ManifestError(f"{place}, name: found {quoted(name)}; expected {expected}")
        for column in values.keys() - set(QUERY_FIELDS):
            near = nearest_column(column)
            hint = f"is it {near}?" if near in QUERY_FIELDS else "it is no field of a query"
            fields = ", ".join(("name", *QUERY_FIELDS))
            raise ManifestError(f"{place}: column {quoted(column)}: {hint}; expected {fields}")
        parsed = parse_record(
            {**values, "id": name, "mixture_uri": "/any.wav"},
            uri=uri,
            row=record.row,
            folder=folder,
        )
        if isinstance(parsed, RowError):
            raise ManifestError(str(parsed))
        given = parsed.to_record()
        yield NamedQuery(name=name.strip(), fields=_present({n: given[n] for n in QUERY_FIELDS}))
    if is_empty:
        raise ManifestError(f"{uri}: has no queries")


# ----- what there is ----------------------------------------------------------------------------


def require_root(
    uri: str, storage_options: StorageOptions = None, output: str | None = None
) -> None:
    """Checks that a root is there: a file, a folder, or the folder in which a pattern begins.

    Args:
        uri: the root.
        storage_options: keyword arguments of the file system.
        output: a folder that is not looked into.

    Raises:
        ManifestError: it is not, or cannot be looked at, or is the output folder itself.
    """
    root = _look(uri, storage_options)
    if output is not None and root.file is None:
        left_out = _folder_on(root.files, output, storage_options)
        if left_out is not None and left_out == _folder(root.files, root.folder):
            raise ManifestError(
                f"{uri}: --output is the folder of these recordings, and is not looked into; take "
                f"another, such as {output.rstrip('/')}/out"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Root:
    """A root as it was found; ``parts`` are those of a pattern below ``folder``."""

    files: Any
    folder: str
    file: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        return isinstance(self.files, LocalFileSystem)

    def uri(self, path: str) -> str:
        """The URI of a path on the file system."""
        return path if self.is_local else str(self.files.unstrip_protocol(path))

    def names_suffix(self, suffix: str) -> bool:
        """Whether somebody asked for names that end so."""
        asked = self.parts[-1] if self.parts else self.file or ""
        return asked.lower().endswith(suffix)

    def wants_file(self, parts: Sequence[str]) -> bool:
        """Whether a file of such a path below the folder is meant."""
        return not self.parts or _matches(parts, self.parts)

    def wants_folder(self, parts: Sequence[str]) -> bool:
        """Whether something below such a folder can be meant."""
        if not self.parts:
            return True
        for part, pattern in zip(parts, self.parts, strict=False):
            if pattern == "**":
                return True
            if not fnmatch.fnmatchcase(part, pattern):
                return False
        return len(parts) < len(self.parts)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, in which ``**`` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )


def looks_into(root: str, place: str) -> bool:
    """Whether a root is, holds or matches a folder or file, by their names alone."""
    return place.startswith(root.rstrip("/") + "/") or _matches(place.split("/"), root.split("/"))


def _require_no_part(uri: str, storage_options: StorageOptions) -> None:
    """Raises ManifestError where a part of a file that is there is named."""
    address, _ = split_fragment(uri)
    if address == uri:
        return
    files, path = filesystem(address, storage_options)
    if files.exists(path):
        raise ManifestError(
            f"{uri}: --recordings takes files, folders and shards; a part of one goes with "
            "--mixture, or into a manifest"
        )


def _look(uri: str, storage_options: StorageOptions) -> _Root:
    """Finds out what a root is; what is there under the very name is meant, not a pattern."""
    if len(links_of(uri)) > 1:
        raise ManifestError(f"{uri}: recordings are not looked for in chains of file systems")
    files, path = filesystem(uri, storage_options)
    try:
        files.invalidate_cache()
        if isinstance(files, LocalFileSystem):
            path = existing_path(path)
        if files.isfile(path):
            return _Root(files=files, folder=posixpath.dirname(path), file=path)
        if files.isdir(path):
            return _Root(files=files, folder=path.rstrip("/") or "/")
        parts = path.split("/")
        first = next((at for at, part in enumerate(parts) if _PATTERN.search(part)), None)
        if first is None:
            _require_no_part(uri, storage_options)
            files.info(path)  # says what is the matter
            raise ManifestError(f"{uri}: {IS_NEITHER}")
        if any("**" in part and part != "**" for part in parts):
            raise ValueError("** stands alone between slashes, as in folder/**/*.flac")
        folder = "/".join(parts[:first]) or "/"
        files.info(folder)
    except (OSError, ValueError) as err:
        raise ManifestError(f"{uri}: {reason_of(err)}") from err
    return _Root(files=files, folder=folder, parts=tuple(parts[first:]))


def form_of(name: str, root: _Root) -> tuple[Form, str, bool] | None:
    """What a file is by its name, the name without its suffix, and whether that was asked for.

    Lists of recordings are such only where somebody named them: a folder of recordings has other
    JSON too. What is named as a file and ends in nothing that is known is a recording.
    """
    lower = name.lower()
    for suffix, form in {**_SHARDS, **_LISTS}.items():
        if lower.endswith(suffix):
            asked = root.names_suffix(suffix)
            if not asked and suffix in _LISTS:
                return None
            return form, name[: -len(suffix)], asked
    stem, dot, suffix = name.rpartition(".")
    if f".{suffix.lower()}" in AUDIO_SUFFIXES and dot and stem:
        return "audio", stem, True
    return ("audio", stem or name, True) if root.file is not None else None


def list_root(
    number: int, uri: str, output: str | None = None, storage_options: StorageOptions = None
) -> Iterator[Listed | Skipped | Broken]:
    """What lies below a root, a folder at a time: the names of one folder are held, not of all.

    Args:
        number: of the root.
        uri: the root.
        output: a folder that is not looked into.
        storage_options: keyword arguments of the file system.

    Raises:
        ManifestError: the root itself is not there.
    """
    root = _look(uri, storage_options)
    if root.file is not None:
        name = posixpath.basename(root.file)
        yield from _listed([name], (), number, root, ())
        return
    left_out = None if output is None else _folder_on(root.files, output, storage_options)
    stack: list[tuple[str, ...]] = [()]
    while stack:
        parts = stack.pop()
        path = posixpath.join(root.folder, *parts)
        if left_out is not None and left_out == _folder(root.files, path):
            yield Skipped(why=OUTPUT)
            continue
        names: list[str] = []
        folders: list[str] = []
        skipped: Counter[str] = Counter()
        try:
            for name, kind in _entries(root.files, path):
                wanted = root.wants_folder if kind == "folder" else root.wants_file
                if not wanted((*parts, name)):
                    continue
                if (why := _passed_over(name, kind, root)) is not None:
                    skipped[why] += 1
                else:
                    (folders if kind == "folder" else names).append(name)
        except (OSError, ValueError) as err:
            code = "permission" if isinstance(err, PermissionError) else "io_error"
            message = f"{root.uri(path)}: the folder cannot be listed: {reason_of(err)}"
            yield Broken(uri=root.uri(path), code=code, message=message)
        yield from _listed(names, folders, number, root, parts)
        yield from (Skipped(why=why, count=count) for why, count in sorted(skipped.items()))
        stack += [(*parts, name) for name in sorted(folders, reverse=True)]


def _passed_over(name: str, kind: str, root: _Root) -> str | None:
    """Why something in a folder is not looked into; None where it is a folder or a recording."""
    if name.startswith(".") or name in _MARKERS:
        return HIDDEN
    if kind == "other":
        return NOT_A_FILE
    return NOT_AUDIO if kind == "file" and form_of(name, root) is None else None


def _listed(
    names: list[str], folders: Iterable[str], number: int, root: _Root, parts: tuple[str, ...]
) -> Iterator[Listed]:
    """Files of one folder, none called as another is.

    Where two differ in their suffix alone, the later one keeps it, and so does a shard beside a
    folder of its name, whose recordings would be called as those in the folder are.
    """
    known, beside = [], frozenset(folders)
    for name in names:
        found = form_of(name, root)
        if found is not None:
            known.append((found[1], name, found[0], found[2]))
    before, whole = None, set[str]()
    for stem, name, form, is_named in sorted(known):
        called = stem
        if stem == before or stem in whole or (form != "audio" and stem in beside):
            called = name
            whole.add(name)
        path = posixpath.join(*parts, called)
        uri = root.uri(posixpath.join(root.folder, *parts, name))
        yield Listed(root=number, path=path, uri=uri, form=form, is_named=is_named)
        before = stem


def _entries(files: Any, folder: str) -> Iterator[tuple[str, str]]:
    """Names in a folder, and whether each is a file, a folder or something else."""
    if isinstance(files, LocalFileSystem):
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    loop = entry.is_symlink() and _holds(entry.path, folder)
                    yield entry.name, "other" if loop else "folder"
                else:
                    yield entry.name, "file" if entry.is_file() else "other"
        return
    files.invalidate_cache(folder)  # what is listed by a client is kept for ever by some
    for found in files.ls(folder, detail=True):
        path = str(found["name"]).rstrip("/")
        if path != folder.rstrip("/"):
            kind = {"file": "file", "directory": "folder"}.get(found["type"], "other")
            yield path.rpartition("/")[2], kind
    files.invalidate_cache(folder)


def _holds(link: str, folder: str) -> bool:
    """Whether a link leads to a folder that holds the one in which it lies."""
    there, here = os.path.realpath(link), os.path.realpath(folder)
    return here == there or here.startswith(there.rstrip("/") + "/")


def _folder_on(files: Any, uri: str, storage_options: StorageOptions) -> str | None:
    """The folder of a URI on a file system that was reached with these options; None: elsewhere."""
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    here = "file" if local_path(uri) is not None else uri.partition("://")[0].lower()
    return _folder(files, connect(uri, storage_options)[1]) if here in protocols else None


def _folder(files: Any, path: str) -> str:
    """The path of a folder, whatever it is called."""
    return os.path.realpath(path) if isinstance(files, LocalFileSystem) else path.rstrip("/")


def root_name(uri: str) -> str:
    """What a root is called: its last folder that is no pattern."""
    parts = [part for part in re.sub(r"^[A-Za-z0-9+.-]+://", "", uri).split("/") if part]
    first = next((at for at, part in enumerate(parts) if _PATTERN.search(part)), None)
    if first is not None:
        return parts[first - 1] if first else "recordings"
    name = parts[-1] if parts else "recordings"
    is_file = _suffix_of(name) in (*AUDIO_SUFFIXES, *_SHARDS, *_LISTS)
    return parts[-2] if is_file and len(parts) > 1 else name


def _suffix_of(name: str) -> str:
    lower = name.lower()
    return ".tar.gz" if lower.endswith(".tar.gz") else f".{lower.rpartition('.')[2]}"


def apart(same_path: Iterable[Listed], roots: Sequence[str]) -> Iterator[Listed]:
    """Files of one path below their roots, each with a path of its own; to be done twice.

    The first, by the order of the roots, keeps it: what a run has done stays done where a later
    one has further roots. The others have the name of their root in front. Where that, the second
    time, is what another file is called anyway, it has a digest of the file's URI.
    """
    ordered = sorted(same_path, key=lambda each: (each.below is not None, each.root, each.uri))
    for number, each in enumerate(ordered):
        name = root_name(roots[each.root])
        if number == 0:
            yield each
        elif each.below is None:
            yield dataclasses.replace(each, path=f"{name}/{each.path}", below=each.path)
        else:
            yield dataclasses.replace(each, path=f"{name}_{_digest(each.uri)}/{each.below}")


def once(same_uri: Iterable[Listed]) -> Listed:
    """A file that several roots hold, as the first of them has it."""
    return min(same_uri, key=lambda each: each.root)


# ----- the command ------------------------------------------------------------------------------


def manifest_of(
    asked: Recordings,
    said: Callable[[Skipped], None],
) -> Iterator[ManifestRow | RowError | Broken]:
    """The rows that recordings and queries mean, in the order of names.

    Of one root the names of a folder are held at a time, of several those of all.

    Raises:
        ManifestError: a root is not there.
    """

    def found() -> Iterator[Listed | Skipped | Broken]:
        for number, uri in enumerate(asked.roots):
            yield from list_root(number, uri, asked.output)

    @contextmanager
    def opened(uri: str) -> Iterator[BinaryIO]:
        files, path = filesystem(uri)
        with reading(uri), files.open(path, "rb") as stream:
            yield stream

    for each in found() if len(asked.roots) == 1 else _apart(found(), asked.roots):
        if isinstance(each, Skipped):
            said(each)
            continue
        for recording in (each,) if isinstance(each, Broken) else _opening(each, opened, asked):
            if isinstance(recording, Skipped):
                said(recording)
            elif isinstance(recording, Recording):
                yield from rows_of(recording, asked.queries)
            else:
                yield recording


def _opening(
    listed: Listed, opened: Opened, asked: Recordings
) -> Iterator[Recording | RowError | Skipped | Broken]:
    return index(listed, opened, asked.audio_column)


def _apart(
    found: Iterable[Listed | Skipped | Broken], roots: Sequence[str]
) -> Iterator[Listed | Skipped | Broken]:
    by_uri: dict[str, list[Listed]] = defaultdict(list)
    for each in found:
        if isinstance(each, Listed):
            by_uri[each.uri].append(each)
        else:
            yield each
    listed = [once(same_uri) for same_uri in by_uri.values()]
    for _ in range(2):
        by_path: dict[str, list[Listed]] = defaultdict(list)
        for each in listed:
            by_path[each.path].append(each)
        listed = [each for same_path in by_path.values() for each in apart(same_path, roots)]
    yield from listed


_COLUMNS: Final = (
    *("id", "mixture_uri", "positive_text", "negative_text", "positive_audio_uris"),
    *("negative_audio_uris", "text_weight", "offset_s", "duration_s", "label", "group"),
)


def asked_queries(
    given: argparse.Namespace, storage_options: StorageOptions = None
) -> tuple[NamedQuery, ...]:
    """The queries of a parsed command line.

    Raises:
        ValueError: they cannot be used.
        ManifestError: the table of queries cannot be read.
    """
    return queries_of(
        texts=given.positive or (),
        negative=given.negative,
        positive_audio_uris=[
            _absolute("--positive_audio", uri) for uri in given.positive_audio or ()
        ],
        negative_audio_uris=[
            _absolute("--negative_audio", uri) for uri in given.negative_audio or ()
        ],
        text_weight=given.text_weight,
        uri=None if given.queries is None else _absolute("--queries", given.queries),
        storage_options=storage_options,
    )


def _absolute(flag: str, uri: str) -> str:
    try:
        return absolute(uri)
    except ValueError as err:
        raise ValueError(f"{flag}: {err}") from err


def run(argv: Sequence[str] | None = None) -> int:
    """Prints the manifest.

    Args:
        argv: the words; None: those of the process.

    Returns:
        0; 1 if something cannot be asked or the manifest could not be written; 2 for wrong usage,
        or a root that is not there.
    """
    screen.steady()
    parser = flags.Parser(
        prog="python -m manifests.recordings",
        description="Prints the manifest that recordings and queries mean: what pipelines.separate "
        "does with the same flags.",
        epilog='Example: python -m manifests.recordings --recordings birds/ --positive "a wren" '
        "> wrens.csv",
    )
    for name, settings in QUERY_FLAGS.items():
        parser.add_argument(name, **settings)
    parser.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="default csv")
    given = parser.parse_args(argv)
    if not given.recordings:
        parser.error("--recordings is required")
    try:
        roots = tuple(_absolute("--recordings", uri) for uri in given.recordings)
        asked = Recordings(
            roots=roots, queries=asked_queries(given), audio_column=given.audio_column
        )
        return _print(asked, given.format)
    except (ManifestError, ValueError) as err:
        sys.stderr.write(f"{err}\n")
        return 2


def _print(asked: Recordings, form: str) -> int:
    skipped: Counter[str] = Counter()

    def said(each: Skipped) -> None:
        skipped[each.why] += each.count

    lost = 0
    if form == "csv":
        sys.stdout.write(",".join(_COLUMNS) + "\n")
    for row in manifest_of(asked, said):
        line = None
        if isinstance(row, ManifestRow):
            try:
                line = _line(row, form)
            except ValueError as err:
                row = Broken(uri=row.id, code="csv", message=str(err))
        if line is None:
            lost += 1
            message = row.message if isinstance(row, Broken) else str(row)
            sys.stderr.write(screen.one_line(message) + "\n")
            continue
        sys.stdout.write(line + "\n")
    if skipped:
        sys.stderr.write(f"{skipped_line(skipped)}\n")
    if (error := screen.lost()) is not None:
        sys.stderr.write(f"the manifest was not written: {error.strerror}\n")
        return 1
    return 1 if lost else 0


def _line(row: ManifestRow, form: str) -> str:
    record = {name: value for name, value in row.to_record().items() if value is not None}
    if form == "jsonl":
        return json.dumps(record, ensure_ascii=False)
    return ",".join(csv_cell(cell_of(name, record.get(name))) for name in _COLUMNS)


_WHY: Final[Mapping[str, str | tuple[str, str]]] = {
    NOT_AUDIO: ("no recording by its name", "no recordings by their names"),
    HIDDEN: "hidden",
    NOT_A_FILE: "neither file nor folder",
    SPARSE: "sparse in a tar (pack without --sparse)",
    OUTPUT: "the output folder",
    NO_COLUMN: ("Parquet file without a column of audio", "Parquet files without one of audio"),
}


def skipped_line(skipped: Mapping[str, int]) -> str:
    """What was passed over, in a line."""
    parts = []
    for why, count in sorted(skipped.items()):
        named = _WHY.get(why, why)
        one, many = (named, named) if isinstance(named, str) else named
        parts.append(screen.counted(count, one, many))
    return f"passed over: {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(run())
