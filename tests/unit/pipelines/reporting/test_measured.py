from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import report_runs
from manifests.published import load
from pipelines.reporting.measured import compare, lines_of, mean_std, published_for
from pipelines.reporting.runs import Run, read_run
from transforms.storage import Storage


def read(folder: Path, clips: list[dict[str, object]], **more: object) -> Run:
    report_runs.write_run(folder, clips, **more)
    return read_run(str(folder), folder.name, Storage())


def test_a_line_has_mean_deviation_counts_and_digests(tmp_path: Path) -> None:
    values = [1.0, 4.0, 10.0]
    clips = [report_runs.clip(n, sdri_db=value) for n, value in enumerate(values)]
    clips.append(report_runs.clip(9, sdri_db=None))
    line = lines_of(read(tmp_path / "run", clips))[0]
    cell = line.cell("sdri_db")
    mean, deviation = report_runs.mean_and_deviation(values)
    assert cell.summary.mean == pytest.approx(mean)
    assert cell.summary.std == pytest.approx(deviation)
    assert mean_std(cell.summary) == "5.00 ± 4.58"
    assert str(cell.provenance) == (
        "n = 3 · undefined 1 · failed 0 · model tones a1a1a1a1a1a1 · scorer b2b2b2b2b2b2 · "
        "protocol manifest c3c3c3c3c3c3"
    )


def test_settings_and_models_never_share_a_line(tmp_path: Path) -> None:
    clips = [
        report_runs.clip(1),
        report_runs.clip(2, polarity="P"),
        report_runs.clip(3, input_snr_db=5.0),
        report_runs.clip(4, extra_protocol="other"),
    ]
    lines = lines_of(read(tmp_path / "run", clips))
    assert [line.cell("sdri_db").summary.n for line in lines] == [1, 1, 1, 1]


def test_published_figures_are_those_of_the_same_data_and_query(tmp_path: Path) -> None:
    line = lines_of(read(tmp_path / "run", [report_runs.clip(1)]))[0]
    found = {(result.method, result.table): result.mean for result in line.published_for("sdri_db")}
    expected = {
        (r.method, r.table): r.mean
        for r in load()
        if (r.dataset, r.query_type, r.polarity, r.column)
        == ("AudioCaps", "text", "P+N", "sdri_db")
        and r.input_snr_db in (None, 0.0)
    }
    assert found == expected
    assert ("CLAPSep-hybrid", "II") in found


@pytest.mark.parametrize(
    "change", [{"dataset": "audiosep-audiocaps"}, {"input_snr_db": 3.0}, {"n_shots": 5}]
)
def test_other_data_has_no_published_figure(tmp_path: Path, change: dict[str, object]) -> None:
    line = lines_of(read(tmp_path / "run", [report_runs.clip(1, **change)]))[0]
    assert line.published == ()


def test_table_five_is_found_by_sources_and_targets(tmp_path: Path) -> None:
    clip = report_runs.clip(1, dataset="multisource", split="3-sources-2-targets", n_sources=3)
    setting = lines_of(read(tmp_path / "run", [clip]))[0].setting
    found = list(published_for(setting, load()))
    assert {(r.table, r.num_sources, r.num_targets) for r in found} == {("V", 3, 2)}


def test_runs_are_compared_on_the_ids_that_both_have(tmp_path: Path) -> None:
    gains = [0.0, 1.0, 2.0, -1.0]
    before = [report_runs.clip(n) for n in range(4)]
    after = [report_runs.clip(n, sdri_db=n + gain) for n, gain in enumerate(gains)]
    before += [report_runs.clip(7), report_runs.clip(8, sdri_db=None)]
    after += [report_runs.clip(8), report_runs.clip(9)]

    found = compare(read(tmp_path / "a", before), read(tmp_path / "b", after), ["sdri_db"])

    assert len(found) == 1
    assert found[0].difference.mean == pytest.approx(0.5)
    assert found[0].difference.n == 4
    assert found[0].difference.n_undefined == 1
    assert found[0].win_rate == pytest.approx(2.5 / 4)
    assert found[0].num_only_one == 2
    low, high = found[0].difference.ci_low, found[0].difference.ci_high
    assert low is not None
    assert high is not None
    assert -1.0 <= low < 0.5 < high <= 2.0


