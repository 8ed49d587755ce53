from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from manifests.benchmarks.__main__ import run
from manifests.benchmarks.corpus_sets import build_corpus_sets, chosen_sets, read_corpus
from manifests.files.readers import iter_rows
from manifests.row import ManifestRow
from tones import write_corpus

LISTS = Path(__file__).parent / "lists"
AUDIO = str(resources.files("manifests") / "examples" / "audio")


@pytest.fixture
def build(tmp_path, capsys):
    """Runs a command; gives its exit code, rows, and what it said."""

    def call(command, *flags, root=AUDIO, form="parquet"):
        output = tmp_path / f"m.{form}"
        code = run([command, "--audio_root", root, "--output", str(output), *map(str, flags)])
        captured = capsys.readouterr()
        rows = list(iter_rows(str(output))) if output.exists() else []
        assert all(isinstance(row, ManifestRow) for row in rows)
        return code, rows, captured.out.replace(str(output), "OUT") + captured.err

    return call


PAIRS = ("--pairs", LISTS / "pairs.csv")
SAMPLES = ("--samples", LISTS / "samples.csv")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["audiocaps", "audioset", "music21", "esc50", "fsdkaggle2018"])
def test_miniature_of_each_benchmark(build, name, form):
    code, rows, said = build(name, *PAIRS, form=form)
    assert code == 0
    assert [row.id for row in rows] == [
        "dog_barking--river",
        "dog_barking--bell",
        "cat_meowing--tabla",
        "rooster_crowing--clock_ticking",
        "birds_chirping--fireworks",
    ]
    assert rows[0].target_uri == f"{AUDIO}/dog_barking.flac"
    assert {row.levels_db for row in rows} == {(0.0,)}
    assert said.startswith("OUT: 5 rows (the official set has ")


@pytest.mark.parametrize("polarity", ["P", "n", "PN", "P+N"])
@pytest.mark.parametrize(("query", "shots"), [("text", 0), ("audio", 1), ("both", 2)])
def test_query_settings(build, query, shots, polarity):
    flags = ("--query", query, "--polarity", polarity, *(("--shots", shots) if shots else ()))
    code, rows, _ = build("esc50", *PAIRS, *SAMPLES, *flags)
    assert code == 0
    assert {row.query_type for row in rows} == {query}
    assert {row.polarity for row in rows} == {"P+N" if polarity == "PN" else polarity.upper()}
    assert {row.num_shots for row in rows} == {shots}
    assert {row.label for row in rows} >= {"dog barking", "cat meowing"}


def test_multisource(build):
    code, rows, said = build("multisource", *PAIRS, "--num_sources", 2, 3, "--seed", 3)
    assert code == 0
    assert len(rows) == 4 * 3
    assert {(row.num_sources, len(row.targets)) for row in rows} == {(2, 1), (3, 1), (3, 2)}
    assert said == "OUT: 12 rows\n"


def test_input_sdr(build):
    code, rows, _ = build("input_sdr", *PAIRS, "--levels_db", -10, 5)
    assert code == 0
    assert [row.input_snr_db for row in rows] == [-10.0] * 5 + [5.0] * 5
    assert rows[9].dataset == "AudioCaps"
    assert rows[9].id == "birds_chirping--fireworks@+5dB"


def test_zero_shot(build, tmp_path):
    captions = tmp_path / "train.csv"
    captions.write_text("file_name,caption\na.wav,dogs that bark\nb.wav,a cat meows\n")
    code, rows, _ = build("zeroshot", *PAIRS, "--training_captions", captions)
    assert code == 0
    assert [row.split for row in rows] == ["seen"] * 3 + ["unseen"] * 2
    code, rows, _ = build("zeroshot", *PAIRS, "--unseen", "cat meowing; rooster")
    assert [row.split for row in rows] == ["seen", "seen", "unseen", "unseen", "seen"]
    code, _, said = build("zeroshot", *PAIRS, "--unseen", "cow")
    assert (code, "no such class" in said) == (2, True)


