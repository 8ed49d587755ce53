"""Two systems that every table needs: one that does nothing, and one that knows the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.config import SignalConfig
from model.signal.stft import Spectrum, Transform
from model.systems import Capabilities, Condition

if TYPE_CHECKING:
    from model.catalogue import Entry
    from model.registry import LoadedModel, LoadOptions

_TINY = 1e-20
"""Power below which a bin is silent in target and rest alike; its mask is then 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waveforms:
    """A batch of mixtures as they are."""

    mixture: Tensor

    def index(self, rows: Tensor) -> Waveforms:
        """Repeats or reorders mixtures."""
        return Waveforms(mixture=self.mixture[rows])


class MixtureSeparator:
    """Returns the mixture: every improvement over it is 0 by definition."""

    def __init__(self, signal: SignalConfig, name: str = "mixture") -> None:
        self.name = name
        self.sample_rate_hz = signal.sample_rate_hz
        self.window_samples = signal.window_samples
        self.embedding_dim = AnyQuery.embedding_dim
        self.capabilities = Capabilities()
        self.input_level_dbfs: float | None = None

    def encode(self, mixture: Tensor) -> Waveforms:
        """float32[B, T], kept as it is."""
        return Waveforms(mixture=mixture)

    def decode(self, encoded: Waveforms, condition: Condition) -> Tensor:
        """The mixture, float32[B, T], whatever is asked for."""
        return encoded.mixture.clone()

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``decode(encode(mixture), condition)``."""
        return self.decode(self.encode(mixture), condition)


class OracleIrm:
    """Masks the mixture by the ideal ratio mask of the reference, and keeps the mixture's phase.

    The mask is ``(|S|² / (|S|² + |N|²))^exponent`` with N = mixture − reference. The exponent 1 (a
    Wiener filter of the true powers) gives the higher SDR; 0.5 is the paper's own form. It is what
    a mask between 0 and 1 can reach in practice, not a strict bound: a mask that knew the phases
    could do a little better.

    Args:
        signal: rate, window and STFT; CLAPSep's, so that this is the ceiling of CLAPSep's own mask.
        exponent: of the ratio of powers.
        name: how outputs name the system.

    Source:
        Wang, Narayanan and Wang 2014, "On Training Targets for Supervised Speech Separation", TASLP
        22(12).
    """

    def __init__(
        self, signal: SignalConfig, exponent: float = 1.0, name: str = "oracle-irm"
    ) -> None:
        if not exponent > 0:
            raise ValueError(f"exponent={exponent}: expected above 0")
        self.name = name
        self.sample_rate_hz = signal.sample_rate_hz
        self.window_samples = signal.window_samples
        self.embedding_dim = AnyQuery.embedding_dim
        self.capabilities = Capabilities(needs_reference=True)
        self.input_level_dbfs: float | None = None
        self._exponent = exponent
        self._transform = Transform(n_fft=signal.n_fft, hop_samples=signal.hop_samples)

    def encode(self, mixture: Tensor) -> Spectrum:
        """The mixtures' spectra, from float32[B, T]."""
        return self._transform.encode(mixture)

    def decode(self, encoded: Spectrum, condition: Condition) -> Tensor:
        """The masked mixture, float32[B, T].

        Raises:
            ValueError: the condition has no reference, or one of another shape.
        """
        reference = condition.reference
        if reference is None:
            raise ValueError(f"{self.name} needs the reference of every query")
        if reference.shape != encoded.mixture.shape:
            raise ValueError(
                f"reference {tuple(reference.shape)}: expected the mixture's shape "
                f"{tuple(encoded.mixture.shape)}"
            )
        target = _power(self._transform.forward(reference))
        rest = _power(self._transform.forward(encoded.mixture - reference))
        mask = (target / (target + rest).clamp(min=_TINY)) ** self._exponent
        return self._transform.inverse(encoded.values * mask, encoded.mixture.shape[-1])

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``decode(encode(mixture), condition)``."""
        return self.decode(self.encode(mixture), condition)


class AnyQuery:
    """The query encoder of systems that do not listen to queries: every embedding is the same."""

    embedding_dim = 1
    input_level_dbfs: float | None = None

    def __init__(self, signal: SignalConfig) -> None:
        self.sample_rate_hz = signal.sample_rate_hz
        self.clip_samples = signal.window_samples
        self.digest = ""

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32[N, 1], ones."""
        return torch.ones(len(texts), self.embedding_dim)

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """float32[N, 1], ones."""
        return torch.ones(len(clips), self.embedding_dim)


def load_mixture(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader of ``mixture``."""
    return _loaded(entry, MixtureSeparator(SignalConfig(), name=entry.name))


def load_oracle_irm(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader of ``oracle-irm``."""
    return _loaded(entry, OracleIrm(SignalConfig(), name=entry.name))


def _loaded(entry: Entry, separator: MixtureSeparator | OracleIrm) -> LoadedModel:
    from model.registry import LoadedModel

    return LoadedModel(
        name=entry.name,
        separator=separator,
        query_encoder=AnyQuery(SignalConfig()),
        model_sha256="",
        clap_sha256="",
        card=entry,
    )


def _power(values: Tensor) -> Tensor:
    return values.real.square() + values.imag.square()
