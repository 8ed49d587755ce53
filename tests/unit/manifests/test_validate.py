from __future__ import annotations

import json
import subprocess
import sys

import pytest

from manifests.validate import run


@pytest.fixture
def good(tmp_path):
    (tmp_path / "good.csv").write_text("id,mixture_uri,positive_text\na,m.wav,rain\n")
    return str(tmp_path / "good.csv")


def test_valid_manifest(good, capsys):
    assert run([good]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{good}: 1 row in 1 file",
        "  kind      recording 1",
        "  query     text 1",
        "  polarity  P 1",
        "  scored    no 1",
        "  dataset   (none) 1",
        "valid",
    ]


def test_invalid_manifest_as_json(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a"}\n{"id": "b"}\n')
    assert run([str(path), "--max_errors", "1", "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["valid"], report["num_rows"], report["num_invalid"]) == (False, 2, 2)
    assert report["errors"] == [
        f"{path}, row 1, mixture_uri: found nothing; "
        "expected mixture_uri, or target_uri with interferer_uris"
    ]


def test_missing_file(tmp_path, capsys):
    assert run([str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.csv: no such file or folder\n"


def test_bad_option(good, capsys):
    with pytest.raises(SystemExit) as caught:
        run([good, "--max_errors", "-1"])
    assert caught.value.code == 2
    assert "expected 0 or more" in capsys.readouterr().err


def test_runs_as_a_module_without_beam_and_torch(good):
    code = (
        "import sys; from manifests.validate import run; "
        f"code = run([{good!r}]); "
        "assert not {'torch', 'apache_beam', 'pandas'} & set(sys.modules); sys.exit(code)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode
        == 0
    )


def test_a_hint_is_not_hidden_by_many_columns(tmp_path, capsys):
    columns = [f"c{number:02d}" for number in range(25)]
    path = tmp_path / "many.csv"
    path.write_text(
        f"id,mixture_uri,positive_text,negativ_text,{','.join(columns)}\n"
        f"a,m.wav,rain,wind,{','.join(columns)}\n"
    )
    assert run([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "did you mean negative_text?" in line]
    assert lines[-2:] == ["  and 6 more columns", "valid"]
