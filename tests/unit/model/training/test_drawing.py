"""What a batch holds: shares and ranges of everything that is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from model.training.drawing import (
    ABSENT,
    NONE,
    PRESENT,
    QUERIES,
    REFERENCE_RMS,
    Batches,
    ClapPlanner,
    Layout,
    MixturePlanner,
    WindowDrawer,
)
from model.training.material import Material
from model.training.settings import (
    ClapSettings,
    QuerySettings,
    SeparatorTraining,
    WindowSettings,
)

SAMPLES, COUNT = 32_000, 4_000
FIVE_SIGMA = 5 * 0.5 / np.sqrt(COUNT)
"""The most that a share of COUNT draws is off, one time in a million."""


def windows(settings: WindowSettings, length: int = 12_000) -> dict[str, np.ndarray]:
    drawer = WindowDrawer(np.array([length]), SAMPLES, settings)
    return drawer.draw(np.zeros(COUNT, dtype=np.int64), np.random.default_rng(0))


class TestWindows:
    def test_shares(self) -> None:
        settings = WindowSettings()
        drawn = windows(settings)
        shares = {
            "speed": (drawn["speed"] != 1.0, settings.speed_share),
            "repeated": (drawn["period"] < 1 << 20, settings.repeated_share),
            "cut": (drawn["begin"] >= 0, settings.cut_share),
            "coloured": (
                drawn["colour_db"].any(axis=1),
                1 - (1 - settings.equaliser_share) * (1 - settings.low_pass_share),
            ),
        }
        for name, (found, expected) in shares.items():
            assert found.mean() == pytest.approx(expected, abs=FIVE_SIGMA), name
        assert len(drawn["reverberant"]) == round(settings.reverberant_share * COUNT)
        assert len(set(drawn["reverberant"].tolist())) == len(drawn["reverberant"])

    def test_ranges(self) -> None:
        settings = WindowSettings()
        drawn = windows(settings)
        changed = drawn["speed"][drawn["speed"] != 1.0]
        assert settings.speed_lowest <= changed.min() < changed.max() <= settings.speed_highest
        level_db = 20 * np.log10(drawn["rms"] / REFERENCE_RMS)
        assert np.abs(level_db).max() == pytest.approx(settings.level_range_db / 2, abs=0.05)
        cut = drawn["begin"] >= 0
        kept = (drawn["end"] - drawn["begin"])[cut] / SAMPLES
        assert 0.25 <= kept.min() < kept.max() <= 0.9
        assert drawn["end"][cut].max() <= SAMPLES
        assert 0.12 <= drawn["decay_s"].min() < drawn["decay_s"].max() <= 0.96
        assert -16 <= 20 * np.log10(drawn["wet"].min()) < 20 * np.log10(drawn["wet"].max()) <= -2

    def test_long_clips_are_cut_anywhere(self) -> None:
        length = 3 * SAMPLES
        drawn = windows(WindowSettings(speed_share=0.0), length)
        first = drawn["first_block"] * 128
        assert first.min() >= 0
        assert first.max() <= length - SAMPLES
        assert np.histogram(first, 4, (0, length - SAMPLES))[0].min() > 0.2 * COUNT

    def test_equaliser_has_its_deviation(self) -> None:
        settings = WindowSettings(equaliser_share=1.0, low_pass_share=0.0)
        found = windows(settings)["colour_db"]
        ends = found[:, [0, -1]]  # where a control point is: between two, averages vary less
        assert ends.std() == pytest.approx(settings.equaliser_db, rel=0.05)

    def test_low_pass_lowers_the_highest_band_alone(self) -> None:
        settings = WindowSettings(equaliser_share=0.0, low_pass_share=1.0)
        found = windows(settings)["colour_db"]
        assert not found[:, 0].any()
        assert (found[:, -1] < 0).mean() > 0.9


def planner(material: Material, **queries: object) -> MixturePlanner:
    queries = {"source_shares": (0.1, 0.7, 0.2), **queries}
    settings = SeparatorTraining(batch_size=200, queries=QuerySettings(**queries))  # type: ignore[arg-type]  # by name
    near = np.array([[name for name in range(4) if name != own] for own in range(4)])
    lengths = np.full(len(material.path), 12_000)
    return MixturePlanner(material, lengths, SAMPLES, settings, near)


class TestMixtures:
    def test_numbers_of_sources_are_the_same_in_every_batch(self, material: Material) -> None:
        plan = planner(material, source_shares=(0.1, 0.7, 0.2))
        for seed in range(2):
            side = plan.draw(np.random.default_rng(seed))["side"]
            counts = np.bincount(side // QUERIES)
            assert np.bincount(counts).tolist() == [0, 20, 140, 40]

    def test_sources_of_a_mixture_are_of_different_classes(self, material: Material) -> None:
        drawn = planner(material).draw(np.random.default_rng(0))
        for mixture in range(200):
            clips = drawn["clip"][drawn["side"] // QUERIES == mixture]
            assert len(set(material.class_of[clips].tolist())) == len(clips)

    def test_what_is_asked_for_is_there_unless_it_is_absent(self, material: Material) -> None:
        """By the example clips: their classes are the side's, or none of the mixture's."""
        drawn = planner(material, absent_share=0.3, near_share=0.5).draw(np.random.default_rng(0))
        size = len(material.path)
        seen = {ABSENT: 0, PRESENT: 0}
        for row in range(QUERIES * 200):
            truth = int(drawn["presence"][row])
            examples = drawn["shots"][0, row]
            asked = set(material.class_of[examples[examples != NONE] % size].tolist())
            of_side = set(material.class_of[drawn["clip"][drawn["side"] == row]].tolist())
            whole = drawn["clip"][drawn["side"] // QUERIES == row // QUERIES]
            if truth == PRESENT:
                assert asked == of_side
            elif truth == ABSENT:
                assert not asked & set(material.class_of[whole].tolist())
            else:
                assert not asked
                continue
            seen[truth] += 1
        assert min(seen.values()) > 20

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_absent_share(self, material: Material, share: float) -> None:
        plan = planner(material, source_shares=(0.0, 1.0), absent_share=share)
        presence = plan.draw(np.random.default_rng(0))["presence"]
        second = presence.reshape(200, QUERIES)[:, 1]
        assert (presence.reshape(200, QUERIES)[:, 0] != ABSENT).all()
        deviation = np.sqrt(share * (1 - share) / 200)
        assert (second == ABSENT).mean() == pytest.approx(share, abs=5 * deviation)

    def test_kinds_of_query(self, material: Material) -> None:
        plan = planner(material, source_shares=(0.0, 1.0), absent_share=0.0)
        drawn = [plan.draw(np.random.default_rng(seed)) for seed in range(5)]
        text = np.concatenate([each["text"][:, : QUERIES * 200] for each in drawn], axis=1)
        there = text != NONE
        assert there.any(axis=0).all()
        assert (~there[0]).mean() == pytest.approx(0.18, abs=0.06)
        assert (~there[1]).mean() == pytest.approx(0.22, abs=0.06)
        weight = np.concatenate([each["text_weight"][:, : QUERIES * 200] for each in drawn], axis=1)
        assert (weight[there] == 1.0).mean() == pytest.approx(0.45, abs=0.06)
        assert (weight[there] == 0.0).mean() == pytest.approx(0.23, abs=0.06)

    def test_own_clips_are_examples_as_often_as_asked(self, material: Material) -> None:
        plan = planner(
            material, source_shares=(0.0, 1.0), absent_share=0.0, negative_only_share=0.0,
            own_clip_share=0.0,
        )  # fmt: skip
        always = planner(
            material, source_shares=(0.0, 1.0), absent_share=0.0, negative_only_share=0.0,
            own_clip_share=1.0,
        )  # fmt: skip
        shares = []
        for each in (plan, always):
            drawn = each.draw(np.random.default_rng(0))
            own = np.empty(QUERIES * 200, dtype=np.int64)
            own[drawn["side"]] = drawn["clip"]
            example = drawn["shots"][0, : QUERIES * 200, 0] % len(material.path)
            shares.append((example == own).mean())
        assert shares[0] == pytest.approx(0.5, abs=0.13)  # one of the two recordings of a class
        assert shares[1] == 1.0


def test_clap_batches_name_every_class(material: Material) -> None:
    settings = ClapSettings(batch_size=16)
    lengths = np.full(len(material.path), 12_000)
    plan = ClapPlanner(material, lengths, SAMPLES, settings, QuerySettings())
    drawn = plan.draw(np.random.default_rng(0))
    assert (material.class_of[drawn["clip"][:16]] == drawn["target"]).all()
    for wordings in drawn["wordings"]:
        for name, text in enumerate(wordings):
            assert any(text in each for each in material.texts_of[name])
    below_db = 20 * np.log10(drawn["rms"][16:] / drawn["rms"][:16] + 1e-9)
    heard = below_db > -100
    assert ((below_db[heard] <= -3.5) & (below_db[heard] >= -19.5)).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_noise_is_as_frequent_as_asked(material: Material, share: float) -> None:
    lengths = np.full(len(material.path), 12_000)
    queries = QuerySettings(source_shares=(0.0, 1.0))
    separation = SeparatorTraining(batch_size=20, queries=queries, noisy_share=share)
    near = np.zeros((4, 0), dtype=np.int64)
    drawn = MixturePlanner(material, lengths, SAMPLES, separation, near).draw(
        np.random.default_rng(0)
    )
    assert (drawn["noise_rms"] > 0).mean() == share
    clap = ClapSettings(batch_size=20, noisy_share=share)
    drawn = ClapPlanner(material, lengths, SAMPLES, clap, queries).draw(np.random.default_rng(0))
    assert (drawn["rms"][20:] > 0).mean() == share


def test_a_batch_depends_on_seed_and_step_alone(material: Material) -> None:
    plan = planner(material)
    layout = Layout.of(plan.draw(np.random.default_rng(9)))
    first, second = (Batches(plan, layout, (3, 2)) for _ in range(2))
    for whole, again in zip(first[5], second[5], strict=True):
        np.testing.assert_array_equal(whole, again)
    assert not np.array_equal(first[5][0], first[6][0])
    assert not np.array_equal(first[5][0], Batches(plan, layout, (4, 2))[5][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(material: Material, workers: int) -> None:
    plan = planner(material)
    layout = Layout.of(plan.draw(np.random.default_rng(9)))
    batches = Batches(plan, layout, (0, 1))
    before = torch.get_rng_state()
    ahead = batches.ahead(7, workers)
    for step in (7, 8, 9):
        np.testing.assert_array_equal(next(ahead)[0], batches[step][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_layout_gives_back_what_it_packed(material: Material) -> None:
    drawn = planner(material).draw(np.random.default_rng(0))
    layout = Layout.of(drawn)
    whole, fractional = layout.pack(drawn)
    views = layout.views(torch.from_numpy(whole), torch.from_numpy(fractional))
    assert set(views) == set(drawn)
    for name, value in drawn.items():
        np.testing.assert_allclose(views[name].numpy(), value, rtol=1e-6)
    wrong = {**drawn, "clip": drawn["clip"][1:]}
    with pytest.raises(ValueError, match="clip: drawn"):
        layout.pack(wrong)


def test_classes_that_are_too_few_are_refused(material: Material) -> None:
    with pytest.raises(ValueError, match="4 classes are drawn: mixtures of up to 4 sources"):
        planner(material, source_shares=(0.1, 0.6, 0.2, 0.1))
    with pytest.raises(ValueError, match="0 classes are drawn"):
        planner(material.only(material.split == "val"))
    rare = dataclasses.replace(material, is_open=np.array([False, False, True, True]))
    with pytest.raises(ValueError, match=r"2 classes are drawn: .* an open_share between 0 and 1"):
        planner(rare, source_shares=(0.1, 0.9), open_share=0.0)
    planner(rare, source_shares=(0.1, 0.9)).draw(np.random.default_rng(0))
