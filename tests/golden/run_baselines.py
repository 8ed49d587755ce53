"""Runs the baselines' public code on weights made by formula and stores what it gives.

``python tests/golden/run_baselines.py SYSTEM CHECKOUT…`` with the folders of the public code first
on the path; that code is no part of this project. ``data/baselines.md`` says which commits.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import baselines, synth

RATE_HZ = 32_000


def filled(network: torch.nn.Module, namespace: str, prefix: str = "") -> Any:
    """The network with its tensors drawn; what is not drawn stays as it was built."""
    shapes = {prefix + key: tuple(value.shape) for key, value in network.state_dict().items()}
    drawn = baselines.formula_state(namespace, shapes)
    state = {key.removeprefix(prefix): torch.from_numpy(value) for key, value in drawn.items()}
    network.load_state_dict(state, strict=False)
    return network.eval()


def layout(network: torch.nn.Module, prefix: str = "") -> np.ndarray:
    """Every key with its shape, one a line: what a checkpoint of the network holds."""
    lines = [
        f"{prefix}{key} {','.join(map(str, value.shape))}"
        for key, value in network.state_dict().items()
    ]
    return np.array("\n".join(lines))


def resunet30(module: Any, condition_size: int, namespace: str) -> Any:
    """AudioSep's or USS's separation network."""
    network = module.ResUNet30(input_channels=1, output_channels=1, condition_size=condition_size)
    return filled(network, namespace, "ss_model.")


def audiosep() -> dict[str, np.ndarray]:
    """Two queries of one mixture whose length is no whole number of hops."""
    from models import resunet

    network = resunet30(resunet, 512, "audiosep")
    mixture = torch.from_numpy(baselines.mixture(1000, RATE_HZ, 32_100))
    queries = torch.from_numpy(np.stack([synth.unit_embed(seed) for seed in (1100, 1101)]))
    given = {"mixture": mixture.expand(2, 1, -1), "condition": queries}
    return {"wav": network(given)["waveform"][:, 0].numpy(), "layout": layout(network, "ss_model.")}


def uss() -> dict[str, np.ndarray]:
    """The query net's answer to two clips, and what is separated with either."""
    from panns_inference.models import Cnn14
    from uss.models import resunet

    query_net = Cnn14(
        sample_rate=RATE_HZ, window_size=1024, hop_size=320, mel_bins=64, fmin=50, fmax=14000,
        classes_num=527,
    )  # fmt: skip
    filled(query_net, "uss", "query_net.base.")
    clips = np.stack([baselines.mixture(seed, RATE_HZ, 64_000) for seed in (1001, 1002)])
    queries = query_net(torch.from_numpy(clips))["clipwise_output"]
    network = resunet30(resunet, 527, "uss")
    mixture = torch.from_numpy(baselines.mixture(1000, RATE_HZ, 32_000))
    given = {"mixture": mixture.expand(2, 1, -1), "condition": queries}
    lines = (layout(network, "ss_model."), layout(query_net, "query_net.base."))
    return {
        "wav": network(given)["waveform"][:, 0].numpy(),
        "queries": queries.numpy(),
        "layout": np.array("\n".join(map(str, lines))),
    }


def lass() -> dict[str, np.ndarray]:
    """Two queries, as token ids of unequal length, of one mixture."""
    from transformers import BertConfig, BertModel

    def bert(name: str, **options: Any) -> Any:
        config = BertConfig(
            hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
        )
        return BertModel(config, add_pooling_layer=options["add_pooling_layer"])

    here = types.SimpleNamespace(from_pretrained=bert)
    sys.modules["transformers"] = types.SimpleNamespace(
        BertModel=here,
        BertTokenizer=types.SimpleNamespace(from_pretrained=lambda name: None),
        __all__=["BertModel", "BertTokenizer"],
    )
    import librosa

    pad_center = librosa.util.pad_center  # took the size by position when the code was written
    librosa.util.pad_center = lambda data, size: pad_center(data, size=size)
    from model.LASSNet import LASSNet
    from utils.stft import STFT

    network = filled(LASSNet("cpu"), "lass")
    ids, mask = torch.from_numpy(baselines.TOKENS), torch.from_numpy(baselines.TOKENS > 0).long()
    network.text_embedder.tokenize = lambda caption: (ids, mask)
    stft = STFT()
    mixture = torch.from_numpy(baselines.mixture(1000, RATE_HZ, 30_720)).expand(2, -1)
    magnitude, phase = stft.transform(mixture)
    estimated = network(magnitude.transpose(2, 1).unsqueeze(1), None)
    wav = stft.inverse(estimated[:, 0].transpose(2, 1) * magnitude, phase)
    return {
        "wav": wav[:, 0].numpy(),
        "queries": network.text_embedder(ids, mask)[0].numpy(),
        "layout": layout(network),
    }


def waveformer() -> dict[str, np.ndarray]:
    """Two queries of one mixture, no whole number of chunks long; both sizes of network."""
    from src.training.dcc_tf import Net

    found: dict[str, np.ndarray] = {}
    labels = torch.zeros(2, 41)
    labels[0, 2], labels[1, [5, 9]] = 1.0, 1.0
    mixture = torch.from_numpy(baselines.mixture(1000, 44_100, 22_091)).expand(2, 1, -1)
    for encoder, decoder in ((256, 128), (512, 256)):
        network = filled(
            Net(41, L=32, enc_dim=encoder, num_enc_layers=10, dec_dim=decoder, num_dec_layers=1,
                dec_buf_len=13, dec_chunk_size=13, out_buf_len=4),
            "waveformer",
        )  # fmt: skip
        size = f"{encoder}_{decoder}"
        found[f"wav_{size}"] = network(mixture, labels)[:, 0].numpy()
        found[f"layout_{size}"] = layout(network)
    return found


def run(argv: list[str] | None = None) -> None:
    """Stores one system's outputs in ``data``."""
    systems = {"audiosep": audiosep, "uss": uss, "lass": lass, "waveformer": waveformer}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=systems)
    parser.add_argument("checkout", nargs="+")
    options = parser.parse_args(argv)
    sys.path[:0] = options.checkout
    torch.set_num_threads(1)
    with torch.no_grad():
        arrays = systems[options.system]()
    for key, value in arrays.items():
        if value.dtype.kind == "f":
            between = np.sqrt(np.mean((value[0] - value[1]) ** 2) / np.mean(value**2))
            sys.stdout.write(
                f"{key} {value.shape}: rms {np.sqrt(np.mean(value**2)):.4f}, "
                f"queries differ by {between:.2f}\n"
            )
    np.savez_compressed(baselines.DATA / f"baseline_{options.system}.npz", **arrays)


if __name__ == "__main__":
    run()
