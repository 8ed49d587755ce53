from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.flags import SCORE, SEPARATE, SYNTHESIZE, UsageError
from pipelines.runners import beam_flags, parse

ROOT = Path(__file__).parents[3]


def test_no_flag_is_declared_twice_not_even_by_beam() -> None:
    own = [flag for action in SEPARATE.parser()._actions for flag in action.option_strings]
    own = [flag for flag in own if flag not in ("-h", "--help")]
    assert len(own) == len(set(own))
    assert not set(own) & beam_flags()


def test_every_flag_says_what_it_is() -> None:
    for action in SEPARATE.parser()._actions:
        assert action.help


def test_our_flags_and_beams_are_both_read() -> None:
    arguments = parse(
        SEPARATE,
        ["--manifest", "a.csv", "b.csv", "--output", "o", "--num_workers", "3", "--residual"],
    )
    assert arguments.own.manifest == ["a.csv", "b.csv"]
    assert arguments.own.residual is True
    assert arguments.beam == ("--num_workers", "3")


@pytest.mark.parametrize(
    ("flag", "close"), [("--manifst", "--manifest"), ("--num_worker", "--num_workers")]
)
def test_an_unknown_flag_is_refused_with_the_closest_known_one(flag: str, close: str) -> None:
    with pytest.raises(UsageError, match=f"unknown flag {flag}; is it {close}"):
        parse(SEPARATE, [flag, "x"])


ONE = ("--mixture", "a.wav", "--positive", "dog", "--output", "o")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--mixture", "a.wav", "--positive", "a", "dog", "barking", "--output", "o"],
         r'unexpected argument "dog" .*; did you mean --positive "a dog barking"\?'),
        (["--mixture", "a.wav", "b.wav", "--positive", "dog", "--output", "o"],
         r'unexpected argument "b.wav" .* python -m manifests.example'),
        (["--mixture", "a.wav", "--positive", "dog", "--output", "my", "folder"],
         r'unexpected argument "folder" .*; did you mean --output "my folder"\?'),
        ([*ONE, "-negative", "rain"], "unknown flag -negative; is it --negative"),
        ([*ONE, "\u2013negative", "rain"], r"is it --negative\? .*\(en dash\)"),
        ([*ONE, "\u2014negative", "rain"], r"is it --negative\? .*\(em dash\)"),
        ([*ONE, "--resume", "false"], '"false" after --resume, which is a switch'),
        ([*ONE, "--batch_size=8", "16"], '"16" after --batch_size=8: --batch_size takes one value'),
        ([*ONE, "--num_workers", "2", "3"], '"3" after --num_workers 2: --num_workers takes one'),
        ([*ONE, "-j4"], "unknown flag -j4"),
        ([*ONE, "-o", "x"], "unknown flag -o; is it .*--output or"),
        (["a.wav", *ONE], '"a.wav" before the first flag'),
        ([*ONE, "extra"], 'unexpected argument "extra" after --output o'),
        ([*ONE, "--mixture", "b.wav"], "--mixture is given twice"),
        ([*ONE, "--output=o"], "--output is given twice"),
        ([*ONE, "--num_workers", "2", "--num_workers", "2"], "--num_workers is given twice"),
        ([*ONE, "--positive_audio", "x.wav", "--positive_audio", "y.wav"],
         "--positive_audio is given twice: .* at once: --positive_audio x.wav y.wav"),
        ([*ONE, "--num_workers", "many"], "--num_workers: invalid int value: 'many'"),
    ],
)  # fmt: skip
def test_no_word_of_the_command_line_is_lost(line: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(SEPARATE, line)


def test_what_beam_lets_repeat_passes_with_its_values() -> None:
    arguments = parse(
        SEPARATE,
        [*ONE, "--experiments", "a", "--experiments", "b", "--labels", "c=d", "--labels=e=f",
         "--sdk_location", "container", "--save_main_session"],
    )  # fmt: skip
    options = PipelineOptions(list(arguments.beam)).get_all_options()
    assert options["experiments"] == ["a", "b"]
    assert options["labels"] == ["c=d", "e=f"]
    assert (options["sdk_location"], options["save_main_session"]) == ("container", True)


def test_the_smaller_jobs_lose_no_word_either() -> None:
    with pytest.raises(UsageError, match='did you mean --system "My System"'):
        parse(SCORE, ["--system", "My", "System", "--output", "o"])
    with pytest.raises(UsageError, match="--mix_seed is given twice"):
        parse(SYNTHESIZE, ["--mix_seed", "1", "--mix_seed=2"])


def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"caf.udce9.*are no text in utf-8") as refused:
        parse(SEPARATE, [*ONE, "--negative", "caf\udce9"])
    assert "PYTHONUTF8" not in str(refused.value)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UsageError, match="no text in ascii; set PYTHONUTF8=1"):
        parse(SEPARATE, ["--output", "\udcc3\udca9"])


def test_storage_options_are_in_no_message() -> None:
    for line in (["{s3:", "{key:", "hunter2}}"], ["hunter2", "--storage_options=hunter2"]):
        with pytest.raises(UsageError) as refused:
            parse(SEPARATE, ["--storage_options", *line])
        assert "hunter2" not in str(refused.value)


def test_a_value_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="--precision"):
        parse(SEPARATE, ["--precision", "fp8"])
    with pytest.raises(UsageError, match="--batch_size"):
        parse(SEPARATE, ["--batch_size", "many"])


HEADINGS = {
    "separate": ("input:", "model:", "output:", "execution:"),
    "score": ("stems:", "shared with pipelines.separate:"),
    "synthesize": ("mixtures:", "shared with pipelines.separate:"),
}
WITHOUT_BEAM_AND_TORCH = """
import runpy, sys
for name in ("torch", "transformers", "apache_beam"):
    sys.modules[name] = None  # importing it raises
runpy.run_module(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("job", HEADINGS)
def test_help_is_grouped_has_examples_and_does_without_torch_and_beam(job: str) -> None:
    module = f"pipelines.{job}"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BEAM_AND_TORCH, module, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for heading in (*HEADINGS[job], "examples:", "exit codes:", f"usage: python -m {module}"):
        assert heading in done.stdout
