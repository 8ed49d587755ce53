from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from terminal import screen

ROOT = Path(__file__).parents[3]
SAY = "sys.stdout.write(" + ascii("8.19 ± 6.71 → Ł 猫 \udc80 é") + ")"


def run(code: str, command: str = "exec {python} -c {code}", **environment: str) -> tuple[int, str]:
    """Exit code and standard error of Python code that a shell starts with ``command``."""
    line = command.format(python='"$PYTHON"', code='"$CODE"')
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "CODE": f"import sys; from terminal import screen; screen.steady(); {code}",
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).decode("ascii")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: " ".join(environment.values()),
)
def test_letters_that_the_terminal_lacks_become_near_ones(environment: dict[str, str]) -> None:
    code, said = run(SAY, **environment)
    assert (code, said) == (0, "8.19 +- 6.71 -> \\u0141 \\u732b \\udc80 e")


@pytest.mark.parametrize("encoding", ["iso8859-2", "koi8-r", "utf-8", "cp1252"])
def test_no_encoding_ends_a_command(encoding: str) -> None:
    code, _ = run(f"{SAY}; sys.stdout.flush(); sys.exit(7)", "{python} -c {code} > /dev/null",
                  PYTHONIOENCODING=encoding)  # fmt: skip
    assert code == 7


LONG = "[print('a line') for _ in range(100_000)]; sys.exit(7)"


@pytest.mark.parametrize(
    "command",
    [
        "{python} -c {code} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}",
        "{python} -c {code} | true; exit ${{PIPESTATUS[0]}}",
        "{python} -u -c {code} | true; exit ${{PIPESTATUS[0]}}",
        "exec {python} -c {code} >&-",
        "exec {python} -c {code} <&- >&- 2>&-",
        "exec {python} -c {code} > /dev/full",
    ],
)
def test_a_command_keeps_its_exit_code_whatever_becomes_of_its_text(command: str) -> None:
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    assert run(LONG, command) == (7, "")


def test_the_same_holds_for_errors_and_logs() -> None:
    code = (
        "import logging; logging.basicConfig(); logging.warning('±'); sys.stderr.write('±'); "
        "sys.exit(7)"
    )
    for command in ("exec {python} -c {code} 2>&-", "exec {python} -c {code} 2> /dev/full"):
        assert run(code, command, PYTHONIOENCODING="ascii") == (7, "")


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    file = tmp_path / "stem.wav"
    code = f"import os; f = open({str(file)!r}, 'w'); os.system('echo heard'); os.write(1, b'x')"
    assert run(code, "exec {python} -c {code} <&- >&- 2>&-") == (0, "")
    assert file.read_bytes() == b""


def test_text_for_a_slow_reader_is_kept_where_the_system_does_not_wait() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = b"x" * 1_000_000  # more than a pipe holds

    def write() -> None:
        with screen._Lossy(writing, "wb") as raw, io.BufferedWriter(raw) as stream:
            stream.write(text)

    writer = threading.Thread(target=write)
    writer.start()
    with open(reading, "rb") as stream:
        assert stream.read() == text
    writer.join()


@pytest.mark.parametrize(
    "command", ["manifests.example", "manifests.validate manifests/examples/demo.csv --format json"]
)
def test_what_is_the_product_of_a_command_is_not_lost_in_silence(command: str) -> None:
    def code_of(redirection: str) -> int:
        line = f'"$PYTHON" -m {command} {redirection}; exit ${{PIPESTATUS[0]}}'
        environment = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert ("No space left on device" in done.stderr) == (done.returncode != 0)
        return done.returncode

    assert code_of("| true") == 0
    if Path("/dev/full").exists():
        assert code_of("> /dev/full") in (1, 2)


def test_streams_of_others_stay(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    screen.steady()
    assert sys.stdout is before
    sys.stdout.write("±")
    assert capsys.readouterr().out == "±"


def test_every_command_steadies_its_screen_first() -> None:
    for path in [*ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")]:
        if path.relative_to(ROOT).parts[0] not in ("manifests", "model", "pipelines"):
            continue
        text = path.read_text(encoding="utf-8")
        if ".parse_args(" in text and "def parse_args" not in text:
            assert "screen.steady()" in text or path.name == "command.py", path


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 clips"), (1, "1 clip"), (2, "2 clips"), (12_345, "12,345 clips")]
)
def test_what_is_counted_is_singular_or_plural(number: int, said: str) -> None:
    assert screen.counted(number, "clip") == said
    assert screen.counted(number, "query", "queries").endswith("query" if number == 1 else "ies")
