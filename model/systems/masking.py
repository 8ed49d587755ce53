"""A separator around a network that masks an STFT: AudioSep, USS and LASS-Net are such."""

from __future__ import annotations

from torch import Tensor, nn

from model.clap.audio import PRECISIONS, Precision, computing_in
from model.signal.stft import Spectrum, Transform
from model.systems import Capabilities, Condition


class MaskingSeparator(nn.Module):
    """Mixture + positive embedding → mask → estimate; implements ``model.systems.Separator``.

    The network hears the query from its first layer on, so queries of one mixture share no more
    than the STFT.

    Args:
        network: ``network(spectrum: complex64[B, K, F], condition: float32[B, D])`` → the mask,
            complex64 or float32[B, K, F].
        name: how outputs name the system.
        transform: the STFT that is masked.
        window_samples: the longest mixture of one call, at 32 kHz.
        embedding_dim: D.
        capabilities: what queries it takes.
    """

    sample_rate_hz = 32_000
    input_level_dbfs: float | None = None

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        transform: Transform,
        window_samples: int,
        embedding_dim: int,
        capabilities: Capabilities,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.transform = transform
        self.window_samples = window_samples
        self.embedding_dim = embedding_dim
        self.capabilities = capabilities
        self.precision: Precision = "fp32"

    def prepare(self, precision: str = "fp32") -> MaskingSeparator:
        """Freezes the network for inference.

        Args:
            precision: one of ``PRECISIONS``; the STFT stays float32.

        Raises:
            ValueError: the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: expected one of {PRECISIONS}")
        self.precision = precision
        self.eval().requires_grad_(False)
        return self

    def encode(self, mixture: Tensor) -> Spectrum:
        """The STFT of float32[B, T], 1 ≤ T ≤ ``window_samples``.

        Raises:
            ValueError: T is 0 or longer than a window.
        """
        if mixture.shape[-1] > self.window_samples:
            raise ValueError(
                f"mixture {tuple(mixture.shape)}: expected at most {self.window_samples} samples"
            )
        return self.transform.encode(mixture)

    def decode(self, encoded: Spectrum, condition: Condition) -> Tensor:
        """What the positive query asks for, float32[B, T]; a negative one is not heard."""
        spectrum = encoded.values
        with computing_in(self.precision, spectrum.device.type):
            mask = self.network(spectrum, condition.positive.to(spectrum.device))
        return self.transform.inverse(spectrum * mask, encoded.mixture.shape[-1])

    def separate(self, mixture: Tensor, condition: Condition) -> Tensor:
        """``decode(encode(mixture), condition)``: float32[B, T] → float32[B, T]."""
        return self.decode(self.encode(mixture), condition)
