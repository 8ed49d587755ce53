#!/usr/bin/env bash
# A stereo recording as mono: the mean of its channels, or 3 dB louder, by who is asked and for what numbers.
#
# Guess: one channel of two is their mean, as it is in librosa, whichever library makes it.
# Seen (datasets 5.2.0, torchcodec 0.13.0, PyAV 18.1.0): FFmpeg multiplies the sum by 0.5 where integers come out and
# by 0.707 where floats do. Audio(num_channels=1) of datasets decodes to floats: 3.01 dB above the mean that the same
# column gives as "array" without it, and over full scale where both channels pass 0.707. "array" is mono even with
# num_channels=2; get_all_samples() has both channels. Who trains on one and applies to the other, or compares levels,
# SDRs or clipping, averages the channels of get_all_samples() instead.
# Fails if one of these changes. Needs the shared libraries of FFmpeg, 4 to 8, for torchcodec.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 torch==2.13.0 torchcodec==0.13.0 \
    av==18.1.0 soundfile==0.14.0
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import av
import datasets
import numpy as np
import soundfile

print(", ".join(f"{name} {version(name)}" for name in ("datasets", "torchcodec", "av")))
tone = 0.9 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
soundfile.write("stereo.flac", np.stack([tone, tone], axis=1), 16_000, "PCM_24")
column = datasets.Dataset.from_dict({"audio": ["stereo.flac"]})


def decoded(**settings):
    return column.cast_column("audio", datasets.Audio(**settings))[0]["audio"]


def by_pyav(numbers, full_scale):
    with av.open("stereo.flac") as container:
        to_mono = av.AudioResampler(format=numbers, layout="mono")
        frames = [f for each in container.decode(audio=0) for f in to_mono.resample(each)]
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1) / full_scale


def peak(samples):
    return round(float(np.abs(samples).max()), 3)


seen = {
    "datasets, Audio()": peak(decoded()["array"]),
    "datasets, Audio(num_channels=1)": peak(decoded(num_channels=1)["array"]),
    "PyAV, to 16-bit mono": peak(by_pyav("s16", 2**15)),
    "PyAV, to float mono": peak(by_pyav("flt", 1)),
}
for name, value in seen.items():
    print(f"{name}: peak {value}")
two = decoded(num_channels=2)
shapes = two["array"].shape, tuple(two.get_all_samples().data.shape)
print(f"num_channels=2: array {shapes[0]}, get_all_samples() {shapes[1]}")
sys.exit(list(seen.values()) != [0.9, 1.273, 0.9, 1.273] or shapes != ((16_000,), (2, 16_000)))
PYTHON
