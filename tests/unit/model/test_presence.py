"""What says whether a sound is there: the head, its file, and the network that has it."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from golden import pairs
from model import registry
from model.catalogue import BUNDLED
from model.checkpoints.convert import save, save_presence
from model.checkpoints.fetch import CheckpointError
from model.checkpoints.loading import Networks, load_clap, load_converted
from model.checkpoints.tensorfiles import SourceFile, read_converted
from model.clap import Clap
from model.config import TINY, PresenceConfig
from model.systems import Condition, PresenceDetector
from model.systems.clapsep.network import ClapSep, Heard, Listener, PresenceHead

pytestmark = pytest.mark.usefixtures("own_cache")
AUDIO = Path(str(resources.files("manifests") / "examples" / "audio"))
FEATURES, DIM = TINY.clap.audio.num_features, TINY.clap.embedding_dim


def _head() -> PresenceHead:
    torch.manual_seed(0)
    head = PresenceHead(FEATURES, DIM, PresenceConfig(width=8)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    head.scale.fill_(2.0)
    head.similarity.fill_(5.0)
    head.typicality.fill_(3.0)
    head.offset.fill_(-1.5)
    torch.nn.init.normal_(head.typical, std=0.5)
    return head.requires_grad_(False)


def _asked(count: int) -> Condition:
    generator = torch.Generator().manual_seed(1)
    positive, negative = torch.randn(2, count, DIM, generator=generator)
    return Condition(positive=positive, negative=negative)


def _written(folder: Path, networks: Networks) -> tuple[Path, str]:
    sha256 = save(str(folder / "model.safetensors"), networks)
    source = SourceFile(role="model", uri="model.safetensors", sha256=sha256)
    path = folder / "with-presence.safetensors"
    return path, save_presence(str(path), _head(), source)


def _noise(count: int, samples: int = TINY.signal.window_samples) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.1 * torch.randn(count, samples, generator=generator)


def _patch(heard: Heard, places: slice | list[int]) -> Heard:
    return dataclasses.replace(heard, patches=heard.patches[:, places])


def test_it_is_a_smooth_maximum_over_the_patches() -> None:
    head, asked = _head(), _asked(1)
    heard = Heard(patches=torch.randn(1, 9, 8), whole=torch.randn(1, DIM))
    whole = head(heard, asked.positive, asked.negative)
    each = [
        head(_patch(heard, slice(place, place + 1)), asked.positive, asked.negative)
        for place in range(9)
    ]
    assert min(each) <= whole <= max(each)
    same = head(_patch(heard, [0] * 9), asked.positive, asked.negative)
    torch.testing.assert_close(same, each[0])


def test_it_is_calibrated_by_four_numbers() -> None:
    head, asked = _head(), _asked(3)
    heard = Heard(patches=torch.randn(3, 9, 8), whole=torch.randn(3, DIM))
    calibrated = head(heard, asked.positive, asked.negative)
    head.scale.fill_(1.0)
    for number in (head.similarity, head.typicality, head.offset):
        number.fill_(0.0)
    raw = head(heard, asked.positive, asked.negative)
    similar = (heard.whole * asked.positive).sum(-1)
    typical = asked.positive @ head.typical
    torch.testing.assert_close(calibrated, 2.0 * raw + 5.0 * similar - 3.0 * typical - 1.5)


def test_the_file_stands_for_the_model_that_it_names(tmp_path: Path, networks: Networks) -> None:
    path, sha256 = _written(tmp_path, networks)
    found = load_converted(str(path), sha256=sha256)
    assert found.model_sha256 == sha256
    assert found.clap_sha256 == networks.clap_sha256
    assert found.separator.listener is not None
    assert found.separator.listener.tower is found.clap.audio_branch
    for name, value in _head().state_dict().items():
        stored = value.half().float() if value.ndim > 1 else value
        assert torch.equal(found.separator.listener.head.state_dict()[name], stored), name
    assert torch.equal(pairs.answer(found), pairs.answer(networks))
    clap = load_clap(str(path))
    assert torch.equal(clap.audio_projection[0].weight, networks.clap.audio_projection[0].weight)


def test_another_model_under_that_name_is_refused(tmp_path: Path, networks: Networks) -> None:
    path, _ = _written(tmp_path, networks)
    save(str(tmp_path / "model.safetensors"), networks, notes="another")
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        load_converted(str(path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_converted(str(path))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "hf://a/b.safetensors"])
def test_a_model_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    source = SourceFile(role="model", uri=name, sha256="0" * 64)
    save_presence(str(tmp_path / "p.safetensors"), _head(), source)
    with pytest.raises(CheckpointError, match="names no model in its own folder"):
        load_converted(str(tmp_path / "p.safetensors"))


def test_a_head_of_another_size_is_refused(tmp_path: Path, networks: Networks) -> None:
    sha256 = save(str(tmp_path / "model.safetensors"), networks)
    source = SourceFile(role="model", uri="model.safetensors", sha256=sha256)
    head = PresenceHead(FEATURES + 1, DIM, PresenceConfig(width=8))
    save_presence(str(tmp_path / "p.safetensors"), head, source)
    with pytest.raises(CheckpointError, match=r"presence\."):
        load_converted(str(tmp_path / "p.safetensors"))


@pytest.fixture
def one_rate() -> ClapSep:
    """A network whose encoder hears at the rate, and by the spectrogram, that it masks."""
    signal = TINY.signal
    tower = dataclasses.replace(
        TINY.clap.audio,
        sample_rate_hz=signal.sample_rate_hz,
        n_fft=signal.n_fft,
        hop_samples=signal.hop_samples,
        clip_samples=signal.window_samples,
    )
    clap = Clap(dataclasses.replace(TINY.clap, audio=tower))
    torch.manual_seed(0)
    network = ClapSep(dataclasses.replace(TINY, clap=clap.config))
    network.listener = Listener(clap.audio_branch, clap.audio_projection, _head())
    return network.eval().prepare()


@pytest.fixture
def listening(tmp_path: Path, networks: Networks) -> ClapSep:
    found = load_converted(str(_written(tmp_path, networks)[0]))
    found.clap.prepare()
    return found.separator.prepare()


def test_a_network_without_a_head_does_not_say(networks: Networks) -> None:
    assert isinstance(networks.separator, PresenceDetector)
    with torch.inference_mode():
        encoded = networks.separator.encode(_noise(1))
        assert networks.separator.presence(encoded, _asked(1)) is None


def test_the_odds_are_of_each_mixture_and_query_alone_to_the_bit(listening: ClapSep) -> None:
    mixtures, asked = _noise(3), _asked(5)
    rows = torch.tensor([2, 0, 0, 1, 2])
    with torch.inference_mode():
        together = listening.presence(listening.encode(mixtures).index(rows), asked)
        assert together is not None
        for place, row in enumerate(rows.tolist()):
            alone = listening.presence(
                listening.encode(mixtures[row : row + 1]), asked.index(torch.tensor([place]))
            )
            assert alone is not None
            assert torch.equal(alone, together[place : place + 1])
    assert len(set(together.tolist())) == 5


def test_a_spectrogram_that_both_take_is_computed_once(
    one_rate: ClapSep, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture, asked = _noise(2, one_rate.window_samples), _asked(2)
    transforms: list[int] = []
    stft = torch.stft

    def counted(waveform: Tensor, n_fft: int, *rest: object, **named: object) -> Tensor:
        transforms.append(n_fft)
        return stft(waveform, n_fft, *rest, **named)

    monkeypatch.setattr(torch, "stft", counted)
    with torch.inference_mode():
        shared = one_rate.encode(mixture)
        assert len(transforms) == 1
        apart = one_rate.encode(mixture, mixture.clone())
        assert len(transforms) == 4
        assert torch.equal(one_rate.decode(shared, asked), one_rate.decode(apart, asked))
        odds = [one_rate.presence(each, asked) for each in (shared, apart)]
    assert odds[0] is not None
    assert odds[1] is not None
    assert torch.equal(odds[0], odds[1])


def test_a_short_window_is_followed_by_silence(listening: ClapSep) -> None:
    short = _noise(1, 900)
    padded = torch.nn.functional.pad(short, (0, TINY.signal.window_samples - 900))
    with torch.inference_mode():
        odds = [listening.presence(listening.encode(each), _asked(1)) for each in (short, padded)]
    assert odds[0] is not None
    assert odds[0].isfinite().all()
    torch.testing.assert_close(odds[0], odds[1], rtol=0, atol=0.1)


def test_the_network_takes_it_to_lower_precision(listening: ClapSep) -> None:
    with torch.inference_mode():
        exact = listening.presence(listening.encode(_noise(2)), _asked(2))
        listening.precision = "bf16"
        rough = listening.presence(listening.encode(_noise(2)), _asked(2))
    assert exact is not None
    assert rough is not None
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.2)


def test_the_bundled_model_says_whether_a_sound_is_there() -> None:
    entry = registry.find("clapsep-mini")
    file = entry.file("presence")
    model = registry.load("clapsep-mini")
    assert isinstance(model.separator, ClapSep)
    assert model.separator.listener is not None
    assert model.model_sha256 == file.sha256
    header = read_converted(file.location(), sha256=file.sha256).header
    base = entry.file("converted")
    assert [(each.uri, each.sha256) for each in header.sources] == [
        (Path(base.uri).name.removeprefix(BUNDLED), base.sha256)
    ]
    bark, river = (
        soundfile.read(AUDIO / name, dtype="float32", frames=160_000)[0]
        for name in ("dog_barking.flac", "river.flac")
    )
    length = min(len(bark), len(river), 160_000)
    windows = torch.from_numpy(np.stack([bark[:length], river[:length]]))
    positive = model.query_encoder.embed_text(["a dog barking"]).expand(2, -1)
    condition = Condition(positive=positive, negative=torch.zeros_like(positive))
    with torch.inference_mode():
        there, absent = model.separator.presence(model.separator.encode(windows), condition)
    assert there > absent


def test_what_was_heard_is_kept_as_bytes_and_answers_the_same() -> None:
    head, asked = _head(), _asked(1)
    patches = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(3))
    whole = torch.nn.functional.normalize(torch.ones(2, DIM), dim=-1)
    heard = Heard(patches=patches, whole=whole)
    kept = heard.packed()
    again = Heard.unpacked(kept, torch.device("cpu"))
    assert (again.patches.shape, again.whole.shape) == ((2, 9, 8), (2, DIM))
    assert torch.equal(again.patches, patches.half().float())
    assert again.packed() == kept
    nothing = torch.zeros(2, DIM)
    positive = asked.positive.expand(2, -1)
    odds = [float(head(each, positive, nothing).max()) for each in (heard, again)]
    assert odds[0] == pytest.approx(odds[1], abs=0.05)
    for data in (kept[:-1], kept[:7], b""):
        with pytest.raises(ValueError, match="are not what was heard"):
            Heard.unpacked(data, torch.device("cpu"))


def test_a_listener_keeps_what_it_needs_to_answer_later_queries() -> None:
    loaded = registry.load("clapsep-mini")
    listener = loaded.separator.listener  # type: ignore[attr-defined]
    samples, _ = soundfile.read(AUDIO / "dog_barking.flac", dtype="float32")
    length = loaded.query_encoder.clip_samples
    passes = torch.from_numpy(np.resize(samples, (2, length)))
    with torch.inference_mode():
        vectors, kept = listener.listen(passes)
        expected = loaded.query_encoder.embed_audio(list(passes))
        assert torch.allclose(vectors, expected, atol=1e-5)
        (positive,) = loaded.query_encoder.embed_text(["a dog barking"])
        heard = listener.hear(passes)
        nothing = torch.zeros(2, len(positive))
        odds = listener.head(heard, positive.expand(2, -1), nothing)
    assert listener.answer(kept, positive) == pytest.approx(float(odds.max()), abs=0.02)
