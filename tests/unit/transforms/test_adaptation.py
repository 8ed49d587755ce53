from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline as Pipeline
from apache_beam.testing.util import assert_that, equal_to

from manifests.row import ManifestRow
from model.systems import Capabilities, Policy
from transforms.elements import Failure
from transforms.queries import AdaptQueries, adapted

TEXT_P = Capabilities(audio=False, negative=False)


def row(row_id: str, **query: object) -> ManifestRow:
    return ManifestRow(id=row_id, mixture_uri=f"{row_id}.wav", **query)


ROWS = (
    row("plain", positive_text="bell"),
    row("both", positive_text="bell", negative_text="rain", positive_audio_uris=("b.wav",)),
    row("negative", negative_text="rain"),
)


def found(element: ManifestRow | Failure) -> tuple[str, ...]:
    if isinstance(element, Failure):
        assert element.row is not None
        return (element.row.id, element.stage, element.error_type, element.message)
    return (element.id, element.query_type, element.polarity)


UNUSABLE = "the model cannot use this query: it takes no negative query"


@pytest.mark.parametrize("rows", [ROWS, ROWS[::-1], ()])
@pytest.mark.parametrize(
    ("policy", "good", "dead"),
    [
        (
            "dead_letter",
            [("plain", "text", "P")],
            [
                (
                    "both",
                    "embed_queries",
                    "unsupported_query",
                    f"{UNUSABLE}; it takes no example clips",
                ),
                ("negative", "embed_queries", "unsupported_query", UNUSABLE),
            ],
        ),
        (
            "nearest",
            [("plain", "text", "P"), ("both", "text", "P")],
            [("negative", "embed_queries", "unsupported_query", UNUSABLE)],
        ),
    ],
)
def test_rows_are_run_as_they_are_or_nearly_or_not_at_all(
    rows: tuple[ManifestRow, ...],
    policy: Policy,
    good: list[tuple[str, ...]],
    dead: list[tuple[str, ...]],
) -> None:
    with Pipeline() as pipeline:
        created = pipeline | beam.Create(rows)
        adapted, failed = created | AdaptQueries(TEXT_P, policy)
        expected = (good, dead) if rows else ([], [])
        assert_that(adapted | "Good" >> beam.Map(found), equal_to(expected[0]), "CheckGood")
        assert_that(failed | "Dead" >> beam.Map(found), equal_to(expected[1]), "CheckDead")


def test_an_oracle_needs_a_reference_or_a_mixture_made_on_the_fly() -> None:
    rows = (
        row("unknown", positive_text="bell"),
        row("known", positive_text="bell", reference_uri="r.wav"),
        ManifestRow(id="made", target_uri="t.wav", interferer_uris=("i.wav",), positive_text="x"),
    )
    with Pipeline() as pipeline:
        created = pipeline | beam.Create(rows)
        adapted, failed = created | AdaptQueries(Capabilities(needs_reference=True))
        ids = adapted | "Ids" >> beam.Map(lambda each: each.id)
        assert_that(ids, equal_to(["known", "made"]), "CheckGood")
        dead = failed | "Dead" >> beam.Map(lambda each: each.row.id)
        assert_that(dead, equal_to(["unknown"]), "CheckDead")


def test_a_row_that_was_changed_keeps_the_digest_of_the_manifest() -> None:
    asked = row("a", positive_text="bell", negative_text="rain")
    nearest = adapted(asked, TEXT_P, "nearest")
    assert nearest.negative_text is None
    assert nearest.sha256 == asked.sha256


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="policy='ignore'"):
        AdaptQueries(TEXT_P, "ignore")
