"""What docs/errors.md and docs/reliability.md promise, row by row: each fault is made for real.

A row of a page is a case of this test. A row without a case fails, and so does a case without a
row. To add a code: a row in docs/errors.md, and its faults under the same code and stages in
``ERRORS``; a fault is the columns of a manifest row. To add a fault to docs/reliability.md: a row
there, and a case under the text of its first column in ``RELIABILITY``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import documented_faults
from documented_faults import ERRORS, GOOD, RELIABILITY, Elsewhere, Outcome, World

ROOT = Path(__file__).parents[2]
EXIT_NAMES = {
    1: "EXIT_FAILURE_RATE",
    2: "EXIT_USAGE",
    3: "EXIT_JOB_FAILED",
    130: "EXIT_INTERRUPTED",
}


@cache
def table_rows(page: str) -> list[list[str]]:
    """The cells of every row of every table of a page, without heads."""
    found: list[list[str]] = []
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set("".join(cells)) <= set("-: "):
            found.pop()  # what stands above a rule is a head
        else:
            found.append(cells)
    return found


def documented_errors() -> list[tuple[str, str]]:
    """Code and stage, once for each stage that a row of docs/errors.md names."""
    return [
        (row[0].strip("`"), stage.strip())
        for row in table_rows("errors.md")
        for stage in row[1].split(",")
    ]


def promised(cell: str) -> Outcome:
    """What a row of docs/reliability.md says that comes: codes of dead letters, exit codes."""
    codes = {code for code, _ in documented_errors()}
    return Outcome(
        codes=frozenset(codes & set(re.findall(r"`(\w+)`", cell))),
        exits=frozenset(int(code) for code in re.findall(r"exit code (\d+)", cell)),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with documented_faults.world(tmp_path_factory.mktemp("faults") / "world") as made:
        yield made


@pytest.mark.parametrize(("code", "stage"), documented_errors())
def test_each_code_comes_as_documented(code: str, stage: str, world: World) -> None:
    given = ERRORS.get((code, stage))
    assert given, f"docs/errors.md has a row for {code} at {stage}, ERRORS has no fault for it"
    for number, fault in enumerate(given):
        letter = world.letters[documented_faults.error_id(code, stage, number)]
        assert (letter.stage, letter.code) == (stage, fault.code or code), (fault, letter)
        assert world.uri(fault.said) in letter.message, (fault, letter)


def test_no_fault_is_without_a_row() -> None:
    assert set(ERRORS) == set(documented_errors())
    assert [*RELIABILITY] == [row[0] for row in table_rows("reliability.md")]


@pytest.mark.parametrize("row", table_rows("reliability.md"), ids=lambda row: row[0][:60])
def test_each_fault_ends_as_documented(row: list[str], world: World, tmp_path: Path) -> None:
    fault, happens, tests = row
    case = RELIABILITY.get(fault)
    assert case is not None, f"docs/reliability.md has a row {fault!r}, RELIABILITY has no case"
    expected = promised(happens)
    if isinstance(case, Elsewhere):
        assert_shown_elsewhere(case, expected, tests)
        return
    found = codes_of(fault, case, world) if isinstance(case, list) else case(world, tmp_path)
    if expected.codes or "dead letter" not in happens:
        assert found.codes == expected.codes
    else:
        assert found.codes
    assert found.exits - {0, 1} == expected.exits


def codes_of(fault: str, case: list[documented_faults.Fault], world: World) -> Outcome:
    """What became of the rows of a fault; each as it is expected to end."""
    number = [*RELIABILITY].index(fault)
    letters = [world.letters[documented_faults.fault_id(number, n)] for n in range(len(case))]
    for each, letter in zip(case, letters, strict=True):
        assert letter.code == each.code, (each, letter)
    return Outcome(codes=frozenset({letter.code for letter in letters} - {GOOD}))


def assert_shown_elsewhere(case: Elsewhere, expected: Outcome, cell: str) -> None:
    """Each of the tests is there, in a file that the row names, and speaks of what is promised."""
    sources = []
    for name in case.tests:
        path, _, function = name.partition("::")
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        functions = {
            node.name: ast.get_source_segment(source, node) or ""
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef)
        }
        assert function in functions, name
        assert path.rsplit("/", 1)[-1] in cell or cell == "the same", (name, cell)
        sources.append(functions[function])
    said = "\n".join(sources)
    for code in expected.codes:
        assert f'"{code}"' in said, (code, case)
    for number in expected.exits:
        assert re.search(rf"\b{number}\b|{EXIT_NAMES[number]}", said), (number, case)
