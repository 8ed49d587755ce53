"""A corpus of tones evaluated by the whole command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import tone_runs
import tones
from manifests.benchmarks import corpus_sets
from manifests.benchmarks.corpus_sets import ABSENT_SETS, SETS
from manifests.files.readers import iter_rows
from model.systems import Capabilities
from pipelines import evaluate
from tones import PHRASINGS, write_corpus

OTHER_JSON = Path(__file__).parent / "dataflow_job.json"


@pytest.fixture(scope="module", autouse=True)
def _tones() -> Iterator[None]:
    with (
        tone_runs.tones_as_models(),
        mock.patch.object(corpus_sets, "heldout_phrasings", return_value=PHRASINGS),
    ):
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def _run(corpus: Path, output: Path, *words: str) -> int:
    length = () if "--duration_s" in words else ("--duration_s", "1")
    flags = ("--corpus", str(corpus), "--output", str(output), *length)
    return evaluate.run([*flags, *words, *tone_runs.QUIET])


def _record(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return record


@pytest.fixture(scope="module")
def everything(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("everything")
    assert _run(corpus, output) == 0
    return output


def test_a_separator_that_knows_the_tones_passes_and_its_blind_control_does_not(
    everything: Path,
) -> None:
    record = _record(everything)
    datasets = record["datasets"]
    assert list(datasets) == [name for name in SETS if name not in ABSENT_SETS]
    for name in ("text_pn", "text_p", "text_n", "audio_pn", "paraphrase", "dog_phrases"):
        assert datasets[name]["snri_db"]["mean"] > 15, name
    for name in ("text_pn_blind", "text_p_blind", "audio_pn_blind", "text_pn_swapped"):
        assert datasets[name]["snri_db"]["mean"] < 3, name
    # Suppressing what is not there leaves the mixture as it is.
    assert abs(datasets["text_n_blind"]["snri_db"]["mean"]) < 0.5
    for level in (-10, -5, 0, 5, 10):
        assert datasets[f"levels_{level}db"]["si_sdri_db"]["mean"] > 5
    assert datasets["sources_4_targets_2"]["snri_db"]["mean"] > 10
    assert datasets["text_pn"]["sdri_db"]["n"] == 11
    assert datasets["text_pn"]["sdri_db"]["low"] is not None
    assert set(record["phrases"]) == {"dog_bark heard", *PHRASINGS["dog_bark"]}
    for name in ABSENT_SETS:  # what is there is always louder than what is not
        assert record["presence"][name]["stem_to_mixture_db"]["auroc"] == 1.0
    assert record["zero_shot"]["heldout"]["top1"]["mean"] == 1.0
    assert record["cost"]["real_time_factor"] > 0
    assert record["models"] == [f"tones {'m' * 64}"]


def test_what_is_run_is_a_manifest_and_an_ordinary_run(corpus: Path, everything: Path) -> None:
    rows = list(iter_rows(str(everything / evaluate.MANIFEST)))
    metrics = tone_runs.table(everything / evaluate.RUN, "metrics")
    assert {row.id for row in rows} == {row["id"] for row in metrics}
    assert {row["split"] for row in metrics} == {"test"}
    assert {row["duration_s"] for row in metrics} == {1.0}
    assert {row["scorer_sha256"] for row in metrics} == {None}
    assert all(row["target_uris"][0].startswith(str(corpus)) for row in metrics)
    tables = (everything / "results.md").read_text(encoding="utf-8")
    assert "| `text_pn` |" in tables
    assert "### Zero-shot classification by text" in tables


def test_figures_do_not_depend_on_what_else_is_run(
    corpus: Path, everything: Path, tmp_path: Path
) -> None:
    assert _run(corpus, tmp_path, "--sets", "text_n", "levels_*", "audio_pn_blind") == 0
    found, expected = _record(tmp_path), _record(everything)
    assert len(found["datasets"]) == 7
    for name, by_metric in found["datasets"].items():
        for metric, summary in by_metric.items():
            assert summary == pytest.approx(expected["datasets"][name][metric], abs=1e-3)
    assert found["zero_shot"] == found["presence"] == {}


def test_figures_are_compared_with_recorded_ones(
    corpus: Path, everything: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = _record(everything)
    recorded["datasets"] = {"text_p": recorded["datasets"]["text_p"]}
    recorded["zero_shot"] = recorded["presence"] = {}
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps(recorded), encoding="utf-8")
    words = ("--sets", "text_p", "--expect", str(expected))
    assert _run(corpus, tmp_path / "same", *words) == 0
    assert f"the figures match {expected}" in capfd.readouterr().out
    assert _run(corpus, tmp_path / "fewer", *words, "--limit", "3") == 1
    said = capfd.readouterr().err
    assert "limit: recorded None, found 3" in said
    assert "text_p.sdri_db.n: recorded 11, found 3" in said


def test_a_stopped_evaluation_goes_on_and_another_output_is_not_overwritten(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("--sets", "text_p", "--limit", "4")
    assert _run(corpus, tmp_path, *words) == 0
    first = _record(tmp_path)
    assert _run(corpus, tmp_path, *words) == 2
    assert "--resume" in capfd.readouterr().err
    assert _run(corpus, tmp_path, *words, "--resume") == 0
    assert "4 finished before" in capfd.readouterr().out
    assert {**_record(tmp_path), "cost": None} == {**first, "cost": None}
    assert _run(corpus, tmp_path, *words, "--overwrite") == 0


def test_classes_can_be_named_without_separating(corpus: Path, tmp_path: Path) -> None:
    assert _run(corpus, tmp_path, "--sets", "zero_shot", "--limit", "6") == 0
    record = _record(tmp_path)
    assert record["zero_shot"]["caption"]["top1"]["n"] == 6
    assert record["datasets"] == {}
    assert not (tmp_path / evaluate.RUN).exists()


def test_sets_that_a_system_cannot_be_asked_are_left_out_and_said(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class WordsAlone(tones.ToneSeparator):
        capabilities = Capabilities(audio=False, negative=False)

    sets = ("--sets", "text_p", "text_pn", "audio_pn")
    with tone_runs.tones_as_models() as loaded:
        loaded.model = dataclasses.replace(loaded.model, separator=WordsAlone())
        assert _run(corpus, tmp_path / "a", *sets) == 0
        assert list(_record(tmp_path / "a")["datasets"]) == ["text_p"]
        said = capfd.readouterr().err
        assert "note: text_pn is left out: the model cannot use this query: it takes no " in said
        assert "note: audio_pn is left out: the model cannot use this query: " in said
        assert _run(corpus, tmp_path / "b", *sets, "--on_unsupported_query", "nearest") == 0
        assert list(_record(tmp_path / "b")["datasets"]) == ["text_pn", "text_p"]
        assert _run(corpus, tmp_path / "c", "--sets", "audio_pn") == 0
        assert _record(tmp_path / "c")["datasets"] == {}


def test_a_set_that_the_clips_give_no_mixture_for_is_left_out_and_said(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = (corpus / "manifest.csv").read_text(encoding="utf-8").splitlines()
    one_of_each = [line for line in lines if ",train," in line]  # no other for an example
    alone = tmp_path / "corpus"
    shutil.copytree(corpus, alone)
    (alone / "manifest.csv").write_text("\n".join([lines[0], *one_of_each, ""]), encoding="utf-8")
    words = ("--split", "train", "--sets", "audio_pn")
    assert _run(alone, tmp_path / "out", *words) == 0
    assert "note: audio_pn is left out: the clips give no mixture for it" in capfd.readouterr().err
    assert _record(tmp_path / "out")["datasets"] == {}


def test_a_system_without_a_clap_names_no_classes(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with tone_runs.tones_as_models() as loaded:
        loaded.model = dataclasses.replace(loaded.model, clap_sha256="")
        assert _run(corpus, tmp_path, "--sets", "zero_shot") == 0
    assert "note: tones has no CLAP, and so no zero-shot classification" in capfd.readouterr().err
    assert _record(tmp_path)["zero_shot"] == {}


def test_a_row_that_fails_ends_the_evaluation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = write_corpus(tmp_path)
    (corpus / "frog-test-a.wav").write_bytes(b"no sound")
    output = tmp_path / "out"
    assert _run(corpus, output, "--sets", "text_p") == 1
    assert "--max_failure_rate allows 0.0%" in capfd.readouterr().out
    assert not (output / "results.json").exists()
    words = ("--sets", "text_p", "--resume", "--max_failure_rate", "0.5")
    assert _run(corpus, output, *words) == 0
    assert _record(output)["datasets"]["text_p"]["sdri_db"]["n"] < 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sets", "texts"), "set 'texts'; expected some of text_pn, "),
        (("--split", "val"), "no clip of the split 'val' has a class"),
        (("--limit", "0"), "--limit=0: expected 1 or more"),
        (("--duration_s", "0"), "--duration_s=0.0: expected a positive number"),
        (("--manifest", "rows.csv"), "--manifest: the evaluation sets say what is separated"),
        (("--positive=dog",), "--positive=dog: the evaluation sets say what is separated"),
        (("--output", ""), "--output is given twice"),
        (("--num_worker", "2"), "unknown flag --num_worker; is it --num_workers?"),
        (("--batch_size", "0"), "--batch_size=0: expected at least 1"),
        (("--expect", "no.json"), "no.json"),
        (("--expect", __file__), "test_evaluate.py: is not JSON"),
        (("--expect", str(OTHER_JSON)), "is not the results.json of an evaluation"),
        (("--shard", "0/2"), "--shard: the evaluation sets say what is separated"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_run(
    corpus: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    assert _run(corpus, tmp_path / "out", *words) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_corpus_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, tmp_path / "out") == 2
    assert f"{tmp_path}/manifest.csv" in capfd.readouterr().err


def test_help_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.run(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in (*SETS, evaluate.ZERO_SHOT):
        assert name in said
