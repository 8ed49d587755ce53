"""The resolved configuration of a run: checked, frozen, and what ``run.json`` records of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from apache_beam.options.pipeline_options import PipelineOptions

from manifests.errors import RowError
from manifests.files import absolute, is_url
from manifests.row import ManifestRow
from manifests.validation import parse_record
from model import devices
from pipelines.flags import InputOptions, ModelOptions, OutputOptions, UsageError
from pipelines.runners import Execution, execution_of
from transforms.storage.access import UriAccess
from transforms.storage.redaction import redacted_command, secrets_of

OTHERS = "others"
"""As --negative: the texts of the other queries."""
_MAX_CLIP_S = 1e6
_MAX_SLUG_CHARS = 80


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeparateConfig:
    """A run of ``pipelines.separate``.

    Attributes:
        manifests: URIs of manifests; empty where ``rows`` is given.
        rows: rows made from the command line.
        storage_options: fsspec options by protocol.
        allowed_uri_prefix: what rows may read from; empty: anything.
        max_clip_in_memory_s: longer recordings are streamed.
        model: name or URI.
        scorer: ``own``, ``none``, a name or a URI.
        device: a torch device or ``auto``.
        precision: ``fp32`` or ``bf16``.
        compile: whether the network goes through ``torch.compile``.
        batch_size: windows in one forward pass.
        overlap: of windows, in [0, 1).
        channels: ``per_channel`` or ``mid``.
        condition_norm: ``normalised`` or ``unnormalised``.
        on_unsupported_query: ``dead_letter`` or ``nearest``.
        output: folder.
        stem_format: ``flac`` or ``wav``.
        residual: whether residuals are written.
        resume: go on with what is in ``output``.
        verify: look at the stems of finished rows before they are trusted.
        overwrite: delete what earlier runs wrote into ``output`` first.
        force_unlock: take ``output`` although another run holds it.
        max_failure_rate: above it the exit code is 1.
        shards: files of metrics a partition; 0: by size.
        execution: where it runs.
        command: the command line, without credentials.
    """

    manifests: tuple[str, ...]
    rows: tuple[ManifestRow, ...]
    storage_options: Mapping[str, Mapping[str, Any]]
    allowed_uri_prefix: tuple[str, ...]
    max_clip_in_memory_s: float
    model: str
    scorer: str
    device: str
    precision: str
    compile: bool
    batch_size: int
    overlap: float
    channels: str
    condition_norm: str
    on_unsupported_query: str
    output: str
    stem_format: str
    residual: bool
    resume: bool
    verify: bool
    overwrite: bool
    force_unlock: bool
    max_failure_rate: float
    shards: int
    execution: Execution
    command: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """What decides the results: a run may only be resumed with the same."""
        names = (
            "model", "scorer", "precision", "overlap", "channels", "condition_norm",
            "on_unsupported_query",
        )  # fmt: skip
        return {name: getattr(self, name) for name in (*names, "stem_format", "residual")}

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be said, logged or recorded."""
        return secrets_of(self.storage_options)

    def to_json(self) -> dict[str, Any]:
        """Everything, for ``run.json``; options of storage may hold secrets and are left out."""
        record = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("rows", "storage_options", "execution", "command")
        }
        record["rows"] = [row.to_record() for row in self.rows]
        record["storage_options"] = {protocol: "not recorded" for protocol in self.storage_options}
        record["execution"] = dataclasses.asdict(self.execution)
        return record


def separate_config(options: PipelineOptions, command: Sequence[str] = ()) -> SeparateConfig:
    """The configuration that the flags ask for.

    Args:
        options: the flags.
        command: the command line that they were read from, for the record of the run.

    Raises:
        UsageError: flags that do not go together, or a value out of range.
    """
    given = options.view_as(InputOptions)
    model = options.view_as(ModelOptions)
    output = options.view_as(OutputOptions)
    if not (output.output or "").strip():
        raise UsageError("--output is required")
    if is_url(output.output) and not output.output.partition("://")[2].strip("/"):
        raise UsageError(f"--output {output.output}: expected a bucket or a folder after ://")
    if output.resume and output.overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    if output.verify and not output.resume:
        raise UsageError("--verify goes with --resume: it looks at stems of an earlier run")
    try:
        devices.require_name(model.device)
    except ValueError as err:
        raise UsageError(str(err)) from err
    _check_range("--overlap", model.overlap, 0.0, 1.0, top_included=False)
    _check_range("--max_failure_rate", output.max_failure_rate, 0.0, 1.0)
    _check_least("--batch_size", model.batch_size, 1)
    _check_least("--num_threads", model.num_threads, 0)
    _check_least("--shards", output.shards, 0)
    if not 0 < given.max_clip_in_memory_s <= _MAX_CLIP_S:
        raise UsageError(
            f"--max_clip_in_memory_s={given.max_clip_in_memory_s}: expected above 0, "
            f"up to {_MAX_CLIP_S:g}"
        )
    rows = _rows(given)
    storage_options = _storage_options(given.storage_options)
    return SeparateConfig(
        manifests=tuple(_absolutes("--manifest", given.manifest)),
        rows=rows,
        storage_options=storage_options,
        allowed_uri_prefix=_prefixes(given.allowed_uri_prefix or ()),
        max_clip_in_memory_s=given.max_clip_in_memory_s,
        model=_name_or_uri("--model", model.model),
        scorer=_name_or_uri("--scorer", model.scorer),
        device=model.device,
        precision=model.precision,
        compile=model.compile,
        batch_size=model.batch_size,
        overlap=model.overlap,
        channels=model.channels,
        condition_norm=model.condition_norm,
        on_unsupported_query=model.on_unsupported_query,
        output=_absolute("--output", output.output),
        stem_format=output.stem_format,
        residual=output.residual,
        resume=output.resume,
        verify=output.verify,
        overwrite=output.overwrite,
        force_unlock=output.force_unlock,
        max_failure_rate=output.max_failure_rate,
        shards=output.shards,
        execution=execution_of(options),
        command=tuple(redacted_command(command, secrets_of(storage_options))),
    )


