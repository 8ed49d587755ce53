from __future__ import annotations

import pytest

from manifests.benchmarks.clips import BenchmarkSetting
from manifests.files import ManifestError

SAMPLES = {"dog": ["d1", "d2"], "rain": ["r1", "r2"], "cat": ["c1"]}


def columns(**setting):
    return BenchmarkSetting(samples=SAMPLES, samples_root="/s", **setting).columns(
        ["dog"], ["rain"]
    )


def test_every_polarity_of_text():
    assert columns(polarity="P") == {"positive_text": "dog"}
    assert columns(polarity="N") == {"negative_text": "rain"}
    assert columns() == {"positive_text": "dog", "negative_text": "rain"}


def test_shots_are_the_first_ones():
    assert columns(modality="audio", shots=2) == {
        "positive_audio_uris": ("/s/d1", "/s/d2"),
        "negative_audio_uris": ("/s/r1", "/s/r2"),
    }


def test_both_has_a_weight():
    assert columns(modality="both", polarity="P", text_weight=0.3) == {
        "positive_text": "dog",
        "positive_audio_uris": ("/s/d1",),
        "text_weight": 0.3,
    }


def test_several_captions_are_one_query():
    setting = BenchmarkSetting(modality="both", polarity="P", samples=SAMPLES, samples_root="/s")
    assert setting.columns(["dog", "cat"], ["rain"]) == {
        "positive_text": "dog and cat",
        "positive_audio_uris": ("/s/d1", "/s/c1"),
        "text_weight": None,
    }


def test_too_few_example_clips_names_the_class():
    setting = BenchmarkSetting(modality="audio", shots=2, samples=SAMPLES, samples_root="/s")
    with pytest.raises(ManifestError, match='class "cat" has 1 example clips; expected 2'):
        setting.columns(["cat"], ["dog"])
    with pytest.raises(ManifestError, match='class "cow" has 0'):
        setting.columns(["cow"], ["dog"])


@pytest.mark.parametrize(
    "setting", [{"modality": "label"}, {"polarity": "PN"}, {"shots": 0}, {"modality": "audio"}]
)
def test_settings_that_make_no_sense(setting):
    with pytest.raises(ValueError, match="expected"):
        BenchmarkSetting(**setting)
