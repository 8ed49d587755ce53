# ruff: noqa: RUF001, RUF043  # dashes and marks that people type by mistake are what is tested
from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fuzzing
from terminal.flags import Parser, path, shell_word


class Refused(Exception):
    pass


class _Parser(Parser):
    def error(self, message: str):
        raise Refused(message)


def parser() -> _Parser:
    found = _Parser(prog="x")
    found.add_argument("--text")
    found.add_argument("--folder", metavar="URI")
    found.add_argument("--files", nargs="+")
    found.add_argument("--also", action="append")
    found.add_argument("--more", nargs="+", action="extend")
    found.add_argument("--range", nargs=2, type=float)
    found.add_argument("--number", type=int)
    found.add_argument("--kind", choices=("a", "b"))
    found.add_argument("--again", action="store_true")
    found.add_argument("--options")
    found.confidential = frozenset({"--options"})
    found.instead_of_several = {"--folder": "name the folder that holds them"}
    return found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--text a dog barking", 'unexpected argument "dog" after --text a; did you mean '
         '--text "a dog barking"?'),
        ("--text=a dog", 'unexpected argument "dog" after --text=a; did you mean --text "a dog"?'),
        ("--text = dog", 'did you mean --text "dog"?'),
        ("--text “a dog”", 'did you mean --text "a dog"? … typographic quotes'),
        ("--text “dog”", '“dog” stands in typographic quotes …  did you mean --text "dog"?'),
        ("--text=«dog»", 'did you mean --text "dog"?'),
        ("--text a $b", "did you mean --text 'a $b'?"),
        ("--text a number of", 'did you mean --text "a number of", or --number?'),
        ("--text a number 5", 'did you mean --text "a number 5", or --number?'),
        ("--text a again", 'did you mean --text "a again", or --again?'),
        ("--folder a.wav b.wav c.wav", 'unexpected argument "b.wav" after --folder a.wav:  … '
         "takes one value … a pattern such as *.wav; name the folder that holds them"),
        ("--folder my file.wav", 'did you mean --folder "my file.wav"?'),
        ("--number 8 16", 'unexpected argument "16" after --number 8: --number takes one value'),
        ("--kind a b", 'unexpected argument "b" after --kind a: --kind takes one value'),
        ("--range 1 2 3", 'unexpected argument "3" after --range 1 2: --range takes 2 values'),
        ("--range 1", "--range: expected 2 values after it"),
        ("--again false", 'unexpected argument "false" after --again, which is a switch and takes '
         "no value. Write --again alone, or leave it out"),
        ("--again=false", "--again is a switch and takes no value: found 'false'"),
        ("dog --text a", 'unexpected argument "dog" before the first flag'),
        ("text a", 'unexpected argument "text" before the first flag; is it --text?'),
        ("-text dog", "unknown flag -text; is it --text?"),
        ("–text dog", "unknown flag –text; is it --text? It has U+2013 (en dash) in it"),
        ("—text=dog", "unknown flag —text=dog; is it --text? It has U+2014 (em dash) in it"),
        ("–-text dog", "is it --text? … en dash"),
        ("---text dog", "unknown flag ---text; is it --text?"),
        ("--Text dog", "unknown flag --Text; is it --text?"),
        ("--files a b –text dog", "unknown flag –text; is it --text?"),
        ("--text –again", "unknown flag –again; is it --again?"),
        ("--text '--again'", "--text: expected a value, found the flag --again"),
        ("--text -dog", "--text: expected a value, found '-dog';  … --text=-dog"),
        ("--text", "--text: expected a value after it"),
        ("--text\u00a0dog", "is it --text? It has U+00A0 (no-break space) in it"),
        ("--text\u00a0 dog", "is it --text? It has U+00A0 (no-break space) in it"),
        ("\u200b--text dog", "is it --text? It has U+200B (zero width space) in it"),
        ("'--text a dog'", 'is it --text? A flag and its value are two words: --text "a dog"'),
        ("--txt dog", "unknown flag --txt; is it --text?"),
        ("--te dog", "unknown flag --te; is it --text?"),
        ("-f x", "unknown flag -f; is it --folder or --files?"),
        ("--nothing_like_it", "unknown flag --nothing_like_it"),
        ("--text a -- b", "unknown flag --"),
        ("--text a ' ' --again", 'unexpected argument " ": a backslash that continues a line must'),
        ("--text 'a\r'", "--text: 'a\\r' ends in a carriage return"),
        ("'--again\r'", "is it --again? It has U+000D"),
        ("--text a --text b", "--text is given twice: --text a and --text b; it takes one value"),
        ("--text=1 --text 2", "--text is given twice: --text=1 and --text 2; it takes one value"),
        ("--again --again", "--again is given twice"),
        ("--files a --files b c", "--files is given twice:  … several values at once: "
         "--files a b c"),
        ("--options {a: secret}", "unexpected argument after --options:  … single quotes"),
        ("--options secret --options hidden", "--options is given twice"),
    ],
)  # fmt: skip
def test_what_belongs_to_no_flag_is_refused_with_what_was_meant(line: str, message: str) -> None:
    with pytest.raises(Refused) as refused:
        parser().parse_args(shlex.split(line))
    for part in message.split(" … "):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--text 'a dog'", {"text": "a dog"}),
        ("--text=-dog", {"text": "-dog"}),
        ("--text '-a dog'", {"text": "-a dog"}),
        ("--text -5", {"text": "-5"}),
        ("--text '– a dash'", {"text": "– a dash"}),
        ("--text 'a “loud” dog'", {"text": "a “loud” dog"}),
        ("--text 'a\u00a0dog'", {"text": "a\u00a0dog"}),
        ("--text ''", {"text": ""}),
        ("--range -5 5", {"range": [-5.0, 5.0]}),
        ("--files a b --again", {"files": ["a", "b"], "again": True}),
        ("--also a --also=b", {"also": ["a", "b"]}),
        ("--more a b --more c", {"more": ["a", "b", "c"]}),
    ],
)
def test_what_belongs_to_a_flag_is_taken(line: str, expected: dict[str, object]) -> None:
    found = vars(parser().parse_args(shlex.split(line)))
    assert {name: value for name, value in found.items() if value not in (None, False)} == expected


