"""LASS-Net: a ResUNet that masks a magnitude, asked by the first token of a small BERT.

Parameter names are those of the published checkpoint.

Source: Liu et al. 2022, "Separate What You Describe", arXiv 2203.15147; checked against
liuxubo717/LASS at 8979776. The reference drops the samples after the last whole hop; here the
mixture is padded to a whole number of hops, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoints.fetch import fetch
from model.checkpoints.loading import build, fill, published_state
from model.clap import BertLayers, require_known
from model.config import TextConfig
from model.devices import loaded_once
from model.signal.stft import Transform
from model.systems import Capabilities
from model.systems.masking import MaskingSeparator
from model.systems.resunet import LEAK, conv3x3, pad_frames, run_unet, shortcut

if TYPE_CHECKING:
    from model.catalogue import Entry
    from model.registry import LoadedModel, LoadOptions

TRANSFORM = Transform(n_fft=1024, hop_samples=512, whole_hops=True)
CHANNELS = (32, 64, 128, 256, 384, 384)
EMBEDDING_DIM = 256
WINDOW_SAMPLES = 320_000
CAPABILITIES = Capabilities(audio=False, negative=False)
MAX_TOKENS = 512
BERT = TextConfig(
    vocab_size=30_522,
    hidden_size=EMBEDDING_DIM,
    num_layers=4,
    num_heads=4,
    intermediate_size=4 * EMBEDDING_DIM,
    max_positions=MAX_TOKENS,
    max_tokens=MAX_TOKENS,
)
_PADDING = "[PAD]"
NETWORK_PREFIX = "UNet."
TEXT_PREFIX = "text_embedder."
_POSITION_IDS = r"text_embedder\.bert_layer\.embeddings\.position_ids$"
_LEFT_OUT = 2
"""Highest bins that the network does not see; their mask is that of a zero."""


class LassUNet(nn.Module):
    """Magnitude of a mixture and a query → a magnitude mask."""

    def __init__(self, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        names = [f"encoder_block{index + 1}" for index in range(len(channels))]
        for name, outer, inner in zip(names, (1, *channels), channels, strict=False):
            self.add_module(name, _EncoderBlock(outer, inner, EMBEDDING_DIM))
        self.encoders = tuple(names)
        self.centre = f"conv_block{len(channels) + 1}"
        self.add_module(self.centre, _ResidualBlock(channels[-1], channels[-1], EMBEDDING_DIM))
        self.decoders = tuple(f"decoder_block{index + 1}" for index in range(len(channels)))
        upward = tuple(reversed(channels))
        for name, deeper, width in zip(self.decoders, (upward[0], *upward), upward, strict=False):
            self.add_module(name, _DecoderBlock(deeper, width, EMBEDDING_DIM))
        self.after_conv_block1 = _ResidualBlock(channels[0], channels[0], EMBEDDING_DIM)
        self.after_conv2 = nn.Conv2d(channels[0], 1, 1)
        self._multiple = 2 ** len(channels)

    def forward(self, spectrum: Tensor, condition: Tensor) -> Tensor:
        """complex64[B, K, F], float32[B, D] → the mask, float32[B, K, F] in [0, 1]."""
        num_frames = spectrum.shape[-1]
        image = pad_frames(spectrum.abs().transpose(1, 2).unsqueeze(1), self._multiple)
        image = run_unet(
            image[..., :-_LEFT_OUT],
            condition,
            map(self.get_submodule, self.encoders),
            self.get_submodule(self.centre),
            map(self.get_submodule, self.decoders),
        )
        maps = self.after_conv2(self.after_conv_block1(image, condition))
        maps = F.pad(maps, (0, _LEFT_OUT))[:, 0, :num_frames].float()
        return torch.sigmoid(maps).transpose(1, 2)


class _Film(nn.Module):
    def __init__(self, channels: int, condition_size: int) -> None:
        super().__init__()
        self.linear = nn.Sequential(
            nn.Linear(condition_size, 2 * channels),
            nn.ReLU(),
            nn.Linear(2 * channels, channels),
            nn.ReLU(),
        )

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        shifted: Tensor = image + self.linear(condition)[..., None, None]
        return shifted


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, condition_size: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.film1 = _Film(out_channels, condition_size)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.film2 = _Film(out_channels, condition_size)
        if in_channels != out_channels:
            self.shortcut = shortcut(in_channels, out_channels)
            self.film_res = _Film(out_channels, condition_size)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        inner = self.conv1(F.leaky_relu_(self.bn1(image), negative_slope=LEAK))
        inner = self.film1(inner, condition)
        inner = self.conv2(F.leaky_relu_(self.bn2(inner), negative_slope=LEAK))
        inner = self.film2(inner, condition)
        if hasattr(self, "shortcut"):
            image = self.film_res(self.shortcut(image), condition)
        total: Tensor = inner.add_(image)
        return total


class _EncoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, condition_size: int) -> None:
        super().__init__()
        self.conv_block1 = _ResidualBlock(in_channels, out_channels, condition_size)
        self.conv_block2 = _ResidualBlock(out_channels, out_channels, condition_size)

    def forward(self, image: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        image = self.conv_block2(self.conv_block1(image, condition), condition)
        return F.avg_pool2d(image, 2), image


class _DecoderBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, condition_size: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_block2 = _ResidualBlock(2 * out_channels, out_channels, condition_size)
        self.conv_block3 = _ResidualBlock(out_channels, out_channels, condition_size)

    def forward(self, image: Tensor, skip: Tensor, condition: Tensor) -> Tensor:
        image = self.conv1(F.relu_(self.bn1(image)))[:, :, :-1]
        image = self.conv_block2(torch.cat((image, skip), dim=1), condition)
        joined: Tensor = self.conv_block3(image, condition)
        return joined


class BertQueries(nn.Module):
    """Captions → embeddings; implements ``model.clap.QueryEncoder`` but for audio.

    As in the reference, a caption begins with ``[CLS]`` and has no ``[SEP]`` at its end.

    Args:
        tokenizer_uri: of a ``tokenizer.json`` with BERT's uncased word pieces.
        digest: of the weights.
    """

    embedding_dim = EMBEDDING_DIM
    sample_rate_hz = 32_000
    clip_samples = WINDOW_SAMPLES
    input_level_dbfs: float | None = None

    def __init__(self, tokenizer_uri: str, digest: str = "") -> None:
        super().__init__()
        self.bert_layer = build(lambda: BertLayers(BERT, num_types=2, norm_eps=1e-12))
        self.linear_layer = nn.Sequential(nn.Linear(EMBEDDING_DIM, EMBEDDING_DIM), nn.ReLU())
        self.digest = digest
        self._tokenizer_uri = tokenizer_uri

    @loaded_once
    def tokenizer(self) -> Any:
        """The tokenizer, loaded at first use."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(fetch(self._tokenizer_uri).path))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id(_PADDING), pad_token=_PADDING)
        return tokenizer

    def prepare(self) -> BertQueries:
        """Freezes the network for inference."""
        self.eval().requires_grad_(False)
        return self

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32[N, 256]; not of unit norm.

        Raises:
            UnknownWordsError: the tokenizer knows nothing of a text.
        """
        if not texts:
            return torch.zeros(0, self.embedding_dim)
        require_known(self.tokenizer, texts)
        found = self.tokenizer.encode_batch(
            [f"[CLS] {text}" for text in texts], add_special_tokens=False
        )
        ids = torch.tensor([each.ids for each in found])
        return self.embed_tokens(ids, torch.tensor([each.attention_mask for each in found]))

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask, int64[N, L] each → float32[N, 256]."""
        device = next(self.parameters()).device
        hidden = self.bert_layer(input_ids.to(device), attention_mask.to(device))
        embedding: Tensor = self.linear_layer(hidden[:, 0])
        return embedding

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """There is no audio encoder.

        Raises:
            ValueError: always, but for no clip at all.
        """
        if clips:
            raise ValueError("LASS-Net takes text, and no example clips")
        return torch.zeros(0, self.embedding_dim)


