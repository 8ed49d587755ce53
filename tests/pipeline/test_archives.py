"""Runs of the main job over shards of recordings: tars, Parquet, and lists of recordings."""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gcsfs.core
import numpy as np
import pyarrow as pa
import pytest
import soundfile

import archives
import gcs_emulator
import tone_runs
import tones
from dask_cluster import dask_cluster
from pipelines import export, separate
from transforms import storage

BELL = ("--positive", "bell")


@pytest.fixture(autouse=True)
def loaded(request: pytest.FixtureRequest) -> Any:
    with tone_runs.tones_as_models() as found:
        yield found


@pytest.fixture
def members(clips: Path) -> list[archives.Member]:
    """Six recordings, with a text beside each."""
    found = []
    for number in range(6):
        found.append((f"x/m{number}.wav", (clips / f"m{number}.wav").read_bytes()))
        found.append((f"x/m{number}.json", b"{}"))
    return found


def hugging_face(folder: Path, members: list[archives.Member], group: int) -> Path:
    rows = [{"audio": {"bytes": data, "path": name}} for name, data in members if "wav" in name]
    schema = archives.hugging_face_schema(audio=archives.HF_AUDIO)
    return archives.write_parquet(folder / "train.parquet", rows, schema, group)


def stems_by_mixture(output: Path) -> dict[str, np.ndarray]:
    rows = tone_runs.table(output, "metrics")
    return {row["id"]: soundfile.read(row["stem_uri"])[0] for row in rows}


@pytest.mark.parametrize("in_memory_s", ["60", "0.1"])
def test_what_lies_in_a_shard_gives_what_it_gives_alone(
    clips: Path, members: list[archives.Member], tmp_path: Path, in_memory_s: str
) -> None:
    """Tar, packed tar, Parquet and lists; in memory and streamed."""
    folder = tmp_path / "in"
    archives.write_tar(folder / "plain.tar", members)
    archives.write_tar(folder / "packed.tar.gz", members, "w:gz")
    hugging_face(folder, members, group=4)
    (folder / "wav.scp").write_text(f"m0 {clips}/m0.wav\n", encoding="utf-8")
    (folder / "n.jsonl").write_text(
        f'{{"audio_filepath": "{clips}/m0.wav", "offset": 0.25, "duration": 0.5}}\n',
        encoding="utf-8",
    )
    given = (*BELL, "--max_clip_in_memory_s", in_memory_s)
    alone, output = tmp_path / "alone", tmp_path / "out"
    loose = [clips / f"m{number}.wav" for number in range(6)]
    assert tone_runs.run("--recordings", *loose, *given, "--output", alone) == 0
    roots = (folder, folder / "wav.scp", folder / "n.jsonl")
    assert tone_runs.run("--recordings", *roots, *given, "--output", output) == 0
    expected, found = stems_by_mixture(alone), stems_by_mixture(output)
    assert len(found) == 3 * 6 + 2
    for number in range(6):
        for name in (f"plain/x/m{number}", f"packed/x/m{number}", f"train/{number}"):
            np.testing.assert_array_equal(found[f"{name}/bell"], expected[f"m{number}/bell"])
    np.testing.assert_array_equal(found["wav/m0/bell"], expected["m0/bell"])
    rows = {row["id"]: row for row in tone_runs.table(output, "metrics")}
    assert rows["plain/x/m1/bell"]["mixture_uri"] == f"{folder}/plain.tar#x/m1.wav"
    assert rows["train/5/bell"]["mixture_uri"] == f"{folder}/train.parquet#row=5"
    assert (rows["n/1/bell"]["offset_s"], rows["n/1/bell"]["duration_s"]) == (0.25, 0.5)
    assert tone_runs.record(output)["row_counts"]["skipped"] == {"not_audio": 14}


