"""CLAP: clips of any length, padding, batches, quantisation, unit norms."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from float_noise import rounding
from golden import pairs
from model.clap import MAX_WINDOWS, Clap, UnknownWordsError, cover, quantise_int16
from model.config import MINI, TINY

LENGTH = TINY.clap.audio.clip_samples
NOISE = rounding(1.0, 4_000)
"""Embeddings are at most 1; a dozen layers of some hundred terms follow each other."""
TOKENS = torch.tensor([[0, 17, 45, 2, 1, 1], [0, 9, 2, 1, 1, 1], [0, 5, 6, 7, 8, 2]])


@pytest.fixture(scope="module")
def clap() -> Clap:
    return pairs.networks(TINY).clap


def noise(num_samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def test_audio_embeddings_have_unit_norm_and_differ(clap: Clap) -> None:
    embeddings = clap.embed_audio([noise(LENGTH), noise(LENGTH, 1), torch.zeros(5)])
    assert embeddings.shape == (3, 16)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    assert (embeddings[0] - embeddings[1]).norm() > 0.01


def test_embedding_does_not_depend_on_the_batch(clap: Clap) -> None:
    clips = [noise(1000), noise(3 * LENGTH, 1), noise(LENGTH, 2), noise(LENGTH + 1, 3)]
    together = clap.embed_audio(clips)
    for row, clip in enumerate(clips):
        torch.testing.assert_close(clap.embed_audio([clip])[0], together[row], rtol=0, atol=NOISE)
    reversed_order = clap.embed_audio(clips[::-1]).flip(0)
    torch.testing.assert_close(reversed_order, together, rtol=0, atol=NOISE)


def test_bits_of_an_embedding_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clap = Clap(MINI.clap).prepare()
    latents = torch.randn(
        9, MINI.clap.audio.num_features, generator=torch.Generator().manual_seed(0)
    )
    monkeypatch.setattr(clap.audio_branch, "latent", lambda windows: latents[windows[:, 0].long()])
    windows = torch.arange(9.0)[:, None]
    together = clap.embed_windows(windows)
    for size in (1, 2, 4):
        parts = [clap.embed_windows(part) for part in windows.split(size)]
        assert torch.equal(torch.cat(parts), together)


def test_short_clip_is_repeated_whole_then_padded(clap: Clap) -> None:
    clip = noise(LENGTH // 3 - 10)
    (window,) = cover(clip, LENGTH)
    expected = torch.cat((clip, clip, clip, torch.zeros(LENGTH - 3 * len(clip))))
    assert torch.equal(window, expected)
    torch.testing.assert_close(clap.embed_audio([clip]), clap.embed_windows(expected[None]))


def test_clip_of_the_exact_length_is_itself() -> None:
    clip = noise(LENGTH)
    (window,) = cover(clip, LENGTH)
    assert torch.equal(window, clip)


@given(total=st.integers(11, 400), length=st.integers(1, 10))
def test_long_clip_is_covered_from_start_to_end(total: int, length: int) -> None:
    clip = torch.arange(total, dtype=torch.float32)
    windows = cover(clip, length)
    assert len(windows) == min(-(-total // length), MAX_WINDOWS)
    assert all(len(window) == length for window in windows)
    assert windows[0][0] == 0
    assert windows[-1][-1] == total - 1
    starts = [int(window[0]) for window in windows]
    assert all(torch.equal(w, clip[s : s + length]) for w, s in zip(windows, starts, strict=True))
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert max(steps) - min(steps) <= 1
    if total <= length * MAX_WINDOWS:
        assert set(torch.cat(windows).tolist()) == set(clip.tolist())


def test_long_clip_is_the_mean_of_its_windows_every_time(clap: Clap) -> None:
    clip = noise(2 * LENGTH + 500)
    found = clap.embed_audio([clip])
    windows = clap.embed_windows(torch.stack(cover(clip, LENGTH)))
    expected = torch.nn.functional.normalize(windows.mean(dim=0, keepdim=True), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=NOISE)
    assert torch.equal(clap.embed_audio([clip]), found)


@pytest.mark.parametrize("clip", [torch.zeros(0), torch.zeros(2, 100), torch.tensor(1.0)])
def test_clip_that_is_none_is_refused(clap: Clap, clip: Tensor) -> None:
    with pytest.raises(ValueError, match="expected a mono clip"):
        clap.embed_audio([clip])


def test_quantisation_is_an_option(clap: Clap) -> None:
    clip = 1.5 * noise(LENGTH)  # 2^-15 steps are small, but not nothing
    exact, rounded = clap.embed_audio([clip]), clap.embed_audio([clip], quantise=True)
    assert torch.equal(rounded, clap.embed_audio([quantise_int16(clip)]))
    assert 0 < (exact - rounded).abs().max() < 0.05


def test_nothing_to_embed_gives_no_rows(clap: Clap) -> None:
    assert clap.embed_audio([]).shape == clap.embed_text([]).shape == (0, 16)


def test_text_embedding_does_not_depend_on_padding(clap: Clap) -> None:
    mask = (TOKENS != 1).long()
    together = clap.embed_tokens(TOKENS, mask)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        only = clap.embed_tokens(TOKENS[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(only[0], together[row], rtol=0, atol=NOISE)
    wide = torch.nn.functional.pad(TOKENS, (0, 71), value=1)
    padded = clap.embed_tokens(wide, (wide != 1).long())
    torch.testing.assert_close(padded, together, rtol=0, atol=NOISE)
    assert (together[0] - together[2]).norm() > 0.05


def test_sentence_clap_embeds_words() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(TINY.clap, text=MINI.clap.text)
    clap = Clap(config, digest="abc").prepare()
    embeddings = clap.embed_text(["a dog barks", "a 🐶", "rain"])
    assert embeddings.shape == (3, 16)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(clap.embed_text(["rain"])[0], embeddings[2], rtol=0, atol=NOISE)
    assert (clap.digest, clap.sample_rate_hz, clap.clip_samples) == ("abc", 48_000, LENGTH)
    assert not any(key.startswith("text_branch.") for key in clap.state_dict())


@pytest.mark.parametrize("text", ["🐶", "\u200b", "[PAD]", "🐶 🐱"])
def test_text_of_which_nothing_is_known_is_refused(text: str) -> None:
    config = dataclasses.replace(TINY.clap, text=MINI.clap.text)
    clap = Clap(config).prepare()
    with pytest.raises(UnknownWordsError, match="knows nothing of it") as caught:
        clap.embed_text(["a dog barks", text])
    assert str(caught.value).startswith(repr(text))


def test_preparing_changes_no_embedding(clap: Clap) -> None:
    fresh = Clap(TINY.clap).eval()
    fresh.load_state_dict(clap.state_dict())
    with torch.inference_mode():
        before = fresh.embed_audio([noise(LENGTH)])
    assert fresh.prepare() is fresh
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    torch.testing.assert_close(fresh.embed_audio([noise(LENGTH)]), before, rtol=0, atol=NOISE)


def test_names_are_the_published_ones(clap: Clap) -> None:
    roots = {key.split(".")[0] for key in clap.state_dict()}
    assert roots == {"audio_branch", "audio_projection", "text_branch", "text_projection"}
    assert "text_branch.encoder.layer.0.attention.self.query.weight" in clap.state_dict()
