"""Any command line: a configuration, a UsageError, or help; never a traceback."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fuzzing
from manifests import validate
from manifests.benchmarks import __main__ as benchmarks
from model import registry
from model.checkpoints.__main__ import run as checkpoints
from pipelines import flags, report, runners
from pipelines.config import SeparateConfig, score_config, separate_config, synthesize_config
from pipelines.flags import UsageError
from pipelines.runners import execution_of

WORDS = st.sampled_from(
    [
        *("", "-", "--", "---", "=", "x", "0", "-1", "1e309", "nan", "inf", "1" * 400, "٣", "\x00"),
        *(
            "\ud800",
            "🐕",
            "{}",
            "[]",
            '{"gs": 1}',
            '{"gs": {}}',
            "[" * 5_000,
            "a\nb",
            "../..",
            "::",
        ),
        *("gs://", "nonsense://x", "file://", "zip://a::b", "@file", "--help=1", "-h=", "%s", "."),
        *("DirectRunner", "DaskRunner", "NoSuchRunner", "a.b.C", "multi_threading", "auto", "bf16"),
    ]
) | st.text(max_size=20)


def flags_of(parser: Any) -> list[str]:
    return [f for action in parser._actions for f in action.option_strings if "help" not in f]


SEPARATE = flags_of(flags.SEPARATE.parser())
BEAM = sorted(runners.beam_flags())
FLAGS = st.sampled_from([*SEPARATE, *BEAM]) | st.sampled_from(SEPARATE) | WORDS
LINES = st.lists(st.one_of(FLAGS, WORDS, st.builds("{}={}".format, FLAGS, WORDS)), max_size=8)
GOOD = ("--manifest", "a.csv", "--output", "o")


@contextlib.contextmanager
def quietly(*codes: int) -> Iterator[None]:
    """Shows nothing of what a command prints; where it exits, then with one of ``codes``."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except SystemExit as err:
            if err.code not in codes:
                raise AssertionError(f"exit {err.code}: expected one of {codes}") from err


HELP_OR_REFUSED = (0, 2)
"""Help, or a flag of Beam's that it refuses itself."""
AS_ARGPARSE = (0, 1, 2)


@given(LINES, st.booleans())
@example(["--storage_options", "[" * 100_000], True)
@example(["--num_workers", "9" * 5_000], True)
@example(["--overlap", "nan"], True)
@example(["--max_clip_in_memory_s", "inf"], True)
@example(["--max_clip_in_memory_s", "nan"], True)
@example(["--max_failure_rate", "nan"], True)
@example(["--runner", "NoSuchRunner"], True)
@example(["--mixture", "\x00", "--positive", "\ud800"], False)
@fuzzing.few(150)
def test_the_main_job(line: list[str], good: bool) -> None:
    with fuzzing.bounded(), fuzzing.refused(UsageError), quietly(*HELP_OR_REFUSED):
        given = [*GOOD, *line] if good else line
        arguments = runners.parse(flags.SEPARATE, given)
        config = separate_config(arguments, execution_of(arguments))
        assert isinstance(config, SeparateConfig)
        assert 0.0 <= config.overlap < 1.0
        assert config.max_clip_in_memory_s < float("inf")
        assert 0.0 <= config.max_failure_rate <= 1.0


COMMANDS: dict[str, Callable[[list[str]], Any]] = {
    "report": lambda line: report.config_of(line),
    "validate": validate.run,
    "benchmarks": benchmarks.run,
    "registry": registry.run,
    "checkpoints": checkpoints,
}


@pytest.mark.parametrize("name", COMMANDS)
@given(st.lists(WORDS, max_size=5))
@fuzzing.few(25)
def test_other_commands(name: str, line: list[str]) -> None:
    refusal = ValueError if name == "report" else UsageError
    with fuzzing.bounded(), contextlib.suppress(refusal), quietly(*AS_ARGPARSE):
        COMMANDS[name](line)


CONFIGS: dict[flags.Command, Callable[..., Any]] = {
    flags.SCORE: score_config,
    flags.SYNTHESIZE: synthesize_config,
}


@pytest.mark.parametrize("job", CONFIGS, ids=lambda job: job.name)
@given(st.data())
@fuzzing.few(40)
def test_the_smaller_jobs(job: Any, data: st.DataObject) -> None:
    own = st.sampled_from(flags_of(job.parser()))
    line = data.draw(st.lists(st.one_of(own, WORDS, st.builds("{}={}".format, own, WORDS))))
    with fuzzing.bounded(), fuzzing.refused(UsageError), quietly(*HELP_OR_REFUSED):
        arguments = runners.parse(job, [*GOOD, *line])
        CONFIGS[job](arguments, execution_of(arguments))


def test_a_report_of_nothing_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert report.run(["\x00", "--output", "o"]) == 2
    assert "Traceback" not in capfd.readouterr().err
