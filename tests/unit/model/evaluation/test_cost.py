from __future__ import annotations

from pathlib import Path

from torch import nn

from model.catalogue import Entry, WeightsFile
from model.evaluation.cost import bundle_files, measure
from tones import ToneSeparator


def test_shared_parameters_are_counted_once_in_all(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"123")
    shared = nn.Linear(3, 2)
    parts = {
        "separator": nn.ModuleDict({"encoder": shared, "decoder": nn.Linear(2, 2, bias=False)}),
        "clap": nn.ModuleDict({"audio": shared}),
    }
    cost = measure(ToneSeparator(), parts, [file], "cpu")
    assert cost.parameters == {"separator.encoder": 8, "separator.decoder": 4, "clap.audio": 8}
    assert cost.parameters_in_all == 12
    assert cost.file_bytes == {"weights.safetensors": 3}
    assert cost.real_time_factor > 1
    assert cost.threads >= 1


def test_all_parts_of_a_split_file_belong_to_the_bundle(tmp_path: Path) -> None:
    for name in ("m-1-of-2.bin", "m-2-of-2.bin", "other-1-of-2.bin", "single.bin"):
        (tmp_path / name).touch()
    card = Entry(
        name="m",
        kind="separator",
        loader="",
        summary="",
        licence="",
        source="",
        sample_rate_hz=8_000,
        files=tuple(
            WeightsFile(role=name, uri=str(tmp_path / name))
            for name in ("m-1-of-2.bin", "single.bin", "absent.bin")
        ),
    )
    assert [path.name for path in bundle_files(card)] == [
        "m-1-of-2.bin",
        "m-2-of-2.bin",
        "single.bin",
    ]
