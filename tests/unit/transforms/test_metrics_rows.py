from __future__ import annotations

import pyarrow as pa
import pytest

import metric_rows
import tone_clips
from manifests.columns import METRICS_SCHEMA
from transforms.elements import Scores
from transforms.tables import sorted_table
from transforms.tables.metrics_rows import from_record, metrics_row, table_row

NOT_COMPUTED_YET = (
    *("target_absent", "suppression_db", "stem_to_mixture_db", "presence", "active_s"),
    *("n_segments", "input_gain_db"),
)


def _asked(**fields: object) -> dict[str, object]:
    row = metric_rows.metrics("a", **fields)
    names = [name for name in METRICS_SCHEMA.names if name in row.values]
    return {name: row.values[name] for name in names}


def test_a_row_says_what_was_asked_of_what() -> None:
    values = _asked(
        mixture_uri="https://user:word@host/m.wav?sig=abc",
        reference_uri="r.wav",
        positive_text="a dog",
        positive_audio_uris=("s3://k@b/e.wav",),
        negative_text="rain",
        offset_s=1.5,
        seed=3,
        group="tape 7",
    )
    assert values["mixture_uri"] == "https://***@host/m.wav?sig=***"
    assert values["reference_uri"] == "r.wav"
    assert (values["positive_text"], values["negative_text"]) == ("a dog", "rain")
    assert values["positive_audio_uris"] == ["s3://***@b/e.wav"]
    assert values["negative_audio_uris"] is None
    assert (values["offset_s"], values["text_weight"], values["seed"]) == (1.5, 0.5, 3)
    assert values["group"] == "tape 7"
    assert len(values["row_sha256"]) == 64


def test_a_row_says_what_a_mixture_was_made_of() -> None:
    values = _asked(mixture_uri=None, target_uri="t.wav", interferer_uris=("x.wav", "y.wav"))
    assert values["mixture_uri"] is None
    assert values["target_uris"] == ["t.wav"]
    assert values["interferer_uris"] == ["x.wav", "y.wav"]
    assert values["offset_s"] == 0.0
    assert values["text_weight"] is None


def test_a_row_comes_back_from_a_file_as_it_was() -> None:
    row = metric_rows.metrics("a", group="g", positive_audio_uris=("e.wav",))
    schema = METRICS_SCHEMA.append(pa.field("extra_colour", pa.string()))
    (record,) = sorted_table([table_row(row)], schema).to_pylist()
    assert from_record(record) == row
    assert all(record[name] is None for name in NOT_COMPUTED_YET)


def _scored(
    values: dict[str, float], reasons: dict[str, str], **fields: object
) -> dict[str, object]:
    row = tone_clips.row("a", **fields)
    scores = Scores(values=values, reasons=reasons)
    found = metrics_row(
        row, metric_rows.FACTS, scores, None, scorer_sha256=None, code_version="test"
    )
    return {name: found.values[name] for name in ("target_absent", "suppression_db")}


def test_suppression_is_how_far_a_stem_of_nothing_lies_below_the_mixture() -> None:
    quiet = {"stem_to_mixture_db": -31.5}
    assert _scored(quiet, {}, target_absent=True) == {
        "target_absent": True,
        "suppression_db": 31.5,
    }
    silent = {"snr_db": "silent_reference"}
    assert _scored(quiet, silent, reference_uri="r.wav")["suppression_db"] == 31.5
    nothing = {"stem_to_mixture_db": "silent_stem"}
    assert _scored({}, nothing, target_absent=True)["suppression_db"] is None


def test_a_target_is_not_called_absent_without_a_reason() -> None:
    quiet = {"stem_to_mixture_db": -31.5}
    unknown = {"target_absent": None, "suppression_db": None}
    present = {"target_absent": False, "suppression_db": None}
    assert _scored(quiet, {"snr_db": "no_reference"}) == unknown
    assert _scored(quiet, {}, reference_uri="r.wav") == present
    assert _scored(quiet, {"snr_db": "silent_reference"}, target_absent=False) == present


@pytest.mark.parametrize("why", ["not_separated", "out_of_memory"])
def test_a_reference_that_nobody_looked_at_says_nothing_of_its_target(why: str) -> None:
    unknown = {"target_absent": None, "suppression_db": None}
    assert _scored({}, {"snr_db": why}, reference_uri="r.wav") == unknown
    mixed = {"mixture_uri": None, "target_uri": "t.wav", "interferer_uris": ("x.wav",)}
    assert _scored({}, {"snr_db": why}, **mixed)["target_absent"] is False  # silence is not mixed
