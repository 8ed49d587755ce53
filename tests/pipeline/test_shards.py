"""``--shard``: the rows of a manifest in parts, each by a command of its own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import jobs
import tone_runs
from jobs import JOBS
from manifests import validate
from manifests.files.readers import iter_rows
from manifests.row import ManifestRow
from pipelines import flags, report
from pipelines.output_folder import lock
from pipelines.output_folder.contents import LOCK
from pipelines.reporting.runs import RunError, read_run
from transforms.elements import Shard
from transforms.manifest_io import shard_of
from transforms.storage import Storage
from transforms.tables import row_counts

pytestmark = pytest.mark.usefixtures("loaded")
ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "docs" / "templates"
COUNT = 3
NUM_MIXTURES = 8


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, a run over all of it, and the same in parts."""
    folder = tmp_path_factory.mktemp("made")
    rows = tone_runs.write_mixtures(folder / "in", count=NUM_MIXTURES, duration_s=0.5)
    rows += [{**row, "id": f"{row['id']}/again", "negative_text": None} for row in rows[:4]]
    rows.append({**rows[0], "id": "gone", "mixture_uri": "gone.wav"})
    rows += [{"id": f"invalid/{number}"} for number in range(COUNT)]
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    with tone_runs.tones_as_models():
        assert _run(manifest, folder / "whole") == 0
        for index in range(COUNT):
            assert _run(manifest, folder / "parts", "--shard", f"{index}/{COUNT}") == 0
    return folder


def _run(manifest: Path, output: Path, *more: str) -> int:
    given = ("--manifest", manifest, "--output", output, "--max_failure_rate", "1")
    return tone_runs.run(*given, *more)


def _parts(output: Path, count: int = COUNT) -> list[Path]:
    return [output / f"shard={index}-of-{count}" for index in range(count)]


def _ids(output: Path, name: str) -> list[str]:
    return [row["id"] for row in tone_runs.table(output, name)]


def test_the_parts_are_the_whole(made: Path) -> None:
    whole, parts = made / "whole", _parts(made / "parts")
    assert sorted(path.name for path in (made / "parts").iterdir()) == [p.name for p in parts]
    found = [row for part in parts for row in tone_runs.table(part, "metrics")]
    found = sorted(tone_runs.comparable(found), key=lambda row: str(row["id"]))
    assert found == tone_runs.comparable(tone_runs.table(whole, "metrics"))
    stems = {name for part in parts for name in tone_runs.stems(part)}
    assert stems == tone_runs.stems(whole).keys()
    counts = [tone_runs.record(folder)["row_counts"] for folder in (whole, *parts)]
    for name in ("rows", "stems", "dead_letters"):
        assert counts[0][name] == sum(each[name] for each in counts[1:])
    assert all(each["dead_letters"] for each in counts[1:])  # of rows that are not valid, one each
    assert [tone_runs.record(part)["config"]["shard"] for part in parts] == ["0/3", "1/3", "2/3"]


