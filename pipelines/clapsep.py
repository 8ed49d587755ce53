"""The console script ``clapsep``: one word for each command, which ``python -m`` also runs."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence
from typing import Final

from pipelines import preflight
from pipelines.flags import EXIT_USAGE
from terminal import screen

COMMANDS: Final = {
    "separate": ("pipelines.separate", "extract sounds from one recording, or from a manifest's"),
    "synthesize": ("pipelines.synthesize", "mix source clips into mixtures and their manifest"),
    "score": ("pipelines.score", "measure stems that any system made"),
    "report": ("pipelines.report", "turn runs into tables, plots, and a page to listen to"),
    "export": ("pipelines.export", "take results along as a data set, or as labels"),
    "evaluate": ("pipelines.evaluate", "measure a model on a folder of labelled clips"),
    "example": ("manifests.example", "print a commented manifest to start from"),
    "recordings": ("manifests.recordings", "print the manifest that recordings and queries mean"),
    "validate": ("manifests.validate", "say what a manifest holds, and what is wrong with it"),
    "benchmarks": ("manifests.benchmarks", "write published evaluation sets as manifests"),
    "models": ("model.registry", "list the models that --model can name"),
    "checkpoints": ("model.checkpoints", "convert published weights, or say what a file holds"),
    "train": ("model.training", "train a model from a folder of labelled clips"),
}
"""Each word's module, which is run as ``python -m`` runs it, and what the command does."""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names, with the words after it.

    Args:
        argv: command line without the program's name; None for that of the process.

    Returns:
        The exit code where no command was run: 0 for the list of commands and for the version, 2
        for a word that names none.

    Raises:
        SystemExit: the command has ended; it holds the exit code.
    """
    screen.steady()
    words = list(sys.argv[1:] if argv is None else argv)
    word = words[0] if words else "--help"
    if word in COMMANDS:
        module, _ = COMMANDS[word]
        sys.argv = [f"clapsep {word}", *words[1:]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    if word in ("--help", "-h"):
        sys.stdout.write(_help())
        return 0
    if word == "--version":
        sys.stdout.write(f"clapsep {preflight.code_version()}\n")
        return 0
    sys.stderr.write(f"error: {_refusal(word)}\nSee clapsep --help\n")
    return EXIT_USAGE


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {word:<{width}}  {does}" for word, (_, does) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: clapsep COMMAND [flags]",
            "",
            "Extracts a described sound from recordings, and measures how well that went.",
            "",
            "commands:",
            *lines,
            "",
            "clapsep COMMAND --help lists the flags of a command; clapsep --version says which",
            "version this is. An example:",
            '  clapsep separate --mixture talk.wav --positive "a dog barking" --output out/',
            "",
        ]
    )


def _refusal(word: str) -> str:
    if word.startswith("-"):
        return f"{word!r} stands where a command is expected; flags follow the command"
    near = difflib.get_close_matches(word.lower(), COMMANDS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected {', '.join(COMMANDS)}"
    return f"{word!r} is no command; {hint}"
