"""Answers ``python -m model.checkpoints``: converts and describes weight files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from terminal import flags, screen

_DESCRIPTION = (
    "Converts networks to one safetensors file with the configuration inside, or says what a "
    "weight file is."
)


def run(argv: Sequence[str] | None = None) -> int:
    """Converts or describes weight files; returns the exit code."""
    screen.steady()
    parser = flags.Parser(prog="python -m model.checkpoints", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert", help="published checkpoints → one safetensors file")
    converting.add_argument(
        "--clap", type=os.path.expanduser, required=True, help="URI of the CLAP checkpoint"
    )
    converting.add_argument(
        "--clapsep",
        type=os.path.expanduser,
        help="URI of the CLAPSep checkpoint; without it, CLAP alone",
    )
    converting.add_argument(
        "--output", type=os.path.expanduser, required=True, help="URI of the file to write"
    )
    converting.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="of matrices")
    converting.add_argument("--merge_lora", action="store_true", help="fold the adapters in")
    converting.add_argument(
        "--config",
        type=os.path.expanduser,
        help="URI of a JSON configuration; default: the published",
    )
    converting.add_argument("--clap_sha256", help="expected digest")
    converting.add_argument("--clapsep_sha256", help="expected digest")
    inspecting = commands.add_parser("inspect", help="say what a weight file is")
    inspecting.add_argument("uri", type=os.path.expanduser)
    options = parser.parse_args(argv)
    from model.checkpoints import convert as files  # flags are answered without torch

    try:
        if options.command == "convert":
            sha256 = files.convert(options)
            sys.stdout.write(f"wrote {options.output} (SHA-256 {sha256})\n")
        else:
            for name, value in files.file_facts(options.uri).items():
                sys.stdout.write(f"{name:>14}  {value}\n")
    except (ValueError, OSError) as err:  # of a file that is read, a value, or where to write
        sys.stderr.write(f"{err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
