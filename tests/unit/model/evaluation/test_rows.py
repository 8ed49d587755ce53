from __future__ import annotations

import json
from pathlib import Path

from manifests.row import ManifestRow
from manifests.validation import parse_record
from model.evaluation.rows import EvaluationRow, Query, Sources, write_manifests


def _row(dataset: str, num_targets: int, query: Query) -> EvaluationRow:
    return EvaluationRow(
        id=f"{dataset}-1",
        dataset=dataset,
        split="test",
        label="bell",
        group="g",
        sources=Sources(paths=("a.wav", "b.wav", "c.wav"), levels_db=(0.0, 5.0)),
        num_targets=num_targets,
        query=query,
    )


def test_one_target_in_words() -> None:
    row = _row("text", 1, Query(positive_text="a bell", negative_text="rain"))
    assert row.record(10.0) == {
        "id": "text-1",
        "target_uri": "a.wav",
        "interferer_uris": ["b.wav", "c.wav"],
        "snr_db": [0.0, 5.0],
        "positive_text": "a bell",
        "negative_text": "rain",
        "duration_s": 10.0,
        "dataset": "text",
        "split": "test",
        "label": "bell",
        "extra_group": "g",
    }


def test_two_targets_by_example() -> None:
    record = _row("audio", 2, Query(positive_clip="p.wav")).record(5.0)
    assert record["target_uris"] == ["a.wav", "b.wav"]
    assert record["interferer_uris"] == ["c.wav"]
    assert record["snr_db"] == [5.0]
    assert record["positive_audio_uris"] == ["p.wav"]
    assert not {"target_uri", "positive_text", "negative_audio_uris"} & record.keys()


def test_one_manifest_a_data_set(tmp_path: Path) -> None:
    rows = [_row(name, 1, Query(positive_text="é")) for name in ("one", "two")]
    paths = write_manifests(rows, tmp_path / "new", 10.0)
    assert [path.name for path in paths] == ["one.jsonl", "two.jsonl"]
    for row, path in zip(rows, paths, strict=True):
        assert json.loads(path.read_text(encoding="utf-8")) == row.record(10.0)


def test_rows_are_what_a_manifest_allows(tmp_path: Path) -> None:
    row = _row("audio", 2, Query(positive_clip="p.wav", negative_text="rain"))
    (path,) = write_manifests([row], tmp_path, 10.0)
    record = json.loads(path.read_text(encoding="utf-8"))
    parsed = parse_record(record, uri=str(path), row=1, folder="/corpus")
    assert isinstance(parsed, ManifestRow)
    assert parsed.targets == ("/corpus/a.wav", "/corpus/b.wav")
    assert parsed.interferer_uris == ("/corpus/c.wav",)
    assert parsed.levels_db == (5.0,)
    assert (parsed.query_type, parsed.polarity, parsed.num_sources) == ("both", "P+N", 3)
    assert parsed.extra == {"group": "g"}
