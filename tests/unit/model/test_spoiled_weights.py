"""Files that are not the weights they should be end in one clear error."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from golden import pairs, published
from model.checkpoints.fetch import CheckpointError

pytestmark = pytest.mark.usefixtures("own_cache")

# Ways to spoil a pair. Each writes its file over the good one and returns the message's pattern.

Spoil = Callable[[pairs.Pair, tuple[Path, Path]], str]
DECODER_KEY = "decoder_model.film.norm.bias"


def missing_key(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    del pair.clapsep[DECODER_KEY]
    torch.save(pair.clapsep, paths[1])
    return rf"clapsep\.ckpt: not this network's weights: 1 missing \({DECODER_KEY}\)$"


def missing_adapter(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    del pair.clapsep["audio_branch.layers.0.blocks.1.attn.proj.lora_B"]
    torch.save(pair.clapsep, paths[1])
    return r"1 missing \(audio_branch\.layers\.0\.blocks\.1\.attn\.proj\.lora_B\)$"


def missing_tower(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    kept = {key: value for key, value in pair.clap.items() if not key.startswith("text_branch")}
    torch.save(pairs.clap_checkpoint(kept), paths[0])
    return r"clap\.pt: .* 23 missing \(text_branch\.[^)]*, … 13 more\)$"


def extra_key(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {"decoder_model.extra.weight": torch.ones(2)}, paths[1])
    return r"1 unexpected \(decoder_model\.extra\.weight\)$"


def wrong_shape(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {DECODER_KEY: torch.ones(17)}, paths[1])
    return rf"1 misshapen \({DECODER_KEY}: found \[17\], expected \[16\]\)$"


def wrong_rank(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    halved = {
        k: v[:1] if k.endswith("lora_A") else v[:, :1] if k.endswith("lora_B") else v
        for k, v in pair.clapsep.items()
    }
    torch.save(halved, paths[1])
    return r"16 misshapen \(.*lora_A: found \[1, 8\], expected \[2, 8\]"


def another_size(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(published.hollow_state("clapsep"), paths[1])
    return r"clapsep\.ckpt: .*\d+ unexpected .*\d+ misshapen .* … \d+ more\)$"


def nested_wrongly(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save({"model": {"state_dict": pair.clapsep}}, paths[1])
    return r"clapsep\.ckpt: not a state dict: 1 are \(model\) not tensors$"


def a_list(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(list(pair.clapsep.values()), paths[1])
    return r"clapsep\.ckpt: expected a dict of tensors, found list$"


def no_weights(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save({"epoch": 3, "state_dict": {}}, paths[1])
    return r"clapsep\.ckpt: expected a dict of tensors, found an empty dict$"


def integer_weights(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {DECODER_KEY: torch.ones(16, dtype=torch.int8)}, paths[1])
    return rf"1 of another type \({DECODER_KEY}: found torch\.int8, expected torch\.float32\)$"


def not_a_number(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {DECODER_KEY: torch.full((16,), torch.nan)}, paths[1])
    return rf"1 with NaN or infinite values \({DECODER_KEY}\)$"


def swapped(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)
    return r"clap\.pt: expected a CLAP checkpoint, found a CLAPSep checkpoint$"


def pickle_with_code(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    torch.save(pair.clapsep | {"hook": threading.Thread}, paths[1])
    return r"clapsep\.ckpt: the pickle asks for threading\.Thread, .*; it was not run$"


def truncated(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[1].write_bytes(paths[1].read_bytes()[:-1000])
    return r"clapsep\.ckpt: only a part of a torch file \(\d+ bytes\)$"


def empty(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[1].write_bytes(b"")
    return r"clapsep\.ckpt: the file is empty$"


def web_page(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[0].write_text("<!DOCTYPE html><html><head><title>429 Too Many Requests")
    return r"clap\.pt: a web page, not weights"


def lfs_pointer(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:fae3\nsize 2352\n")
    return r"clap\.pt: a Git LFS pointer"


def absent(pair: pairs.Pair, paths: tuple[Path, Path]) -> str:
    paths[0].unlink()
    return r"clap\.pt: no such file$"


@pytest.mark.parametrize(
    "spoil",
    [
        missing_key,
        missing_adapter,
        missing_tower,
        extra_key,
        wrong_shape,
        wrong_rank,
        another_size,
        nested_wrongly,
        a_list,
        no_weights,
        integer_weights,
        not_a_number,
        swapped,
        pickle_with_code,
        truncated,
        empty,
        web_page,
        lfs_pointer,
        absent,
    ],
)
def test_spoiled_file_gives_one_clear_error(
    tmp_path: Path, pair: pairs.Pair, spoil: Spoil, recwarn: pytest.WarningsRecorder
) -> None:
    paths = pairs.write(tmp_path, pair)
    pattern = spoil(pair, paths)
    gc.collect()  # what earlier tests left open is said now, and is not this file's
    recwarn.clear()
    with pytest.raises(CheckpointError, match=pattern) as caught:
        pairs.load(paths)
    message = str(caught.value)
    assert message.startswith(str(tmp_path))
    assert "\n" not in message
    assert not [str(w.message) for w in recwarn]
