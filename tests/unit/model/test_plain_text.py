"""Names that would be markup elsewhere; another program reads what was written for it."""

from __future__ import annotations

import csv
import io
import re

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import report_runs
from terminal.screen import latex, markdown, one_line, spreadsheet

FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]")
every_name = pytest.mark.parametrize("name", report_runs.NASTY)


def cells_of(table: str) -> list[Token]:
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    return [token for token in tokens if token.type == "inline"]


@every_name
def test_a_cell_of_markdown_is_text(name: str) -> None:
    head, cell = cells_of(f"| h |\n| --- |\n| {markdown(name)} |\n")
    assert head.content == "h"
    assert cell.children is not None
    assert {token.type for token in cell.children} <= {"text", "text_special"}
    text = "".join(token.content for token in cell.children)
    assert text.split() == re.sub(r"[\x00-\x1f\x80-\x9f\u2028]", " ", name).split()


@pytest.mark.parametrize("name", ["http://b.c", "www.b.c", "WWW.b.c", "a@b.c", "ftp://b.c"])
def test_no_address_becomes_a_link(name: str) -> None:
    assert re.search(r"(?i)\w:|www\.|\w@", markdown(name)) is None


@every_name
def test_a_cell_of_latex_has_no_commands_but_ours(name: str) -> None:
    code = latex(name)
    ours = r"\\text[a-z]+\{\}|\\[&%$#_{}]|\$\\pm\$|\$-\$"
    assert not re.search(r"[\\&%$#_^~<>\x00-\x1f\x7f-\x9f]", re.sub(ours, "", code))
    assert not code.lstrip().startswith(("[", "*"))


@every_name
def test_a_cell_of_a_spreadsheet_is_no_formula(name: str) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(["1", spreadsheet(name), "2"])
    assert len(text.getvalue().splitlines()) == 1
    for delimiter in ",;\t":
        (cells,) = csv.reader(io.StringIO(text.getvalue(), newline=""), delimiter=delimiter)
        assert not [cell for cell in cells if FORMULA.match(cell)]
    (found,) = csv.reader(io.StringIO(text.getvalue(), newline=""))
    assert len(found) == 3


def test_a_harmless_name_stays_as_it_is() -> None:
    name = "Fire engine, siren (2024); dog's 日本"
    assert spreadsheet(name) == one_line(name) == latex(name) == name


def test_text_is_cut_to_a_line() -> None:
    assert one_line("x" * 300) == "x" * 198 + " …"
    assert one_line("a\n b\tc \x1b[2J", 40) == "a b c �[2J"
