"""Lists drawn from labelled clips are read by the commands of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.benchmarks.__main__ import run as build
from manifests.benchmarks.lists import read_pairs, read_samples
from manifests.benchmarks.own_lists import LabelledClip, draw_lists, read_clips, run
from manifests.files import ManifestError
from manifests.files.readers import iter_rows

CLASSES = ("a dog", "rain", "a bell")
CLIPS = [
    LabelledClip(path=f"{name[-4:]}-{split}-{index}.wav", caption=name, split=split)
    for name in CLASSES
    for split, count in (("train", 3), ("test", 4))
    for index in range(count)
]


def draw(**options):
    return draw_lists(CLIPS, split="test", examples_split="train", **{"shots": 2, **options})


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "clips.csv"
    lines = [f"{clip.path},{clip.caption},{clip.split}" for clip in CLIPS]
    path.write_text("path,caption,split\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_clip_is_a_target_once_beside_another_class():
    pairs = draw().pairs
    assert [pair.source_file for pair in pairs] == [c.path for c in CLIPS if c.split == "test"]
    caption_of = {clip.path: clip.caption for clip in CLIPS}
    for pair in pairs:
        assert pair.positive_caption == caption_of[pair.source_file]
        assert pair.negative_caption == caption_of[pair.noise_file] != pair.positive_caption


def test_examples_are_of_the_other_split_and_as_many_as_asked():
    samples = draw().samples
    assert set(samples) == set(CLASSES)
    split_of = {clip.path: clip.split for clip in CLIPS}
    for files in samples.values():
        assert len(set(files)) == 2
        assert {split_of[name] for name in files} == {"train"}


def test_draws_follow_from_seed_and_names_alone():
    assert draw() == draw()
    assert draw(seed=1) != draw()


def test_a_limit_spreads_over_the_split():
    assert {pair.positive_caption for pair in draw(limit=3).pairs} == set(CLASSES)


def test_a_limit_that_leaves_one_class_is_refused():
    with pytest.raises(ManifestError, match="1 clip of the split 'test': fewer than two classes"):
        draw(limit=1)


def test_classes_with_too_few_examples_are_left_out():
    few = [clip for clip in CLIPS if (clip.caption, clip.path[-5]) != ("rain", "2")]
    lists = draw_lists(few, split="test", examples_split="train", shots=3)
    assert {pair.positive_caption for pair in lists.pairs} == {"a dog", "a bell"}
    with pytest.raises(ManifestError, match="fewer than two classes with 4 clips in 'train'"):
        draw(shots=4)


@pytest.mark.parametrize("wrong", [{"shots": 0}, {"limit": 0}, {"examples_split": "test"}])
def test_values_out_of_range(wrong):
    options = {"split": "test", "examples_split": "train", "shots": 1, **wrong}
    with pytest.raises(ValueError, match="expected"):
        draw_lists(CLIPS, **options)


def test_the_command_writes_what_the_benchmarks_read(listed: Path, tmp_path: Path, capsys):
    folder = tmp_path / "new" / "lists"
    assert run(["--clips", str(listed), "--output", str(folder), "--shots", "2"]) == 0
    assert capsys.readouterr().out == f"{folder}: 12 pairs, 3 classes\n"
    expected = draw_lists(read_clips(str(listed)), split="test", examples_split="train", shots=2)
    assert tuple(read_pairs(str(folder / "pairs.csv"))) == expected.pairs
    assert read_samples(str(folder / "samples.csv")) == expected.samples
    common = ["--pairs", str(folder / "pairs.csv"), "--audio_root", str(tmp_path)]
    common += ["--on_missing", "ignore", "--dataset", "mine"]
    for command, flags, count in (
        ("pairs", ["--query", "audio", "--shots", "2"], 12),
        ("input_sdr", ["--levels_db", "-5", "5"], 24),
        ("multisource", ["--num_sources", "3"], 24),
    ):
        output = tmp_path / f"{command}.jsonl"
        samples = ["--samples", str(folder / "samples.csv")]
        assert build([command, *common, *samples, *flags, "--output", str(output)]) == 0
        rows = list(iter_rows(str(output)))
        assert {row.dataset for row in rows} == {"mine"}
        assert len(rows) == count


def test_the_recording_of_a_clip_reaches_the_manifest(listed: Path, tmp_path: Path):
    lines = listed.read_text(encoding="utf-8").splitlines()
    groups = ["group", *(f"tape {index // 2}" if index % 7 else "" for index in range(len(CLIPS)))]
    rows = [",".join(pair) for pair in zip(lines, groups, strict=True)]
    listed.write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert run(["--clips", str(listed), "--output", str(tmp_path / "l"), "--shots", "2"]) == 0
    known = {clip.path: clip.group for clip in read_clips(str(listed))}
    common = ["--pairs", str(tmp_path / "l" / "pairs.csv"), "--audio_root", str(tmp_path)]
    common += ["--on_missing", "ignore", "--dataset", "mine"]
    for command, flags in (("pairs", ()), ("multisource", ("--num_sources", "3"))):
        output = tmp_path / f"{command}.jsonl"
        assert build([command, *common, *flags, "--output", str(output)]) == 0
        for row in iter_rows(str(output)):
            name = Path(row.targets[0]).name
            assert row.group == (known[name] or Path(name).stem)


def test_a_list_without_splits_is_refused(tmp_path: Path, capsys):
    path = tmp_path / "clips.csv"
    path.write_text("path,caption\na.wav,a dog\n", encoding="utf-8")
    assert run(["--clips", str(path), "--output", str(tmp_path / "lists")]) == 2
    assert "no column split" in capsys.readouterr().err
    assert not (tmp_path / "lists").exists()


def test_names_stay_whole_in_the_lists(tmp_path: Path):
    clips = tmp_path / "clips.csv"
    lines = [
        f'"{name}","{name}",{split}'
        for name in ("a\rb", "a\nb", "=1", '""', "a,b", "#a")
        for split in ("train", "test")
    ]
    clips.write_text("\n".join(["path,caption,split", *lines]) + "\n", encoding="utf-8")
    given = ["--clips", str(clips), "--output", str(tmp_path / "lists"), "--shots", "1"]
    assert run(given) == 0
    pairs = list(read_pairs(str(tmp_path / "lists" / "pairs.csv")))
    assert {pair.positive_caption for pair in pairs} == {
        *("a\rb", "a\nb", "=1", '"', "a,b", "#a"),
    }
