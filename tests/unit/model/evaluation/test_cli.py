from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from model import registry
from model.catalogue import Entry
from model.evaluation.cli import main
from tones import RATE_HZ, ToneClap, ToneSeparator, write_corpus

ARGUMENTS = ["--sets", "text_pn", "zero_shot", "--duration_s", "1", "--workers", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def load(name: str, *, device: str) -> registry.LoadedModel:
        assert (name, device) == ("tones", "cpu")
        card = Entry(
            name=name,
            kind="separator",
            loader="",
            summary="",
            licence="",
            source="",
            sample_rate_hz=RATE_HZ,
        )
        return registry.LoadedModel(
            name=name,
            separator=ToneSeparator(),
            query_encoder=ToneClap(),
            model_sha256="",
            clap_sha256="",
            card=card,
        )

    monkeypatch.setattr(registry, "load", load)
    monkeypatch.setenv("CLAPSEP_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    return write_corpus(corpus)


def _run(folder: Path, *arguments: str) -> int:
    return main(["--corpus", str(folder), "--model", "tones", *ARGUMENTS, *arguments])


def test_results_are_written_and_match_themselves(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    assert _run(folder, "--output", str(first)) == 0
    record = json.loads((first / "results.json").read_text(encoding="utf-8"))
    assert record["datasets"]["text_pn"]["snri_db"]["mean"] > 15
    assert record["zero_shot"]["caption"]["top1"]["mean"] == 1.0
    assert record["cost"]["real_time_factor"] > 0
    assert "| `text_pn` |" in (first / "results.md").read_text(encoding="utf-8")
    with (first / "scores.csv").open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 11
    expected = ["--expect", str(first / "results.json")]
    assert _run(folder, "--output", str(second), *expected) == 0
    assert (second / "scores.csv").read_bytes() == (first / "scores.csv").read_bytes()
    assert _run(folder, "--output", str(second), "--quick", "3", *expected) == 1


def test_manifests_are_written_without_a_model(folder: Path, tmp_path: Path) -> None:
    assert _run(folder, "--write_manifest", str(tmp_path / "manifests")) == 0
    (path,) = (tmp_path / "manifests").iterdir()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert path.name == "text_pn.jsonl"
    assert len(rows) == 11
    assert all((folder / row["target_uri"]).is_file() for row in rows)


def test_nothing_to_do_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run(folder)
    assert "give --output or --write_manifest" in capsys.readouterr().err
