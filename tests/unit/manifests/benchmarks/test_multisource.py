from __future__ import annotations

import pytest

from manifests.benchmarks.clips import BenchmarkSetting
from manifests.benchmarks.lists import Pair
from manifests.benchmarks.mixtures import MixtureClip, build_multisource, mixture_clips_of

CLIPS = [MixtureClip(name=f"{i}.wav", caption=f"c{i % 6}") for i in range(12)]


def build(clips=CLIPS, **options):
    return list(build_multisource(clips, BenchmarkSetting(), audio_root="/a", **options))


def test_every_number_of_sources_and_targets():
    rows = build()
    assert len(rows) == 12 * (1 + 2 + 3)
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        num, targets = row.num_sources, len(row.targets)
        assert row.split == f"{num}-sources-{targets}-targets"
        assert row.dataset == "multisource"
        assert f"/a/{row.group}.wav" == row.targets[0]
    counts = {(row.num_sources, len(row.targets)) for row in rows}
    assert counts == {(n, k) for n in (2, 3, 4) for k in range(1, n)}


def test_queries_cover_targets_and_the_rest():
    captions = {f"/a/{clip.name}": clip.caption for clip in CLIPS}
    for row in build(num_sources=[4]):
        assert row.positive_text == " and ".join(captions[uri] for uri in row.targets)
        assert row.negative_text == " and ".join(captions[uri] for uri in row.interferer_uris)
        names = [captions[uri] for uri in (*row.targets, *row.interferer_uris)]
        assert len(set(names)) == 4


def test_rows_of_one_mixture_have_the_same_sources_in_the_same_order():
    first, second, third = build(CLIPS, num_sources=[4])[:3]
    assert first.targets + first.interferer_uris == second.targets + second.interferer_uris
    assert third.targets + third.interferer_uris == second.targets + second.interferer_uris
    assert first.target_uri == "/a/0.wav"


def test_draws_depend_on_seed_and_not_on_what_else_is_built():
    again = {row.id: row for row in build(num_sources=[3])}
    assert all(again[row.id] == row for row in build() if row.num_sources == 3)
    assert build(seed=1) != build()


def test_too_many_sources():
    with pytest.raises(ValueError, match="num_sources 7; expected 2 to 6"):
        build(num_sources=[7])
    with pytest.raises(ValueError, match="num_sources 1; expected 2"):
        build(num_sources=[1])


def test_clips_of_a_pair_list_are_its_targets_once():
    pairs = [
        Pair(source_file=name, positive_caption=caption, noise_file="n", negative_caption="c")
        for name, caption in (("b", "x"), ("a", "y"), ("b", "z"))
    ]
    assert mixture_clips_of(pairs) == [
        MixtureClip(name="b", caption="x"),
        MixtureClip(name="a", caption="y"),
    ]
