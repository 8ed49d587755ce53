"""Any text as a query: tokenized, and embedded or refused, and carried to the tables."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import fuzzing
import tiny_model
from manifests.row import ManifestRow, RowError, output_name, parse_record
from model.clap import Clap
from transforms.queries import asks_of, embed_query_texts


@functools.cache
def clap() -> Clap:
    torch.manual_seed(0)
    return Clap(tiny_model.CONFIG.clap).eval()


def ask(text: str) -> None:
    """From a manifest's cell to an embedding."""
    record: dict[str, Any] = {"id": text, "mixture_uri": "a.wav", "positive_text": text}
    row = parse_record(record, uri="m.jsonl", row=1, folder="/")
    if isinstance(row, RowError):
        assert len(row.value) < 2_000
        str(row).encode("utf-8")
        return
    (query,) = asks_of(row)
    assert query.text is not None
    (found,) = embed_query_texts(clap(), [query.text])
    assert found.error_type in (None, "unsupported_query"), found.message
    if found.error_type is not None:
        assert "knows nothing of it" in found.message
        found.message.encode("utf-8")
        return
    vector = np.frombuffer(found.embedding, dtype="<f4")
    assert np.isfinite(vector).all()
    np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-4)
    assert len(query.key) == 64
    assert len(output_name(row.id).encode("utf-8")) < 250
    pa.array([row.positive_text], pa.string()).to_pylist()
    json.dumps(row.to_record(), ensure_ascii=False).encode("utf-8")


@given(st.text(st.characters(), max_size=200))
@example("\ud800")
@example("\udfffx")
@example("\x00")
@example("\x1b[31m\x07\x08\r\n\t\x7f")
@example("\u202e\u200b\u200d\ufeff\u2028")
@example("x" * 32_768)
@example("狗叫" * 16_384)
@example("👩‍👩‍👧‍👦" * 2_000)
@example("e" + "\u0301" * 20_000)
@example("a " * 16_384)
@example("[CLS][SEP][PAD][MASK]<s></s><pad><mask>")
@example("{{7*7}}${x}%s%n%(a)s\\")
@fuzzing.few(120)
def test_any_text(text: str) -> None:
    clap()  # loading it is not part of what is measured
    with fuzzing.bounded():
        ask(text)


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "🐕" * 100_000, "dog " * 25_000, "\u0915\u094d" * 50_000]
)
def test_a_hundred_thousand_characters_are_refused_with_a_short_message(text: str) -> None:
    with fuzzing.bounded():
        record = {"id": "x", "mixture_uri": "a.wav", "positive_text": text}
        row = parse_record(record, uri="m.jsonl", row=1, folder="/")
        assert isinstance(row, RowError)
        assert row.field == "positive_text"
        assert len(str(row)) < 1_000
        for piece in (text, text[:32_768]):  # the network itself truncates
            known = text.startswith("dog")  # words of over a hundred letters are unknown
            expected = None if known else "unsupported_query"
            assert embed_query_texts(clap(), [piece])[0].error_type == expected


SCRIPTS = {
    "Arabic": "نباح كلب", "Armenian": "շան հաչոց", "Bengali": "কুকুরের ডাক", "Chinese": "狗叫声",
    "Cyrillic": "лай собаки", "Devanagari": "कुत्ते का भौंकना", "Ethiopic": "የውሻ ጩኸት",
    "Georgian": "ძაღლის ყეფა", "Greek": "γάβγισμα σκύλου", "Gujarati": "કૂતરાનો અવાજ",
    "Hangul": "개 짖는 소리", "Hebrew": "נביחת כלב", "Japanese": "犬の鳴き声", "Khmer": "ឆ្កែព្រុស",
    "Lao": "ໝາເຫົ່າ", "Malayalam": "നായ കുരയ്ക്കുന്നു", "Burmese": "ခွေးဟောင်သံ",
    "Tamil": "நாய் குரைத்தல்", "Telugu": "కుక్క మొరగడం", "Thai": "เสียงหมาเห่า", "Tibetan": "ཁྱི་སྐད།",
    "Cuneiform": "𒌨𒂠", "Emoji": "🐕🔊", "Braille": "⠙⠕⠛", "Tags": "\U000e0064",
}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script(script: str) -> None:
    ask(SCRIPTS[script])


def test_the_embedding_does_not_depend_on_what_else_is_in_the_batch() -> None:
    texts = ["a dog", *SCRIPTS.values(), "x" * 5_000]
    together = embed_query_texts(clap(), texts)
    for text, found in zip(texts, together, strict=True):
        (alone,) = embed_query_texts(clap(), [text])
        one, other = (np.frombuffer(e.embedding, dtype="<f4") for e in (alone, found))
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_row_of_surrogates_survives_the_key_and_the_record() -> None:
    row = ManifestRow(id="x", mixture_uri="a.wav", positive_text="\ud800")
    assert [len(query.key) for query in asks_of(row)] == [64]