def test_broken_members_are_dead_letters_that_run_again_by_their_uri(
    members: list[archives.Member], tmp_path: Path
) -> None:
    bad = dict(members) | {"x/m1.wav": b"RIFF no audio", "x/m2.wav": b""}
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        archives.write_tar(tmp_path / "in" / name, bad.items(), mode)
    hugging_face(tmp_path / "in", list(bad.items()), group=2)
    output = tmp_path / "out"
    assert tone_runs.run("--recordings", tmp_path / "in", *BELL, "--output", output) == 1
    letters = tone_runs.table(output, "dead_letters")
    assert Counter(row["error_type"] for row in letters) == {"not_audio": 3, "empty_file": 3}
    assert letters[0]["mixture_uri"] == f"{tmp_path}/in/a.tar#x/m1.wav"
    assert len(tone_runs.table(output, "metrics")) == 12
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        archives.write_tar(tmp_path / "in" / name, members, mode)
    hugging_face(tmp_path / "in", members, group=2)
    again = ("--manifest", output / "dead_letters", "--output", output, "--resume")
    assert tone_runs.run(*again) == 0
    assert len(tone_runs.table(output, "metrics")) == 18


def test_broken_shards_stop_nothing_else(members: list[archives.Member], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    whole = archives.write_tar(folder / "cut.tar", members).read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 2])
    packed = gzip.compress(whole)
    (folder / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "none.tar").write_bytes(b"no tar")
    (folder / "wav.scp").write_text("u1 sox x.wav |\nu2 gone.wav\n", encoding="utf-8")
    shutil.copy(tmp_path / "in" / "none.tar", tmp_path / "in" / "none.parquet")
    output = tmp_path / "out"
    given = ("--recordings", folder, folder / "wav.scp", *BELL, "--output", output)
    assert tone_runs.run(*given) == 1
    letters = Counter(
        (row["stage"], row["error_type"]) for row in tone_runs.table(output, "dead_letters")
    )
    assert letters[("manifest", "broken_shard")] == 4
    assert letters[("manifest", "invalid_row")] == 1
    assert letters[("read", "missing")] == 1
    done = [row["id"] for row in tone_runs.table(output, "metrics")]
    assert {"cut/x/m0/bell", "cut/x/m1/bell"} <= set(done)
    assert any(name.startswith("cut.tar.gz/") for name in done)


def test_a_recording_that_ends_behind_its_shard_is_cut_off(
    members: list[archives.Member], tmp_path: Path
) -> None:
    shard = archives.write_tar(tmp_path / "a.tar", members)
    rows = [
        {"id": name, "mixture_uri": f"a.tar#x/{name}.wav", "positive_text": "bell"}
        for name in ("m0", "m5", "gone")
    ]
    manifest = tone_runs.write_manifest(tmp_path / "m.jsonl", rows)
    at = shard.read_bytes().index(dict(members)["x/m5.wav"])
    os.truncate(shard, at + 1_000)
    assert tone_runs.run("--manifest", manifest, "--output", tmp_path / "out") == 1
    letters = {row["id"]: row for row in tone_runs.table(tmp_path / "out", "dead_letters")}
    assert letters["m5"]["error_type"] == "truncated"
    assert "the shard ends" in letters["m5"]["message"]
    assert letters["gone"]["error_type"] == "broken_shard"  # it may have been behind the cut
    assert [row["id"] for row in tone_runs.table(tmp_path / "out", "metrics")] == ["m0"]


