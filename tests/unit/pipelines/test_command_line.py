from __future__ import annotations

import copy
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, WorkerOptions
from apache_beam.transforms import core, userstate

from pipelines import runners
from pipelines.config import NOWHERE, answered, separate_config
from pipelines.flags import (
    BEAM_FLAGS,
    SCORE,
    SEPARATE,
    SYNTHESIZE,
    UsageError,
    record_of,
    recorded_beam_flags,
)
from pipelines.runners import Options, beam_flags, parse

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
         r'unexpected argument "b.wav" .* with --recordings'),
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
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__")
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


WRONG = [
    ["--mixtrue", "a.wav"],
    [*ONE, "--num_worker", "3"],
    [*ONE, "--num_workers"],
    [*ONE, "--runner", "x", "--runner", "y"],
    [*ONE, "--streaming=true"],
    [*ONE, "--experiments", "a", "b"],
    ["--mixture", "a.wav", "--positive", "dog"],
    [*ONE, "--overlap", "2"],
]


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_said_without_torch_and_beam(line: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BEAM_AND_TORCH, "pipelines.separate", *line],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert hint == "See python -m pipelines.separate --help"
    with pytest.raises(UsageError) as refused:
        separate_config(parse(SEPARATE, line), NOWHERE)  # by Beam's own flags
    assert error == f"error: {refused.value}"


def test_the_record_of_beams_flags_is_that_of_the_beam_that_is_pinned() -> None:
    script = (
        "from pipelines import launch, separate_graph, runners; print(runners.record_beam_flags())"
    )
    now = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    recorded = json.loads(BEAM_FLAGS.read_text(encoding="utf-8"))
    if recorded["version"] != json.loads(now)["version"]:
        assert recorded_beam_flags() is None  # with the oldest versions, say
        pytest.skip(f"the record is of {recorded['version']}")
    assert BEAM_FLAGS.read_text(encoding="utf-8").strip() == now, "make beam-flags"
    assert record_of(recorded_beam_flags() or ()) == recorded["flags"]


def test_flags_of_another_beam_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.99.0")
    assert recorded_beam_flags() is None
    assert answered(SEPARATE, separate_config, ["--new_in_beam", "x"]) is None


def test_views_of_options_are_made_once_and_share_their_values() -> None:
    options = Options(["--num_workers", "3"])
    view = options.view_as(WorkerOptions)
    assert options.view_as(WorkerOptions) is view
    view.num_workers = 4
    assert options.get_all_options()["num_workers"] == 4
    twin = copy.deepcopy(options)
    twin.view_as(WorkerOptions).num_workers = 5
    assert (view.num_workers, options.view_as(WorkerOptions).num_workers) == (4, 4)
    assert pickle.loads(pickle.dumps(twin)).view_as(WorkerOptions).num_workers == 5  # noqa: S301


class _Counting(beam.DoFn):
    def process(self, element: int, window: Any = beam.DoFn.WindowParam, by: int = 2) -> None: ...

    def finish_bundle(self) -> None: ...


def test_beam_looks_at_the_arguments_of_each_method_once(monkeypatch: pytest.MonkeyPatch) -> None:
    doing = [
        _Counting(),
        *(beam.Map(each).fn for each in (str, lambda a, b=1: a, lambda a, c=2: c)),
    ]
    methods = [
        (each, name)
        for each in doing
        for name in dir(each)
        if inspect.ismethod(getattr(each, name))
    ]
    with monkeypatch.context() as patch:
        patch.setattr(core, "get_function_args_defaults", runners._look_at_arguments)
        expected = [core.get_function_arguments(*each) for each in methods]
    for names, defaults in [core.get_function_arguments(*each) for each in methods]:
        names.append("changed")
        defaults.append("changed")
    assert [core.get_function_arguments(*each) for each in methods] == expected
    assert (["element", "window", "by"], [beam.DoFn.WindowParam, 2]) in expected
    monkeypatch.setattr(core, "get_signature", lambda method: pytest.fail(f"{method} again"))
    assert userstate.get_dofn_specs(_Counting()) == (set(), set())


def test_what_was_imported_is_not_searched_for_garbage_again() -> None:
    script = """
import gc
from pipelines import flags
with flags.without_collections():
    assert not gc.isenabled()
    import apache_beam
assert gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen > 100_000
keep = []
with flags.without_collections():  # Beam is there: what lives now may be garbage later
    keep.append([])
print(gc.get_freeze_count() == frozen)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
