"""Command lines of which every word counts: a word that belongs to no flag is refused.

``argparse`` alone takes the last of two values, accepts shortened names, and lets
``parse_known_args`` hand back what it did not use without saying where it stood. A shell that cuts
``--positive a dog barking`` into four words, a dash that a text editor made longer, or a pattern
that became several names would change what is run, and nobody would hear of it. Here the message
says which flag is near and which quoting was meant.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_DASHES = "-\u00ad\u02d7\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"
_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
"""Words that ``argparse`` takes for values although they begin with a hyphen."""
_ANY_DASH = f"[{re.escape(_DASHES)}]"
_DASHED_NAME = re.compile(rf"{_ANY_DASH}+[^\W\d](\w|{_ANY_DASH})*")
_MAX_PREFIXED = 4
_SUFFIX = re.compile(r".\.\w{1,7}")
_MANY = float("inf")


class Parser(argparse.ArgumentParser):
    """Takes every word of a command line or refuses it; knows no abbreviations.

    A flag may be given twice only where its values add up (``append`` or ``extend``).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As ``argparse.ArgumentParser``."""
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.others: tuple[argparse.Action, ...] = ()
        """Flags that somebody else parses from the same command line."""
        self.instead_of_several: Mapping[str, str] = {}
        """For flags that take one value: what to do where several are wanted."""
        self.confidential: frozenset[str] = frozenset()
        """Flags whose values no message may hold."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As ``argparse.ArgumentParser.parse_known_args``, after every word was looked at."""
        words = list(sys.argv[1:] if args is None else args)
        problem = _Words(self, words).problem()
        if problem is not None:
            self.error(problem)
        return super().parse_known_args(words, namespace)


@dataclasses.dataclass(slots=True)
class _Use:
    """A flag as it stands in a command line, with the words that follow it."""

    flag: str
    action: argparse.Action
    values: list[str]
    attached: bool

    @property
    def name(self) -> str:
        """The flag, or what a value without one is called in the usage."""
        return self.flag or str(self.action.metavar or self.action.dest)

    @property
    def text(self) -> str:
        """As it was typed."""
        if self.attached:
            return f"{self.flag}={shell_word(self.values[0])}"
        return " ".join([self.flag, *map(shell_word, self.values)]).strip()


