from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.benchmarks import corpus_sets
from manifests.benchmarks.corpus_sets import (
    ABSENT_SETS,
    QUERY_SETS,
    SETS,
    CorpusClip,
    Draw,
    EventSettings,
    build_events,
    chosen_sets,
    compound,
    read_corpus,
)
from manifests.benchmarks.sound_classes import family_of
from manifests.files import ManifestError
from manifests.row import ManifestRow, RowError, parse_record
from tones import LABELS, PHRASINGS, write_corpus

ROOT = "/corpus"
MakeDraw = Callable[..., Draw]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[CorpusClip]:
    return read_corpus(str(write_corpus(tmp_path_factory.mktemp("corpus"))))


@pytest.fixture(scope="module")
def make_draw(clips: list[CorpusClip]) -> MakeDraw:
    def make(given: list[CorpusClip] = clips, **settings: object) -> Draw:
        return Draw(given, **{"audio_root": ROOT, "phrasings": PHRASINGS, **settings})

    return make


@pytest.fixture(scope="module")
def draw(make_draw: MakeDraw) -> Draw:
    return make_draw()


@pytest.fixture(scope="module")
def label_of(clips: list[CorpusClip]) -> dict[str, str]:
    return {f"{ROOT}/{clip.path}": clip.label for clip in clips}


def _labels(row: ManifestRow, label_of: dict[str, str]) -> list[str]:
    return [label_of[uri] for uri in (*row.targets, *row.interferer_uris)]


def _query(row: ManifestRow) -> tuple[object, ...]:
    return (
        *(row.positive_text, row.negative_text),
        *(row.positive_audio_uris, row.negative_audio_uris),
    )


def _mixture(row: ManifestRow) -> tuple[object, ...]:
    return row.targets, row.interferer_uris, row.levels_db


def test_every_clip_of_the_split_that_has_a_class_is_a_target_once(
    draw: Draw, clips: list[CorpusClip]
) -> None:
    wanted = [f"{ROOT}/{c.path}" for c in clips if c.split == "test" and c.label != "open"]
    for name in QUERY_SETS:
        rows = list(draw.rows(name))
        assert sorted(row.target_uri for row in rows) == sorted(wanted)
        recordings = {f"{ROOT}/{clip.path}": clip.group for clip in clips}
        assert all(row.group == recordings[row.target_uri] for row in rows)
        assert {(row.dataset, row.split, row.duration_s) for row in rows} == {(name, "test", 10.0)}


@pytest.mark.parametrize("name", SETS)
def test_rows_are_rows_of_a_manifest_of_distinct_classes_of_the_split(
    name: str, draw: Draw, label_of: dict[str, str]
) -> None:
    rows = list(draw.rows(name))
    assert rows
    for row in rows:
        labels = _labels(row, label_of)
        assert len(set(labels)) == len(labels) == SETS[name].num_sources
        assert all("-test-" in uri for uri in (*row.targets, *row.interferer_uris))
        parsed = parse_record(row.to_record(), uri="", row=1, folder="/")
        assert not isinstance(parsed, RowError), parsed
        assert parsed == row


def test_captions_are_those_of_the_target_and_the_interferer(
    draw: Draw, label_of: dict[str, str]
) -> None:
    both = list(draw.rows("text_pn"))
    for row in both:
        target, interferer = _labels(row, label_of)
        assert row.label == target
        assert _query(row) == (f"{target} heard", f"{interferer} heard", (), ())
    for name, left_out in (("text_p", "negative_text"), ("text_n", "positive_text")):
        expected = [_query(dataclasses.replace(row, **{left_out: None})) for row in both]
        assert [_query(row) for row in draw.rows(name)] == expected


def test_all_sets_of_two_sources_at_0_db_share_their_mixtures(draw: Draw) -> None:
    expected = {_mixture(row) for row in draw.rows("text_pn")}
    alike = [name for name, kind in SETS.items() if kind.num_sources == 2 and not kind.level_db]
    assert len(alike) == 14
    for name in alike:
        found = {_mixture(row) for row in draw.rows(name)}
        assert found <= expected
        if name not in ("dog_phrases", "absent_near"):
            assert found == expected, name


