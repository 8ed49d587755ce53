"""A manifest of every kind of bad row, and of good ones that look bad, and what each becomes."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

import tones

GOOD = None
NUM_ROWS = 200


class DeniedFileSystem(MemoryFileSystem):
    """Nobody may read anything here."""

    protocol = "denied"

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        raise PermissionError(f"{path}: not yours")

    size = cat_file


@dataclasses.dataclass
class Hostile:
    """The manifest's lines, and by id the error that a row must end in, or ``GOOD``."""

    folder: Path
    lines: list[str] = dataclasses.field(default_factory=list)
    expected: dict[str, str | None] = dataclasses.field(default_factory=dict)
    unnamed: list[str] = dataclasses.field(default_factory=list)

    def add(self, row_id: str, error: str | None, **columns: Any) -> None:
        row = {"id": row_id, "positive_text": "bell", **columns}
        row = {name: value for name, value in row.items() if value != "absent"}
        self.lines.append(json.dumps(row))
        assert row_id not in self.expected
        self.expected[row_id] = error

    def add_line(self, line: str, error: str) -> None:
        self.lines.append(line)
        self.unnamed.append(error)

    def path(self, name: str) -> str:
        return str(self.folder / name)


def write(folder: Path) -> Hostile:
    """Writes the files and gives the rows, ``NUM_ROWS`` of them."""
    fsspec.register_implementation("denied", DeniedFileSystem, clobber=True)
    folder.mkdir(parents=True, exist_ok=True)
    hostile = Hostile(folder)
    _good_formats(hostile)
    _good_lengths(hostile)
    _bad_files(hostile)
    _bad_places(hostile)
    _bad_rows(hostile)
    _strange_ids(hostile)
    _bad_companions(hostile)
    number = 0
    while len(hostile.lines) < NUM_ROWS:
        hostile.add(
            f"plain {number}", GOOD, mixture_uri=hostile.path("plain.wav"), offset_s=number / 100
        )
        number += 1
    assert len(hostile.lines) == NUM_ROWS
    return hostile


def _sound(rate_hz: int, channels: int, seconds: float = 0.3) -> np.ndarray:
    time_s = np.arange(max(1, round(rate_hz * seconds))) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * tones.frequency_hz("bell") * time_s + 0.5)
    return np.repeat(tone[:, None], channels, axis=1)


def _good_formats(hostile: Hostile) -> None:
    soundfile.write(hostile.path("plain.wav"), _sound(8_000, 1, 1.0), 8_000)
    for rate_hz in (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000):
        for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
            name = f"{rate_hz}-{subtype}.wav"
            soundfile.write(hostile.path(name), _sound(rate_hz, 1), rate_hz, subtype)
            hostile.add(name, GOOD, mixture_uri=hostile.path(name))
    for channels in range(1, 9):
        name = f"{channels} channels.wav"
        soundfile.write(hostile.path(name), _sound(16_000, channels), 16_000)
        hostile.add(name, GOOD, mixture_uri=hostile.path(name))
    for ending in ("mp3", "ogg", "flac", "aiff", "au", "caf", "w64"):
        for channels in (1, 2):
            name = f"{channels}.{ending}"
            soundfile.write(hostile.path(name), _sound(44_100, channels), 44_100)
            hostile.add(name, GOOD, mixture_uri=hostile.path(name))
    soundfile.write(hostile.path("really.flac"), _sound(8_000, 1), 8_000)
    (hostile.folder / "really.flac").rename(hostile.folder / "named.raw")
    hostile.add("flac named raw", GOOD, mixture_uri=hostile.path("named.raw"))


def _good_lengths(hostile: Hostile) -> None:
    for count in (1, 2, 3, 17, 511):
        name = f"{count} samples.wav"
        soundfile.write(hostile.path(name), np.full(count, 0.25), 48_000)
        hostile.add(name, GOOD, mixture_uri=hostile.path(name))
    # Longer than what is held in memory: a minute of 48 kHz in stereo.
    soundfile.write(hostile.path("long.flac"), _sound(8_000, 1, 780), 8_000)
    hostile.add("13 minutes", GOOD, mixture_uri=hostile.path("long.flac"))
    hostile.add(
        "last second of 13 minutes", GOOD, mixture_uri=hostile.path("long.flac"), offset_s=779
    )


