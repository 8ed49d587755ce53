"""A model's figures on a labelled corpus: ``python -m pipelines.evaluate``.

Draws the evaluation sets as a manifest, runs :mod:`pipelines.separate` on it, and makes the tables
of a model card from the metrics that it wrote.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from manifests.benchmarks import corpus_sets
from manifests.benchmarks.mixtures import DURATION_S
from manifests.files import ManifestError, absolute
from manifests.files.writing import write_rows
from manifests.row import ManifestRow
from pipelines import config as configuration
from pipelines import flags, separate
from terminal import screen
from terminal.flags import path
from transforms.storage import Storage, join
from transforms.storage.access import redact

if TYPE_CHECKING:
    from model.systems import Policy
    from pipelines.evaluation.results import Results

ZERO_SHOT = "zero_shot"
MANIFEST, RUN = "manifest.parquet", "run"
EXIT_DIFFERS = 1
_TOLERANCE_DB = 0.05
_QUERY_FLAGS = frozenset(
    {
        *("--manifest", "--mixture", "--positive", "--negative", "--positive_audio"),
        *("--negative_audio", "--text_weight", "--reference", "--shard"),
    }
)
"""Flags of the run that say what the sets say."""
_DEFAULTS = {"--scorer": "none", "--max_failure_rate": "0"}
"""Of the run, where the command line does not say otherwise: no table has CLAPScores."""


def run(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says; gives the exit code."""
    screen.steady()
    secrets: tuple[str, ...] = ()
    try:
        job = _job_of(sys.argv[1:] if argv is None else list(argv))
        secrets = job.config.secrets
        return _evaluate(job)
    except (ManifestError, ValueError, OSError, ImportError) as err:
        text = redact(str(err), secrets)
        sys.stderr.write(f"error: {text}\nSee python -m pipelines.evaluate --help\n")
        return flags.EXIT_USAGE
    except SystemExit as err:  # --help
        return int(err.code or 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the command line asks for.

    Attributes:
        own: the flags of this command.
        corpus: absolute folder of the corpus.
        output: absolute folder of what is written.
        sets: names of evaluation sets.
        zero_shot: whether clips are classified too.
        expected: the record that the new figures must match.
        words: the command line of the run over the sets.
        config: what that says.
    """

    own: argparse.Namespace
    corpus: str
    output: str
    sets: tuple[str, ...]
    zero_shot: bool
    expected: Mapping[str, Any] | None
    words: tuple[str, ...]
    config: configuration.SeparateConfig

    @property
    def storage(self) -> Storage:
        """How files are reached."""
        return Storage(options=self.config.storage_options)


def _job_of(given: Sequence[str]) -> _Job:
    """Reads the command line.

    Raises:
        UsageError: a flag that is unknown, lacks a value or has one that cannot be used.
        ValueError: a set that there is not.
        OSError: the record cannot be read.
    """
    own = _checked(given)
    if own.limit is not None and own.limit < 1:
        raise flags.UsageError(f"--limit={own.limit}: expected 1 or more")
    if not own.duration_s > 0:
        raise flags.UsageError(f"--duration_s={own.duration_s}: expected a positive number")
    corpus, output = absolute(own.corpus), absolute(own.output)
    words = ["--manifest", join(output, MANIFEST), "--output", join(output, RUN), *own.rest]
    for flag, value in _DEFAULTS.items():
        if not any(word.partition("=")[0] == flag for word in own.rest):
            words += [flag, value]
    with flags.without_collections():  # up to here without Beam and torch, which take seconds
        from pipelines import runners

    parsed = runners.parse(flags.SEPARATE, words)
    return _Job(
        own=own,
        corpus=corpus,
        output=output,
        sets=tuple(corpus_sets.chosen_sets(name for name in own.sets if name != ZERO_SHOT)),
        zero_shot=any(fnmatch.fnmatch(ZERO_SHOT, pattern) for pattern in own.sets),
        expected=None if own.expect is None else _recorded(own.expect),
        words=tuple(words),
        config=configuration.separate_config(parsed, runners.execution_of(parsed)),
    )


def _recorded(file: Path) -> dict[str, Any]:
    """Reads the record of an earlier evaluation.

    Raises:
        UsageError: it is not one.
        OSError: it cannot be read.
    """
    try:
        record = json.loads(file.read_text("utf-8"))
    except ValueError as err:
        raise flags.UsageError(f"--expect {file}: is not JSON ({err})") from err
    if not isinstance(record, dict) or not {"split", "seed", "limit"} <= record.keys():
        raise flags.UsageError(f"--expect {file}: is not the results.json of an evaluation")
    return record


def _checked(given: Sequence[str]) -> argparse.Namespace:
    """Reads the own flags; those of the run are checked and stand in ``rest``.

    Raises:
        UsageError: a word that belongs to no flag, or a flag that lacks a value.
        SystemExit: ``--help``, after it was printed.
    """
    beam = flags.recorded_beam_flags()
    if beam is None:
        from pipelines import runners

        runners.parse(COMMAND, given)
    else:
        flags.parse(COMMAND, given, beam)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--output", default="")
    _add_flags(own)
    found, rest = own.parse_known_args(given)
    for word in rest:
        if word.partition("=")[0] in _QUERY_FLAGS:
            raise flags.UsageError(f"{word}: the evaluation sets say what is separated")
    if not found.output.strip():
        raise flags.UsageError("--output is required")
    found.rest = rest
    return found


def _add_flags(parser: argparse.ArgumentParser) -> None:
    names = ", ".join((*corpus_sets.SETS, ZERO_SHOT))
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--corpus",
        required=True,
        metavar="URI",
        help="Folder with clips and manifest.csv: path, label, caption, split, group.",
    )
    add(
        "--sets",
        nargs="+",
        default=["*"],
        metavar="SET",
        help=f"Names, or patterns such as 'levels_*', of {names}. Default: all.",
    )
    add("--split", default="test", help="Whose clips are mixed. Default %(default)s.")
    add("--seed", type=int, default=0, help="Of every draw. Default %(default)s.")
    add("--limit", type=int, metavar="N", help="The first N mixtures of each set. Default: all.")
    add(
        "--duration_s",
        type=float,
        default=DURATION_S,
        metavar="S",
        help="Of a mixture. Default %(default)g.",
    )
    add(
        "--expect",
        type=path,
        metavar="FILE",
        help="A results.json that the new figures must match.",
    )
    add(
        "--tolerance_db",
        type=float,
        default=_TOLERANCE_DB,
        metavar="DB",
        help="How far a mean may be from that of --expect. Default %(default)g.",
    )


COMMAND = dataclasses.replace(
    flags.SEPARATE,
    name="pipelines.evaluate",
    usage="--corpus URI --output URI [flags]",
    description="Figures of a model on the clips of a labelled corpus: separation by every kind of "
    "query, presence, zero-shot classification, size and speed.",
    examples="""writes, into --output:
  manifest.parquet   the sets as rows: what is mixed, and what is asked of it
  run/               what pipelines.separate writes: stems, metrics, run.json
  results.json       every figure, with its interval and number of clips
  results.md         the tables of a model card

The flags of pipelines.separate say how it is run; the sets say what is separated.

examples:
  python -m pipelines.evaluate --corpus corpus/ --output results/
  python -m pipelines.evaluate --corpus corpus/ --output quick/ --limit 16 --sets 'text_*'
  python -m pipelines.evaluate --corpus corpus/ --output results/ --model mine.safetensors --resume
  python -m pipelines.evaluate --corpus corpus/ --output results/ --expect recorded/results.json
""",
    groups=(*flags.SEPARATE.groups, _add_flags),
)


def _evaluate(job: _Job) -> int:
    own, storage = job.own, job.storage
    draw = corpus_sets.Draw(
        corpus_sets.read_corpus(job.corpus, storage.options_for(job.corpus)),
        audio_root=job.corpus,
        split=own.split,
        seed=own.seed,
        duration_s=own.duration_s,
    )
    job, rows = _usable(job, draw)
    if rows:
        manifest = join(job.output, MANIFEST)
        write_rows(manifest, rows, storage.options_for(manifest))
        code = separate.run(job.words)
        if code != flags.EXIT_OK:
            return code
    from pipelines.evaluation import card, results

    found = _results(job, draw)
    record, tables = results.record_of(found), card.card_tables(found)
    for name, text in (("results.json", results.to_json(record)), ("results.md", tables)):
        storage.write_bytes(join(job.output, name), text.encode("utf-8", "replace"))
    sys.stdout.write(f"\n{tables}\n{join(job.output, 'results.json')}\n")
    return _compared(job, record)


def _usable(job: _Job, draw: corpus_sets.Draw) -> tuple[_Job, list[ManifestRow]]:
    """The rows of the sets; a set without one that the model can use is left out, and said."""
    if not job.sets:
        return job, []
    from pipelines.separate_graph import model_choice
    from transforms import model_cache
    from transforms.elements import Failure
    from transforms.queries import adapted

    capabilities = model_cache.load_model(model_choice(job.config)).separator.capabilities
    policy = cast("Policy", job.config.on_unsupported_query)
    sets, rows = [], []
    for name in job.sets:
        own = list(draw.rows(name, job.own.limit))
        if not own:
            sys.stderr.write(f"note: {name} is left out: the clips give no mixture for it\n")
            continue
        found = [adapted(row, capabilities, policy) for row in own]
        refused = [each for each in found if isinstance(each, Failure)]
        if len(refused) == len(own):
            sys.stderr.write(f"note: {name} is left out: {refused[0].message}\n")
            continue
        sets.append(name)
        rows += own
    return dataclasses.replace(job, sets=tuple(sets)), rows


def _results(job: _Job, draw: corpus_sets.Draw) -> Results:
    """What the run gave, and what is measured beside it."""
    from pipelines.evaluation import model_figures, results
    from pipelines.separate_graph import model_choice
    from transforms import model_cache

    choice = model_choice(job.config)
    loaded = model_cache.load_model(choice)
    classes: tuple[model_figures.ZeroShot, ...] = ()
    if job.zero_shot and not loaded.clap_sha256:
        sys.stderr.write(f"note: {loaded.name} has no CLAP, and so no zero-shot classification\n")
    elif job.zero_shot:
        classes = model_figures.classify(
            loaded.query_encoder,
            draw,
            audio_root=job.corpus,
            storage=job.storage,
            limit=job.own.limit,
            max_in_memory_s=job.config.max_clip_in_memory_s,
            max_failure_rate=job.config.max_failure_rate,
        )
    return results.Results(
        split=job.own.split,
        seed=job.own.seed,
        limit=job.own.limit,
        scores=results.read_scores(join(job.output, RUN), job.storage) if job.sets else None,
        zero_shot=classes,
        cost=model_figures.measure_cost(loaded, choice.resolved_device()),
    )


def _compared(job: _Job, record: Mapping[str, Any]) -> int:
    """Says how the figures differ from those that are expected; gives the exit code."""
    from pipelines.evaluation import results

    if job.expected is None:
        return flags.EXIT_OK
    lines = results.record_differences(job.expected, record, tolerance_db=job.own.tolerance_db)
    for line in lines:
        sys.stderr.write(f"{line}\n")
    if lines:
        return EXIT_DIFFERS
    sys.stdout.write(f"the figures match {job.own.expect}\n")
    return flags.EXIT_OK


if __name__ == "__main__":
    flags.leave(run)
