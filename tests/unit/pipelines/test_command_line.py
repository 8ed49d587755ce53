from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.command_line import SEPARATE_OPTIONS, beam_flags, parse, separate_parser
from pipelines.options import InputOptions, OutputOptions, UsageError

ROOT = Path(__file__).parents[3]


def test_no_flag_is_declared_twice_not_even_by_beam() -> None:
    own = [flag for action in separate_parser()._actions for flag in action.option_strings]
    own = [flag for flag in own if flag not in ("-h", "--help")]
    assert len(own) == len(set(own))
    assert not set(own) & beam_flags()


def test_every_flag_says_what_it_is() -> None:
    for action in separate_parser()._actions:
        assert action.help
    assert all(options.__doc__ for options in SEPARATE_OPTIONS)


def test_our_flags_and_beams_are_both_read() -> None:
    options = parse(
        separate_parser(),
        ["--manifest", "a.csv", "b.csv", "--output", "o", "--num_workers", "3", "--residual"],
    )
    assert options.view_as(InputOptions).manifest == ["a.csv", "b.csv"]
    assert options.view_as(OutputOptions).residual is True
    assert options.get_all_options()["num_workers"] == 3


@pytest.mark.parametrize(
    ("flag", "close"), [("--manifst", "--manifest"), ("--num_worker", "--num_workers")]
)
def test_an_unknown_flag_is_refused_with_the_closest_known_one(flag: str, close: str) -> None:
    with pytest.raises(UsageError, match=f"unknown flag {flag}; is it {close}"):
        parse(separate_parser(), [flag, "x"])


def test_a_value_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="--precision"):
        parse(separate_parser(), ["--precision", "fp8"])
    with pytest.raises(UsageError, match="--batch_size"):
        parse(separate_parser(), ["--batch_size", "many"])


def test_help_is_grouped_has_examples_and_does_without_torch() -> None:
    code = (
        "import sys; from pipelines import separate; code = separate.run(['--help']); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for heading in ("input:", "model:", "output:", "execution:", "examples:", "exit codes:"):
        assert heading in done.stdout
