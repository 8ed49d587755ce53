from __future__ import annotations

import collections
import dataclasses

import pytest

from model.evaluation.rows import EvaluationRow
from model.evaluation.sets import BLIND, LEVELS_DB, QUERY_SETS, SETS, Draw, compound
from model.training.corpus import Clip, Corpus
from tones import LABELS, PHRASINGS


@pytest.fixture
def draw(corpus: Corpus) -> Draw:
    return Draw(corpus, split="test", seed=0, heldout=PHRASINGS)


@pytest.fixture
def clips(corpus: Corpus) -> dict[str, Clip]:
    return {clip.path: clip for clip in corpus.clips}


def _labels(row: EvaluationRow, clips: dict[str, Clip]) -> list[str]:
    return [clips[path].label for path in row.sources.paths]


def test_every_clip_of_the_split_that_has_a_class_is_a_target_once(
    draw: Draw, clips: dict[str, Clip]
) -> None:
    wanted = [clip.path for clip in clips.values() if clip.split == "test" and clip.label != "open"]
    for name in QUERY_SETS:
        if name != "audio_pn":
            assert sorted(row.sources.paths[0] for row in draw.rows(name)) == sorted(wanted)


def test_mixtures_are_of_the_split_and_their_sources_of_distinct_classes(
    draw: Draw, clips: dict[str, Clip]
) -> None:
    for name in SETS:
        for row in draw.rows(name):
            labels = _labels(row, clips)
            assert len(set(labels)) == len(labels)
            assert {clips[path].split for path in row.sources.paths} == {"test"}


def test_captions_are_those_of_the_target_and_the_interferer(
    draw: Draw, clips: dict[str, Clip]
) -> None:
    both = draw.rows("text_pn")
    for row in both:
        target, interferer = _labels(row, clips)
        assert row.label == target
        assert row.query.positive_text == f"{target} heard"
        assert row.query.negative_text == f"{interferer} heard"
    positive, negative = draw.rows("text_p"), draw.rows("text_n")
    assert [row.query for row in positive] == [
        dataclasses.replace(row.query, negative_text=None) for row in both
    ]
    assert [row.query for row in negative] == [
        dataclasses.replace(row.query, positive_text=None) for row in both
    ]


def test_all_two_source_sets_share_their_mixtures(draw: Draw) -> None:
    expected = {row.sources for row in draw.rows("text_pn")}
    for name in ("text_p", "text_n", "text_pn_blind", "paraphrase"):
        assert {row.sources for row in draw.rows(name)} == expected


def test_example_clips_are_other_recordings_of_the_split_or_else_of_another(
    draw: Draw, clips: dict[str, Clip]
) -> None:
    rows = draw.rows("audio_pn")
    splits = set()
    for row in rows:
        shots = (row.query.positive_clip, row.query.negative_clip)
        for path, shot in zip(row.sources.paths, shots, strict=True):
            assert shot is not None
            assert clips[shot].label == clips[path].label
            assert clips[shot].group != clips[path].group
            assert clips[shot].split == ("train" if clips[path].label == "wind" else "test")
            splits.add(clips[shot].split)
    assert splits == {"test", "train"}


def test_a_label_with_one_recording_has_no_audio_query(corpus: Corpus) -> None:
    alone = Corpus(
        folder=corpus.folder,
        sample_rate_hz=corpus.sample_rate_hz,
        clips=[clip for clip in corpus.clips if clip.split == "test"],
        samples=corpus.samples,
    )
    draw = Draw(alone, split="test", seed=0, heldout=PHRASINGS)
    with_wind = [row for row in draw.rows("text_pn") if "wind-test-a.wav" in row.sources.paths]
    assert len(draw.rows("audio_pn")) == len(draw.rows("text_pn")) - len(with_wind)


@pytest.mark.parametrize("name", QUERY_SETS)
def test_the_blind_control_asks_for_what_is_not_in_the_mixture(
    name: str, draw: Draw, clips: dict[str, Clip]
) -> None:
    own, blind = draw.rows(name), draw.rows(name + BLIND)
    asked = {row.query for row in own}
    for row in blind:
        query = row.query
        heard = _labels(row, clips)
        texts = [text.split()[0] for text in (query.positive_text, query.negative_text) if text]
        shots = [clips[path].label for path in (query.positive_clip, query.negative_clip) if path]
        assert texts or shots
        assert not set(heard) & set(texts + shots)
        assert query in asked