def test_example_clips_are_other_recordings_of_the_split_or_else_of_another(
    draw: Draw, label_of: dict[str, str]
) -> None:
    splits = set()
    for row in draw.rows("audio_pn"):
        shots = (*row.positive_audio_uris, *row.negative_audio_uris)
        for uri, shot in zip((*row.targets, *row.interferer_uris), shots, strict=True):
            assert shot != uri
            assert label_of[shot] == label_of[uri]
            assert ("-train-" in shot) == (label_of[uri] == "wind")
            splits.add("-train-" in shot)
    assert splits == {True, False}


def test_a_class_with_one_recording_has_no_audio_query(
    clips: list[CorpusClip], make_draw: MakeDraw
) -> None:
    alone = make_draw([clip for clip in clips if clip.split == "test"])
    wind = f"{ROOT}/wind-test-a.wav"
    rows = list(alone.rows("text_pn"))
    without = [row for row in rows if wind not in (*row.targets, *row.interferer_uris)]
    found = list(alone.rows("audio_pn"))
    assert [_mixture(row) for row in found] == [_mixture(row) for row in without]
    # A limit counts mixtures that have rows.
    assert len(list(alone.rows("audio_pn", len(without)))) == len(without)


@pytest.mark.parametrize("name", QUERY_SETS)
def test_the_blind_control_asks_for_what_is_not_in_the_mixture(
    name: str, draw: Draw, label_of: dict[str, str]
) -> None:
    asked = {_query(row) for row in draw.rows(name)}
    for row in draw.rows(f"{name}_blind"):
        texts = [text.split()[0] for text in (row.positive_text, row.negative_text) if text]
        shots = [label_of[uri] for uri in (*row.positive_audio_uris, *row.negative_audio_uris)]
        assert texts or shots
        assert not set(_labels(row, label_of)) & {*texts, *shots}
        assert _query(row) in asked


def test_the_swapped_query_wants_the_interferer(draw: Draw) -> None:
    swapped = list(draw.rows("text_pn_swapped"))
    for row, other in zip(swapped, draw.rows("text_pn"), strict=True):
        assert (row.positive_text, row.negative_text) == (other.negative_text, other.positive_text)
        assert row.target_uri == other.target_uri


def test_levels_ask_the_same_at_every_level(draw: Draw) -> None:
    reference = [(row.targets, row.interferer_uris, _query(row)) for row in draw.rows("text_pn")]
    for level_db in (-10, -5, 0, 5, 10):
        rows = list(draw.rows(f"levels_{level_db}db"))
        assert [(row.targets, row.interferer_uris, _query(row)) for row in rows] == reference
        assert {row.levels_db for row in rows} == {(float(level_db),)}


def test_several_sources_have_every_number_of_targets(draw: Draw, label_of: dict[str, str]) -> None:
    for count, num_targets in ((3, 1), (3, 2), (4, 1), (4, 2), (4, 3)):
        rows = list(draw.rows(f"sources_{count}_targets_{num_targets}"))
        assert len(rows) == len(draw.pairs)
        for row in rows:
            assert len(row.targets) == num_targets
            captions = [f"{label} heard" for label in _labels(row, label_of)]
            assert row.positive_text == compound(captions[:num_targets])
            assert row.negative_text == compound(captions[num_targets:])


def test_paraphrases_are_heldout_phrasings_of_both(draw: Draw, label_of: dict[str, str]) -> None:
    for row in draw.rows("paraphrase"):
        target, interferer = _labels(row, label_of)
        assert row.positive_text in PHRASINGS[target]
        assert row.negative_text in PHRASINGS[interferer]


def test_a_class_without_phrasings_is_not_paraphrased(
    make_draw: MakeDraw, label_of: dict[str, str]
) -> None:
    known = {label: PHRASINGS[label] for label in LABELS if label != "rain"}
    rows = list(make_draw(phrasings=known).rows("paraphrase"))
    assert rows
    assert not any("rain" in _labels(row, label_of) for row in rows)


