"""Writes text for people: it cannot steer a screen, and a screen cannot decide a run.

Standard output may be a pipe whose reader has left (``| head -1``), a full disk, closed, or a
terminal without the letters of a message. A command that has done its work then has done its work.

A dataset, a label or an id may hold anything. Here it becomes text of a terminal, Markdown, LaTeX
or a spreadsheet, and nothing else. HTML is escaped by jinja, JSON and Parquet by their libraries.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import sys
import unicodedata
from typing import Any, TextIO

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


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with what is counted: ``1 clip``, ``2,000 clips``.

    Args:
        number: how many.
        one: what one is called.
        many: what several are called; None: the same with an ``s``.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def markdown(text: str) -> str:
    """Escapes ``text`` for a cell of a Markdown table: no markup, HTML or links."""
    plain = _CONTROL.sub(" ", text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\1", plain)


def latex(text: str) -> str:
    """A cell of a LaTeX table; ``[`` and ``*`` at its start are no arguments of what comes before.

    Letters that LaTeX's encoding lacks need LuaLaTeX or XeLaTeX.
    """
    plain = "".join(_TEX.get(character, character) for character in _CONTROL.sub(" ", text))
    return f"{{}}{plain}" if plain.lstrip().startswith(("[", "*")) else plain


def comment(text: str) -> str:
    """Replaces control characters in ``text``, so that it stays on one comment line."""
    return _CONTROL.sub(" ", text)


def spreadsheet(text: str) -> str:
    """A cell of a CSV table for people, with ``'`` before what would be taken for a formula.

    Control characters become blanks: a carriage return would begin a row. Spreadsheets in many
    countries split lines at semicolons, so that what stands after one may begin a cell too.
    """
    return _FORMULA.sub(r"\1'", _CONTROL.sub(" ", text))


_FALLBACK = "clapsep_screen"
_NEAR = {"±": "+-", "→": "->", "…": "...", "·": ".", "\u2013": "-", "\u2014": "-", "\u00d7": "x"}


def steady() -> None:
    r"""Makes standard output and error streams that take every text and never raise.

    Letters that the terminal's encoding lacks are written as near ones or as ``\x…`` codes. What
    cannot be written at all is lost, and nothing else is. To be called by every command before it
    prints; calling it again does nothing. A stream that a program has put in the place of the
    process's own stays as it is.
    """
    codecs.register_error(_FALLBACK, _in_other_letters)
    _occupy_closed_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _steady(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _steady(sys.stderr, 2)


def lost() -> OSError | None:
    """Returns the error that standard output ran into; None if none, or if the reader left.

    For commands whose output is no message but what they make: a reader who has left has taken what
    was wanted, and a full disk has not.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Lossy) else None
    return None if isinstance(error, BrokenPipeError) else error


def _occupy_closed_descriptors() -> None:
    """Opens the null device in the place of closed standard streams.

    The next file that is opened would take the number of a closed one, and receive what native code
    prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def _steady(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # closed when the process began
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(number, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=_FALLBACK,
        line_buffering=stream.line_buffering or stream.write_through,
    )


class _Lossy(io.FileIO):
    """A file that claims to have written what it could not write, and remembers why."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        while True:
            try:
                written = super().write(data)
            except OSError as err:
                self.error = err
                return len(data)
            if written is not None:
                return written
            select.select((), (self,), ())  # it does not wait by itself, and its reader is slow


def _in_other_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(map(_nearest, error.object[error.start : error.end]))
    return text, error.end


def _nearest(letter: str) -> str:
    if letter in _NEAR:
        return _NEAR[letter]
    near = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode("ascii")
    return near or letter.encode("ascii", "backslashreplace").decode("ascii")