class _Words:
    """The words of a command line, walked from the left as ``argparse`` does it."""

    def __init__(self, parser: Parser, words: list[str]) -> None:
        actions = [*parser._actions, *parser.others]
        self._by_flag = {flag: each for each in actions for flag in each.option_strings}
        self._own = [flag for each in parser._actions for flag in each.option_strings]
        self._place = next((each for each in parser._actions if not each.option_strings), None)
        self._parser, self._words = parser, self._own_words(words)

    @functools.cached_property
    def _plain(self) -> dict[str, str]:
        return {_plain(flag): flag for flag in reversed(self._by_flag)}

    def _own_words(self, words: list[str]) -> list[str]:
        """The words that are this parser's; not those of a subcommand, nor those after ``--``."""
        if self._place is None:
            return words
        ends = (word == "--" for word in words)
        if self._place.nargs == argparse.PARSER:
            ends = (not word.startswith("-") for word in words)
        return words[: next((at for at, end in enumerate(ends) if end), len(words))]

    def problem(self) -> str | None:
        """The first thing that is wrong with the command line; None where nothing is."""
        if any(isinstance(self._by_flag.get(each), argparse._HelpAction) for each in self._words):
            return None
        return next(self._problems(), None)

    def _problems(self) -> Iterator[str]:
        used: dict[argparse.Action, _Use] = {}
        last: _Use | None = None
        at = 0
        while at < len(self._words):
            use = self._use_at(at)
            if use is None:
                if (wrong := self._misspelt(self._words[at])) is not None:
                    yield wrong
                end = self._end_of_values(at)
                if self._place is None or self._place in used:
                    yield self._unexpected(self._words[at:end], last)
                else:
                    use = self._use_of(self._place, "", at)
                    if at + len(use.values) < end:
                        yield self._unexpected(self._words[at + len(use.values) : end], use)
                    used[self._place] = use
                at = max(end, at + 1)
                continue
            yield from self._problems_of(use, used.get(use.action), at)
            used[use.action] = last = use
            at += 1 if use.attached else 1 + len(use.values)

    def _use_at(self, at: int) -> _Use | None:
        """The flag that stands there, with its values; None where no known flag does."""
        word = self._words[at]
        if word in self._by_flag:
            return self._use_of(self._by_flag[word], word, at + 1)
        flag, equals, value = word.partition("=")
        if equals and flag in self._by_flag:
            return _Use(flag, self._by_flag[flag], [value], attached=True)
        return None

    def _use_of(self, action: argparse.Action, flag: str, start: int) -> _Use:
        end = min(self._end_of_values(start), start + _room(action))
        return _Use(flag, action, self._words[start : int(end)], attached=False)

    def _end_of_values(self, start: int) -> int:
        """Returns the index of the next word that looks like a flag, or of the end."""
        at = start
        while at < len(self._words) and not self._is_flag(self._words[at]):
            at += 1
        return at

    def _is_flag(self, word: str) -> bool:
        if word in self._by_flag or self._meant(word) is not None:
            return True
        if len(word) < 2 or not word.startswith("-") or _NUMBER.fullmatch(word):
            return False
        name, equals, _ = word.partition("=")
        if equals and word.startswith("--"):
            return " " not in name
        return " " not in word

    def _meant(self, word: str) -> str | None:
        """The flag that a word is, but for its dashes, capitals and characters without ink."""
        name = re.split(r"[=\s]", _visible(word), maxsplit=1)[0]
        return self._plain.get(_plain(name)) if _DASHED_NAME.fullmatch(name) else None

    def _problems_of(self, use: _Use, earlier: _Use | None, at: int) -> Iterator[str]:
        action, flag = use.action, use.flag
        if use.attached and action.nargs == 0:
            yield f"{flag} is a switch and takes no value: found {use.values[0]!r}. {_switch(flag)}"
        if earlier is not None and isinstance(
            action, argparse._StoreAction | argparse._StoreConstAction
        ):
            secret = flag in self._parser.confidential
            yield f"{flag} is given twice" if secret else _repeated(earlier, use)
        if not use.attached and len(use.values) < _least(action):
            yield self._missing(use, self._words[at + 1 + len(use.values) :])
        for value in use.values:
            if value.endswith("\r"):
                yield (
                    f"{flag}: {value!r} ends in a carriage return; save the script that holds this "
                    "command with the line ends of Unix"
                )
            if len(value) > 1 and value[0] in _QUOTES and value[-1] in _QUOTES:
                yield (
                    f"{flag}: {value} stands in typographic quotes, which a shell takes for "
                    f"letters; did you mean {flag} {shell_word(value[1:-1], always=True)}?"
                )

    def _missing(self, use: _Use, rest: Sequence[str]) -> str:
        expected = _least(use.action)
        what = "a value" if expected == 1 else f"{expected} values"
        text = f"{use.flag}: expected {what}"
        if not rest:
            return f"{text} after it"
        if rest[0].partition("=")[0] in self._by_flag:
            return f"{text}, found the flag {rest[0].partition('=')[0]}"
        if self._meant(rest[0]) is not None:
            return self._misspelt(rest[0]) or text
        return (
            f"{text}, found {rest[0]!r}; a value that begins with a hyphen is written "
            f"{use.flag}={shell_word(rest[0])}"
        )

    def _misspelt(self, word: str) -> str | None:
        """Says that a word is an unknown flag, and which one is close; None for a plain word."""
        meant = self._meant(word)
        if meant is not None:
            return f"unknown flag {_shown(word)}; is it {meant}?{_why(word, meant)}"
        if not self._is_flag(word):
            return None
        name = word.partition("=")[0]
        like = f"--{_plain(name)}"
        if like == "--":
            return f"unknown flag {word}"
        close = [flag for flag in self._own if flag.startswith(like)][:_MAX_PREFIXED]
        if len(like) > len("--x"):
            close = difflib.get_close_matches(like, sorted(self._by_flag), n=1) or close
        return f"unknown flag {_shown(name)}" + (f"; is it {' or '.join(close)}?" if close else "")

    def _unexpected(self, words: Sequence[str], last: _Use | None) -> str:
        text = f'unexpected argument "{words[0]}"'
        if not words[0].strip():
            return f"{text}: a backslash that continues a line must be the line's last character"
        as_flag = f"--{words[0]}" if f"--{words[0]}" in self._by_flag else None
        if last is None:
            return f"{text} before the first flag" + (f"; is it {as_flag}?" if as_flag else "")
        flag, action = last.name, last.action
        if flag in self._parser.confidential:
            return f"unexpected argument after {flag}: its value is one word, in single quotes"
        if action.nargs == 0:
            hint = f"; is it {as_flag}?" if as_flag else f". {_switch(flag)}"
            return f"{text} after {flag}, which is a switch and takes no value{hint}"
        text += f" after {last.text}"
        or_flag = f", or {as_flag}" if as_flag else ""
        if action.type not in (None, str) or action.choices is not None or _least(action) > 1:
            return f"{text}: {flag} takes {_number(action)}" + (
                f"; is it {as_flag}?" if as_flag else ""
            )
        if all(_SUFFIX.search(each) for each in (*last.values, *words)):
            advice = self._parser.instead_of_several.get(flag)
            return (
                f"{text}: {flag} takes one value, and a shell makes several of a pattern such as "
                f"*.wav" + (f"; {advice}" if advice else "")
            )
        joined = " ".join([*last.values, *words]).removeprefix("=").strip()
        inner = joined.strip(_QUOTES)
        meant = f"{last.flag} {shell_word(inner, always=True)}".strip()
        why = "" if inner == joined else "; a shell takes typographic quotes for letters"
        return (
            f"{text}; did you mean {meant}{or_flag}? A value of several words stands in quotes{why}"
        )