def test_every_dog_is_asked_for_in_every_way(draw: Draw) -> None:
    rows = list(draw.rows("dog_phrases"))
    assert {row.label for row in rows} == {"dog_bark"}
    asked = collections.Counter(row.positive_text for row in rows)
    assert asked == dict.fromkeys(["dog_bark heard", *PHRASINGS["dog_bark"]], 2)
    assert len(list(draw.rows("dog_phrases", 1))) == 4


def test_a_caption_that_is_a_heldout_phrase_too_is_asked_for_once(clips: list[CorpusClip]) -> None:
    phrasings = {**PHRASINGS, "dog_bark": ["dog_bark heard", "a puppy"]}
    rows = list(Draw(clips, audio_root=ROOT, phrasings=phrasings).rows("dog_phrases"))
    assert len({row.id for row in rows}) == len(rows) == 4


@pytest.mark.parametrize("name", ABSENT_SETS)
def test_absent_classes_are_not_in_the_mixture_and_the_negative_query_stays(
    name: str, draw: Draw, label_of: dict[str, str]
) -> None:
    negative = {_mixture(row): row.negative_text for row in draw.rows("text_pn")}
    asked = collections.defaultdict(list)
    for row in draw.rows(name):
        assert row.negative_text == negative[_mixture(row)]
        label = row.positive_text.removesuffix(" heard")
        assert label not in _labels(row, label_of)
        asked[_mixture(row)].append(label)
        if name == "absent_near":
            assert family_of(label) == family_of(row.label)
    sizes = {len(set(labels)) for labels in asked.values()}
    assert sizes == ({3} if name == "absent" else {1})
    assert all(len(set(labels)) == len(labels) for labels in asked.values())


def test_ids_are_unique_and_no_row_depends_on_what_else_is_drawn(
    draw: Draw, make_draw: MakeDraw
) -> None:
    rows = {name: list(draw.rows(name)) for name in SETS}
    ids = [row.id for row in itertools.chain(*rows.values())]
    assert len(set(ids)) == len(ids)
    other = make_draw()
    for name in reversed(SETS):
        assert list(other.rows(name)) == rows[name]
        first = {_mixture(row): None for row in rows[name]}
        wanted = [row for row in rows[name] if _mixture(row) in list(first)[:2]]
        assert list(other.rows(name, 2)) == wanted
    assert [row.id for row in make_draw(seed=1).rows("text_pn")] != [
        row.id for row in rows["text_pn"]
    ]


