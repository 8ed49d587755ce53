"""CLAPSep: mixture and condition to estimate; the one forward of training, evaluation and serving.

``torch.compile`` is an option: it is used where it works, and a warning says where it does not.

Source: Ma et al., "CLAPSep: Leveraging Contrastive Pre-trained Model for Multi-Modal
Query-Conditioned Target Sound Extraction", TASLP 2024, arXiv 2402.17455; checked against
Aisaka0v0/CLAPSep at 5404111.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.clap import laion
from model.clap.audio import Encoder, StageFeatures
from model.config import ClapSepConfig
from model.signal.stft import inverse_stft, sinc_resample
from model.systems import Capabilities, Condition
from model.systems.clapsep.decoder import Decoder, Mask

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """Encoded mixtures, and which of them each query of a batch is about."""

    features: StageFeatures
    """Of M mixtures."""
    spectrum: Tensor
    """complex64[M, K, F]."""
    num_samples: int
    rows: Tensor | None = None
    """int64[B]; None: each mixture once, in order."""

    def index(self, rows: Tensor) -> Encoded:
        """Repeats or reorders mixtures, so that several queries share one encoder pass."""
        chosen = rows.to(self.spectrum.device)
        return dataclasses.replace(self, rows=chosen if self.rows is None else self.rows[chosen])

    @property
    def batch_size(self) -> int:
        """How many queries can be answered at once, B."""
        return len(self.spectrum) if self.rows is None else len(self.rows)


class ClapSep(nn.Module):
    """The CLAPSep network; implements :class:`model.systems.Separator`.

    Args:
        config: shapes and signals.
        precision: ``bf16`` runs the network under autocast; STFT, mask application and ISTFT stay
            float32.
        name: how outputs name the model.
    """

    hann: Tensor

    def __init__(
        self, config: ClapSepConfig, precision: Precision = "fp32", name: str = "clapsep"
    ) -> None:
        """Builds the network with random parameters."""
        super().__init__()
        self._weights_cast = False
        self.precision = precision
        self.config = config
        self.name = name
        self.sample_rate_hz = config.signal.sample_rate_hz
        self.window_samples = config.signal.window_samples
        self.embedding_dim = config.clap.embedding_dim
        self.capabilities = Capabilities()
        self.input_level_dbfs = config.signal.input_level_dbfs
        self.encoder = Encoder(config.clap.audio)
        self.decoder = Decoder(config)
        self.register_buffer("hann", laion.torch_hann(config.signal.n_fft), persistent=False)

    @property
    def precision(self) -> Precision:
        """``fp32`` or ``bf16``.

        Raises:
            ValueError: set to something else, or from ``bf16`` back to ``fp32`` after
                :meth:`prepare`, which rounds the weights.
        """
        return self._precision

    @precision.setter
    def precision(self, precision: Precision) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
        if self._weights_cast and precision != "bf16":
            raise ValueError(f"precision={precision!r}: this network was prepared for bf16")
        self._precision: Precision = precision

    def prepare(self) -> ClapSep:
        """Freezes the network for inference: evaluation mode, no gradients, cached biases.

        In bfloat16 the weights of the linear layers are kept in that type: half the memory, and
        the same result as converting them at every call.
        """
        self.eval().requires_grad_(False)
        self._weights_cast = self.precision == "bf16"
        dtype = torch.bfloat16 if self._weights_cast else torch.float32
        self.encoder.prepare(dtype)
        self.decoder.prepare(dtype)
        return self

    def encode(self, mixture: Tensor, encoder_mixture: Tensor | None = None) -> Encoded:
        """Hears a batch of mixtures.

        Args:
            mixture: float32[B, T] at ``sample_rate_hz``, 1 ≤ T ≤ ``window_samples``.
            encoder_mixture: float32[B, T'], the same at the encoder's rate; by default resampled
                from ``mixture``.

        Raises:
            ValueError: T is 0 or longer than a window.
        """
        num_samples = mixture.shape[-1]
        if mixture.ndim != 2 or not 1 <= num_samples <= self.window_samples:
            raise ValueError(
                f"mixture {tuple(mixture.shape)}: expected [B, T], 1 ≤ T ≤ {self.window_samples}"
            )
        signal, audio = self.config.signal, self.config.clap.audio
        shortest = max(
            signal.n_fft // 2 + 1,
            (audio.n_fft // 2 + 1) * signal.sample_rate_hz // audio.sample_rate_hz + 1,
        )
        if num_samples < shortest:
            mixture = F.pad(mixture, (0, shortest - num_samples))
            encoder_mixture = None
        if encoder_mixture is None:
            encoder_mixture = sinc_resample(mixture, signal.sample_rate_hz, audio.sample_rate_hz)
        spectrum = torch.stft(
            mixture,
            signal.n_fft,
            signal.hop_samples,
            window=self.hann,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        with self._autocast(mixture):
            features = self.encoder.stage_features(encoder_mixture)
        return Encoded(features=features, spectrum=spectrum, num_samples=num_samples)

    def predict_mask(self, encoded: Encoded, condition: Condition) -> Mask:
        """The mask that answers the query, float32[B, F, K].

        Raises:
            ValueError: there is not one query for each row of ``encoded``.
        """
        magnitude = encoded.spectrum.abs().transpose(1, 2)
        vector = condition.vector().to(magnitude.device)
        if len(vector) != encoded.batch_size:
            raise ValueError(
                f"{len(vector)} queries for {encoded.batch_size} mixtures: see Encoded.index"
            )
        with self._autocast(magnitude):
            mask = self.decoder(encoded.features, magnitude, vector, encoded.rows)
        return dataclasses.replace(mask, magnitude=mask.magnitude.float())

    def presence(self, encoded: Encoded, condition: Condition) -> Tensor | None:
        """How likely it is that what the condition asks for is there, as log odds.

        It needs the coarsest part of the decoder alone: a small share of :meth:`answer`'s work.

        Returns:
            float32[B], or None where the network has no such output.
        """
        vector = condition.vector().to(encoded.spectrum.device)
        with self._autocast(vector):
            return self.decoder.presence(encoded.features, vector, encoded.rows)

    def decode(self, encoded: Encoded, condition: Condition) -> Tensor:
        """Extracts what the condition asks for, float32[B, T]."""
        return self.masked(encoded, self.predict_mask(encoded, condition))

    def masked(self, encoded: Encoded, mask: Mask) -> Tensor:
        """What a mask leaves of the mixtures, float32[B, T]."""
        spectrum = encoded.spectrum.transpose(1, 2)
        if encoded.rows is not None:
            spectrum = spectrum.index_select(0, encoded.rows)
        spectrum = spectrum * mask.magnitude
        if mask.rotation is not None:
            spectrum = spectrum * mask.rotation
        spectrum = spectrum.transpose(1, 2)
        signal = self.config.signal
        return inverse_stft(spectrum, self.hann, signal.hop_samples, encoded.num_samples)

    def separate(
        self, mixture: Tensor, condition: Condition, encoder_mixture: Tensor | None = None
    ) -> Tensor:
        """``decode(encode(mixture), condition)``: float32[B, T] → float32[B, T]."""
        return self.decode(self.encode(mixture, encoder_mixture), condition)

    def forward(self, mixture: Tensor, condition: Condition) -> Tensor:
        """Same as :meth:`separate`."""
        return self.separate(mixture, condition)

    def _autocast(self, like: Tensor) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(like.device.type, dtype=torch.bfloat16)


logger = logging.getLogger(__name__)


def compile_separator(separator: ClapSep, device: str) -> bool:
    """Compiles a separator's encoder and decoder in place, where there is a compiler.

    The network compiles at its first call, and again for a new batch size or length.

    Returns:
        Whether it will; otherwise a warning is logged and the separator stays as it was.
    """
    reason = _why_not(device)
    if reason is not None:
        logger.warning("torch.compile is not used on %s: %s", device, reason)
        return False
    # A method that the module's own compile(), which is about forward(), does not reach.
    separator.encoder.stage_features = torch.compile(  # type: ignore[method-assign]
        separator.encoder.stage_features
    )
    separator.decoder.compile()
    return True


def _why_not(device: str) -> str | None:
    """Compiles one addition; the reason where that fails."""
    try:
        torch.compile(_add_one)(torch.zeros(2, device=device))
    except Exception as err:  # whatever a missing or broken tool chain raises
        return f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err) else ''}"
    return None


def _add_one(value: torch.Tensor) -> torch.Tensor:
    return value + 1
