"""Universal source separation: ResUNet30, asked by example clips through a PANNs tagger (Cnn14).

The published model is the ``at_soft`` one: its query is the tagger's probabilities of AudioSet's
527 classes. A clip of any length is cut into segments of 2 s (the last one repeated to fill its
segment), whose probabilities are averaged; several clips are averaged again. Parameter names are
those of the published weights.

Source: Kong et al. 2023, arXiv 2305.07447; checked against bytedance/uss at c19e2c5
(uss/inference.py: ``calculate_query_emb``, without its removal of silence, which its own evaluation
leaves out for AudioSet, FSDKaggle2018 and FSD50K). Cnn14: Kong et al. 2020, "PANNs", arXiv
1912.10211; checked against qiuqiangkong/panns_inference, panns_inference/models.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoints.loading import LayoutError, build, fill, published_state
from model.signal.stft import torch_hann
from model.systems import Capabilities
from model.systems.masking import MaskingSeparator
from model.systems.resunet import ResUNet30, ResUNet30Config, conv3x3

if TYPE_CHECKING:
    from model.catalogue import Entry
    from model.registry import LoadedModel, LoadOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cnn14Config:
    """Shapes of the network; the published ones by default."""

    sample_rate_hz: int = 32_000
    n_fft: int = 1024
    hop_samples: int = 320
    mel_bins: int = 64
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    num_classes: int = 527


class Cnn14(nn.Module):
    """Waveform → probabilities of AudioSet's classes."""

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.config = config
        self.logmel_extractor = _MelFilters(config)
        self.bn0 = nn.BatchNorm2d(config.mel_bins)
        widths = (1, *config.channels)
        self.blocks = tuple(f"conv_block{index + 1}" for index in range(len(config.channels)))
        for name, inner, outer in zip(self.blocks, widths, widths[1:], strict=False):
            self.add_module(name, _Block(inner, outer))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], config.num_classes)

    @property
    def shortest(self) -> int:
        """Samples below which an image dimension would be halved away, or could not be padded."""
        halvings: int = 2 ** (len(self.blocks) - 1)
        return max((halvings - 1) * self.config.hop_samples, self.config.n_fft // 2 + 1)

    def forward(self, waveform: Tensor) -> Tensor:
        """float32[B, T], T ≥ ``shortest`` → float32[B, classes] in [0, 1].

        Raises:
            ValueError: the waveforms are too short.
        """
        if waveform.shape[-1] < self.shortest:
            raise ValueError(f"{waveform.shape[-1]} samples: expected at least {self.shortest}")
        image = self._log_mel(waveform).unsqueeze(1)
        image = self.bn0(image.transpose(1, 3)).transpose(1, 3)
        for name in self.blocks[:-1]:
            image = F.avg_pool2d(self.get_submodule(name)(image), 2)
        frames = self.get_submodule(self.blocks[-1])(image).mean(dim=3)
        pooled = frames.amax(dim=2) + frames.mean(dim=2)
        return torch.sigmoid(self.fc_audioset(F.relu(self.fc1(pooled))))

    def _log_mel(self, waveform: Tensor) -> Tensor:
        """Decibels, float32[B, F, mel_bins]."""
        config = self.config
        spectrum = torch.stft(
            waveform,
            config.n_fft,
            config.hop_samples,
            window=torch_hann(config.n_fft).to(waveform.device),
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        power = (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)
        return 10.0 * torch.log10((power @ self.logmel_extractor.melW).clamp(min=1e-10))


class _MelFilters(nn.Module):
    """Holds the mel filter bank, whose values are loaded with the weights."""

    melW: Tensor

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.register_buffer("melW", torch.zeros(config.n_fft // 2 + 1, config.mel_bins))


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, image: Tensor) -> Tensor:
        image = F.relu_(self.bn1(self.conv1(image)))
        return F.relu_(self.bn2(self.conv2(image)))


CONFIG = ResUNet30Config(condition_size=527)
QUERY_CONFIG = Cnn14Config()
SEGMENT_SAMPLES = 64_000
"""What the network was trained on, and how the reference cuts clips and queries: 2 s."""
CAPABILITIES = Capabilities(text=False, negative=False)
NETWORK_PREFIX = "ss_model."
QUERY_PREFIX = "query_net.base."
_UNUSED = (
    r"anchor_segment_detector\.",
    r"ss_model\.base\.i?stft\.",
    r"query_net\.base\.spectrogram_extractor\.",
)
_SEGMENTS_AT_ONCE = 8


class TaggerQueries(nn.Module):
    """Example clips → class probabilities; implements ``model.clap.QueryEncoder`` but for text."""

    input_level_dbfs: float | None = None

    def __init__(
        self, config: Cnn14Config, clip_samples: int = SEGMENT_SAMPLES, digest: str = ""
    ) -> None:
        super().__init__()
        self.network = build(lambda: Cnn14(config))
        self.digest = digest
        self.embedding_dim = config.num_classes
        self.sample_rate_hz = config.sample_rate_hz
        self.clip_samples = clip_samples

    def prepare(self) -> TaggerQueries:
        """Freezes the network for inference."""
        self.eval().requires_grad_(False)
        return self

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """There is no text encoder.

        Raises:
            ValueError: always, but for no text at all.
        """
        if texts:
            raise ValueError(f"{texts[0]!r}: USS takes example clips, and no text")
        return torch.zeros(0, self.embedding_dim)

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """Clips float32[T_i], mono at ``sample_rate_hz`` → float32[N, classes], in [0, 1].

        Raises:
            ValueError: a clip is empty or not mono.
        """
        rows = []
        for clip in clips:
            segments = cut(clip, self.clip_samples).to(next(self.parameters()).device)
            parts = [self.network(part) for part in segments.split(_SEGMENTS_AT_ONCE)]
            rows.append(torch.cat(parts).mean(dim=0))
        return torch.stack(rows) if rows else torch.zeros(0, self.embedding_dim)


def cut(clip: Tensor, length: int) -> Tensor:
    """A clip float32[T] in segments float32[S, length]; the last is repeated to its length.

    Raises:
        ValueError: the clip is empty or not mono.
    """
    if clip.ndim != 1 or clip.shape[0] == 0:
        raise ValueError(f"expected a mono clip float32[T], T ≥ 1, found {tuple(clip.shape)}")
    segments = [
        part.repeat(math.ceil(length / part.shape[0]))[:length] for part in clip.split(length)
    ]
    return torch.stack(segments)


def build_separator(config: ResUNet30Config = CONFIG, name: str = "uss") -> MaskingSeparator:
    """The separator without weights."""
    return MaskingSeparator(
        build(lambda: ResUNet30(config)),
        name=name,
        transform=config.transform,
        window_samples=SEGMENT_SAMPLES,
        embedding_dim=config.condition_size,
        capabilities=CAPABILITIES,
    )


def fill_networks(
    separator: MaskingSeparator, queries: TaggerQueries, state: Mapping[str, Tensor], where: str
) -> None:
    """Puts both networks of a Lightning state dict in their places, strictly.

    Raises:
        LayoutError: keys, shapes, types or values are not those of USS.
    """
    filters = f"{QUERY_PREFIX}logmel_extractor.melW"
    if filters not in state:
        raise LayoutError(f"{where}: not this network's weights: 1 missing ({filters})")
    fill(separator.network, state, where, prefix=NETWORK_PREFIX, ignored=(*_UNUSED, r"query_net\."))
    fill(queries.network, state, where, prefix=QUERY_PREFIX, ignored=(*_UNUSED, r"ss_model\."))


def load(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader."""
    from model.registry import LoadedModel

    found = published_state(entry.file("uss"))
    separator = build_separator(name=entry.name)
    queries = TaggerQueries(QUERY_CONFIG, digest=found.file.sha256)
    fill_networks(separator, queries, found.state, found.file.uri)
    return LoadedModel(
        name=entry.name,
        separator=separator.to(options.device).prepare(options.precision),
        query_encoder=queries.to(options.device).prepare(),
        model_sha256=found.file.sha256,
        clap_sha256="",
        card=entry,
    )
