"""Two hundred rows of everything that can be wrong: each ends in a stem or in one dead letter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import soundfile

import hostile_rows
import tone_runs


def _tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_relative_to(folder / "out")}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> hostile_rows.Hostile:
    return hostile_rows.write(tmp_path_factory.mktemp("hostile") / "in")


def test_each_row_of_a_hostile_manifest_ends_as_documented(
    hostile: hostile_rows.Hostile, capfd: pytest.CaptureFixture[str]
) -> None:
    root = hostile.folder.parent
    manifest = root / "rows.jsonl"
    manifest.write_text("".join(line + "\n" for line in hostile.lines), encoding="utf-8")
    before = _tree(root)
    with tone_runs.tones_as_models():
        code = tone_runs.run("--manifest", manifest, "--output", root / "out")
    said = capfd.readouterr()

    assert code == 1  # far more than one row in twenty failed
    assert "Traceback" not in said.out + said.err
    assert _tree(root) == before

    metrics = tone_runs.table(root / "out", "metrics")
    letters = tone_runs.table(root / "out", "dead_letters")
    found = {row["id"]: None for row in metrics}
    assert len(found) == len(metrics)
    duplicates = [row for row in letters if row["error_type"] == "duplicate_id"]
    named = [row for row in letters if row["id"] is not None and row not in duplicates]
    found.update({row["id"]: row["error_type"] for row in named})
    found.update({row_id: "invalid_row" for row_id in hostile.expected if row_id not in found})
    assert found == hostile.expected
    invalid = sum(error == "invalid_row" for error in hostile.expected.values())
    assert Counter(row["error_type"] for row in letters if row["id"] is None) == {
        "invalid_row": invalid + hostile.unnamed.count("invalid_row")
    }
    assert len(duplicates) == hostile.unnamed.count("duplicate_id")

    row_counts = tone_runs.record(root / "out")["row_counts"]
    assert row_counts["rows"] == hostile_rows.NUM_ROWS == len(metrics) + len(letters)
    paths = {row["stem_uri"] for row in metrics}
    assert len(paths) == len(metrics)
    for row in metrics:
        info = soundfile.info(row["stem_uri"])
        assert (info.samplerate, info.channels) == (row["sample_rate_hz"], row["n_channels"])
        assert info.frames == round(row["duration_s"] * info.samplerate)


def test_messages_say_which_file_and_what_about_it(hostile: hostile_rows.Hostile) -> None:
    letters = tone_runs.table(hostile.folder.parent / "out", "dead_letters")
    for row in letters:
        assert row["stage"] in ("manifest", "embed_queries", "read")
        assert row["message"]
        if row["stage"] != "manifest" and row["id"] != "not a path":
            uris = [row["mixture_uri"], row["reference_uri"], row["target_uri"]]
            uris += [*(row["positive_audio_uris"] or []), *(row["negative_audio_uris"] or [])]
            uris += row["interferer_uris"] or []
            assert any(uri in row["message"] for uri in uris if uri), row["message"]
        assert row["manifest_uri"].endswith("rows.jsonl")
        assert row["manifest_row"] >= 1
