"""Fine-tuning as users do it: their sounds improve, the folder is a model, wrong input is named."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from manifests.columns import METRICS_SCHEMA, SEGMENTS_SCHEMA
from manifests.files import split_fragment
from model import registry
from model.checkpoints import convert
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.loading import Networks, in_bundle, load_clap, load_converted
from model.clap import Clap
from model.config import ClapSepConfig, LoraConfig, PresenceConfig
from model.systems.clapsep.network import ClapSep, Listener, PresenceHead
from model.training import __main__ as command
from model.training import finetune
from model.training.drawing import ABSENT, NONE, QUERIES, MixturePlanner
from model.training.settings import FinetuneSettings
from tiny_model import CONFIG as TINY_CONFIG

RATE_HZ = 32_000
OPTIMISER = {
    "steps": 60, "validate_every": 30, "matrices": "muon", "learning_rate": 1e-2, "ema_decay": 0.5
}  # fmt: skip
SETTINGS = {
    "batch_size": 4,
    "optimiser": OPTIMISER,
    "queries": {"text_only_share": 1.0, "clips_only_share": 0.0},
    "query_variants": 1,
}
QUICK = SETTINGS | {"batch_size": 2, "optimiser": OPTIMISER | {"steps": 2}}


def tone(frequency_hz: float, take: int, seconds: float = 0.8) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    beats = 0.6 + 0.4 * np.sin(2 * np.pi * (3 + take) * time_s)
    return 0.3 * beats * np.sin(2 * np.pi * frequency_hz * (1 + 0.01 * take) * time_s)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five recordings of two made-up classes; one was cut into two files, one file is no sound."""
    folder = tmp_path_factory.mktemp("mine") / "mine"
    for label, frequency_hz in (("low hum", 150.0), ("high_whistle", 5_000.0)):
        (folder / label / "tape").mkdir(parents=True)
        for take in range(4):
            soundfile.write(folder / label / f"{take}.wav", tone(frequency_hz, take), RATE_HZ)
        for part in (4, 5):
            name = folder / label / "tape" / f"{part}.flac"
            soundfile.write(name, tone(frequency_hz, part), RATE_HZ)
    (folder / "low hum" / "notes.txt").write_text("recorded in the cellar")
    (folder / "low hum" / ".DS_Store").write_bytes(b"\0")
    soundfile.write(folder / "high_whistle" / "silent.wav", np.zeros(RATE_HZ), RATE_HZ)
    return folder


def write_model(folder: Path, config: ClapSepConfig, seed: int = 3) -> Path:
    """A network of random weights with a presence head; gives the head's file."""
    torch.manual_seed(seed)
    clap, separator = Clap(config.clap).eval(), ClapSep(config).eval()
    networks = Networks(config=config, clap=clap, separator=separator)
    digest = convert.save(str(folder / "base.safetensors"), networks)
    head = PresenceHead(config.clap.audio.num_features, clap.embedding_dim, PresenceConfig())
    separator.listener = Listener(clap.audio_branch, clap.audio_projection, head)
    source = finetune.SourceFile(role="model", uri="base.safetensors", sha256=digest)
    convert.save_presence(str(folder / "base-presence.safetensors"), head, source)
    return folder / "base-presence.safetensors"


def train(base: Path, corpus: Path, output: Path, settings: Mapping[str, Any], *more: str) -> int:
    output.parent.mkdir(exist_ok=True)
    chosen = output.parent / f"{output.name}.json"
    chosen.write_text(json.dumps({"finetuning": dict(settings)}), encoding="utf-8")
    words = ["finetune", "--from", str(base), "--corpus", str(corpus), "--output", str(output)]
    return command.run([*words, "--device", "cpu", "--settings", str(chosen), *more])