def test_rows_of_a_mixture_stay_together_whatever_their_order(made: Path, tmp_path: Path) -> None:
    rows = [row for row in iter_rows(str(made / "rows.jsonl")) if isinstance(row, ManifestRow)]
    for row in rows:
        part = made / "parts" / shard_of(row, COUNT).folder
        assert row.id in [*_ids(part, "metrics"), *_ids(part, "dead_letters")]
    again = [row for row in rows if row.id.endswith("/again")]
    by_id = {row.id: shard_of(row, COUNT) for row in rows}
    assert again
    assert all(by_id[row.id] == by_id[row.id.removesuffix("/again")] for row in again)
    lines = (made / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (made / "turned.jsonl").write_text("\n".join(lines[::-1]), encoding="utf-8")
    assert _run(made / "turned.jsonl", tmp_path, "--shard", "1/3") == 0
    part = _parts(made / "parts")[1]
    assert _ids(tmp_path / part.name, "metrics") == _ids(part, "metrics")


def test_a_report_reads_all_parts_as_one_run(made: Path, tmp_path: Path) -> None:
    whole = read_run(str(made / "whole"), "whole", Storage())
    parts = read_run(str(made / "parts"), "parts", Storage())
    assert parts.clips["id"].tolist() == whole.clips["id"].tolist()
    assert parts.clips["sdri_db"].tolist() == whole.clips["sdri_db"].tolist()
    assert len(parts.failures) == len(whole.failures)
    assert parts.record["status"] == "3 of 3 parts finished"
    assert report.run([str(made / "parts"), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "3 of 3 parts finished" in page
    assert re.search(r"shard%3D\d-of-3/stems", page)  # links to stems; which parts have rows varies


def test_scoring_finds_the_stems_in_all_parts(made: Path, tmp_path: Path) -> None:
    words = ["--manifest", str(made / "rows.jsonl"), "--output", str(tmp_path / "out")]
    words += ["--stems", str(made / "parts"), "--scorer", "none", "--max_failure_rate", "1"]
    assert JOBS["score"].run([*words, *tone_runs.QUIET]) == 0
    assert _ids(tmp_path / "out", "metrics") == _ids(made / "whole", "metrics")


def test_a_part_reads_nothing_that_another_part_writes(tmp_path: Path) -> None:
    """What it found there would depend on how far the other one is."""
    parts = _parts(tmp_path / "out")
    parts[0].mkdir(parents=True)
    (parts[0] / "stems").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    folders = [tmp_path / "disk", *(part / "stems" for part in parts)]
    rows = [
        {"id": f"{at}/{name}", "mixture_uri": str(folder / f"{name}.wav"), "positive_text": "bell"}
        for at, folder in enumerate(folders)
        for name in "abcd"
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    for index in range(COUNT):
        assert _run(manifest, tmp_path / "out", "--shard", f"{index}/{COUNT}") == 0
    letters = [row for part in parts for row in tone_runs.table(part, "dead_letters")]
    assert [row["error_type"] for row in letters] == ["own_output"] * len(rows)


def _copy(made: Path, tmp_path: Path, *names: str) -> Path:
    """An output folder with the records of these parts."""
    for name in names:
        folder = tmp_path / "out" / name
        folder.mkdir(parents=True)
        record = tone_runs.record(made / "whole")
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path / "out"


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", None])
@pytest.mark.parametrize(
    ("there", "shard", "said"),
    [
        (["shard=0-of-3"], "0/4", "holds parts of 3 (shard=…-of-3), and rows would be there twice"),
        (["shard=0-of-3"], None, "holds parts of a manifest (shard=…-of-3): name one with --shard"),
        (["."], "0/4", "holds a run over all rows"),
        (["shard=0-of-3", "shard=1-of-4"], "0/4", "shard=…-of-3 and shard=…-of-4"),
    ],
)
def test_divisions_are_not_mixed(
    made: Path,
    tmp_path: Path,
    there: list[str],
    shard: str | None,
    said: str,
    flag: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = _copy(made, tmp_path, *there)
    more = [*(["--shard", shard] if shard else []), *([flag] if flag else [])]
    assert _run(made / "rows.jsonl", output, *more) == flags.EXIT_USAGE
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in output.rglob("*") if path.is_file()) == (
        ["run.json"] * len(there)
    )


def test_a_report_on_two_divisions_is_refused(made: Path, tmp_path: Path) -> None:
    output = _copy(made, tmp_path, "shard=0-of-3", "shard=1-of-4")
    with pytest.raises(RunError, match="several divisions"):
        read_run(str(output), "both", Storage())


def test_a_part_to_which_no_recording_falls_is_done(made: Path, tmp_path: Path) -> None:
    given = ["--recordings", made / "in" / "m0.wav", "--positive", "bell", "--output", tmp_path]
    for index in range(COUNT):
        assert tone_runs.run(*given, "--shard", f"{index}/{COUNT}") == 0
    counts = [tone_runs.record(part)["row_counts"]["rows"] for part in _parts(tmp_path)]
    assert sorted(counts) == [0, 0, 1]


def test_a_part_counts_no_failures_of_others(tmp_path: Path) -> None:
    """A damaged shard falls to the first part, entries of a list to the first and the third."""
    rows = tone_runs.write_mixtures(tmp_path / "in", count=1)
    (tmp_path / "in" / "cut.tar").write_bytes(b"\x01" * 700)
    listed = tmp_path / "wav.scp"
    listed.write_text(f"a {rows[0]['mixture_uri']}\nb cat x |\nc cat y |\n", encoding="utf-8")
    given = ["--recordings", tmp_path / "in" / "cut.tar", listed, "--positive", "bell"]
    given += ["--output", tmp_path / "out", "--max_failure_rate", "1"]
    failed = []
    for index, part in enumerate(_parts(tmp_path / "out")):
        assert tone_runs.run(*given, "--shard", f"{index}/{COUNT}") == 0
        written, shown = tone_runs.record(part)["row_counts"], row_counts.snapshot()
        failed.append(written["dead_letters"])
        counted = (shown.get("rows", 0), shown.get("failed", 0))
        assert counted == (written["rows"], written["dead_letters"])
    assert failed == [2, 0, 1]


@pytest.mark.parametrize("text", ["4/4", "0/0", "1", "-1/4", "a/b", "1/2/3", "", "0/4 "])
def test_a_part_that_there_is_not_is_refused(
    text: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(made / "rows.jsonl", tmp_path / "out", f"--shard={text}") == flags.EXIT_USAGE
    error = capsys.readouterr().err
    assert f"--shard {text}" in error
    assert "…" not in error
    assert not (tmp_path / "out").exists()


def test_one_recording_has_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--mixture", "a.wav", "--positive", "a dog", "--output", tmp_path, "--shard", "0/2")
    assert tone_runs.run(*words) == flags.EXIT_USAGE
    assert "--shard goes with --manifest" in capsys.readouterr().err


def test_what_is_synthesized_in_parts_is_one_manifest(tmp_path: Path) -> None:
    inputs = jobs.write_inputs(tmp_path / "in")
    output = tmp_path / "out"
    for index in range(2):
        words = JOBS["synthesize"].words(inputs, output, *tone_runs.QUIET)
        words[words.index("0.5")] = "1"
        assert JOBS["synthesize"].run([*words, "--shard", f"{index}/2"]) == 0
    pattern = f"{output}/shard=*/manifest/*.parquet"
    assert validate.check(pattern).is_valid
    assert len(list(iter_rows(pattern))) == jobs.NUM_ROWS - 1


def test_ids_are_compared_across_parts(tmp_path: Path) -> None:
    for index in range(2):
        folder = tmp_path / Shard(index=index, count=2).folder / "manifest"
        folder.mkdir(parents=True)
        row = {"id": "same", "mixture_uri": f"{index}.wav", "positive_text": "a"}
        tone_runs.write_manifest(folder / "rows.parquet", [row])
    found = validate.check(f"{tmp_path}/shard=*/manifest/*.parquet")
    assert (found.num_duplicates, found.is_valid) == (1, False)
    assert "shard=0-of-2" in "".join(found.errors)


SLOW_RUN = """
import sys, time
sys.path[:0] = ["tests", "."]
import tone_runs, tones
decode = tones.ToneSeparator.decode
def slow(self, *arguments):
    time.sleep(0.4)
    return decode(self, *arguments)
tones.ToneSeparator.decode = slow
with tone_runs.tones_as_models():
    code = tone_runs.run(*sys.argv[1:], "--batch_size", "1")
sys.exit(code)
"""


def test_a_part_that_is_killed_is_completed(made: Path, tmp_path: Path) -> None:
    shard = max(_parts(made / "parts"), key=lambda part: len(_ids(part, "metrics")))
    index = shard.name.removeprefix("shard=")[0]
    given = ["--manifest", str(made / "rows.jsonl"), "--output", str(tmp_path), "--shard"]
    given += [f"{index}/{COUNT}", "--max_failure_rate", "1"]
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, *given], cwd=ROOT)
    journal = tmp_path / shard.name / "_work" / "journal"
    deadline_s = time.monotonic() + 240
    while not list(journal.glob("*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert tone_runs.run(*given, "--resume") == 0
    assert tone_runs.record(tmp_path / shard.name)["row_counts"]["finished_before"] > 0
    tone_runs.assert_same_results(shard, tmp_path / shard.name)


# --- the recipes of docs/runners.md: SLURM and Kubernetes set a variable and run a command ---

AS_A_COMMAND = """
import os, sys
sys.path[:0] = [os.path.join(os.environ["ROOT"], "tests"), os.environ["ROOT"]]
if sys.argv[1:3] != ["-m", "pipelines.separate"]:
    sys.exit(f"what is this: {sys.argv}")
import tone_runs
with tone_runs.tones_as_models():
    sys.exit(tone_runs.run(*sys.argv[3:]))
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """What stands for ``python`` in recipes: the command, with the tones in the models' place."""
    path = tmp_path / "bin" / "python"
    path.parent.mkdir()
    script = tmp_path / "bin" / "command.py"
    script.write_text(AS_A_COMMAND, encoding="utf-8")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "ROOT": str(ROOT), **more}


def test_the_slurm_script_does_its_part(made: Path, tmp_path: Path, python: Path) -> None:
    given: dict[str, Any] = {"MANIFEST": str(made / "rows.jsonl"), "OUTPUT": str(tmp_path / "out")}
    given |= {"PYTHON": str(python), "FLAGS": "--max_failure_rate 1"}
    given |= {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": str(COUNT)}
    script = str(TEMPLATES / "shards.sbatch")
    subprocess.run(["bash", script], env=_environment(**given), cwd=ROOT, check=True)
    part = _parts(tmp_path / "out")[2]
    tone_runs.assert_same_results(_parts(made / "parts")[2], part)
    text = (TEMPLATES / "shards.sbatch").read_text(encoding="utf-8")
    assert "#SBATCH --array=0-" in text  # COUNT is then the number of tasks, and ids begin at 0


def test_the_pod_of_kubernetes_does_its_part(made: Path, tmp_path: Path, python: Path) -> None:
    job = yaml.safe_load((TEMPLATES / "shards.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (job["kind"], spec["completionMode"]) == ("Job", "Indexed")
    assert f"--shard=$(JOB_COMPLETION_INDEX)/{spec['completions']}" in container["args"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [flags.EXIT_FAILURE_RATE, flags.EXIT_USAGE]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or there is no such policy
    words = [*container["command"], *container["args"], "--max_failure_rate=1"]
    places = {
        "gs://BUCKET/rows.parquet": str(made / "rows.jsonl"),
        "gs://BUCKET/out": str(tmp_path / "out"),
        "$(JOB_COMPLETION_INDEX)": "0",
        f"/{spec['completions']}": f"/{COUNT}",
    }
    for old, new in places.items():
        words = [word.replace(old, new) for word in words]
    assert words[0] == "python"
    # What a pod leaves that was ended at once, as for lack of memory, seconds before.
    owner = dataclasses.replace(lock.this_process([]), machine="the pod before", pid=1)
    left = tmp_path / "out" / f"shard=0-of-{COUNT}" / LOCK
    left.parent.mkdir(parents=True)
    left.write_text(json.dumps(dataclasses.asdict(owner)), encoding="utf-8")
    environment = _environment(PATH=f"{python.parent}:{os.environ['PATH']}")
    subprocess.run([str(python), *words[1:]], env=environment, cwd=ROOT, check=True)
    tone_runs.assert_same_results(_parts(made / "parts")[0], _parts(tmp_path / "out")[0])
