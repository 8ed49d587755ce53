"""--isolate_decoder: a clip over which the decoder crashes is a dead letter like any other."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

import tone_runs
from documented_faults import CRASHES, end_idle_decoders

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def decoder_with_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(dedent(CRASHES))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    end_idle_decoders()  # another test may have left some that have no hole
    with tone_runs.tones_as_models():
        yield
    end_idle_decoders()


def digests(output: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (output / "stems").rglob("*.flac")
    }


def test_the_poisoned_clip_fails_and_the_others_are_the_same(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path, 6)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    assert tone_runs.run("--manifest", manifest, "--output", tmp_path / "whole") == 0
    poisoned = Path(rows[2]["mixture_uri"])
    poisoned.write_bytes(b"poison" + poisoned.read_bytes())
    given = ("--manifest", manifest, "--output", tmp_path / "out", "--isolate_decoder")
    assert tone_runs.run(*given, "--max_failure_rate", "1") == 0
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    assert (letter["id"], letter["stage"], letter["error_type"]) == (
        rows[2]["id"], "read", "decoder_crashed",
    )  # fmt: skip
    assert str(poisoned) in letter["message"]
    assert "SIGSEGV" in letter["message"]
    found, expected = digests(tmp_path / "out"), digests(tmp_path / "whole")
    assert len(found) == 5
    assert found.items() < expected.items()


RUN = """
import sys
sys.path[:0] = ["tests", "."]
from pipelines import flags
with flags.without_collections():
    import tone_runs
with tone_runs.tones_as_models():
    tone_runs.run(*sys.argv[1:])
"""


def test_a_run_that_a_clip_has_ended_is_completed_by_the_flag(tmp_path: Path) -> None:
    rows = tone_runs.write_mixtures(tmp_path, 3)
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    poisoned = Path(rows[1]["mixture_uri"])
    poisoned.write_bytes(b"poison" + poisoned.read_bytes())
    given = ["--manifest", str(manifest), "--output", str(tmp_path / "out")]
    given += ["--max_failure_rate", "1"]
    ended = subprocess.run([sys.executable, "-c", RUN, *given], cwd=ROOT)
    assert ended.returncode == -signal.SIGSEGV
    assert tone_runs.run(*given, "--resume", "--isolate_decoder") == 0
    (letter,) = tone_runs.table(tmp_path / "out", "dead_letters")
    assert (letter["id"], letter["error_type"]) == (rows[1]["id"], "decoder_crashed")
    done = {row["id"] for row in tone_runs.table(tmp_path / "out", "metrics")}
    assert done == {rows[0]["id"], rows[2]["id"]}
