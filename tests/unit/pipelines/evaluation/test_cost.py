from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

import tone_runs
from model.catalogue import Entry, WeightsFile
from pipelines.evaluation.cost import bundle_files, measure_cost
from tones import ToneClap, ToneSeparator


class _Separator(ToneSeparator, nn.Module):
    def __init__(self, **networks: nn.Module) -> None:
        nn.Module.__init__(self)
        ToneSeparator.__init__(self)
        for name, network in networks.items():
            self.add_module(name, network)


class _Clap(ToneClap, nn.Module):
    def __init__(self, audio: nn.Module) -> None:
        nn.Module.__init__(self)
        ToneClap.__init__(self)
        self.audio = audio


def _card(*files: Path) -> Entry:
    weights = tuple(WeightsFile(role=path.name, uri=str(path)) for path in files)
    return Entry(
        name="m",
        kind="separator",
        loader="",
        summary="",
        licence="",
        source="",
        sample_rate_hz=8_000,
        files=weights,
    )


def test_shared_parameters_are_counted_once_in_all(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"123")
    shared = nn.Linear(3, 2)
    loaded = dataclasses.replace(
        tone_runs.loaded_tones(),
        separator=_Separator(encoder=shared, decoder=nn.Linear(2, 2, bias=False)),
        query_encoder=_Clap(shared),
        card=_card(file),
    )
    cost = measure_cost(loaded, "cpu")
    assert cost.parameters == {"separator.encoder": 8, "separator.decoder": 4, "clap.audio": 8}
    assert cost.parameters_in_all == 12
    assert cost.file_bytes == {"weights.safetensors": 3}
    assert cost.real_time_factor > 0
    assert cost.threads >= 1


def test_a_system_without_networks_has_no_parameters() -> None:
    cost = measure_cost(dataclasses.replace(tone_runs.loaded_tones(), card=_card()), "cpu")
    assert (cost.parameters, cost.parameters_in_all, cost.file_bytes) == ({}, 0, {})


def test_all_parts_of_a_split_file_belong_to_the_bundle(tmp_path: Path) -> None:
    for name in ("m-1-of-2.bin", "m-2-of-2.bin", "other-1-of-2.bin", "single.bin"):
        (tmp_path / name).touch()
    card = _card(*(tmp_path / name for name in ("m-1-of-2.bin", "single.bin", "absent.bin")))
    assert [path.name for path in bundle_files(card)] == [
        "m-1-of-2.bin",
        "m-2-of-2.bin",
        "single.bin",
    ]