def _rows(given: InputOptions) -> tuple[ManifestRow, ...]:
    of_one = (
        "positive",
        "negative",
        "positive_audio",
        "negative_audio",
        "text_weight",
        "reference",
    )
    if given.manifest and given.mixture:
        raise UsageError("--manifest and --mixture exclude each other")
    if given.manifest:
        for name in of_one:
            if getattr(given, name) is not None:
                raise UsageError(f"--{name} goes with --mixture; a manifest's rows say their own")
        return ()
    if not given.mixture:
        raise UsageError("expected --manifest URI, or --mixture URI with --positive or --negative")
    if not any((given.positive, given.negative, given.positive_audio, given.negative_audio)):
        raise UsageError(
            "--mixture needs a query: --positive TEXT, --negative TEXT, or example clips with "
            "--positive_audio or --negative_audio"
        )
    return tuple(_row(record) for record in _records(given))


def _records(given: InputOptions) -> Iterator[dict[str, Any]]:
    """A record for each query of the command line, over the one recording."""
    texts = [text.strip() for text in given.positive or ()]
    if "" in texts:
        raise UsageError("--positive: found an empty text; expected what to extract")
    if repeated := [text for text, count in Counter(texts).items() if count > 1]:
        raise UsageError(f"--positive: {repeated[0]!r} is given twice; give each text once")
    negative = given.negative.strip() if given.negative is not None else None
    if negative == "":
        raise UsageError("--negative: found an empty text; expected what to suppress, or no flag")
    others = negative is not None and negative.lower() == OTHERS
    if others and len(texts) < 2:
        raise UsageError(
            f"--negative {negative} stands for the other --positive texts of the command, and it "
            "has no others; give several --positive, or say what to suppress"
        )
    if given.reference is not None and len(texts) > 1:
        raise UsageError(
            "--reference goes with one --positive: it is the target of that one; with several "
            "queries, a manifest's rows say their own"
        )
    mixture = _absolute("--mixture", given.mixture)
    references = [given.reference] if given.reference is not None else []
    name = _name_of(mixture)
    parts = dict(zip(texts, slugs(texts), strict=True))
    for text in texts or [None]:
        yield {
            "id": name if text is None or len(texts) == 1 else f"{name}/{parts[text]}",
            "mixture_uri": mixture,
            "reference_uri": next(iter(_absolutes("--reference", references)), None),
            "positive_text": text,
            "negative_text": " and ".join(t for t in texts if t != text) if others else negative,
            "positive_audio_uris": _absolutes("--positive_audio", given.positive_audio),
            "negative_audio_uris": _absolutes("--negative_audio", given.negative_audio),
            "text_weight": given.text_weight,
        }


def _name_of(uri: str) -> str:
    """What a recording is called: the last part of its path without what follows the last dot."""
    path = urlsplit(uri).path if uri.startswith(("http://", "https://")) else uri
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] or name or "recording"


def slugs(texts: Sequence[str]) -> list[str]:
    """A short name for each text in ``[a-z0-9_]``; where two are the same, with a digest each."""
    plain = [_slug(text) for text in texts]
    count = Counter(plain)
    return [
        slug if slug and count[slug] == 1 else f"{slug or 'query'}_{_short_digest(text)}"
        for slug, text in zip(plain, texts, strict=True)
    ]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode("ascii")
    slug = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    return slug[:_MAX_SLUG_CHARS].strip("_")


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _row(record: Mapping[str, Any]) -> ManifestRow:
    row = parse_record(record, uri="command line", row=1, folder=os.getcwd())
    if isinstance(row, RowError):
        raise UsageError(f"{row.field}: found {row.value}; expected {row.expected}")
    return row


def _prefixes(given: Sequence[str]) -> tuple[str, ...]:
    prefixes = tuple(_absolutes("--allowed_uri_prefix", given))
    try:
        UriAccess(prefixes=prefixes)
    except ValueError as err:
        raise UsageError(f"--allowed_uri_prefix: {err}") from err
    return prefixes


def _storage_options(text: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise UsageError(f"--storage_options: not JSON ({err})") from err
    if not isinstance(options, dict) or not all(isinstance(v, dict) for v in options.values()):
        raise UsageError('--storage_options: expected {"protocol": {"option": value}}')
    return options


def _absolute(flag: str, uri: str) -> str:
    try:
        return absolute(uri)
    except ValueError as err:
        raise UsageError(f"{flag}: {err}") from err


def _absolutes(flag: str, uris: Sequence[str] | None) -> list[str]:
    return [_absolute(flag, uri) for uri in uris or ()]


def _name_or_uri(flag: str, given: str) -> str:
    """A name as it is; a URI, which a name never looks like, as an absolute one."""
    return _absolute(flag, given) if given.startswith("~") or is_url(given) else given


def _check_range(
    flag: str, value: float, low: float, high: float, *, top_included: bool = True
) -> None:
    if not (low <= value <= high) or (value == high and not top_included):
        end = "]" if top_included else ")"
        raise UsageError(f"{flag}={value}: expected a number in [{low:g}, {high:g}{end}")


def _check_least(flag: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{flag}={value}: expected at least {least}")