def test_rows_with_a_path_are_opened_where_that_is_allowed(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(clips / "m1.wav", folder / "m1.wav")
    rows = [
        {"audio": {"bytes": (clips / "m0.wav").read_bytes(), "path": "a.wav"}},
        {"audio": {"bytes": None, "path": "m1.wav"}},
        {"audio": {"bytes": None, "path": str(clips / "m2.wav")}},
        {"audio": {"bytes": None, "path": "/etc/passwd"}},
        {"audio": None},
    ]
    schema = archives.hugging_face_schema(audio=archives.HF_AUDIO)
    shard = archives.write_parquet(folder / "t.parquet", rows, schema)
    output = tmp_path / "out"
    given = ("--recordings", shard, *BELL, "--allowed_uri_prefix", folder, "--output", output)
    assert tone_runs.run(*given) == 1
    assert [row["id"] for row in tone_runs.table(output, "metrics")] == ["t/0/bell", "t/1/bell"]
    letters = tone_runs.table(output, "dead_letters")
    assert sorted(row["error_type"] for row in letters) == [
        *("invalid_row", "uri_not_allowed", "uri_not_allowed"),
    ]


def test_members_and_stretches_of_them_are_examples_too(clips: Path, tmp_path: Path) -> None:
    both = np.concatenate([tones.tone("dog_bark", 1.0), tones.tone("bell", 1.0)])
    soundfile.write(tmp_path / "both.wav", both, tones.RATE_HZ, "FLOAT")
    data = (tmp_path / "both.wav").read_bytes()
    shard = archives.write_tar(tmp_path / "e.tar", [("a b.wav", data)])
    table = archives.write_parquet(
        tmp_path / "e.parquet", [{"sound": data}], pa.schema([("sound", pa.binary())])
    )
    for number, example in enumerate(
        (f"{shard}#a%20b.wav&t=1.1,1.9", f"{table}#row=0&column=sound&t=1.1,1.9")
    ):
        output = tmp_path / f"out{number}"
        given = ("--mixture", clips / "m0.wav", "--reference", clips / "r0.wav")
        assert tone_runs.run(*given, "--positive_audio", example, "--output", output) == 0
        (row,) = tone_runs.table(output, "metrics")
        assert row["sdri_db"] > 30


def test_a_column_that_is_named(clips: Path, tmp_path: Path, capsys) -> None:
    data = (clips / "m0.wav").read_bytes()
    schema = archives.hugging_face_schema(noisy=archives.HF_AUDIO, clean=archives.HF_AUDIO)
    row = {"noisy": {"bytes": data, "path": None}, "clean": None}
    shard = archives.write_parquet(tmp_path / "t.parquet", [row], schema)
    output = tmp_path / "out"
    given = ("--recordings", shard, *BELL, "--output", output)
    assert tone_runs.run(*given, "--audio_column", "noisy") == 0
    (found,) = tone_runs.table(output, "metrics")
    assert found["mixture_uri"] == f"{shard}#row=0&column=noisy"
    assert tone_runs.run(*given[:-1], tmp_path / "other") == 1
    (letter,) = tone_runs.table(tmp_path / "other", "dead_letters")
    assert (letter["stage"], letter["error_type"]) == ("manifest", "audio_column")
    assert "noisy, clean; name one with --audio_column" in letter["message"]


def test_what_is_exported_can_be_asked_again(clips: Path, tmp_path: Path) -> None:
    """An archive, what was heard in it as shards, and those as an archive."""
    named = [
        (f"{name}.wav", (clips / f"m{at}.wav").read_bytes())
        for at, name in enumerate(("001", "NA"))
    ]
    archives.write_tar(tmp_path / "in" / "a.tar", named)
    shutil.copy(clips / "m2.wav", tmp_path / "in" / "2024.01.05_rec.wav")
    first = tmp_path / "first"
    assert tone_runs.run("--recordings", tmp_path / "in", *BELL, "--output", first) == 0
    assert [row["id"] for row in tone_runs.table(first, "metrics")] == [
        *("2024.01.05_rec/bell", "a/001/bell", "a/NA/bell"),
    ]
    given = ("--runs", str(first), "--cut", "clips", "--signal", "mixture", "--progress", "none")
    again: dict[str, list[bytes]] = {}
    for layout in ("webdataset", "parquet", "nemo"):
        folder = tmp_path / layout
        assert export.run([*given, "--layout", layout, "--output", str(folder)]) == 0
        root = folder / "data" / "manifest.jsonl" if layout == "nemo" else folder
        output = tmp_path / f"{layout}_again"
        assert tone_runs.run("--recordings", root, *BELL, "--output", output) == 0
        again[layout] = sorted(stem.tobytes() for stem in stems_by_mixture(output).values())
    assert again["webdataset"] == again["parquet"] == again["nemo"]
    assert len(again["nemo"]) == 3


def test_parts_of_an_archive_together_are_all_of_it(
    members: list[archives.Member], tmp_path: Path
) -> None:
    archives.write_tar(tmp_path / "in" / "a.tar", members)
    (tmp_path / "in" / "b.tar").write_bytes(b"none")
    found: list[str] = []
    letters = 0
    for part in ("0/2", "1/2"):
        given = ("--recordings", tmp_path / "in", *BELL, "--output", tmp_path / "out")
        assert tone_runs.run(*given, "--shard", part, "--max_failure_rate", "1") == 0
        folder = tmp_path / "out" / f"shard={part[0]}-of-2"
        found += [row["id"] for row in tone_runs.table(folder, "metrics")]
        letters += len(tone_runs.table(folder, "dead_letters"))
    assert sorted(found) == [f"a/x/m{number}/bell" for number in range(6)]
    assert letters == 1


def test_a_shard_in_a_bucket_is_fetched_in_blocks_and_listed_anew(
    clips: Path, tmp_path: Path
) -> None:
    data = (clips / "m0.wav").read_bytes()
    members = [(f"{number:03}.wav", data) for number in range(40)]
    shard = archives.write_tar(tmp_path / "a.tar", members)
    with gcs_emulator.running(tmp_path) as front:
        bucket = front.bucket("archive")
        files = gcsfs.core.GCSFileSystem()
        files.put_file(str(shard), f"{bucket}/in/a.tar")
        given = ("--recordings", f"{bucket}/in", *BELL, "--output")
        front.forget()
        assert tone_runs.run(*given, tmp_path / "out") == 0
        assert len(tone_runs.table(tmp_path / "out", "metrics")) == 40
        ranges = front.requests(r"GET .*a\.tar.*")
        fetched = [each for each in ranges if "alt=media" in each.path or "/download/" in each.path]
        assert 2 <= len(fetched) <= 4
        files.put_file(str(clips / "m1.wav"), f"{bucket}/in/b.wav")
        files.put_file(str(shard), f"{bucket}/in/deep/c.tar")
        assert tone_runs.run(*given, tmp_path / "out", "--resume") == 0
        counts = tone_runs.record(tmp_path / "out")["row_counts"]
        assert (counts["finished_before"], counts["stems"]) == (40, 41)
        named = tone_runs.table(tmp_path / "out", "metrics")[0]["mixture_uri"]
        assert named == f"{bucket}/in/a.tar#000.wav"


@pytest.mark.slow
def test_ten_thousand_members_on_a_cluster_that_loses_a_worker(tmp_path: Path) -> None:
    """Every member is done once, whatever ran twice."""
    soundfile.write(tmp_path / "a.wav", tones.tone("bell", 0.1), tones.RATE_HZ, "PCM_16")
    data = (tmp_path / "a.wav").read_bytes()
    for shard in range(100):
        members = [(f"{number:02}.wav", data) for number in range(100)]
        archives.write_tar(tmp_path / "in" / f"{shard:02}.tar", members)
    output = tmp_path / "out"
    with dask_cluster(tmp_path / "cluster", [(), ()]) as cluster:
        # In a part of its own, so that the worker ends in the middle of the work.
        killed = threading.Thread(target=_kill_when_busy, args=(cluster, output), daemon=True)
        killed.start()
        code = separate.run(
            [
                *("--recordings", str(tmp_path / "in"), *BELL, "--output", str(output)),
                *("--model", "mixture", "--scorer", "none", "--progress", "none"),
                *("--runner=dask", "--dask_client_address", cluster.address),
            ]
        )
        killed.join()
        assert cluster.workers[0].poll() is not None
    assert code == 0
    ids = Counter(row["id"] for row in tone_runs.table(output, "metrics"))
    assert ids == Counter(f"{s:02}/{n:02}/bell" for s in range(100) for n in range(100))
    counts = tone_runs.record(output)["row_counts"]
    assert (counts["rows"], counts["stems"], counts["dead_letters"]) == (10_000, 10_000, 0)
    assert sum(1 for _ in (output / "stems").rglob("*.flac")) == 10_000


def _kill_when_busy(cluster: Any, output: Path) -> None:
    """Kills the first worker when a thousand stems are there."""
    while True:
        stems = output / "stems"
        if stems.is_dir() and sum(1 for _ in stems.rglob("*.flac")) >= 1_000:
            cluster.workers[0].kill()
            return
        time.sleep(0.5)


def test_neighbours_are_fetched_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def fetch() -> bytes:
        asked.append(1)
        return b"x"

    kept = storage._Kept(2)
    assert [kept.get("a", fetch) for _ in range(3)] == [b"x"] * 3
    assert len(asked) == 1

    def refuse() -> bytes:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        kept.get("b", refuse)
    assert kept.get("b", fetch) == b"x"
    for key in "cd":
        kept.get(key, fetch)
    kept.get("a", fetch)
    assert len(asked) == 5
