from __future__ import annotations

import json

import pytest

from manifests.benchmarks.clips import BenchmarkSetting
from manifests.benchmarks.importers import (
    MixedClip,
    build_drawn,
    build_mixed,
    labelled_clips,
    read_audiosep_csv,
    read_captioned_json,
    read_dcase,
)
from manifests.benchmarks.mixtures import MixtureClip
from manifests.files import ManifestError
from manifests.row import ManifestRow

POSITIVE = BenchmarkSetting(polarity="P")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "column", "clip"),
    [
        (
            "idx,caption,labels,src_wav,noise_wav\n7,A dog barks,Dog,a.wav,b.wav\n",
            "labels",
            MixedClip(
                row_id="7",
                mixture="mixture-7.wav",
                target="segment-7.wav",
                positive="Dog",
                source="a.wav",
            ),
        ),
        (
            "idx,caption,src_wav,noise_wav1,noise_wav1\n7,A dog,a.wav,b.wav,c.wav\n",
            "caption",
            MixedClip(
                row_id="7",
                mixture="mixture-7.wav",
                target="segment-7.wav",
                positive="A dog",
                source="a.wav",
            ),
        ),
        (
            "idx,caption,src_wav,noise_wav\n"
            '0,Speech,"evaluation/data/audioset/class_id=0/class_id=0,index=001,source.wav",'
            '"evaluation/data/audioset/class_id=0/class_id=0,index=001,mixture.wav"\n',
            "caption",
            MixedClip(
                row_id="class_id=0,index=001",
                mixture="class_id=0/class_id=0,index=001,mixture.wav",
                target="class_id=0/class_id=0,index=001,source.wav",
                positive="Speech",
            ),
        ),
        (
            "file_id,mix_wav,s0_wav,s0_text,s1_wav,s1_text\nf+++g,m/f.wav,s0/f.wav,dog,s1/f.wav,cat\n",
            "caption",
            MixedClip(
                row_id="f+++g", mixture="m/f.wav", target="s0/f.wav", positive="dog", negative="cat"
            ),
        ),
    ],
)
def test_each_list_of_audiosep(tmp_path, text, column, clip):
    assert list(read_audiosep_csv(write(tmp_path / "l.csv", text), column)) == [clip]


def test_a_list_of_somebody_else(tmp_path):
    uri = write(tmp_path / "l.csv", "a,b\n1,2\n")
    with pytest.raises(ManifestError, match="expected one of AudioSep's lists"):
        list(read_audiosep_csv(uri))


def test_mixtures_on_disk_are_scored_against_their_targets():
    clip = MixedClip(row_id="7", mixture="m.wav", target="s.wav", positive="dog", negative="cat")
    (row,) = build_mixed([clip], BenchmarkSetting(), audio_root="/v", dataset="AudioSep-VGGSound")
    assert row == ManifestRow(
        id="7",
        mixture_uri="/v/m.wav",
        reference_uri="/v/s.wav",
        positive_text="dog",
        negative_text="cat",
        n_sources=2,
        dataset="AudioSep-VGGSound",
        split="test",
    )


def test_mixtures_of_one_source_are_of_one_group():
    clips = [
        MixedClip(row_id=name, mixture="m", target="s", positive="dog", source=source)
        for name, source in (("1", "x/a.wav"), ("2", "x/a.wav"), ("3", None))
    ]
    rows = build_mixed(clips, POSITIVE, audio_root="/v", dataset="d")
    assert [row.group for row in rows] == ["x/a", "x/a", None]


@pytest.mark.parametrize(
    ("source", "recording"),
    [
        ("YZeQPNWdFs_4_15.wav", "YZeQPNWdFs_4"),
        ("1-100032-A-0.wav", "100032"),
        ("Y7fmOlUlwo_1.wav", "Y7fmOlUlwo_1"),
        ("field_recording_2.wav", "field_recording_2"),
        ("Sunny Afternoon .wav", "Sunny Afternoon"),
    ],
)
def test_sources_of_one_recording_are_of_one_group(source, recording):
    clip = MixedClip(row_id="1", mixture="m", target="s", positive="dog", source=source)
    (row,) = build_mixed([clip], POSITIVE, audio_root="/v", dataset="d")
    assert row.group == recording


def test_a_negative_query_needs_a_negative_caption():
    clip = MixedClip(row_id="7", mixture="m.wav", target="s.wav", positive="dog")
    (row,) = build_mixed([clip], POSITIVE, audio_root="/v", dataset="d")
    assert (row.positive_text, row.negative_text) == ("dog", None)
    with pytest.raises(ManifestError, match="expected polarity P"):
        list(build_mixed([clip], BenchmarkSetting(), audio_root="/v", dataset="d"))


