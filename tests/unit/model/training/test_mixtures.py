"""What training mixtures contain and ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.training.captions import CaptionBook
from model.training.corpus import Corpus
from model.training.mixtures import MixtureSampler
from model.training.settings import MixingSettings, OptimiserSettings, SeparationSettings

NUM_SAMPLES = 16_000


def _sampler(folder: Path, **settings: object) -> MixtureSampler:
    corpus = Corpus.load(folder)
    return MixtureSampler(corpus, CaptionBook(corpus, {}), MixingSettings(**settings), NUM_SAMPLES)


def test_the_two_targets_of_a_mixture_add_up_to_it(corpus_folder: Path) -> None:
    sampler = _sampler(corpus_folder, source_shares=(0.0, 0.5, 0.5), gain_range_db=12.0)
    for seed in range(10):
        example = sampler.draw(np.random.default_rng(seed))
        np.testing.assert_allclose(sum(example.targets), example.mixture, atol=1e-6)


def test_mixtures_are_drawn_at_the_level_that_the_network_hears_at(corpus_folder: Path) -> None:
    corpus = Corpus.load(corpus_folder)
    for gain_range_db in (0.0, 6.0):
        settings = MixingSettings(source_shares=(0.3, 0.7), gain_range_db=gain_range_db)
        sampler = MixtureSampler(corpus, CaptionBook(corpus, {}), settings, NUM_SAMPLES, -24.0)
        levels = []
        for seed in range(20):
            example = sampler.draw(np.random.default_rng(seed))
            np.testing.assert_allclose(sum(example.targets), example.mixture, atol=1e-6)
            levels.append(10 * np.log10(np.mean(np.square(example.mixture))))
        assert max(levels) <= -24.0 + 1e-3
        assert min(levels) >= -24.0 - gain_range_db - 1e-3
        assert max(levels) - min(levels) >= gain_range_db / 2


def test_levels_stay_within_the_range(corpus_folder: Path) -> None:
    sampler = _sampler(corpus_folder, level_range_db=6.0)
    levels = []
    for seed in range(40):
        first, second = sampler.draw(np.random.default_rng(seed)).targets
        levels.append(10 * np.log10(np.mean(first**2) / np.mean(second**2)))
    assert max(np.abs(levels)) <= 6.0 + 1e-3
    assert max(levels) > 2.0
    assert min(levels) < -2.0


def test_a_clean_mixture_is_its_own_target_and_holds_nothing_else(corpus_folder: Path) -> None:
    sampler = _sampler(
        corpus_folder, source_shares=(1.0,), positive_only_share=0.0, negative_only_share=0.0,
        own_audio_share=1.0,
    )  # fmt: skip
    example = sampler.draw(np.random.default_rng(3))
    np.testing.assert_array_equal(example.targets[0], example.mixture)
    assert not example.targets[1].any()
    present, absent = example.positives
    assert present is not None
    assert absent is not None
    assert present.clips != absent.clips
    assert example.negatives[1] is not None
    assert example.negatives[1].clips == present.clips


def test_shifted_sources_leave_silence(corpus_folder: Path) -> None:
    def silent(shifted_share: float) -> float:
        sampler = _sampler(corpus_folder, shifted_share=shifted_share)
        drawn = [sampler.draw(np.random.default_rng(seed)) for seed in range(30)]
        return float(np.mean([target == 0 for example in drawn for target in example.targets]))

    assert silent(1.0) > silent(0.0) + 0.1


def test_polarities_are_dropped_in_their_shares(corpus_folder: Path) -> None:
    sampler = _sampler(corpus_folder, positive_only_share=0.5, negative_only_share=0.5)
    examples = [sampler.draw(np.random.default_rng(seed)) for seed in range(30)]
    kinds = {
        (positive is None, negative is None)
        for example in examples
        for positive, negative in zip(example.positives, example.negatives, strict=True)
    }
    assert kinds == {(True, False), (False, True)}


def test_positive_and_negative_change_places_between_the_queries(corpus_folder: Path) -> None:
    sampler = _sampler(
        corpus_folder, positive_only_share=0.0, negative_only_share=0.0, own_audio_share=1.0
    )
    example = sampler.draw(np.random.default_rng(9))
    positives = [query.clips for query in example.positives if query]
    negatives = [query.clips for query in example.negatives if query]
    assert positives == negatives[::-1]
    assert positives[0] != positives[1]


def test_same_generator_same_example(corpus_folder: Path) -> None:
    sampler = _sampler(corpus_folder)
    first, second = (sampler.draw(np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first.mixture, second.mixture)
    assert first.positives == second.positives


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MixingSettings(source_shares=(0.5, 0.6)), "add up to 1"),
        (lambda: MixingSettings(pure_text_share=0.7, pure_audio_share=0.7), "at most 1"),
        (lambda: OptimiserSettings(schedule="cosine"), "'cosine'"),
        (lambda: OptimiserSettings(precision="fp8"), "'fp8'"),
        (lambda: SeparationSettings(train="nothing"), "'nothing'"),
        (lambda: SeparationSettings(encoder="vgg"), "'vgg'"),
    ],
)
def test_settings_name_the_wrong_value(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