def test_help_is_given_whatever_else_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parser().parse_args(["--txt", "dog", "barking", "--help"])
    assert left.value.code == 0
    assert "--text" in capsys.readouterr().out


def with_place(nargs: str | None) -> _Parser:
    found = _Parser(prog="x")
    found.add_argument("uri", nargs=nargs)
    found.add_argument("--output")
    return found


def test_a_place_without_a_flag_takes_what_it_can() -> None:
    assert with_place(None).parse_args(["a.csv", "--output", "o"]).uri == "a.csv"
    assert with_place("+").parse_args(["a", "b", "--output", "o"]).uri == ["a", "b"]
    assert with_place("?").parse_args([]).uri is None
    assert with_place(None).parse_args(["--", "-a.csv"]).uri == "-a.csv"
    with pytest.raises(Refused, match='"file.csv" after my; did you mean "my file.csv"'):
        with_place(None).parse_args(["my", "file.csv"])
    with pytest.raises(Refused, match='"folder" after --output my; did you mean --output "my f'):
        with_place("+").parse_args(["a", "b", "--output", "my", "folder"])


def test_a_command_of_its_own_checks_its_own_words() -> None:
    top = _Parser(prog="x")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("go").add_argument("--to")
    assert top.parse_args(["go", "--to", "there"]).to == "there"
    with pytest.raises(Refused, match="--to is given twice"):
        top.parse_args(["go", "--to", "there", "--to", "here"])
    with pytest.raises(Refused, match='"now" after --to there; did you mean --to "there now"'):
        top.parse_args(["go", "--to", "there", "now"])
    with pytest.raises(Refused, match="unknown flag --tu; is it --to"):
        top.parse_args(["go", "--tu", "there"])


def test_flags_of_somebody_else_are_known_and_left() -> None:
    other = Parser(prog="other")
    other.add_argument("--theirs")
    other.add_argument("--experiments", action="append")
    found = parser()
    found.others = tuple(other._actions)
    line = ["--theirs", "x", "--experiments", "a", "--experiments", "b", "--text", "dog"]
    assert found.parse_known_args(line)[0].text == "dog"
    for wrong in (["--theirs", "x", "y"], ["--theirs", "x", "--theirs", "y"], ["--their", "x"]):
        with pytest.raises(Refused, match="--theirs"):
            found.parse_known_args(wrong)


_WORDS = st.sampled_from(
    ["--text", "--files", "--again", "--range", "--number", "--also", "-5", "dog", "“a", "–again"]
) | st.text(max_size=8)


@given(st.lists(st.one_of(_WORDS, st.builds("{}={}".format, _WORDS, _WORDS)), max_size=7))
@example(["--text", "a", "dog"])
@example(["--text=a", "--te=b"])
@example(["-", "--text"])
@fuzzing.few(500)
def test_of_what_is_accepted_no_word_is_left_over(line: list[str]) -> None:
    try:
        _, rest = parser().parse_known_args(line)
    except Refused:
        return
    assert rest == []


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_what_is_proposed_reads_as_it_was_meant(text: str) -> None:
    assert shlex.split(shell_word(text)) == [text]
    assert shlex.split(shell_word(text, always=True)) == [text]


def test_a_home_is_resolved_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found = parser()
    found.add_argument("--output", type=path)
    assert found.parse_args(["--output=~/out"]).output == Path("/home/me/out")
    assert path("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert path("a/~") == Path("a/~")
