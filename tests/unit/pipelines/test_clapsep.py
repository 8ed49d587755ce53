from __future__ import annotations

import runpy
import subprocess
import sys
from importlib import metadata, util
from typing import Any

import pytest

from pipelines import clapsep


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_alone_it_lists_every_command_with_a_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert clapsep.run(words) == 0
    listed = capsys.readouterr().out.splitlines()
    for word, (module, does) in clapsep.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [word, does] for line in listed)
        assert util.find_spec(module) is not None


def test_the_list_needs_neither_torch_nor_beam() -> None:
    script = (
        "import sys\n"
        "from pipelines import clapsep\n"
        "clapsep.run(['--help'])\n"
        "sys.exit(', '.join({'torch', 'apache_beam', 'numpy'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_that_of_the_distribution_and_none_in_a_bare_clone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        assert name == "clapsep-beam"
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert clapsep.run(["--version"]) == 0
    assert capsys.readouterr().out == "clapsep 1.2.3\n"

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert clapsep.run(["--version"]) == 0
    assert capsys.readouterr().out == "clapsep source\n"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seperate", "'seperate' is no command; did you mean separate"),
        ("Report", "did you mean report"),
        ("xyz", "'xyz' is no command; expected separate, synthesize, score, "),
        ("", "'' is no command; expected separate"),
        ("--mixture", "'--mixture' stands where a command is expected; flags follow the command"),
    ],
)
def test_a_word_that_is_no_command_is_refused_with_what_is_near(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clapsep.run([word, "talk.wav"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, said in captured.err) == ("", True), captured.err
    assert captured.err.endswith("See clapsep --help\n")


@pytest.mark.parametrize("word", clapsep.COMMANDS)
def test_a_command_is_run_as_python_m_runs_its_module(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "argv", ["clapsep", word, "--flag", "a value"])
    monkeypatch.setattr(
        runpy, "run_module", lambda *args, **kwargs: seen.append((args, kwargs, sys.argv[1:]))
    )
    clapsep.run()
    module, _ = clapsep.COMMANDS[word]
    expected = {"run_name": "__main__", "alter_sys": True}
    assert seen == [((module,), expected, ["--flag", "a value"])]