def test_dcase(tmp_path):
    uri = write(tmp_path / "l.csv", 'source,noise,snr,caption\n1,2,-15,"a, b"\n1,2,15,c\n')
    first, second = read_dcase(uri, audio_root="/d")
    assert first == ManifestRow(
        id="1--2@-15dB--2",
        target_uri="/d/1.wav",
        interferer_uris=("/d/2.wav",),
        snr_db=(-15.0,),
        positive_text="a, b",
        duration_s=10.0,
        dataset="DCASE2024-T9",
        split="validation",
        group="1",
    )
    assert second.id != first.id


@pytest.mark.parametrize("line", ["1,2,3", "1,2,,c", "1,2,x,c", "1,2,nan,c", "1,2,200,c"])
def test_dcase_lines_that_are_not(tmp_path, line):
    uri = write(tmp_path / "l.csv", f"source,noise,snr,caption\n{line}\n")
    with pytest.raises(ManifestError, match=r"row 2: .*expected"):
        list(read_dcase(uri, audio_root="/d"))


def test_captioned_json(tmp_path):
    data = {"data": [{"wav": "/x/a.wav", "caption": "dog"}, {"wav": "b.wav", "caption": "cat"}]}
    assert read_captioned_json(write(tmp_path / "d.json", json.dumps(data))) == [
        MixtureClip(name="/x/a.wav", caption="dog"),
        MixtureClip(name="b.wav", caption="cat"),
    ]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"data": [1]}', '{"data": [{"wav": 1, "caption": "x"}]}', "[" * 9999]
)
def test_json_that_is_not(tmp_path, text):
    with pytest.raises(ManifestError, match=r"d\.json: (expected|entry 0)"):
        read_captioned_json(write(tmp_path / "d.json", text))


def test_labelled_folders():
    files = [
        "/r/cow_moo/2.wav",
        "/r/cow_moo/1.flac",
        "/r/top.wav",
        "/r/x/notes.txt",
        "/r/a/b/3.ogg",
    ]
    assert labelled_clips("/r", files, "a {label}") == [
        MixtureClip(name="a/b/3.ogg", caption="a b", label="b"),
        MixtureClip(name="cow_moo/1.flac", caption="a cow moo", label="cow moo"),
        MixtureClip(name="cow_moo/2.wav", caption="a cow moo", label="cow moo"),
    ]
    with pytest.raises(ValueError, match=r"expected \{label\} in it"):
        labelled_clips("/r", files, "a sound")


def test_hidden_files_and_those_without_a_label_are_left_out_and_said(caplog):
    names = ["dog/1.wav", "dog/._1.wav", "__MACOSX/dog/._1.wav", "__MACOSX/x/2.wav", ".x/3.wav"]
    names += ["rain/.hidden/4.wav", "top.wav", "__/5.wav", "rain/_6.wav", ".DS_Store", "dog/n.txt"]
    found = labelled_clips("/r", [f"/r/{name}" for name in names], "{label}")
    assert [clip.name for clip in found] == ["dog/1.wav", "rain/_6.wav"]
    assert caplog.messages == [
        '/r: left out 5 clips, hidden: ".x/3.wav", "__MACOSX/dog/._1.wav", "__MACOSX/x/2.wav", '
        '"dog/._1.wav", "rain/.hidden/4.wav"',
        '/r: left out 2 clips, in no folder that says what they are: "__/5.wav", "top.wav"',
    ]


def test_a_hidden_folder_above_the_clips_hides_nothing(caplog):
    (clip,) = labelled_clips("/home/.cache/r", ["/home/.cache/r/dog/1.wav"], "{label}")
    assert (clip.name, caplog.messages) == ("dog/1.wav", [])


CLIPS = [MixtureClip(name=f"{i}.wav", caption=f"c{i % 3}", label=f"l{i % 3}") for i in range(9)]


def draw(clips=CLIPS, **options):
    return list(build_drawn(clips, BenchmarkSetting(), audio_root="/r", dataset="d", **options))


def test_drawn_interferers_have_other_captions_and_differ():
    rows = draw(mixtures_per_clip=6)
    assert len({row.id for row in rows}) == len(rows) == 54
    assert all(row.positive_text != row.negative_text for row in rows)
    assert {row.label for row in rows} == {"l0", "l1", "l2"}
    assert {(row.group, row.target_uri) for row in rows} == {
        (str(i), f"/r/{i}.wav") for i in range(9)
    }


def test_draws_follow_from_seed_and_name():
    assert draw() == draw()
    assert draw() != draw(seed=1)
    by_target = {row.target_uri: row for row in draw()}
    assert all(by_target[row.target_uri] == row for row in draw(CLIPS)[:3])


def test_too_few_other_captions():
    with pytest.raises(ValueError, match=r"0\.wav: 6 clips with other captions; expected 7"):
        draw(mixtures_per_clip=7)