def test_a_win_is_a_lower_value_where_lower_is_better(tmp_path: Path) -> None:
    before = [report_runs.clip(n, clap_score_negative=0.5) for n in range(4)]
    values = (0.1, 0.2, 0.5, 0.9)
    after = [report_runs.clip(n, clap_score_negative=value) for n, value in enumerate(values)]
    (found,) = compare(
        read(tmp_path / "a", before), read(tmp_path / "b", after), ["clap_score_negative"]
    )
    assert found.win_rate == pytest.approx(2.5 / 4)
    assert found.difference.mean == pytest.approx(-0.3 / 4)


def test_similarities_are_compared_where_they_are_to_the_same_query_by_one_scorer(
    tmp_path: Path,
) -> None:
    words = {"positive_text": "a dog", "negative_text": "rain", "clap_score_contrast": 0.1}
    shown = {"positive_text": None, "positive_audio_uris": ["/dog.wav"]}
    before = [report_runs.clip(n, **words) for n in range(5)]
    after = [
        report_runs.clip(0, **words, clap_score=0.9),
        report_runs.clip(1, **{**words, **shown}, clap_score=0.9),
        report_runs.clip(2, **words, clap_score=0.9, scorer_sha256="d4" * 32),
        report_runs.clip(3, **{**words, "negative_text": "wind"}, clap_score=0.9),
        report_runs.clip(4, **{**words, "positive_text": "a cat"}, clap_score=0.9),
    ]
    runs = read(tmp_path / "a", before), read(tmp_path / "b", after)
    metrics = ["clap_score", "clap_score_contrast", "sdri_db"]
    similar, contrast, ratio = (each.difference for each in compare(*runs, metrics))
    assert (similar.n, contrast.n, ratio.n) == (2, 1, 5)
    assert similar.mean == pytest.approx(0.9 - before[0]["clap_score"])


def test_several_datasets_are_compared_one_by_one_too(tmp_path: Path) -> None:
    rows = [report_runs.clip(1), report_runs.clip(2, dataset="ESC-50", sdri_db=0.0)]
    other = [{**rows[0], "sdri_db": 3.0}, rows[1]]
    found = compare(read(tmp_path / "a", rows), read(tmp_path / "b", other), ["sdri_db"])
    assert [(each.dataset, each.difference.mean) for each in found] == [
        ("all datasets", 1.0),
        ("AudioCaps", 2.0),
        ("ESC-50", 0.0),
    ]


def test_runs_without_a_common_id_have_no_difference(tmp_path: Path) -> None:
    one = read(tmp_path / "a", [report_runs.clip(1)])
    other = replace(one, clips=one.clips[:0])
    found = compare(one, other, ["sdri_db"])[0]
    assert (found.difference.mean, found.win_rate, found.num_only_one) == (None, None, 1)


def test_failures_of_a_dataset_are_counted_with_it(tmp_path: Path) -> None:
    letter = {"stage": "read", "error_type": "missing", "id": "gone", "mixture_uri": "/m.wav"}
    letter |= {"positive_text": "a dog", "dataset": "AudioCaps"}
    failures = [letter, {"stage": "read", "row_json": "{"}]
    clips = [report_runs.clip(1), report_runs.clip(2, dataset="ESC-50")]
    first = read(tmp_path / "a", clips)
    second = read(tmp_path / "b", clips, failures=failures)
    found = {
        each.dataset: each.provenance[1].n_failed for each in compare(first, second, ["sdri_db"])
    }
    assert found == {"all datasets": 2, "AudioCaps": 1, "ESC-50": 0}