def build_separator(name: str = "lass-net", channels: Sequence[int] = CHANNELS) -> MaskingSeparator:
    """The separator without weights."""
    return MaskingSeparator(
        build(lambda: LassUNet(channels)),
        name=name,
        transform=TRANSFORM,
        window_samples=WINDOW_SAMPLES,
        embedding_dim=EMBEDDING_DIM,
        capabilities=CAPABILITIES,
    )


def fill_networks(
    separator: MaskingSeparator, queries: BertQueries, state: Mapping[str, Tensor], where: str
) -> None:
    """Puts both networks of a checkpoint in their places, strictly.

    Raises:
        LayoutError: keys, shapes, types or values are not those of LASS-Net.
    """
    fill(separator.network, state, where, prefix=NETWORK_PREFIX, ignored=(r"text_embedder\.",))
    fill(queries, state, where, prefix=TEXT_PREFIX, ignored=(_POSITION_IDS, r"UNet\."))


def load(entry: Entry, options: LoadOptions) -> LoadedModel:
    """The registry's loader."""
    from model.registry import LoadedModel

    found = published_state(entry.file("lass"))
    separator = build_separator(name=entry.name)
    queries = BertQueries(entry.file("tokenizer").location(), digest=found.file.sha256)
    fill_networks(separator, queries, found.state, found.file.uri)
    return LoadedModel(
        name=entry.name,
        separator=separator.to(options.device).prepare(options.precision),
        query_encoder=queries.to(options.device).prepare(),
        model_sha256=found.file.sha256,
        clap_sha256="",
        card=entry,
    )
