from __future__ import annotations

import csv
from importlib import resources

import pytest
import soundfile

from manifests.files.readers import iter_rows
from manifests.row import ManifestRow

EXAMPLES = resources.files("manifests") / "examples"


def rows(name):
    results = list(iter_rows(str(EXAMPLES / name)))
    assert all(isinstance(row, ManifestRow) for row in results)
    return results


def clips():
    return {path.name for path in (EXAMPLES / "audio").iterdir() if path.name.endswith(".flac")}


def test_demo_uses_each_clip_once_as_target_and_once_as_interferer():
    demo = rows("demo.csv")
    targets = [row.target_uri for row in demo]
    interferers = [uri for row in demo for uri in row.interferer_uris]
    names = {str(EXAMPLES / "audio" / name) for name in clips() - {"mixture_dog_river.flac"}}
    assert len(demo) == 12
    assert set(targets) == set(interferers) == names
    assert len(set(targets)) == len(set(interferers)) == 12
    assert {(row.polarity, row.query_type, row.input_snr_db) for row in demo} == {
        ("P+N", "text", 0.0)
    }


def test_other_examples_cover_the_other_queries():
    assert {(row.query_type, row.polarity) for row in rows("audio_queries.csv")} == {
        ("audio", "P+N"),
        ("audio", "P"),
        ("audio", "N"),
        ("both", "P+N"),
    }
    assert [row.reference_uri is not None for row in rows("mixture.csv")] == [True, False]


@pytest.mark.parametrize("name", ["demo.csv", "audio_queries.csv", "mixture.csv"])
def test_every_clip_that_is_named_is_there(name):
    for row in rows(name):
        uris = [row.mixture_uri, row.reference_uri, *row.targets, *row.interferer_uris]
        uris += [*row.positive_audio_uris, *row.negative_audio_uris]
        for uri in filter(None, uris):
            assert soundfile.info(uri).samplerate == 32_000


def test_every_clip_has_a_source_and_a_free_licence():
    with (EXAMPLES / "audio" / "sources.csv").open(encoding="utf-8") as file:
        sources = {row["file"]: row for row in csv.DictReader(file)}
    attribution = (EXAMPLES / "audio" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert set(sources) == clips()
    for name, source in sources.items():
        assert source["licence"] in {"CC0", "public domain"}
        assert source["author"]
        assert f"`{name}`" in attribution


def test_the_mixture_is_the_dog_with_the_river_at_its_power():
    audio = EXAMPLES / "audio"
    dog, river, mixture = (
        soundfile.read(str(audio / name))[0]
        for name in ("dog_barking.flac", "river.flac", "mixture_dog_river.flac")
    )
    gain = ((dog**2).sum() / (river**2).sum()) ** 0.5
    assert abs(mixture - (dog + gain * river)).max() <= 2**-15