def shell_word(text: str, *, always: bool = False) -> str:
    """``text`` as it is typed in a shell: in quotes where it needs them, or always."""
    if not always and re.fullmatch(r"[\w@%+=:,./~-]+", text):
        return text
    if any(character in text for character in '"$`\\!'):
        return "'" + text.replace("'", "'\"'\"'") + "'"
    return f'"{text}"'


def _room(action: argparse.Action) -> float:
    """The most values that a flag or a place takes."""
    if action.nargs is None:
        return 1
    if isinstance(action.nargs, int):
        return action.nargs
    return 1 if action.nargs == argparse.OPTIONAL else _MANY


def _least(action: argparse.Action) -> int:
    if action.nargs is None or action.nargs == argparse.ONE_OR_MORE:
        return 1
    return action.nargs if isinstance(action.nargs, int) else 0


def _number(action: argparse.Action) -> str:
    least = _least(action)
    return "one value" if least == 1 else f"{least} values"


def _visible(word: str) -> str:
    """A word without characters that nobody sees, and with a plain space for every other one."""
    text = "".join(c for c in word if unicodedata.category(c) != "Cf" or c in _DASHES)
    return re.sub(r"\s", " ", text).strip()


def _plain(word: str) -> str:
    """A flag's name, for comparison: neither capitals nor dashes count."""
    name = re.split(r"[=\s]", _visible(word), maxsplit=1)[0].strip(_DASHES)
    return re.sub(_ANY_DASH, "_", name).lower()


def _shown(word: str) -> str:
    return word if word.isprintable() and " " not in word else repr(word)


def _why(word: str, meant: str) -> str:
    """Explains which character or space keeps ``word`` from being the flag ``meant``."""
    for character in word:
        if character in _DASHES[1:] or (not character.isprintable() and character != " "):
            name = unicodedata.name(character, "no name").lower()
            return f" It has U+{ord(character):04X} ({name}) in it"
    if " " in word.strip():
        value = word.strip().partition(" ")[2]
        return f" A flag and its value are two words: {meant} {shell_word(value, always=True)}"
    return ""


def _switch(flag: str) -> str:
    return f"Write {flag} alone, or leave it out"


def _repeated(earlier: _Use, now: _Use) -> str:
    if now.action.nargs == 0:
        return f"{now.flag} is given twice"
    text = f"{now.flag} is given twice: {earlier.text} and {now.text}"
    if now.action.nargs == argparse.ONE_OR_MORE:
        together = " ".join(map(shell_word, [*earlier.values, *now.values]))
        return f"{text}; it takes several values at once: {now.flag} {together}"
    return f"{text}; it takes {_number(now.action)}"


def path(text: str) -> Path:
    """The type of a flag that names a local file: shells leave ``~`` alone in ``--output=~/x``."""
    return Path(os.path.expanduser(text))
