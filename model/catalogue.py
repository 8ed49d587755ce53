"""What the registry knows: every model's files, licence and source, as data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from model.checkpoints.fetch import CheckpointError

Kind = Literal["separator", "reference", "scorer"]

BUNDLED = "bundled:"
"""Prefix of the URIs of files that are part of this project, under ``model/weights``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One file of a model."""

    role: str
    """``clap``, ``clapsep``, ``converted``, ``presence``, or what else a loader looks for."""
    uri: str
    sha256: str | None = None
    """None where nobody has published it."""
    num_bytes: int | None = None

    def location(self) -> str:
        """The URI to read; for a bundled file its path.

        Raises:
            CheckpointError: the bundled file is not in this installation.
        """
        if not self.uri.startswith(BUNDLED):
            return self.uri
        path = Path(__file__).parent / "weights" / self.uri.removeprefix(BUNDLED)
        if not path.is_file():
            raise CheckpointError(
                f"{path}: the bundled weights are not in this installation; install from a whole "
                "checkout, or make them with python -m model.training"
            )
        return str(path)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model by name.

    A loader is ``module:function`` and takes the entry and :class:`model.registry.LoadOptions`; it
    returns a :class:`model.registry.LoadedModel`, or for a scorer a query encoder.
    """

    name: str
    kind: Kind
    loader: str
    summary: str
    licence: str
    source: str
    """Where the model comes from: paper and repository."""
    sample_rate_hz: int
    files: tuple[WeightsFile, ...] = ()
    verified: str = ""
    """What was checked of it here, and what was not."""
    input_level_dbfs: float | None = None
    """The level that recordings are brought to before separation (:mod:`model.signal`).

    None: it is heard as it is. So are all published systems: they are run here as their authors ran
    them, whose figures and code are of recordings as they are.
    """
    screen: float | None = None
    """The presence in the windows of a recording below which ``--screen auto`` separates nothing.

    None: nobody has measured one."""
    scorer: str = "own"
    """What gives CLAPScores unless a run says otherwise: a model whose CLAP does, or the model's
    own."""

    @property
    def by_role(self) -> dict[str, WeightsFile]:
        """The files by their roles."""
        return {file.role: file for file in self.files}

    def file(self, role: str) -> WeightsFile:
        """The file of a role.

        Raises:
            CheckpointError: the model has none.
        """
        found = self.by_role.get(role)
        if found is None:
            raise CheckpointError(f"{self.name} has no {role!r} weights")
        return found


_LAION = "LAION-AI/CLAP; Wu et al. 2023, arXiv 2211.06687"
_CC0 = "CC0-1.0, as the hosting repository states"

