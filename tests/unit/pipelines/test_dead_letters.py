from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.columns import DEAD_LETTER_SCHEMA
from pipelines.console import reasons
from pipelines.output_folder import Earlier, OutputFolder
from transforms.storage import Storage
from transforms.tables.row_counts import RowCounts


def _counts(**by_reason: int) -> RowCounts:
    failed = sum(by_reason.values())
    named = {name.replace("__", "/"): count for name, count in by_reason.items()}
    return RowCounts(
        rows=failed,
        finished_before=0,
        stems=0,
        dead_letters=failed,
        recovered=0,
        metrics_written=0,
        dead_letters_written=failed,
        by_reason=named,
    )


def _folder(path: Path) -> OutputFolder:
    return OutputFolder(uri=str(path), storage=Storage(), earlier=Earlier(record=None))


def _write(folder: Path, name: str, *letters: tuple[str, str, str]) -> None:
    (folder / "dead_letters").mkdir(exist_ok=True)
    keys = ("stage", "error_type", "message")
    rows = [dict(zip(keys, letter, strict=True)) for letter in letters]
    table = pa.Table.from_pylist(rows, schema=DEAD_LETTER_SCHEMA)
    pq.write_table(table, folder / "dead_letters" / name)


def test_each_reason_is_shown_with_the_first_message(tmp_path: Path) -> None:
    first, second = ("read", "missing", "a.wav: no such file"), ("read", "missing", "b.wav: too")
    _write(tmp_path, "part-0.parquet", first, second, ("read", "not_audio", "c.wav: no audio"))
    assert reasons(_counts(read__missing=2, read__not_audio=1), _folder(tmp_path)) == [
        "  2 of read/missing: a.wav: no such file",
        "  1 of read/not_audio: c.wav: no audio",
    ]


def test_only_the_first_file_is_looked_through(tmp_path: Path) -> None:
    _write(tmp_path, "part-0.parquet", ("read", "missing", "a.wav"))
    _write(tmp_path, "part-1.parquet", ("read", "silent", "b.wav"))
    found = reasons(_counts(read__missing=1, read__silent=1), _folder(tmp_path))
    assert found == ["  1 of read/missing: a.wav", "  1 of read/silent"]


def test_a_message_cannot_steer_the_terminal_or_fill_it(tmp_path: Path) -> None:
    _write(tmp_path, "part-0.parquet", ("read", "missing", "\x1b[2Ja\nb " + "long " * 100))
    (found,) = reasons(_counts(read__missing=1), _folder(tmp_path))
    assert found.startswith("  1 of read/missing: �[2Ja b long long")
    assert found.endswith(" …")
    assert len(found) < 230


def test_no_dead_letters_no_lines(tmp_path: Path) -> None:
    assert reasons(_counts(), _folder(tmp_path)) == []
