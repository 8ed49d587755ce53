"""laion_clap's network, imported without what the package does on import."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from torch import nn

from model.clap import laion
from model.config import TINY

ROOT = Path(__file__).parents[3]

OFFLINE = """
import socket, sys
def forbidden(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = forbidden
socket.create_connection = socket.getaddrinfo = forbidden
import model.signal, model.checkpoints.convert, model.clap, model.systems.clapsep.network
import model.systems, model.systems.clapsep.lora, model.metrics, model.registry, model.clap
import model.signal.windowing
before = sorted(sys.modules)
network = model.systems.clapsep.network.ClapSep(model.config.TINY)
heavy = {"torchvision", "wandb", "apache_beam", "laion_clap", "laion_clap.clap_module",
         "laion_clap.training", "laion_clap.hook"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not {"transformers", "peft", "laion_clap.clap_module.htsat"} & set(before)
print(type(network).__name__)
"""


def test_import_opens_no_connection_and_loads_no_more_than_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ClapSep\n"), done.stderr


def test_threads_get_the_same_module() -> None:
    with ThreadPoolExecutor(8) as pool:
        modules = list(pool.map(lambda _: laion.htsat_module.__wrapped__(), range(16)))
    assert {id(module) for module in modules} == {id(laion.htsat_module())}


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    laion.htsat_module()
    monkeypatch.delitem(sys.modules, "laion_clap.clap_module.htsat")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install laion-clap"):
        laion.htsat_module.__wrapped__()


def test_network_has_no_classifier_and_no_convolutional_stft() -> None:
    network = laion.build_htsat(TINY.clap.audio)
    roots = {key.split(".")[0] for key in network.state_dict()}
    assert roots == {"bn0", "patch_embed", "layers", "norm", "logmel_extractor"}


def test_mel_filterbank_is_the_reference_shape() -> None:
    network = laion.build_htsat(TINY.clap.audio)
    filters = network.state_dict()["logmel_extractor.melW"]
    assert filters.shape == (129, 32)
    assert (filters >= 0).all()


def test_a_network_that_may_learn_everything_keeps_its_mel_filters() -> None:
    network = laion.build_htsat(TINY.clap.audio).requires_grad_(True)
    learnt = {name for name, value in network.named_parameters() if value.requires_grad}
    assert "bn0.weight" in learnt
    assert not any(name.startswith("logmel_extractor") for name in learnt)


def test_block_of_a_grid_as_small_as_the_window_is_not_shifted() -> None:
    shifted = laion.swin_block(8, 16, 1, 8, True, 4.0, 0.0)
    whole = laion.swin_block(8, 8, 1, 8, True, 4.0, 0.0)
    assert (shifted.shift_size, whole.shift_size) == (4, 0)
    assert whole.attn_mask is None


def test_initialisation() -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(400, 400), nn.LayerNorm(5)
    nn.init.normal_(norm.weight)
    for module in (linear, norm, nn.Identity()):
        laion.init_weights(module)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not linear.bias.any()
    assert (norm.weight == 1).all()
    assert not norm.bias.any()


@pytest.mark.parametrize("n_fft", [256, 1024])
def test_hann_window_is_periodic(n_fft: int) -> None:
    expected = scipy.signal.get_window("hann", n_fft, fftbins=True)
    np.testing.assert_allclose(laion.torch_hann(n_fft).numpy(), expected, atol=6e-8)
