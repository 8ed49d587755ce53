"""``--windows`` and ``--screen``: what is heard once, and what is separated then."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from torch import Tensor

import tone_runs
import tones
from transforms import model_cache
from transforms import windows as heard_windows
from transforms.audio.files import WriteError
from transforms.storage import Storage

LENGTHS = {"clip": (), "long": ("--max_clip_in_memory_s", "0.01")}
FIRST, SECOND, ABSENT = tones.LABELS[0], tones.LABELS[1], tones.LABELS[3]


class ToneListener:
    """Hears the powers of all tones; those of a query's tone are the odds."""

    def __init__(self) -> None:
        self.num_windows = 0

    def listen(self, waveform: Tensor) -> tuple[Tensor, bytes]:
        self.num_windows += 1
        powers = [[tones._power(clip, label) for label in tones.LABELS] for clip in waveform]
        heard = torch.tensor(powers, dtype=torch.float32)
        return torch.nn.functional.normalize(heard, dim=-1), heard.numpy().tobytes()

    def answer(self, kept: bytes, positive: Tensor) -> float:
        heard = np.frombuffer(kept, np.float32).reshape(-1, len(tones.LABELS))
        return math.log(max(float((heard * positive.numpy()).sum(axis=1).max()), 1e-9) / 1e-3)


@pytest.fixture(autouse=True)
def loaded() -> Iterator[tone_runs.Loaded]:
    with tone_runs.tones_as_models() as found:
        separator: Any = tones.ToneSeparator()
        separator.listener = ToneListener()
        found.model = dataclasses.replace(found.model, separator=separator)
        yield found