_MUSIC_AUDIOSET = WeightsFile(
    role="clap",
    uri="hf://lukewys/laion_clap/music_audioset_epoch_15_esc_90.14.pt",
    sha256="fae3e9c087f2909c28a09dc31c8dfcdacbc42ba44c70e972b58c1bd1caf6dedd",
    num_bytes=2_352_471_003,
)
_MUSIC_SPEECH_AUDIOSET = WeightsFile(
    role="clap",
    uri="hf://lukewys/laion_clap/music_speech_audioset_epoch_15_esc_89.98.pt",
    sha256="51c68f12f9d7ea25fdaaccf741ec7f81e93ee594455410f3bca4f47f88d8e006",
    num_bytes=2_352_471_003,
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="clapsep-mini",
        kind="separator",
        loader="model.registry:load_clapsep",
        summary="The bundled CLAPSep: small, trained by this project, works offline.",
        licence="Apache-2.0; trained on the clips that model/weights/README.md lists",
        source="this project; model/weights/README.md",
        sample_rate_hz=32_000,
        files=(
            WeightsFile(
                role="converted",
                uri=f"{BUNDLED}clapsep-mini-1-of-3.safetensors",
                sha256="f948041271bf70a231efe480fa65d54b196f32de0d6ebef3b1b6d037cd5e8a36",
            ),
            WeightsFile(
                role="presence",
                uri=f"{BUNDLED}clapsep-mini-presence.safetensors",
                sha256="99b9c4c5d172bed337d2fb7d1033f851731a7b9a589f12a23fd6c6e05b15a7d4",
            ),
        ),
        screen=0.1,
        input_level_dbfs=-24.0,
        verified="results recomputed from the bundled file; see its model card",
    ),
    Entry(
        name="clapsep-hybrid",
        kind="separator",
        loader="model.registry:load_clapsep",
        summary="The published CLAPSep for text, audio and mixed queries, on its CLAP.",
        licence=f"separator: none stated in its repository; CLAP: {_CC0}",
        source="Aisaka0v0/CLAPSep; Ma et al. 2024, arXiv 2402.17455",
        sample_rate_hz=32_000,
        files=(
            _MUSIC_AUDIOSET,
            WeightsFile(
                role="clapsep",
                uri="hf://spaces/AisakaMikoto/CLAPSep/model/best_model.ckpt",
                num_bytes=177_818_986,
            ),
        ),
        verified=(
            "network and key layout, against the reference implementation with weights made by "
            "formula; the published files themselves were never at hand"
        ),
    ),
    Entry(
        name="mixture",
        kind="reference",
        loader="model.systems.reference_points:load_mixture",
        summary="Does nothing: the mixture itself, SDRi 0 by definition.",
        licence="Apache-2.0",
        source="this project",
        sample_rate_hz=32_000,
        verified="nothing to verify: it has no weights",
        scorer="clapsep-mini",
    ),
    Entry(
        name="oracle-irm",
        kind="reference",
        loader="model.systems.reference_points:load_oracle_irm",
        summary="Knows the target: ideal ratio mask, the mixture's phase; needs references.",
        licence="Apache-2.0",
        source="this project; Wang et al. 2014, TASLP 22(12)",
        sample_rate_hz=32_000,
        verified="against the mask's definition, bin by bin; it has no weights",
        scorer="clapsep-mini",
    ),
    Entry(
        name="audiosep",
        kind="separator",
        loader="model.systems.audiosep:load",
        summary="AudioSep, 4 million steps: positive text queries.",
        licence=f"MIT, as its repository states; CLAP: {_CC0}",
        source="Audio-AGI/AudioSep; Liu et al. 2023, arXiv 2308.05037",
        sample_rate_hz=32_000,
        files=(
            WeightsFile(
                role="audiosep",
                uri="hf://spaces/Audio-AGI/AudioSep/checkpoint/audiosep_base_4M_steps.ckpt",
            ),
            _MUSIC_SPEECH_AUDIOSET,
        ),
        verified=(
            "network and key layout, against the public code at 944583f with weights made by "
            "formula; the published file itself was never at hand, its digest is not known"
        ),
    ),
    Entry(
        name="audiosep-hive",
        kind="separator",
        loader="model.systems.audiosep:load",
        summary="AudioSep trained again on the Hive data: positive text queries.",
        licence=f"Apache-2.0, as its model card states; CLAP: {_CC0}",
        source="AlayaLab/AudioSep-hive; arXiv 2601.22599; network: arXiv 2308.05037",
        sample_rate_hz=32_000,
        files=(
            WeightsFile(
                role="audiosep",
                uri="hf://AlayaLab/AudioSep-hive/audiosep_hive.ckpt",
                sha256="a13fff5fa4ece1a8bc13e42e1c7b8d90e21603075302ca89e4339c9471973300",
                num_bytes=1_264_846_755,
            ),
            _MUSIC_SPEECH_AUDIOSET,
        ),
        verified=(
            "never downloaded here: its name, size and digest are those that its hub lists; that "
            "it has AudioSep's network and layout is taken from what its card calls it, and a file "
            "of another layout is refused. The network: as audiosep"
        ),
    ),
    Entry(
        name="lass-net",
        kind="separator",
        loader="model.systems.lass:load",
        summary="LASS-Net: positive text queries, through a small BERT.",
        licence="none stated in its repository",
        source="liuxubo717/LASS; Liu et al. 2022, arXiv 2203.15147",
        sample_rate_hz=32_000,
        files=(
            WeightsFile(
                role="lass",
                uri=(
                    "https://drive.google.com/uc?export=download&confirm=t"
                    "&id=1f8eCCYYaBdhsFqoi7PJMrT9Oo7GaWLdR"
                ),
            ),
            WeightsFile(role="tokenizer", uri="hf://google-bert/bert-base-uncased/tokenizer.json"),
        ),
        verified=(
            "both networks, against the public code at 8979776 with weights made by formula; the "
            "published file was never at hand, and neither its digest nor its address was tried"
        ),
        scorer="clapsep-mini",
    ),
    Entry(
        name="uss",
        kind="separator",
        loader="model.systems.uss:load",
        summary="USS-ResUNet30 (at_soft): example clips, through a PANNs tagger.",
        licence="Apache-2.0, as its repository states",
        source="bytedance/uss; Kong et al. 2023, arXiv 2305.07447",
        sample_rate_hz=32_000,
        files=(
            WeightsFile(
                role="uss",
                uri=(
                    "hf://RSNuts/Universal_Source_Separation/uss_material/ss_model=resunet30,"
                    "querynet=at_soft,data=full,devices=8,step=1000000.ckpt"
                ),
                num_bytes=1_121_024_828,
            ),
        ),
        verified=(
            "both networks, against the public code at c19e2c5 with weights made by formula; the "
            "published file was never at hand and its digest is not known; its size is the one "
            "that the public code checks"
        ),
        scorer="clapsep-mini",
    ),
    Entry(
        name="waveformer",
        kind="separator",
        loader="model.systems.waveformer:load",
        summary="Waveformer: causal, 41 labels (FSDKaggle2018), can stream.",
        licence="MIT, as its repository states",
        source="vb000/Waveformer; Veluri et al. 2023, arXiv 2211.02250",
        sample_rate_hz=44_100,
        files=(
            WeightsFile(
                role="waveformer",
                uri="https://targetsound.cs.washington.edu/files/default_ckpt.pt",
            ),
        ),
        verified=(
            "the network in two of its published sizes, against the public code at db51a49 with "
            "weights made by formula; the published file was never at hand, its digest is not "
            "known, and its size of network is read from it"
        ),
        scorer="clapsep-mini",
    ),
    Entry(
        name="clap-music-audioset",
        kind="scorer",
        loader="model.registry:load_own_clap",
        summary="The CLAP that published CLAPSep listens with; circular as its scorer.",
        licence=_CC0,
        source=_LAION,
        sample_rate_hz=48_000,
        files=(_MUSIC_AUDIOSET,),
        verified="as clapsep-hybrid",
    ),
    Entry(
        name="clap-music-speech-audioset",
        kind="scorer",
        loader="model.registry:load_own_clap",
        summary="The CLAP of the CLAPScore's authors.",
        licence=_CC0,
        source=f"{_LAION}; as scorer: arXiv 2407.04936",
        sample_rate_hz=48_000,
        files=(_MUSIC_SPEECH_AUDIOSET,),
        verified="as clapsep-hybrid: both files are of one layout",
    ),
)