def test_folder(build, tmp_path):
    for name in ("sounds/dog/a.wav", "sounds/dog/b.wav", "sounds/cat_meow/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    code, rows, _ = build("folder", "--dataset", "mine", root=str(tmp_path / "sounds"))
    assert code == 0
    assert [row.positive_text for row in rows] == [
        "the sound of cat meow",
        "the sound of dog",
        "the sound of dog",
    ]
    assert {row.dataset for row in rows} == {"mine"}
    code, _, said = build("folder", root=AUDIO)
    assert code == 2
    assert "expected <label>/<clip>.wav" in said


def test_other_protocols(build, tmp_path):
    (tmp_path / "a.csv").write_text("idx,caption,src_wav,noise_wav\n0,dog,a,b\n")
    (tmp_path / "d.csv").write_text("source,noise,snr,caption\n1,2,5,dog\n")
    (tmp_path / "j.json").write_text(
        '{"data": [{"wav": "a", "caption": "x"}, {"wav": "b", "caption": "y"}]}'
    )
    ignore = ("--on_missing", "ignore")
    flags = ("--list", tmp_path / "a.csv", "--dataset", "AudioSep-ESC50", *ignore)
    code, rows, _ = build("audiosep", *flags)
    assert (code, rows[0].reference_uri) == (0, f"{AUDIO}/segment-0.wav")
    code, rows, _ = build("dcase", "--list", tmp_path / "d.csv", *ignore)
    assert (code, rows[0].input_snr_db) == (0, 5.0)
    code, rows, _ = build("audiosep_json", "--list", tmp_path / "j.json", *ignore)
    assert (code, len(rows)) == (0, 2)


def test_missing_clips_are_listed_and_nothing_is_written(build, tmp_path):
    code, rows, said = build("esc50", *PAIRS, root=str(tmp_path))
    assert (code, rows) == (1, [])
    assert f"missing: {tmp_path}/dog_barking.flac\n" in said
    assert "9 clips are missing, which 5 rows name; nothing was written" in said


def test_missing_clips_are_skipped_and_counted(build, tmp_path):
    for name in ("dog_barking", "bell"):
        (tmp_path / f"{name}.flac").touch()
    code, rows, said = build("esc50", *PAIRS, "--on_missing", "skip", root=str(tmp_path))
    assert (code, [row.id for row in rows]) == (0, ["dog_barking--bell"])
    assert "OUT: 1 row, 4 left out for missing clips" in said
    assert f"missing: {tmp_path}/river.flac" in said


def test_example_clips_may_lie_elsewhere(build, tmp_path):
    flags = ("--query", "audio", *SAMPLES, "--samples_root", tmp_path)
    code, _, said = build("esc50", *PAIRS, *flags)
    assert code == 1
    assert f"missing: {tmp_path}/dog_barking.flac" in said
    code, rows, _ = build("esc50", *PAIRS, *flags, "--on_missing", "ignore")
    assert (code, rows[0].positive_audio_uris) == (0, (f"{tmp_path}/dog_barking.flac",))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pairs", "none.csv"), "no such file"),
        ((*PAIRS, "--query", "audio"), "needs --samples"),
        ((*PAIRS, *SAMPLES, "--query", "audio", "--shots", "3"), "has 2 example clips; expected 3"),
        ((*PAIRS, *SAMPLES, "--query", "audio", "--shots", "0"), "shots 0; expected 1 or more"),
        ((*PAIRS, *SAMPLES, "--shots", "5"), "--shots 5 goes with --query audio or both"),
        ((*PAIRS, *SAMPLES, "--text_weight", "0"), "--text_weight 0.0 goes with --query both"),
        ((*PAIRS, *SAMPLES, "--query", "audio", "--text_weight", "1"), "--query is audio"),
        ((*PAIRS, "--snr_db", "200"), "from -100 to 100"),
        ((*PAIRS, *SAMPLES, "--query", "both", "--text_weight", "2"), "from 0 to 1"),
    ],
)
def test_what_cannot_be_built(build, flags, message):
    code, rows, said = build("esc50", *flags)
    assert (code, rows) == (2, [])
    assert message in said


def test_two_rows_with_one_id(build, tmp_path):
    header = "source_file,positive_caption,noise_file,negative_caption\n"
    (tmp_path / "p.csv").write_text(header + "a.wav,x,b.wav,y\n" * 2)
    code, _, said = build("esc50", "--pairs", tmp_path / "p.csv", "--on_missing", "ignore")
    assert code == 2
    assert "gives 2 rows the id a--b" in said


def test_unknown_polarity_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        run(["esc50", "--pairs", "p", "--audio_root", "a", "--output", "o", "--polarity", "X"])
    assert caught.value.code == 2
    assert "expected P, N or P+N" in capsys.readouterr().err


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    return write_corpus(folder)


def test_the_evaluation_sets_of_a_corpus(build, corpus):
    flags = ("--sets", "text_*", "levels_5db", "--limit", 4, "--duration_s", 2)
    code, rows, said = build("corpus", *flags, root=str(corpus))
    assert code == 0, said
    drawn = build_corpus_sets(
        read_corpus(str(corpus)),
        chosen_sets(["text_*", "levels_5db"]),
        limit=4,
        audio_root=str(corpus),
        duration_s=2.0,
    )
    assert rows == list(drawn)
    assert len(rows) == 4 * 8
    other = build("corpus", *flags, "--seed", 1, root=str(corpus))[1]
    assert [row.id for row in other] != [row.id for row in rows]


def test_a_corpus_that_cannot_be_drawn_from_is_refused(build, corpus):
    cases = {
        ("--split", "val"): "no clip of the split 'val' has a class",
        ("--sets", "text"): "set 'text'; expected some of text_pn",
        ("--limit", 0): "limit 0; expected 1 or more",
    }
    for flags, message in cases.items():
        code, _, said = build("corpus", *flags, root=str(corpus))
        assert code == 2
        assert message in said
    (corpus / "frog-test-a.wav").unlink()
    code, _, said = build("corpus", "--sets", "text_p", root=str(corpus))
    assert code == 1
    assert "frog-test-a.wav" in said