@pytest.mark.usefixtures("own_cache")
def test_a_made_up_class_is_learnt_and_the_folder_is_a_model(
    sounds: Path,
    small_config: ClapSepConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    base = write_model(tmp_path, small_config)
    output = tmp_path / "runs" / "mine"
    assert train(base, sounds, output, SETTINGS, "--train", "all") == 0
    said = caplog.text
    assert re.search(r"left out: .*silent.wav: silent", said)
    assert re.search(r"left out: .*notes.txt: Format not recognised", said)
    assert re.search(
        r"high_whistle, low hum: 6 recordings to train on, 4 held out, \d bundled", said
    )
    figures = json.loads((output / "figures.json").read_text())
    own = figures["sdri_db"]["held-out recordings"]
    for mode in finetune.MODES:
        assert own[mode]["difference"]["mean"] > 3.0, mode
        assert own[mode]["difference"]["ci_low"] > 0.0, mode
    assert set(figures["sdri_db"]) == {
        "held-out recordings", "held out: high_whistle", "held out: low hum",
        "bundled sounds of other kinds",
    }  # fmt: skip

    networks = load_converted(str(output))
    assert networks.separator.listener is not None
    assert networks.config == small_config
    assert (output / "config.json").read_text().strip() == convert.to_json(small_config)
    before = load_converted(str(base))
    for name, value in before.clap.state_dict().items():
        assert value.equal(networks.clap.state_dict()[name]), name
    loaded = registry.load(str(output))
    digest = hashlib.sha256((output / "presence.safetensors").read_bytes()).hexdigest()
    assert loaded.model_sha256 == digest == figures["files"]["presence.safetensors"]
    assert load_clap(str(output)).embedding_dim == small_config.clap.embedding_dim
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"From `{base}` (SHA-256 `{before.model_sha256}`)" in card
    assert re.search(r"\| low hum \| \d of 3 \| \d of 2 \| 0 of 0 \|", card)
    assert digest in card


@pytest.mark.usefixtures("own_cache")
def test_a_clip_is_heard_the_same_at_any_level(tmp_path: Path) -> None:
    sound = tone(440.0, 1)
    made = {"plain": sound, "quiet": 1e-3 * sound, "loud": 50 * sound, "offset": sound + 0.2}
    made |= {"constant": np.full(RATE_HZ, 0.3), "broken": np.where(sound > 0.29, np.nan, sound)}
    (tmp_path / "hum").mkdir()
    (tmp_path / "README.txt").write_text("mine")
    soundfile.write(tmp_path / "lost.WAV", sound, RATE_HZ)
    for name, samples in made.items():
        soundfile.write(tmp_path / "hum" / f"{name}.wav", samples, RATE_HZ, subtype="FLOAT")
    heard = finetune.hear(finetune.clips_in_folders(tmp_path), RATE_HZ)
    assert [Path(clip.uri).stem for clip in heard.clips] == ["loud", "offset", "plain", "quiet"]
    for samples in heard.samples:
        np.testing.assert_allclose(samples, heard.samples[2], atol=1)  # a step of 16 bits
    assert np.abs(heard.samples[2]).max() == 32_767
    broken, constant, lost = heard.left_out
    assert re.search("lost.WAV: has no label: lies in no label's folder", lost)
    assert broken.endswith("broken.wav: holds samples that are not finite")
    assert constant.endswith("constant.wav: silent")


def test_labels_of_the_same_words_are_one(tmp_path: Path) -> None:
    for label in ("Garden gate", "garden_gate", "garden  gates"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.wav").touch()
    clips = finetune.with_one_label(finetune.clips_in_folders(tmp_path))
    assert [clip.label for clip in clips] == ["Garden gate", "garden  gates", "Garden gate"]
    assert len({clip.recording for clip in clips}) == 3


def test_recordings_are_held_out_as_a_whole(
    sounds: Path, small_config: ClapSepConfig, tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    assert train(write_model(tmp_path, small_config), sounds, output, QUICK) == 0
    with (output / "clips.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    mine = [row for row in rows if row["label"] in ("low hum", "high_whistle")]
    uses: dict[str, set[str]] = {}
    for row in mine:
        uses.setdefault(row["recording"], set()).add(row["use"])
    assert len(mine) == 12
    assert len(uses) == 10
    assert all(len(each) == 1 for each in uses.values())
    for label in ("low hum", "high_whistle"):
        own = [use for recording, (use,) in uses.items() if f"/{label}/" in recording]
        assert sorted(own) == ["held out"] * 2 + ["trained on"] * 3
    assert all(len(row["sha256_of_samples"]) == 64 for row in mine)
    assert [row["use"] for row in rows if row["recording"] == ""] == ["left out"] * 2


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("chosen", ["query", "decoder", "all"])
def test_what_is_trained(
    sounds: Path, small_config: ClapSepConfig, tmp_path: Path, chosen: str
) -> None:
    base, output = write_model(tmp_path, small_config), tmp_path / "mine"
    assert train(base, sounds, output, QUICK, "--train", chosen) == 0
    moved = _moved(base, output)
    query = {name for name in moved if re.search(r"\.skip_conv\.(beta|gamma)\.", name)}
    assert len(query) == 4 * 4
    decoder = {name for name in moved if name.startswith("decoder.")}
    assert (decoder == query) == (chosen == "query")
    assert any(name.startswith("encoder.layers.") for name in moved) == (chosen == "all")
    assert not any("running_" in name for name in moved)


@pytest.mark.usefixtures("own_cache")
def test_the_published_layout_gets_adapters(sounds: Path, tmp_path: Path) -> None:
    """Its small stand-in: CLAP hears at 48 kHz, and the encoder has LoRA in its configuration."""
    config = dataclasses.replace(TINY_CONFIG, lora=LoraConfig(rank=2, alpha=2.0))
    base, output = write_model(tmp_path, config), tmp_path / "mine"
    assert train(base, sounds, output, QUICK, "--train", "all") == 0
    moved = {name for name in _moved(base, output) if name.startswith("encoder.")}
    adapted = re.compile(r"encoder\.layers\.\d+\.blocks\.\d+\.attn\.(qkv|proj)\.(weight|bias)")
    own = load_converted(str(output)).separator.state_dict()
    assert moved == {name for name in own if adapted.fullmatch(name)}
    half_way = tmp_path / "half"
    halved = QUICK | {"moved_share": 0.5}
    assert train(base, sounds, half_way, halved, "--train", "all") == 0
    start, half = (load_converted(str(e)).separator.state_dict() for e in (base, half_way))
    for name in moved:
        expected = (own[name] - start[name]) / 2
        assert (half[name] - start[name] - expected).norm() < 1e-3 * expected.norm(), name


def test_a_held_out_clip_is_mixed_with_none_of_its_own_recording(
    sounds: Path, small_config: ClapSepConfig
) -> None:
    """As where two queries found something in the same recordings."""
    heard = finetune.hear(finetune.clips_in_folders(sounds), RATE_HZ)
    clips = [dataclasses.replace(c, recording=Path(c.recording).stem) for c in heard.clips]
    heard = dataclasses.replace(heard, clips=clips)
    corpus = finetune.gather(heard, {"1", "2"}, Clap(small_config.clap).eval(), RATE_HZ, 0)
    pairs = corpus.pairs[: corpus.num_own]
    assert len(pairs) == 4 * 4
    recordings = corpus.material.group[pairs]
    assert (recordings[:, 0] != recordings[:, 1]).all()
    assert {"1", "2"} <= set(recordings[:, 1].tolist())


def test_no_copy_of_a_held_out_clip_is_trained_on(sounds: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    shutil.copytree(sounds / "low hum", first)
    shutil.copytree(sounds / "low hum" / "tape", second)
    shutil.copy(sounds / "low hum" / "0.wav", first / "0 (copy).wav")
    shutil.copy(sounds / "low hum" / "1.wav", second / "again.wav")
    shutil.copy(sounds / "low hum" / "2.wav", first / "tape" / "2.wav")
    heard = finetune.hear(finetune.clips_in_folders(tmp_path), RATE_HZ)
    recordings: dict[str, set[str]] = {}
    for clip, digest in zip(heard.clips, heard.sha256, strict=True):
        recordings.setdefault(digest, set()).add(clip.recording)
    assert len(recordings) == 6
    assert all(len(each) == 1 for each in recordings.values())
    together = {(first / name).as_posix() for name in ("2.wav", "tape/4.flac", "tape/5.flac")}
    of_tape = {c.recording for c in heard.clips if c.uri in together | {str(second / "4.flac")}}
    assert len(of_tape) == 1
    assert len({clip.recording for clip in heard.clips}) == 4


@pytest.mark.usefixtures("own_cache")
def test_the_precision_of_the_settings_is_that_of_the_steps(
    sounds: Path, small_config: ClapSepConfig, tmp_path: Path
) -> None:
    base = write_model(tmp_path, small_config)
    for precision in ("fp32", "bf16"):
        settings = QUICK | {"optimiser": {**OPTIMISER, "steps": 1, "precision": precision}}
        assert train(base, sounds, tmp_path / precision, settings) == 0
    assert _moved(tmp_path / "fp32", tmp_path / "bf16")
    assert load_converted(str(tmp_path / "bf16")).separator.precision == "fp32"


def _moved(base: Path, output: Path) -> set[str]:
    before, after = (load_converted(str(each)).separator.state_dict() for each in (base, output))
    return {name for name, value in after.items() if not value.equal(before[name])}


def test_half_of_the_way_is_half_of_the_way() -> None:
    network = torch.nn.Linear(2, 2)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for value in network.parameters():
            value += 1.0
    finetune._step_back(network, start, 0.25)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.25)


class TestReviews:
    """Segments of a run that a listener judged."""

    @pytest.fixture
    def reviewed(self, tmp_path: Path) -> Path:
        """Four recordings with two segments each: the first is right, the second mostly not."""
        recordings, segments, metrics, rows = tmp_path / "archive", [], [], []
        recordings.mkdir()
        for number in range(4):
            parts = [tone(300, number, 1.0), tone(300, number, 1.0), tone(4_000, number, 1.0)]
            name = recordings / f"{number}.wav"
            soundfile.write(name, np.concatenate(parts), RATE_HZ)
            uri = f"{name}#t=1,3" if number == 3 else str(name)
            offset_s = 0.0 if number == 3 else 1.0
            clip_id = "=tape" if number == 0 else f"tape/{number}"
            metrics.append({"id": clip_id, "mixture_uri": uri, "offset_s": offset_s})
            for start_s, judged in ((0.0, "yes"), (1.0, "yes" if number == 1 else "no")):
                segments.append(
                    {"id": clip_id, "mixture_uri": uri, "positive_text": "a low hum",
                     "start_s": start_s + 1e-5, "end_s": start_s + 1.0}
                )  # fmt: skip
                shown = f"'{clip_id}" if number == 0 else clip_id
                rows.append({"run": "found", "id": shown, "start_s": f"{start_s:.3f}",
                             "end_s": f"{start_s + 1:.3f}", "positive_text": "a low hum",
                             "score": "0.5", "present": judged})  # fmt: skip
        for name, schema, table in (
            ("segments", SEGMENTS_SCHEMA, segments), ("metrics", METRICS_SCHEMA, metrics)
        ):  # fmt: skip
            folder = tmp_path / "found" / name
            folder.mkdir(parents=True)
            full = [dict.fromkeys(schema.names) | row for row in table]
            pq.write_table(pa.Table.from_pylist(full, schema=schema), folder / "part-0.parquet")
        reviews = tmp_path / "reviews.csv"
        with reviews.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return reviews

    @pytest.mark.parametrize(
        "span", ["6.3", "6.3,7.0", ",7", "npt:6.3,9", "1:06.3,1:07", "0:01:06.3", "10:00:00"]
    )
    def test_a_stretch_is_read_as_manifests_read_it(self, span: str) -> None:
        uri = f"gs://b/rec #1.wav#t={span}"
        address, fragment = split_fragment(uri)
        segment = {"mixture_uri": uri, "offset_s": 1.0, "start_s": 0.5, "end_s": 2.0,
                   "positive_text": "a hum", "label": None}  # fmt: skip
        clip = finetune._judged(segment, present=True)
        begin = fragment.start_s + 1.0
        assert (clip.uri, clip.recording) == (address, address)
        assert clip.span_s == pytest.approx((begin + 0.5, begin + 2.0))

    def test_spans_are_of_the_recordings(self, reviewed: Path) -> None:
        clips = finetune.clips_judged(reviewed, [str(reviewed.parent / "found")])
        heard = finetune.hear(clips, RATE_HZ)
        assert heard.left_out == []
        assert [clip.present for clip in clips] == [True, False, True, True] + [True, False] * 2
        assert len({clip.recording for clip in clips}) == 4
        for clip, samples in zip(heard.clips, heard.samples, strict=True):
            spectrum = np.abs(np.fft.rfft(samples.astype(np.float64)))
            peak_hz = np.argmax(spectrum) * RATE_HZ / len(samples)
            is_low = clip.span_s[0] < 2.0
            assert len(samples) == RATE_HZ
            assert peak_hz == pytest.approx(300 if is_low else 4_000, rel=0.05)
        last = clips[-1]
        assert last.span_s == (pytest.approx(2.0, abs=1e-4), pytest.approx(3.0, abs=1e-4))
        assert "#" not in last.recording

    def test_a_spreadsheet_may_have_saved_them(self, reviewed: Path) -> None:
        run = str(reviewed.parent / "found")
        clips = finetune.clips_judged(reviewed, [run])
        with reviewed.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        times = ("start_s", "end_s")
        rows = [row | {name: row[name].replace(".", ",") for name in times} for row in rows]
        text = "\r\n".join(
            ";".join(row) for row in [list(rows[0]), *(row.values() for row in rows)]
        )
        reviewed.write_text(f"\ufeff{text}\r\n", encoding="utf-8")
        assert finetune.clips_judged(reviewed, [run]) == clips

    @pytest.mark.usefixtures("own_cache")
    def test_they_are_trained_on(
        self, reviewed: Path, small_config: ClapSepConfig, tmp_path: Path
    ) -> None:
        output = tmp_path / "mine"
        base = write_model(tmp_path, small_config)
        run = ["--run", str(tmp_path / "found")]
        assert train(base, reviewed, output, QUICK | {"held_out_share": 0.25}, *run) == 0
        with (output / "clips.csv").open(newline="", encoding="utf-8") as stream:
            uses = [(row["label"], row["use"]) for row in csv.DictReader(stream)]
        assert uses.count(("a low hum", "held out")) >= 1
        assert uses.count(("not a low hum", "held out")) == 0
        taken_for = [use for label, use in uses if label == "not a low hum"]
        assert len(taken_for) == 3
        assert set(taken_for) <= {"trained on", "left out"}
        assert taken_for.count("trained on") >= 2

    def test_reviews_need_their_run(
        self, reviewed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert train(tmp_path / "x.safetensors", reviewed, tmp_path / "o", QUICK) == 2
        assert "give the run that was reviewed, --run FOLDER" in capsys.readouterr().err

    def test_reviews_of_another_run(
        self, reviewed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reviewed.write_text("run,id,start_s,end_s,present\nx,y,0,1,yes\n", encoding="utf-8")
        run = ["--run", str(tmp_path / "found")]
        assert train(tmp_path / "x.safetensors", reviewed, tmp_path / "o", QUICK, *run) == 2
        assert "none of its rows is about a segment of --run" in capsys.readouterr().err


def test_what_is_not_there_is_asked_for_and_never_named(
    sounds: Path, small_config: ClapSepConfig
) -> None:
    """A clip that was taken for a label is in mixtures; asked for the label, nothing is there."""
    torch.manual_seed(0)
    heard = finetune.hear(finetune.clips_in_folders(sounds), RATE_HZ)
    taken_for = [
        dataclasses.replace(clip, present=False)
        for clip in heard.clips
        if clip.label == "high_whistle"
    ]
    clips = [clip for clip in heard.clips if clip.label == "low hum"]
    clips += [dataclasses.replace(clip, label="low hum") for clip in taken_for]
    corpus = finetune.gather(
        finetune.hear(clips, RATE_HZ), set(), Clap(small_config.clap).eval(), RATE_HZ, 0
    )
    ((wrong, label),) = corpus.mistaken.items()
    assert str(corpus.material.class_names[wrong]) == "not low hum"
    settings = finetune.separator_settings(
        FinetuneSettings(
            batch_size=400,
            queries=dataclasses.replace(
                FinetuneSettings().queries, text_only_share=0.0, clips_only_share=0.0
            ),
        ),
        "whole",
        "whole",
    )
    lengths = np.array([len(each) for each in corpus.samples])
    near = np.zeros((corpus.material.num_classes, 0), dtype=np.int64)
    planner = MixturePlanner(corpus.material, lengths, 32_000, settings, near, corpus.mistaken)
    drawn = planner.draw(np.random.default_rng(0))
    classes = corpus.material.class_of[drawn["clip"]]
    plain, framed = corpus.material.texts_of[label]
    side_of = dict(zip(drawn["side"].tolist(), classes.tolist(), strict=True))
    hard = [row for row, name in side_of.items() if name == wrong]
    assert len(hard) > 20
    absent = 0
    for row in hard:
        positive, negative = drawn["text"][:, row]
        other = side_of.get(row + 1 - 2 * (row % QUERIES))
        if positive == NONE:
            assert negative != NONE
            assert other is not None
        else:
            assert int(positive) in {*plain, *framed}
            assert drawn["presence"][row] == ABSENT
            assert other != label
            absent += 1
    assert absent > 5
    shots = drawn["shots"][drawn["shots"] != NONE] % len(corpus.material.path)
    assert wrong not in corpus.material.class_of[shots]


def _few(folder: Path) -> Path:
    (folder / "owl").mkdir(parents=True)
    for take in range(2):
        soundfile.write(folder / "owl" / f"{take}.wav", tone(700, take), RATE_HZ)
    return folder


def _flat(folder: Path) -> Path:
    folder.mkdir()
    soundfile.write(folder / "1.wav", tone(700, 1), RATE_HZ)
    return folder


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_few, "'owl' has 2 recordings that can be used; expected 3 or more"),
        (_flat, "has no folders with recordings; expected a folder for each label"),
        (lambda folder: folder, "expected a folder, or a reviews.csv with --run"),
    ],
)
def test_too_little_is_refused_in_one_line(
    make: Any, said: str, small_config: ClapSepConfig, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    corpus, output = make(tmp_path / "mine"), tmp_path / "out"
    assert train(write_model(tmp_path, small_config), corpus, output, QUICK) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.usefixtures("own_cache")
def test_nothing_is_overwritten(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert train(tmp_path / "base.safetensors", sounds, tmp_path / "out", QUICK) == 2
    assert "is there already; choose another folder" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("base", "said"),
    [("audiosep", "is no CLAPSep"), ("clapsep-mimi", "Did you mean clapsep-mini")],
)
def test_only_a_clapsep_is_trained(
    sounds: Path, tmp_path: Path, base: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--from", base, "--corpus", str(sounds), "--output", str(tmp_path / "o")]
    assert command.run([*words, "--device", "cpu"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("own_cache")
def test_folders_stand_for_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder by any path, with a dot in its name, or by its name alone in this folder."""
    (tmp_path / "v1.2").mkdir()
    with pytest.raises(CheckpointError, match=r"v1\.2: a folder without model\.safetensors"):
        in_bundle(str(tmp_path / "v1.2"))
    (tmp_path / "v1.2" / "model.safetensors").write_bytes(b"")
    assert in_bundle(f"{tmp_path}/v1.2/") == f"{tmp_path}/v1.2/model.safetensors"
    (tmp_path / "v1.2" / "presence.safetensors").write_bytes(b"")
    assert in_bundle(str(tmp_path / "v1.2")) == f"{tmp_path}/v1.2/presence.safetensors"
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert registry.is_uri("mine")
    assert not registry.is_uri("clapsep-mini")
    assert in_bundle("memory://nothing/here") == "memory://nothing/here"
