#!/usr/bin/env bash
# A stretch of an MP3 by seconds: torchcodec, and with it datasets, gives what lies 1,105 samples before it.
#
# Guess: get_samples_played_in_range(1.0, 1.5) are the samples from second 1.0 on, counted from the first that is
# decoded, as soundfile, librosa and a table of segments count them; for MP3 as for FLAC.
# Seen (torchcodec 0.13.0, soundfile 0.14.0): its seconds are those of the container, and an MP3 with an encoder's header
# begins at 1,105 samples there (the delay that is cut off): at 16 kHz every stretch comes 69 ms early, at 44.1 kHz
# 25 ms, without a word; get_all_samples() has the same samples as soundfile. Adding pts_seconds of get_all_samples(), or
# metadata.begin_stream_seconds_from_header, to both ends is right, for FLAC (where it is 0) as well.
# Fails if one of these changes. Needs the shared libraries of FFmpeg, 4 to 8, for torchcodec.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 torchcodec==0.13.0 soundfile==0.14.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import soundfile
from torchcodec.decoders import AudioDecoder

print(f"torchcodec {version('torchcodec')}, libsndfile {soundfile.__libsndfile_version__}")
SHIFTS = range(-2_000, 2_001)


def shift(file, begin_s, later_s):
    """By how many samples a stretch begins off its place in the samples that soundfile reads."""
    samples, rate_hz = soundfile.read(file, dtype="float32")
    got = AudioDecoder(file).get_samples_played_in_range(begin_s + later_s, begin_s + later_s + 0.5)
    found, begin = got.data[0].numpy()[:500], round(begin_s * rate_hz)
    errors = [np.abs(samples[begin + n : begin + n + 500] - found).max() for n in SHIFTS]
    best = int(np.argmin(errors))
    assert errors[best] < 1e-4, errors[best]
    return SHIFTS[best]


seen = {}
for rate_hz in (16_000, 44_100):
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * rate_hz)
    for file in ("noise.mp3", "noise.flac"):
        soundfile.write(file, noise, rate_hz)
        begin_s = AudioDecoder(file).metadata.begin_stream_seconds_from_header
        shifts = [shift(file, at_s, 0.0) for at_s in (0.5, 1.0, 2.0)]
        mended = [shift(file, at_s, begin_s) for at_s in (0.5, 1.0, 2.0)]
        seen[file, rate_hz] = shifts, mended
        print(f"{file} at {rate_hz} Hz: off by {shifts} samples; with {begin_s:.4f} s added {mended}")
expected = {"noise.mp3": -1_105, "noise.flac": 0}
sys.exit(any(each != ([expected[file]] * 3, [0] * 3) for (file, _), each in seen.items()))
PYTHON
