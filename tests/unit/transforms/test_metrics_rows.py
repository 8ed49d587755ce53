from __future__ import annotations

import pyarrow as pa

import metric_rows
from manifests.columns import METRICS_SCHEMA
from transforms.tables import sorted_table
from transforms.tables.metrics_rows import from_record, table_row

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