def _bad_files(hostile: Hostile) -> None:
    whole = _sound(44_100, 2, 1.0)
    contents = {
        "empty.wav": (b"", "empty_file"),
        "text.wav": (b"this is not audio\n" * 100, "not_audio"),
        "random.flac": (np.random.default_rng(0).bytes(5_000), "not_audio"),
        "page.mp3": (b"<!doctype html><title>404</title>" + b" " * 3_000, "not_audio"),
        "header only.wav": (b"RIFF\x00\x00\x00\x00WAVE", "not_audio"),
        "one byte.ogg": (b"O", "not_audio"),
    }
    for ending, error in (("wav", "truncated"), ("flac", "not_audio"), ("aiff", "truncated")):
        path = hostile.folder / f"cut.{ending}"
        soundfile.write(path, whole, 44_100)
        contents[path.name] = (path.read_bytes()[: path.stat().st_size // 2], error)
    soundfile.write(hostile.folder / "rate.wav", whole, 44_100)
    data = bytearray((hostile.folder / "rate.wav").read_bytes())
    data[24:28] = struct.pack("<I", 0)
    contents["rate.wav"] = (bytes(data), "not_audio")
    for name, (content, error) in contents.items():
        (hostile.folder / name).write_bytes(content)
        hostile.add(name, error, mixture_uri=hostile.path(name))
    arrays = {
        "no samples.wav": (np.zeros((0, 1)), "zero_duration"),
        "silent.wav": (np.zeros((4_000, 1)), "silent"),
        "nan.wav": (np.where(np.arange(4_000) == 2_000, np.nan, 0.1)[:, None], "not_finite"),
        "inf.wav": (np.where(np.arange(4_000) == 2_000, np.inf, 0.1)[:, None], "not_finite"),
        "nine.wav": (np.full((4_000, 9), 0.1), "channels"),
    }
    for name, (samples, error) in arrays.items():
        soundfile.write(hostile.path(name), samples, 8_000, "FLOAT")
        hostile.add(name, error, mixture_uri=hostile.path(name))


def _bad_places(hostile: Hostile) -> None:
    (hostile.folder / "folder.wav").mkdir()
    os.mkfifo(hostile.path("pipe.wav"))
    (hostile.folder / "loop.wav").symlink_to(hostile.folder / "loop.wav")
    places = {
        "missing": (hostile.path("missing.wav"), "missing"),
        "folder": (hostile.path("folder.wav"), "not_a_file"),
        "pipe": (hostile.path("pipe.wav"), "not_a_file"),
        "device": ("/dev/zero", "not_a_file"),
        "loop": (hostile.path("loop.wav"), "io_error"),
        "denied": ("denied://bucket/a.wav", "permission"),
        "missing remote": ("memory://bucket/a.wav", "missing"),
        "no such scheme": ("nonsense://bucket/a.wav", "io_error"),
        "nobody listens": ("http://127.0.0.1:9/a.wav", "missing"),
        "name too long": (hostile.path("x" * 300), "io_error"),
        "zero byte": (hostile.path("a\x00b.wav"), "invalid_row"),
        "not a path": ("file://", "not_a_file"),
    }
    for row_id, (uri, error) in places.items():
        hostile.add(row_id, error, mixture_uri=uri)


def _bad_rows(hostile: Hostile) -> None:
    plain = hostile.path("plain.wav")
    for name, columns in {
        "no query": {"positive_text": "absent"},
        "blank query": {"positive_text": "  "},
        "no mixture": {},
        "two mixtures": {"mixture_uri": plain, "target_uri": plain, "interferer_uris": [plain]},
        "negative offset": {"mixture_uri": plain, "offset_s": -1},
        "no duration": {"mixture_uri": plain, "duration_s": 0},
        "level in words": {"target_uri": plain, "interferer_uris": [plain], "snr_db": "loud"},
        "infinite level": {"target_uri": plain, "interferer_uris": [plain], "snr_db": "inf"},
        "weight of two": {"mixture_uri": plain, "text_weight": 2},
        "seed of a half": {"mixture_uri": plain, "seed": 0.5},
        "list for text": {"mixture_uri": plain, "positive_text": ["a", "b"]},
        "number for uri": {"mixture_uri": 17},
    }.items():
        hostile.add(name, "invalid_row", **{"mixture_uri": "absent", **columns})
    hostile.add("past the end", "zero_duration", mixture_uri=plain, offset_s=10)
    hostile.add("less than a sample", "zero_duration", mixture_uri=plain, duration_s=1e-6)
    hostile.add_line("{not json", "invalid_row")
    hostile.add_line('["a list"]', "invalid_row")
    hostile.add_line(json.dumps({"mixture_uri": plain, "positive_text": "bell"}), "invalid_row")
    hostile.add_line(
        json.dumps({"id": "", "mixture_uri": plain, "positive_text": "x"}), "invalid_row"
    )


def _strange_ids(hostile: Hostile) -> None:
    plain = hostile.path("plain.wav")
    for row_id in (
        "../../etc/x", "/etc/passwd", "a/b", "a\\b", "CON", "con", "nul.flac", ".", "..", "-rf *",
        "x" * 4_000, "Ünïcödé", "日本語", "🐕", "\u202eright to left", "e\u0301", "é", "ABC", "abc",
        "Abc", "a\nb", "a\tb", "100%", "{id}", "$HOME", "`id`", "dataset=x", "a;b", '"quoted"',
    ):  # fmt: skip
        hostile.add(row_id, GOOD, mixture_uri=plain)
    for _ in range(2):
        line = json.dumps({"id": "ABC", "mixture_uri": plain, "positive_text": "again"})
        hostile.add_line(line, "duplicate_id")
    hostile.add("strange partition", GOOD, mixture_uri=plain, dataset="../up", split="a/b=c")


def _bad_companions(hostile: Hostile) -> None:
    plain, silent = hostile.path("plain.wav"), hostile.path("silent.wav")
    missing = hostile.path("missing.wav")
    mixed = {"target_uri": plain, "interferer_uris": [plain]}
    hostile.add("reference missing", "missing", mixture_uri=plain, reference_uri=missing)
    hostile.add("reference silent", GOOD, mixture_uri=plain, reference_uri=silent, duration_s=0.45)
    hostile.add("reference too short", "reference_length", mixture_uri=plain, reference_uri=silent)
    hostile.add("example missing", "missing", mixture_uri=plain, positive_audio_uris=[missing])
    hostile.add("example silent", "silent", mixture_uri=plain, negative_audio_uris=[plain, silent])
    hostile.add("example too long", "too_long", mixture_uri=plain,
                positive_audio_uris=[hostile.path("long.flac")])  # fmt: skip
    hostile.add("interferer silent", "cannot_mix", **{**mixed, "interferer_uris": [plain, silent]})
    hostile.add("target too long", "too_long", **{**mixed, "target_uri": hostile.path("long.flac")})
    hostile.add("mixed", GOOD, **mixed, snr_db=-100)
