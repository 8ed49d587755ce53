"""Models by name or by the URI of a converted file; ``python -m model.registry`` lists them."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import catalogue
from model.catalogue import Entry
from model.checkpoints.fetch import CheckpointError
from terminal import flags, screen

if TYPE_CHECKING:
    from model.checkpoints.loading import Networks
    from model.clap import Clap, QueryEncoder
    from model.clap.audio import Precision
    from model.systems import Separator


logger = logging.getLogger(__name__)


class UnknownModelError(ValueError):
    """A name that no model has, and that is no URI either."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where and how a model runs."""

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to separate: threads share it."""

    name: str
    separator: Separator
    query_encoder: QueryEncoder
    model_sha256: str
    """Digest of the weights; empty where there are none."""
    clap_sha256: str
    card: Entry


def entries() -> dict[str, Entry]:
    """Every model, by name."""
    return {entry.name: entry for entry in catalogue.ENTRIES}


def find(name: str) -> Entry:
    """The model of a name.

    Raises:
        UnknownModelError: there is none; the message suggests the closest.
    """
    known = entries()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UnknownModelError(
        f"unknown model {name!r}.{hint} Known: {', '.join(known)}; or give the URI of a converted "
        "file (python -m model.checkpoints convert)"
    )


def default_scorer(name_or_uri: str) -> str:
    """What gives the CLAPScores of a model unless a run says otherwise; ``own`` is its own CLAP."""
    entry = entries().get(name_or_uri)
    return "own" if entry is None else entry.scorer


def load(
    name_or_uri: str, *, device: str = "cpu", precision: str = "fp32", compile: bool = False
) -> LoadedModel:
    """Loads a separator, ready for inference.

    Args:
        name_or_uri: a name of the registry, or any URI of a converted file.
        device: a torch device.
        precision: ``fp32``, ``tf32`` or ``bf16``; not whether the device computes in it itself:
            :func:`model.devices.require_precision`.
        compile: run the network through ``torch.compile``; where that cannot work, a warning is
            logged and the network runs as it is.

    Raises:
        UnknownModelError: no such name.
        ValueError: the precision is unknown, or the model does not separate.
        CheckpointError: the weights cannot be had or are not what they should be.
    """
    options = LoadOptions(device=device, precision=precision, compile=compile)
    if is_uri(name_or_uri):
        return _load_uri(name_or_uri, options)
    entry = find(name_or_uri)
    if entry.kind == "scorer":
        raise ValueError(f"{entry.name} embeds queries and does not separate")
    loaded: LoadedModel = _loader(entry)(entry, options)
    _check_compiled(loaded, options)
    return loaded


def load_scorer(name_or_uri: str, *, device: str = "cpu", precision: str = "fp32") -> QueryEncoder:
    """Loads a CLAP for scoring: a scorer or the CLAP of a separator, by name, or any CLAP by URI.

    Args:
        name_or_uri: which.
        device: a torch device.
        precision: as of :func:`load`; of its audio tower.

    Raises:
        UnknownModelError: no such name.
        CheckpointError: the weights cannot be had, or hold no CLAP.
    """
    options = LoadOptions(device=device, precision=precision)
    if is_uri(name_or_uri):
        from model.checkpoints.loading import load_clap

        return _ready(load_clap(name_or_uri), options)
    entry = find(name_or_uri)
    load_encoder = _loader(entry) if entry.kind == "scorer" else load_own_clap
    encoder: QueryEncoder = load_encoder(entry, options)
    return encoder


def load_query_encoder(
    name_or_uri: str, *, device: str = "cpu", precision: str = "fp32"
) -> QueryEncoder:
    """Loads what embeds the queries of a separator, without the rest of it where it is a CLAPSep.

    Args:
        name_or_uri: which separator.
        device: a torch device.
        precision: as of :func:`load`, so that queries are embedded as beside the separator.

    Raises:
        UnknownModelError: no such name.
        CheckpointError: the weights cannot be had or are not what they should be.
    """
    if not is_uri(name_or_uri) and is_clapsep(entry := find(name_or_uri)):
        return load_own_clap(entry, LoadOptions(device=device, precision=precision))
    return load(name_or_uri, device=device, precision=precision).query_encoder


def is_clapsep(entry: Entry) -> bool:
    """Whether a model is a CLAPSep, of which :func:`networks_of` loads the parts."""
    return _loader(entry) is load_clapsep


def networks_of(entry: Entry) -> Networks:
    """Loads a CLAPSep's networks: a converted file, with presence where it has a head, or two.

    Raises:
        CheckpointError: the weights cannot be had or are not what they should be.
    """
    from model.checkpoints import loading

    files = entry.by_role
    if "clapsep" in files:
        clap, clapsep = files["clap"], files["clapsep"]
        return loading.load_published(
            clap.location(),
            clapsep.location(),
            clap_sha256=clap.sha256,
            clapsep_sha256=clapsep.sha256,
        )
    file = files.get("presence") or files["converted"]
    return loading.load_converted(file.location(), sha256=file.sha256)


def load_clapsep(entry: Entry, options: LoadOptions) -> LoadedModel:
    """Loads a CLAPSep."""
    return _prepared(networks_of(entry), entry, options)


def load_own_clap(entry: Entry, options: LoadOptions) -> QueryEncoder:
    """Loads a CLAP alone, out of a separator's files or its own.

    Raises:
        CheckpointError: the weights cannot be had, or there is no CLAP among them.
    """
    from model.checkpoints.loading import load_clap

    file = entry.by_role.get("converted") or entry.by_role.get("clap")
    if file is None:
        raise CheckpointError(f"{entry.name} has no CLAP, which would give the scores")
    clap = load_clap(file.location(), sha256=file.sha256)
    clap.input_level_dbfs = entry.input_level_dbfs
    return _ready(clap, options)


def _load_uri(uri: str, options: LoadOptions) -> LoadedModel:
    from model.checkpoints.loading import load_converted

    networks = load_converted(uri)
    card = Entry(
        name=uri,
        kind="separator",
        loader="",
        summary="A converted file.",
        licence="that of its sources",
        source="; ".join(f"{each.role}: {each.uri}" for each in networks.sources) or "not stated",
        sample_rate_hz=networks.config.signal.sample_rate_hz,
        files=(catalogue.WeightsFile(role="converted", uri=uri, sha256=networks.model_sha256),),
        input_level_dbfs=networks.config.signal.input_level_dbfs,
    )
    return _prepared(networks, card, options)


def _prepared(networks: Networks, card: Entry, options: LoadOptions) -> LoadedModel:
    from model.systems.clapsep.network import compile_separator

    precision = _precision(options)
    separator = networks.separator
    separator.name = card.name
    separator.input_level_dbfs = networks.clap.input_level_dbfs = card.input_level_dbfs
    separator.precision = precision
    separator.to(options.device).prepare()
    if options.compile:
        compile_separator(separator, options.device)
    return LoadedModel(
        name=card.name,
        separator=separator,
        query_encoder=_ready(networks.clap, options),
        model_sha256=networks.model_sha256,
        clap_sha256=networks.clap_sha256,
        card=card,
    )


def _check_compiled(loaded: LoadedModel, options: LoadOptions) -> None:
    from model.systems.clapsep.network import ClapSep

    if options.compile and not isinstance(loaded.separator, ClapSep):
        logger.warning("torch.compile is not used for %s: it is no CLAPSep", loaded.name)


def _ready(clap: Clap, options: LoadOptions) -> QueryEncoder:
    clap.text_branch.check()
    return clap.to(options.device).prepare(_precision(options))


def _precision(options: LoadOptions) -> Precision:
    from model.clap.audio import PRECISIONS

    for precision in PRECISIONS:
        if precision == options.precision:
            return precision
    raise ValueError(f"precision={options.precision!r}: expected one of {PRECISIONS}")


def _loader(entry: Entry) -> Callable[[Entry, LoadOptions], Any]:
    module, _, function = entry.loader.partition(":")
    loader: Callable[[Entry, LoadOptions], Any] = getattr(importlib.import_module(module), function)
    return loader


def is_uri(name_or_uri: str) -> bool:
    """Whether a model is given by a URI, or as a folder here, instead of by name."""
    if not name_or_uri or name_or_uri in entries():
        return False
    path = Path(name_or_uri)
    return "/" in name_or_uri or "\\" in name_or_uri or path.suffix != "" or path.is_dir()


def run(argv: Sequence[str] | None = None) -> int:
    """Prints the models as a table, or one model's card; returns the exit code."""
    screen.steady()
    parser = flags.Parser(prog="python -m model.registry", description=__doc__)
    parser.add_argument("name", nargs="?", help="print this model's card")
    options = parser.parse_args(argv)
    if options.name is None:
        _print_table()
        return 0
    try:
        card = find(options.name)
    except UnknownModelError as err:
        said = str(err)
        if is_uri(options.name):
            said = (
                f"{options.name}: is a URI, and no name of a model; "
                "python -m model.checkpoints inspect says what it is"
            )
        sys.stderr.write(f"{said}\n")
        return 1
    for name, value in _facts(card).items():
        sys.stdout.write(f"{name:>16}  {value}\n")
    return 0


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(name, no_wrap=True) for name in ("name", "kind", "rate", "download")]
    table = Table(*columns, "summary", box=None, pad_edge=False)
    for entry in entries().values():
        rate = f"{entry.sample_rate_hz / 1000:g} kHz"
        table.add_row(entry.name, entry.kind, rate, _download(entry), entry.summary)
    Console(markup=False, emoji=False).print(table)


def _download(entry: Entry) -> str:
    sizes = [f.num_bytes for f in entry.files if not f.uri.startswith(catalogue.BUNDLED)]
    known = [size for size in sizes if size is not None]
    if not known:
        return "not known" if sizes else "none"
    return ("> " if len(known) < len(sizes) else "") + f"{sum(known) / 1e9:.2f} GB"


def _facts(card: Entry) -> dict[str, str]:
    """A card as lines of text."""
    names = ("name", "kind", "summary", "licence", "source", "sample_rate_hz", "verified")
    facts = {name: str(getattr(card, name)) for name in names}
    level = card.input_level_dbfs
    facts["input level"] = "as it is" if level is None else f"{level:g} dBFS"
    for file in card.files:
        size = "" if file.num_bytes is None else f", {file.num_bytes:,} bytes"
        digest = file.sha256 or "not published"
        facts[f"file: {file.role}"] = f"{file.uri}{size}, SHA-256 {digest}"
    return facts


if __name__ == "__main__":
    raise SystemExit(run())