def test_a_set_takes_no_more_mixtures_than_it_should(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = dataclasses.replace(SETS["levels_5db"], max_mixtures=3)
    monkeypatch.setitem(SETS, "levels_5db", fewer)
    assert len(list(draw.rows("levels_5db"))) == len(list(draw.rows("levels_5db", 9))) == 3
    assert len(list(draw.rows("levels_5db", 2))) == 2


def test_sets_are_chosen_by_name_or_pattern_in_their_order() -> None:
    assert chosen_sets(["*"]) == list(SETS)
    assert chosen_sets(["levels_5db", "text_?"]) == ["text_p", "text_n", "levels_5db"]
    assert chosen_sets([]) == []
    with pytest.raises(ValueError, match=r"set 'level'; expected some of text_pn, .*absent_near"):
        chosen_sets(["text_*", "level"])


def test_a_split_that_cannot_be_drawn_from_is_refused(
    clips: list[CorpusClip], make_draw: MakeDraw
) -> None:
    with pytest.raises(ManifestError, match="/corpus: no clip of the split 'val' has a class"):
        make_draw(split="val")
    with pytest.raises(ManifestError, match="every clip of the split 'test' sounds like one of"):
        make_draw([clip for clip in clips if clip.label == "bell"])
    few = make_draw([clip for clip in clips if clip.label in ("bell", "rain", "frog")])
    with pytest.raises(ManifestError, match="every other mixture of the split 'test' has a class"):
        list(few.rows("text_pn_blind"))
    few = make_draw([clip for clip in clips if clip.label in ("bell", "rain", "frog")])
    with pytest.raises(ManifestError, match="sounds like one of"):
        list(few.rows("sources_4_targets_1"))


def test_a_corpus_without_recordings_counts_each_clip_as_one(tmp_path: Path) -> None:
    for text in (
        "path,label,caption,split\na.wav,rain,rain falling,test\n",
        "path,label,caption,split,group,duration_s\na.wav,rain,rain falling,test, , \n",
    ):
        (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
        (clip,) = read_corpus(str(tmp_path))
        assert clip == CorpusClip(
            path="a.wav", label="rain", caption="rain falling", split="test", group="a.wav"
        )
    (tmp_path / "manifest.csv").write_text("path,caption\na.wav,rain\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="no column label"):
        read_corpus(str(tmp_path))


def test_the_bundled_phrasings_are_used_by_default(clips: list[CorpusClip]) -> None:
    draw = Draw(clips, audio_root=ROOT)
    asked = {row.positive_text for row in draw.rows("dog_phrases")}
    assert asked == {"dog_bark heard", *corpus_sets.heldout_phrasings()["dog_bark"]}


def test_a_compound_is_a_list_in_words() -> None:
    assert compound(["a"]) == "a"
    assert compound(["a", "b"]) == "a and b"
    assert compound(["a", "b", "c"]) == "a, b and c"


def test_the_documentation_has_every_set() -> None:
    page = Path(__file__).resolve().parents[4] / "docs" / "evaluation.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    expected = [
        f"| `{name}` | {kind.about} | {kind.max_mixtures or 'all'} |" for name, kind in SETS.items()
    ]
    assert [line for line in lines if line.startswith("| `")] == expected


def _timed(clips: list[CorpusClip], duration_s: float | None = 2.0) -> list[CorpusClip]:
    return [dataclasses.replace(clip, duration_s=duration_s) for clip in clips]


def _drawn_events(clips: list[CorpusClip], **settings: object) -> list[ManifestRow]:
    given = {"audio_root": ROOT, "num_mixtures": 12, "num_others": 2, **settings}
    return list(build_events(clips, EventSettings(**given)))


def test_events_of_a_class_follow_each_other_and_others_begin_anywhere(
    clips: list[CorpusClip], label_of: dict[str, str]
) -> None:
    rows = _drawn_events(_timed(clips))
    assert rows == _drawn_events(_timed(clips))
    assert rows != _drawn_events(_timed(clips), seed=1)
    assert [row.id for row in rows] == [f"events-{index:05d}" for index in range(12)]
    assert any(len(row.targets) > 1 for row in rows)
    for row in rows:
        assert not isinstance(parse_record(row.to_record(), uri="x", row=1, folder="/"), RowError)
        labels = _labels(row, label_of)
        num_targets = len(row.targets)
        assert set(labels[:num_targets]) == {row.label}
        assert len({row.label, *labels[num_targets:]}) == 3
        onsets = row.onsets_s[:num_targets]
        assert all(after - before >= 3.0 for before, after in itertools.pairwise(onsets))
        assert all(0.0 <= onset <= 28.0 for onset in row.onsets_s)
        assert not {*row.positive_audio_uris} & {*row.targets}


def test_events_are_asked_for_in_words_by_example_or_both(clips: list[CorpusClip]) -> None:
    for query, asked in (("text", (True, False)), ("audio", (False, True)), ("both", (True, True))):
        (row,) = _drawn_events(_timed(clips), query=query, num_mixtures=1)
        assert (row.positive_text is not None, bool(row.positive_audio_uris)) == asked


def test_events_that_cannot_be_drawn_are_refused(clips: list[CorpusClip]) -> None:
    with pytest.raises(ManifestError, match="has no duration_s in the list"):
        _drawn_events(_timed(clips, None))
    with pytest.raises(ManifestError, match="up to 30 s long"):
        _drawn_events(_timed(clips, 31.0))
    with pytest.raises(ManifestError, match="expected more classes"):
        _drawn_events(_timed(clips), num_others=len(LABELS))
    with pytest.raises(ValueError, match="expected 1 or more"):
        _drawn_events(_timed(clips), num_mixtures=0)


def test_a_length_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(
        "path,label,caption,split,duration_s\na.wav,dog,a dog,test,1.5\nb.wav,dog,a dog,test,long\n"
    )
    with pytest.raises(ManifestError, match=r"b\.wav: duration_s 'long'; expected a length"):
        read_corpus(str(tmp_path))
