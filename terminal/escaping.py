"""Names that people chose, in forms that would take them for more than text.

A dataset, a label or an id may hold anything. Here it becomes text of a terminal, Markdown, LaTeX
or a spreadsheet, and nothing else. HTML is escaped by jinja, JSON and Parquet by their libraries.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~>$@:-]|(?<=www)\.)", re.IGNORECASE)
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\u2013": "--",
    "\u2212": r"$-$",
    "·": r"\textperiodcentered{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
_FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")


def one_line(text: str, max_chars: int = 200) -> str:
    """``text`` on one line of a terminal or a picture, which it can neither steer nor fill."""
    words = "".join(c if c.isprintable() or c.isspace() else "�" for c in text).split()
    plain = " ".join(words)
    return plain if len(plain) <= max_chars else plain[: max_chars - 2] + " …"


def markdown(text: str) -> str:
    """A cell of a Markdown table: no markup, HTML or link comes of it."""
    plain = _CONTROL.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\1", plain)


def latex(text: str) -> str:
    """A cell of a LaTeX table; ``[`` and ``*`` at its start are no arguments of what comes before.

    Letters that LaTeX's encoding lacks need LuaLaTeX or XeLaTeX.
    """
    plain = "".join(_TEX.get(character, character) for character in _CONTROL.sub(" ", text))
    return f"{{}}{plain}" if plain.lstrip().startswith(("[", "*")) else plain


def comment(text: str) -> str:
    """``text`` for the rest of a line."""
    return _CONTROL.sub(" ", text)


def spreadsheet(text: str) -> str:
    """A cell of a CSV table for people, with ``'`` before what would be taken for a formula.

    Control characters become blanks: a carriage return would begin a row. Spreadsheets in many
    countries split lines at semicolons, so that what stands after one may begin a cell too.
    """
    return _FORMULA.sub(r"\1'", _CONTROL.sub(" ", text))