@pytest.fixture
def listener(loaded: tone_runs.Loaded) -> ToneListener:
    found: ToneListener = loaded.model.separator.listener  # type: ignore[attr-defined]
    return found


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """One of 25 s, whose first 12 s have one tone and whose last 5 s another; and one of 3 s."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    silence = np.zeros(8 * tones.RATE_HZ, np.float32)
    parts = [tones.tone(FIRST, 12.0), silence, tones.tone(SECOND, 5.0)]
    soundfile.write(folder / "long.wav", np.concatenate(parts), tones.RATE_HZ, "FLOAT")
    soundfile.write(folder / "short.wav", tones.tone(SECOND, 3.0), tones.RATE_HZ, "FLOAT")
    return folder


def ask(output: Path, recordings: Path, labels: tuple[str, ...], *words: str) -> int:
    asked = [word for label in labels for word in ("--positive", label)]
    return tone_runs.run("--recordings", recordings, *asked, "--output", output, *words)


def windows(output: Path) -> list[dict[str, Any]]:
    rows = tone_runs.table(output, "windows")
    return sorted(rows, key=lambda row: (row["mixture_uri"] or "", row["start_s"]))


def contents(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (output / "windows").iterdir()}


def metrics(output: Path) -> dict[str, dict[str, Any]]:
    rows = tone_runs.table(output, "metrics")
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("labels", [(FIRST,), (FIRST, SECOND, ABSENT)], ids=["one", "three"])
def test_every_ten_seconds_are_heard_once_however_many_queries_there_are(
    length: str,
    labels: tuple[str, ...],
    recordings: Path,
    tmp_path: Path,
    listener: ToneListener,
) -> None:
    output = tmp_path / "out"
    assert ask(output, recordings, labels, "--windows", *LENGTHS[length]) == 0
    rows = windows(output)
    assert listener.num_windows == len(rows) == 4
    places = [(Path(row["mixture_uri"]).stem, row["start_s"], row["end_s"]) for row in rows]
    expected = [("long", 0.0, 10.0), ("long", 10.0, 20.0), ("long", 15.0, 25.0)]
    assert places == [*expected, ("short", 0.0, 3.0)]
    heard = [tones.LABELS[int(np.argmax(row["embedding"]))] for row in rows]
    assert heard == [FIRST, FIRST, SECOND, SECOND]
    for row in rows:
        assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-6)
        assert (row["scorer_sha256"], row["undefined_reason"]) == ("tones", None)
    assert len(metrics(output)) == 2 * len(labels)
    assert all(row["stem_uri"] for row in metrics(output).values())


def test_a_mixture_made_on_the_fly_says_what_it_is_of(tmp_path: Path) -> None:
    sources = tone_runs.write_mixtures(tmp_path / "clips", 2)
    row = {
        "id": "a",
        "target_uri": sources[0]["reference_uri"],
        "interferer_uris": [sources[1]["reference_uri"]],
        "positive_text": FIRST,
    }
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", [row])
    output = tmp_path / "out"
    assert tone_runs.run("--manifest", manifest, "--output", output, "--windows") == 0
    (found,) = windows(output)
    assert found["mixture_uri"] is None
    assert found["target_uris"] == [row["target_uri"]]
    assert found["interferer_uris"] == row["interferer_uris"]


def test_silence_is_null_with_the_reason(tmp_path: Path, listener: ToneListener) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    sound = np.concatenate([np.zeros(10 * tones.RATE_HZ, np.float32), tones.tone(FIRST, 10.0)])
    soundfile.write(folder / "a.wav", sound, tones.RATE_HZ, "FLOAT")
    assert ask(tmp_path / "out", folder, (FIRST, ABSENT), "--screen", "0.5") == 0
    silent, loud = windows(tmp_path / "out")
    assert (silent["embedding"], silent["heard"]) == (None, None)
    assert silent["undefined_reason"] == "silent_mixture"
    assert loud["embedding"] is not None
    assert listener.num_windows == 1
    rows = metrics(tmp_path / "out")
    assert [rows[f"a/{label}"]["stem_uri"] is None for label in (FIRST, ABSENT)] == [False, True]


def test_a_constant_offset_is_not_heard(tmp_path: Path, loaded: tone_runs.Loaded) -> None:
    loaded.model.query_encoder.input_level_dbfs = -24.0
    heard = []
    for offset in (0.0, 0.5):
        samples = 0.01 * tones.tone(FIRST, 3.0) + np.float32(offset)
        soundfile.write(tmp_path / "a.wav", samples, tones.RATE_HZ, "FLOAT")
        with mock.patch.object(
            ToneListener, "listen", autospec=True, side_effect=ToneListener.listen
        ) as listen:
            assert ask(tmp_path / f"out{offset}", tmp_path / "a.wav", (FIRST,), "--windows") == 0
        heard.append(listen.call_args[0][1])
    torch.testing.assert_close(heard[0], heard[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_only_what_is_plausible_is_separated(
    length: str,
    recordings: Path,
    tmp_path: Path,
    loaded: tone_runs.Loaded,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    labels = (FIRST, SECOND, ABSENT)
    words = ("--embeddings", *LENGTHS[length])
    assert ask(output, recordings, labels, "--screen", "0.5", *words) == 0
    rows = metrics(output)
    there = {f"long/{FIRST}", f"long/{SECOND}", f"short/{SECOND}"}
    assert rows.keys() == {f"{name}/{label}" for name in ("long", "short") for label in labels}
    assert {row_id for row_id, row in rows.items() if row["stem_uri"]} == there
    assert {row["id"] for row in tone_runs.table(output, "embeddings")} == there
    left = rows[f"long/{ABSENT}"]
    assert left["stem_note"].startswith("not separated: presence ")
    assert left["stem_note"].endswith(" is below --screen 0.5")
    assert 0.0 <= left["presence"] < 0.5
    assert (left["duration_s"], left["n_windows"], left["n_segments"]) == (25.0, 0, None)
    assert left["model_sha256"] == rows[f"long/{FIRST}"]["model_sha256"]
    assert left["scorer_sha256"] == rows[f"long/{FIRST}"]["scorer_sha256"]
    assert "clap_score=not_separated" in left["undefined_reason"]
    assert "presence=" not in left["undefined_reason"]
    counts = tone_runs.record(output)["row_counts"]
    assert (counts["rows"], counts["stems"], counts["dead_letters"]) == (6, 6, 0)
    assert counts["embeddings"] == counts["embeddings_written"] == 3
    assert tone_runs.record(output)["counters"]["ScreenMixtures/screened"] == 3
    assert "3 stems are not plausible, and not separated (--screen)" in capsys.readouterr().out
    assert loaded.model.separator.heard > 0  # type: ignore[attr-defined]


def test_a_model_that_does_not_tell_presence_is_screened_by_similarity(
    recordings: Path, tmp_path: Path, loaded: tone_runs.Loaded
) -> None:
    loaded.model = dataclasses.replace(loaded.model, separator=tones.ToneSeparator())
    output = tmp_path / "out"
    assert ask(output, recordings, (FIRST, ABSENT), "--screen", "0.5") == 0
    rows = metrics(output)
    assert {row_id for row_id, row in rows.items() if row["stem_uri"]} == {f"long/{FIRST}"}
    left = rows[f"short/{FIRST}"]
    assert left["stem_note"] == "not separated: similarity 0 is below --screen 0.5"
    assert left["presence"] is None
    assert all(row["heard"] is None for row in windows(output))


def test_what_cannot_be_judged_is_separated(recordings: Path, tmp_path: Path) -> None:
    uri = str(recordings / "short.wav")
    rows = [
        {"id": "without", "mixture_uri": uri, "negative_text": FIRST},
        {"id": "with", "mixture_uri": uri, "positive_text": ABSENT, "negative_text": FIRST},
    ]
    manifest = tone_runs.write_manifest(tmp_path / "rows.jsonl", rows)
    words = ("--manifest", manifest, "--screen", "0.5", "--output")
    assert tone_runs.run(*words, tmp_path / "out") == 0
    found = metrics(tmp_path / "out")
    assert found["without"]["stem_uri"] is not None
    assert found["with"]["stem_uri"] is None

    def broken(self: ToneListener, waveform: Tensor) -> Any:
        if waveform.any():
            raise ValueError("cannot be heard")
        return torch.zeros(len(waveform), len(tones.LABELS)), b""

    with mock.patch.object(ToneListener, "listen", broken):
        assert tone_runs.run(*words, tmp_path / "deaf") == 0
    assert all(row["stem_uri"] for row in metrics(tmp_path / "deaf").values())
    (window,) = windows(tmp_path / "deaf")
    assert (window["embedding"], window["undefined_reason"]) == (None, "scorer_failed")


@pytest.mark.parametrize("length", LENGTHS)
def test_a_later_question_is_answered_without_the_recording(
    length: str, recordings: Path, tmp_path: Path, listener: ToneListener
) -> None:
    output = tmp_path / "out"
    words = ("--screen", "0.5", *LENGTHS[length])
    assert ask(output, recordings, (FIRST,), *words) == 0
    before, num_windows = contents(output), listener.num_windows
    for file in recordings.iterdir():  # the names are still found; the sound is gone
        file.write_bytes(b"")
    assert ask(output, recordings, (FIRST, SECOND, ABSENT), *words, "--resume") == 1
    assert listener.num_windows == num_windows
    assert contents(output) == before
    rows = metrics(output)
    assert rows.keys() == {
        *(f"{name}/{label}" for name in ("long", "short") for label in (FIRST, ABSENT))
    }
    letters = {row["id"]: row["stage"] for row in tone_runs.table(output, "dead_letters")}
    assert letters == {f"{name}/{SECOND}": "read" for name in ("long", "short")}


def test_windows_that_were_kept_answer_later_questions_by_a_screen(
    recordings: Path, tmp_path: Path, listener: ToneListener
) -> None:
    output = tmp_path / "out"
    assert ask(output, recordings, (FIRST,), "--windows") == 0
    for file in recordings.iterdir():
        file.write_bytes(b"")
    assert ask(output, recordings, (FIRST, ABSENT), "--screen", "0.5", "--resume") == 0
    assert listener.num_windows == 4
    rows = metrics(output)
    assert [rows[f"short/{label}"]["stem_uri"] is None for label in (FIRST, ABSENT)] == [
        False,
        True,
    ]
    assert tone_runs.record(output)["settings"]["screen"] == 0.5


@pytest.mark.parametrize("length", LENGTHS)
def test_it_does_not_matter_what_was_asked_before(
    length: str, recordings: Path, tmp_path: Path
) -> None:
    labels, words = (FIRST, SECOND, ABSENT), ("--screen", "0.5", *LENGTHS[length])
    assert ask(tmp_path / "at_once", recordings, labels, *words) == 0
    assert ask(tmp_path / "later", recordings, labels[:1], *words) == 0
    assert ask(tmp_path / "later", recordings, labels, *words, "--resume") == 0
    assert ask(tmp_path / "small", recordings, labels, *words, "--batch_size", "1") == 0
    for other in ("later", "small"):
        assert contents(tmp_path / "at_once") == contents(tmp_path / other)
        tone_runs.assert_same_results(tmp_path / "at_once", tmp_path / other)


@pytest.mark.parametrize("length", LENGTHS)
def test_recordings_of_finished_rows_are_heard_when_windows_are_wanted(
    length: str,
    recordings: Path,
    tmp_path: Path,
    listener: ToneListener,
    loaded: tone_runs.Loaded,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    assert ask(output, recordings, (FIRST,), *LENGTHS[length]) == 0
    assert not (output / "windows").exists()
    separated = loaded.model.separator.heard  # type: ignore[attr-defined]
    for _ in range(2):
        words = ("--resume", "--windows", *LENGTHS[length])
        assert ask(output, recordings, (FIRST,), *words) == 0
        assert listener.num_windows == len(windows(output)) == 4
    assert loaded.model.separator.heard == separated  # type: ignore[attr-defined]
    (recordings / "short.wav").write_bytes(b"")
    for file in (output / "windows").iterdir():
        file.unlink()
    assert ask(output, recordings, (FIRST,), "--resume", "--windows", *LENGTHS[length]) == 0
    assert len(windows(output)) == 3
    assert tone_runs.record(output)["counters"]["ScreenMixtures/unheard"] == 1
    assert "1 recording of finished rows could not be heard" in capsys.readouterr().out
    with mock.patch.object(
        heard_windows.WindowFiles, "answer", side_effect=WriteError("w.parquet: disk full")
    ):
        assert ask(output, recordings, (FIRST,), "--resume", "--windows", *LENGTHS[length]) == 0
    assert tone_runs.record(output)["counters"]["ScreenMixtures/unheard"] == 2
    assert "are not there: w.parquet: disk full" in capsys.readouterr().err


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _scratched(data: bytes) -> bytes:
    """The header of the page with the times is no header any more."""
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    (at,) = (each.data_page_offset for each in columns if each.path_in_schema == "end_s")
    return data[:at] + b"\xff" * 16 + data[at + 16 :]


@pytest.mark.parametrize("damaged", [_cut, _scratched])
def test_a_file_that_is_damaged_is_heard_again(
    damaged: Callable[[bytes], bytes], recordings: Path, tmp_path: Path, listener: ToneListener
) -> None:
    output = tmp_path / "out"
    assert ask(output, recordings, (FIRST,), "--screen", "0.5") == 0
    before = contents(output)
    for name, data in before.items():
        (output / "windows" / name).write_bytes(damaged(data))
    assert ask(output, recordings, (FIRST, ABSENT), "--screen", "0.5", "--resume") == 0
    assert contents(output) == before
    assert listener.num_windows == 8


def test_rows_whose_windows_cannot_be_written_are_dead_letters(
    recordings: Path, tmp_path: Path
) -> None:
    output, publish = tmp_path / "out", Storage.publish

    def full(self: Storage, uri: str, temporary: str) -> None:
        if "/windows/" in uri:
            raise OSError(28, "No space left on device")
        publish(self, uri, temporary)

    with mock.patch.object(Storage, "publish", full):
        assert ask(output, recordings, (FIRST, SECOND), "--windows") == 1
    letters = tone_runs.table(output, "dead_letters")
    assert [(row["stage"], row["error_type"]) for row in letters] == [("write", "disk_full")] * 4
    assert ask(output, recordings, (FIRST, SECOND), "--windows", "--resume") == 0
    assert len(windows(output)) == 4


def test_rows_whose_windows_cannot_be_had_are_dead_letters(
    recordings: Path, tmp_path: Path
) -> None:
    output, opened = tmp_path / "out", Storage.open

    def forbidden(self: Storage, uri: str) -> Any:
        if "/windows/" in uri:
            raise PermissionError(13, "Permission denied")
        return opened(self, uri)

    assert ask(output, recordings, (FIRST,), "--screen", "0.5") == 0
    with mock.patch.object(Storage, "open", forbidden):
        assert ask(output, recordings, (FIRST, ABSENT), "--screen", "0.5", "--resume") == 1
    letters = tone_runs.table(output, "dead_letters")
    assert [row["id"] for row in letters] == [f"long/{ABSENT}", f"short/{ABSENT}"]
    assert {(row["stage"], row["error_type"]) for row in letters} == {("read", "permission")}
    assert "/windows/" in letters[0]["message"]


def test_a_recording_that_cannot_be_read_leaves_no_windows(
    recordings: Path, tmp_path: Path
) -> None:
    (recordings / "long.wav").write_bytes((recordings / "long.wav").read_bytes()[:-50_000])
    (recordings / "short.wav").write_bytes(b"no sound")
    output = tmp_path / "out"
    code = ask(output, recordings, (FIRST, ABSENT), "--screen", "0.5", *LENGTHS["long"])
    assert code == 1
    letters = {row["id"] for row in tone_runs.table(output, "dead_letters")}
    assert letters >= {f"short/{FIRST}", f"short/{ABSENT}"}
    assert all("short" not in row["mixture_uri"] for row in windows(output))


def test_a_run_by_another_screen_is_not_gone_on_with(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert ask(output, recordings, (FIRST,), "--screen", "0.5") == 0
    assert ask(output, recordings, (FIRST,), "--screen", "0.25", "--resume") == 2
    assert "screen: 0.5 then, 0.25 now" in capsys.readouterr().err
    assert ask(output, recordings, (FIRST,), "--resume") == 2
    assert ask(output, recordings, (FIRST,), "--overwrite") == 0
    assert not (output / "windows").exists()


def test_a_run_from_before_these_settings_is_gone_on_with(recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert ask(output, recordings, (FIRST,)) == 0
    record = tone_runs.record(output)
    for name in ("screen", "embeddings"):
        del record["settings"][name]
    (output / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert ask(output, recordings, (FIRST, SECOND), "--resume", "--windows") == 0
    assert len(windows(output)) == 4


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("loud", "--screen loud: expected auto or a number"),
        ("1.5", "--screen=1.5"),
        ("-0.5", "--screen=-0.5: a presence is in [0, 1]"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    value: str, said: str, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(tmp_path / "out", recordings, (FIRST,), f"--screen={value}") == 2
    assert said in capsys.readouterr().err


def test_the_value_of_a_model_is_taken_where_it_has_one(
    recordings: Path,
    tmp_path: Path,
    loaded: tone_runs.Loaded,
    capsys: pytest.CaptureFixture[str],
) -> None:
    card = dataclasses.replace(loaded.model.card, screen=0.75)
    loaded.model = dataclasses.replace(loaded.model, card=card)
    assert ask(tmp_path / "out", recordings, (ABSENT,), "--screen", "auto") == 0
    assert tone_runs.record(tmp_path / "out")["settings"]["screen"] == 0.75
    loaded.model = dataclasses.replace(loaded.model, card=dataclasses.replace(card, screen=None))
    model_cache.forget()
    assert ask(tmp_path / "other", recordings, (ABSENT,), "--screen", "auto") == 2
    assert "nobody has measured a value for tones" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--windows", "--screen=0.5"])
def test_a_model_without_a_clap_hears_no_windows(
    flag: str,
    recordings: Path,
    tmp_path: Path,
    loaded: tone_runs.Loaded,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded.model = dataclasses.replace(loaded.model, clap_sha256="")
    assert ask(tmp_path / "out", recordings, (FIRST,), flag) == 2
    assert "tones has no CLAP, which would hear the windows" in capsys.readouterr().err


def test_the_files_are_read_by_pyarrow_as_one_table(recordings: Path, tmp_path: Path) -> None:
    assert ask(tmp_path / "out", recordings, (FIRST,), "--windows") == 0
    assert pq.read_table(tmp_path / "out" / "windows").num_rows == 4
