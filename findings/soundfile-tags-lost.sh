#!/usr/bin/env bash
# Tags that go through soundfile: in WAV a long one takes all that follow it along, in MP3 umlauts are garbled.
#
# Guess: a file's title, artist, comment and the like come back as they were set, in each format that has them.
# Seen (soundfile 0.14.0 with libsndfile 1.2.2): FLAC, Ogg Vorbis and Opus, yes. WAV and RF64: a text of 2,046 bytes or
# more comes back empty, and so does every text behind it, though all are in the file (PyAV 15.1.0, FFmpeg 7, reads
# them); one of 2,045 bytes is right, and several of 1,500 are. A WAV title that is Latin-1, as Windows wrote
# them, comes back as "B?che" with U+FFFD. MP3: "Bäche" comes back as "BÃ¤che" from soundfile and FFmpeg alike, since
# UTF-8 is written where Latin-1 is announced; copyright and license are silently not written.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet soundfile==0.14.0 numpy==2.3.5 av==15.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np
import soundfile

print(f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__}")
SAMPLES = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)


def write(form: str, **texts: str) -> None:
    with soundfile.SoundFile("x", "w", 48_000, 1, format=form) as file:
        for name, text in texts.items():
            setattr(file, name, text)
        file.write(SAMPLES)


def read(*names: str) -> list[str]:
    with soundfile.SoundFile("x") as file:
        return [getattr(file, name) for name in names]


def by_ffmpeg(*names: str) -> list[str]:
    with av.open("x", metadata_errors="ignore") as container:
        said = {**container.streams.audio[0].metadata, **container.metadata}
    lower = {name.lower(): text for name, text in said.items()}
    return [lower.get(name, "") for name in names]


names = ("title", "comment", "artist")
found = []
for form in ("FLAC", "OGG", "WAV", "RF64"):
    for length in (2_045, 2_046):
        write(form, title="Bäche", comment="x" * length, artist="A. Bird")
        heard, there = read(*names), by_ffmpeg(*names)
        whole = [title == "Bäche" and len(text) == length and artist == "A. Bird" for title, text, artist in (heard, there)]
        print(f"{form}, a comment of {length} bytes: whole by soundfile {whole[0]}, by FFmpeg {whole[1]}; "
              f"soundfile's artist {heard[2]!r}")
        found.append(whole)
expected = [[True, True]] * 4 + [[True, True], [False, True]] * 2
write("WAV", title="X?che", artist="A. Bird")
data = open("x", "rb").read().replace("X?che".encode(), "Bäche".encode("latin-1"))
open("x", "wb").write(data)
latin = read("title", "artist")
print(f"WAV, Latin-1: {latin}")
write("MP3", title="Bäche", copyright="me", license="CC0", comment="x" * 200)
garbled = read("title", "copyright", "license"), by_ffmpeg("title")
print(f"MP3: soundfile {garbled[0]}, FFmpeg {garbled[1]}")
sys.exit(
    found != expected
    or latin != ["B\ufffdche", "A. Bird"]
    or garbled != (["BÃ¤che", "", ""], ["BÃ¤che"])
)
PYTHON
