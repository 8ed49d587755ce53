from __future__ import annotations

from manifests.example import run
from manifests.files.readers import iter_rows
from manifests.row import MANIFEST_COLUMNS, ManifestRow
from manifests.validate import run as validate


def test_example_is_a_valid_manifest_that_explains_every_column(tmp_path, capsys):
    assert run([]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "my.csv"
    path.write_text(text, encoding="utf-8")
    rows = list(iter_rows(str(path)))
    assert all(isinstance(row, ManifestRow) for row in rows)
    assert [row.id for row in rows] == [
        "street-dog",
        "street-voices",
        "piano-by-example",
        "mixed-here",
    ]
    assert rows[3].levels_db == (0.0, 5.0)
    assert rows[3].interferer_uris == (f"{tmp_path}/clips/rain.wav", f"{tmp_path}/clips/crowd.wav")
    assert all(f"\n# {name} (" in text for name in MANIFEST_COLUMNS)
    assert validate([str(path)]) == 0