def test_levels_ask_the_same_at_every_level(draw: Draw) -> None:
    by_dataset = collections.defaultdict(list)
    for row in draw.rows("levels"):
        by_dataset[row.dataset].append(row)
    assert list(by_dataset) == [f"levels_{level}db" for level in LEVELS_DB]
    reference = draw.rows("text_pn")
    for level, rows in zip(LEVELS_DB, by_dataset.values(), strict=True):
        assert [row.query for row in rows] == [row.query for row in reference]
        assert [row.sources.paths for row in rows] == [row.sources.paths for row in reference]
        assert {row.sources.levels_db for row in rows} == {(float(level),)}


def test_several_sources_have_every_number_of_targets(draw: Draw, clips: dict[str, Clip]) -> None:
    counts = collections.Counter()
    for row in draw.rows("sources"):
        labels = _labels(row, clips)
        counts[len(labels), row.num_targets] += 1
        assert row.dataset == f"sources_{len(labels)}_targets_{row.num_targets}"
        assert row.query.positive_text == compound(
            [f"{x} heard" for x in labels[: row.num_targets]]
        )
        assert row.query.negative_text == compound(
            [f"{x} heard" for x in labels[row.num_targets :]]
        )
    assert set(counts) == {(3, 1), (3, 2), (4, 1), (4, 2), (4, 3)}
    assert len(set(counts.values())) == 1


def test_paraphrases_are_heldout_phrasings_of_both(draw: Draw, clips: dict[str, Clip]) -> None:
    for row in draw.rows("paraphrase"):
        target, interferer = _labels(row, clips)
        assert row.query.positive_text in PHRASINGS[target]
        assert row.query.negative_text in PHRASINGS[interferer]


def test_every_dog_is_asked_for_in_every_way(draw: Draw) -> None:
    rows = draw.rows("dog_phrases")
    assert {row.label for row in rows} == {"dog_bark"}
    asked = collections.Counter(row.query.positive_text for row in rows)
    assert asked == dict.fromkeys(["dog_bark heard", *PHRASINGS["dog_bark"]], 2)


def test_ids_are_unique(draw: Draw) -> None:
    ids = [row.id for name in SETS for row in draw.rows(name)]
    assert len(set(ids)) == len(ids)


def test_a_draw_depends_on_the_seed_and_on_nothing_else(corpus: Corpus, draw: Draw) -> None:
    again = Draw(corpus, split="test", seed=0, heldout=PHRASINGS)
    backwards = {name: again.rows(name) for name in reversed(SETS)}
    assert all(draw.rows(name) == backwards[name] for name in SETS)
    other = Draw(corpus, split="test", seed=1, heldout=PHRASINGS)
    assert other.rows("text_pn") != draw.rows("text_pn")


def test_a_split_of_one_class_cannot_be_mixed(corpus: Corpus) -> None:
    alone = Corpus(
        folder=corpus.folder,
        sample_rate_hz=corpus.sample_rate_hz,
        clips=[clip for clip in corpus.clips if clip.label == "frog"],
        samples=corpus.samples,
    )
    with pytest.raises(ValueError, match="sounds like one of"):
        Draw(alone, split="test", seed=0, heldout=PHRASINGS)
    with pytest.raises(ValueError, match="no clip of the split 'val'"):
        Draw(alone, split="val", seed=0, heldout=PHRASINGS)


def test_unknown_sets_are_refused(draw: Draw) -> None:
    with pytest.raises(ValueError, match="set 'nothing'"):
        draw.rows("nothing")


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["a dog"], "a dog"),
        (["a dog", "rain"], "a dog and rain"),
        (["a dog", "rain", "a bell"], "a dog, rain and a bell"),
    ],
)
def test_compound_queries(captions: list[str], expected: str) -> None:
    assert compound(captions) == expected


def test_the_tones_are_labels_that_can_be_told_apart() -> None:
    assert set(LABELS) == set(PHRASINGS)
