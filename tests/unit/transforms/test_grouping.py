from __future__ import annotations

import dataclasses
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that

import tone_clips
from manifests.row import ShardPlace
from transforms.elements import MixtureRows
from transforms.manifest_io import GroupByMixture, mixture_key, pieces_of, spread_key


def test_the_key_is_of_the_samples_and_not_of_the_query() -> None:
    row = tone_clips.row("a", "bell", mixture_uri="m.wav")
    same = [
        tone_clips.row("b", "rain", mixture_uri="m.wav", reference_uri="r.wav"),
        tone_clips.row("c", "bell", mixture_uri="m.wav", offset_s=0.0, snr_db=(5.0,)),
    ]
    other = [
        tone_clips.row("d", mixture_uri="n.wav"),
        tone_clips.row("e", mixture_uri="m.wav", offset_s=1.0),
        tone_clips.row("f", mixture_uri="m.wav", duration_s=1.0),
    ]
    assert {mixture_key(each) for each in same} == {mixture_key(row)}
    assert mixture_key(row) not in {mixture_key(each) for each in other}


def test_mixtures_made_on_the_fly_are_the_same_at_the_same_levels() -> None:
    made = {"mixture_uri": None, "target_uri": "t.wav", "interferer_uris": ("i.wav", "j.wav")}
    zero, also_zero, three = (
        mixture_key(tone_clips.row("a", **made, snr_db=levels))
        for levels in ((), (0.0, 0.0), (0.0, 3.0))
    )
    assert zero == also_zero
    assert zero != three
    swapped = {**made, "interferer_uris": ("j.wav", "i.wav")}
    assert mixture_key(tone_clips.row("a", **swapped)) != zero


def test_mixtures_whose_sources_begin_at_other_times_are_others() -> None:
    made: dict[str, Any] = {
        "mixture_uri": None,
        "target_uri": "t.wav",
        "interferer_uris": ("i.wav",),
        "duration_s": 9.0,
    }
    keys = [
        mixture_key(tone_clips.row("a", **made, onsets_s=onsets))
        for onsets in ((), (0.0, 1.0), (0.0, 2.0))
    ]
    assert len(set(keys)) == 3


def test_every_row_is_in_one_piece_of_a_bounded_size() -> None:
    rows = [tone_clips.row(f"{i:02d}", mixture_uri=f"{i % 3}.wav") for i in range(20)]
    rows += [tone_clips.row(f"hot{i:02d}", mixture_uri="hot.wav") for i in range(11)]

    def check(pieces: list[MixtureRows]) -> None:
        assert sorted(row.id for piece in pieces for row in piece.rows) == sorted(
            row.id for row in rows
        )
        for piece in pieces:
            assert len(piece.rows) <= 4
            assert len({mixture_key(row) for row in piece.rows}) == 1
            assert [row.id for row in piece.rows] == sorted(row.id for row in piece.rows)
        assert len(pieces) == 2 * 3 + 3

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        groups = pipeline | beam.Create(rows) | GroupByMixture(max_rows=4)
        assert_that(groups | beam.FlatMap(pieces_of), check)


def test_a_piece_has_at_least_a_row() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        GroupByMixture(max_rows=0)


def _piece(row_id: str, mixture_uri: str, offset_s: float | None) -> MixtureRows:
    return MixtureRows(rows=(tone_clips.row(row_id, mixture_uri=mixture_uri, offset_s=offset_s),))


def test_parts_of_an_hour_of_a_recording_that_is_decoded_from_its_start_stay_together() -> None:
    first, second = (spread_key(_piece(name, "a.M4A", at)) for name, at in (("a", 0.0), ("b", 9.0)))
    assert first == second
    assert spread_key(_piece("c", "a.M4A", 3_600.0)) != first
    assert spread_key(_piece("d", "b.m4a", 9.0)) != first
    assert spread_key(_piece("e", "a.M4A", None)) != first


def test_all_other_pieces_are_spread() -> None:
    pieces = [_piece(str(number), "a.wav", float(number)) for number in range(9)]
    pieces += [_piece(f"hot{number}", "a.m4a", None) for number in range(9)]
    assert len({spread_key(piece) for piece in pieces}) == 18


def test_neighbours_of_a_shard_stay_together_and_in_order() -> None:
    def piece(number: int) -> MixtureRows:
        place = ShardPlace(run=number // 4, start=100 - number, stop=101, shard_bytes=9)
        row = tone_clips.row(str(number), mixture_uri=f"x.tar#{number}.wav")
        return MixtureRows(rows=(dataclasses.replace(row, place=place),))

    pieces = [piece(number) for number in range(8)]
    assert len({spread_key(each) for each in pieces[:4]}) == 1
    assert len({spread_key(each) for each in pieces}) == 2

    def check(found: list[MixtureRows]) -> None:
        starts: dict[int, list[int]] = {}
        for each in found:
            place = each.rows[0].place
            assert place is not None
            starts.setdefault(place.run, []).append(place.start)
        assert starts == {0: [97, 98, 99, 100], 1: [93, 94, 95, 96]}

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = [row for each in pieces for row in each.rows]
        groups = pipeline | beam.Create(rows) | GroupByMixture()
        assert_that(groups | beam.FlatMap(pieces_of), check)
