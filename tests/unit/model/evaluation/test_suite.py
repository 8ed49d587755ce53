from __future__ import annotations

import dataclasses
import json
import math

import pytest

from model.evaluation import report
from model.evaluation.results import Results
from model.evaluation.sets import SETS
from model.evaluation.suite import ALL_SETS, EvaluationSettings, draw_rows, evaluate, load_phrasings
from model.training.corpus import Corpus
from tones import PHRASINGS, ToneClap, ToneSeparator

SETTINGS = EvaluationSettings(duration_s=1.0)


def _evaluate(corpus: Corpus, sets: tuple[str, ...], **changes: int) -> Results:
    settings = dataclasses.replace(SETTINGS, **changes)
    return evaluate(ToneSeparator(), ToneClap(), corpus, sets, settings=settings, heldout=PHRASINGS)


def test_a_separator_that_knows_the_tones_passes_and_its_blind_control_does_not(
    corpus: Corpus,
) -> None:
    results = _evaluate(corpus, ALL_SETS)
    for name in ("text_pn", "text_p", "text_n", "audio_pn", "paraphrase", "dog_phrases"):
        assert results.mean(name, "snri_db") > 15, name
    for name in ("text_pn_blind", "text_p_blind", "audio_pn_blind"):
        assert results.mean(name, "snri_db") < 3, name
    # Suppressing what is not there leaves the mixture as it is.
    assert abs(results.mean("text_n_blind", "snri_db")) < 0.5
    for level in (-10, -5, 0, 5, 10):
        assert results.mean(f"levels_{level}db", "si_sdri_db") > 5
    assert results.mean("sources_4_targets_2", "snri_db") > 10
    assert [found.top1.mean for found in results.zero_shot] == [1.0, 1.0]


def test_results_do_not_depend_on_what_else_is_run_nor_on_the_workers(corpus: Corpus) -> None:
    everything = _evaluate(corpus, ALL_SETS, workers=3)
    for name in ("text_n", "levels", "audio_pn_blind"):
        alone = _evaluate(corpus, (name,))
        for dataset in alone.datasets:
            for metric in ("sdri_db", "si_sdri_db", "snri_db"):
                expected = dataclasses.asdict(everything.summary(dataset, metric))
                found = dataclasses.asdict(alone.summary(dataset, metric))
                assert found == pytest.approx(expected, abs=1e-3, nan_ok=True)
    assert everything.scores == _evaluate(corpus, ALL_SETS, workers=3).scores


def test_a_limit_takes_the_first_rows_of_each_data_set(corpus: Corpus) -> None:
    few = _evaluate(corpus, ("text_pn", "levels"), limit=3)
    many = _evaluate(corpus, ("text_pn", "levels"))
    assert few.datasets == many.datasets
    for dataset in few.datasets:
        ids = [score.id for score in many.of(dataset)]
        assert [score.id for score in few.of(dataset)] == ids[:3]
    assert few.limit == 3
    override = evaluate(
        ToneSeparator(), ToneClap(), corpus, ("text_p",), 2, settings=SETTINGS, heldout=PHRASINGS
    )
    assert len(override.scores) == 2


def test_scores_carry_the_row(corpus: Corpus) -> None:
    for score in _evaluate(corpus, ("text_p",)).scores:
        assert score.phrase == f"{score.label} heard"
        assert score.group.startswith(score.label)
        assert score.undefined_reason == ""
        assert math.isfinite(score.sdri_db)


def test_progress_counts_rows(corpus: Corpus) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        ToneSeparator(),
        ToneClap(),
        corpus,
        ("text_p",),
        settings=SETTINGS,
        heldout=PHRASINGS,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 11), (8, 11), (11, 11)]


def test_the_rows_of_a_manifest_are_those_that_are_run(corpus: Corpus) -> None:
    rows = draw_rows(corpus, SETS, SETTINGS, PHRASINGS)
    assert {row.id for row in rows} == {score.id for score in _evaluate(corpus, SETS).scores}
    assert draw_rows(corpus, ("zero_shot",), SETTINGS, PHRASINGS) == []


def test_a_record_is_plain_json(corpus: Corpus) -> None:
    record = json.loads(report.to_json(_evaluate(corpus, ALL_SETS)))
    assert record["datasets"]["text_pn"]["sdri_db"]["n"] == 11
    assert set(record["phrases"]) == {"dog_bark heard", *PHRASINGS["dog_bark"]}


def test_unknown_sets_and_settings_are_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"sets \['nothing'\]"):
        _evaluate(corpus, ("text_p", "nothing"))
    for wrong in ({"limit": 0}, {"workers": 0}, {"duration_s": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EvaluationSettings(**wrong)


def test_the_bundled_phrasings_are_used_by_default() -> None:
    assert load_phrasings()["dog_bark"][0] == "puppy yapping"
