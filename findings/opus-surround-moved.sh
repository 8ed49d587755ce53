#!/usr/bin/env bash
# Surround sound that soundfile writes as Ogg: channels change places, and one of them keeps nothing above its bass.
#
# Guess: what is written as 5.1 in Opus or Vorbis comes back with each channel in its place, as from FLAC.
# Seen (soundfile 0.14.0 with libsndfile 1.2.2, PyAV 18.1.0 with FFmpeg 8.1.2): libsndfile hands its channels on as
# they are, in WAV's order (left, right, centre, bass, back left, back right), while Vorbis's is left, centre, right,
# back left, back right, bass. For FFmpeg, which goes by that, the right is the centre, and of 6 channels the
# back right is the bass, of which the encoder keeps the lowest tones alone: 1,800 Hz is gone, in libsndfile's own reading
# too, in which the order looks right. Of 3 and 5 channels two change places; of 2 and 4 none does. FLAC keeps all.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet soundfile==0.14.0 numpy==2.3.5 av==18.1.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np
import soundfile

print(f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__}")
RATE_HZ = 48_000


def tones(samples):
    """Which of the tones 300 Hz, 600 Hz, … each channel has; 0 where it has none."""
    spectrum = np.abs(np.fft.rfft(samples[RATE_HZ // 4 : -RATE_HZ // 4], axis=0))
    strongest = spectrum.argmax(axis=0) / len(spectrum) * RATE_HZ / 2 / 300
    return [round(tone) if peak > 100 else 0 for tone, peak in zip(strongest, spectrum.max(axis=0), strict=True)]


def by_ffmpeg(channels):
    with av.open("x") as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    planar = len(frames[0]) == channels
    whole = [frame if planar else frame.reshape(-1, channels).T for frame in frames]
    return np.concatenate(whole, axis=1).T / (1 if planar else 2**31)


seen = {}
time = np.arange(RATE_HZ)[:, None] / RATE_HZ
for channels in (2, 3, 4, 5, 6):
    samples = 0.2 * np.sin(2 * np.pi * 300 * np.arange(1, channels + 1) * time)
    for form, kind in (("FLAC", "PCM_24"), ("OGG", "OPUS"), ("OGG", "VORBIS")):
        with soundfile.SoundFile("x", "w", RATE_HZ, channels, kind, format=form) as file:
            for begin in range(0, RATE_HZ, 4_800):
                file.write(samples[begin : begin + 4_800])
        read = soundfile.read("x")[0]
        seen[channels, kind] = tones(read), tones(by_ffmpeg(channels))
        print(f"{channels} channels, {kind}: libsndfile reads {seen[channels, kind][0]}, FFmpeg {seen[channels, kind][1]}")
expected = {2: [1, 2], 3: [1, 3, 2], 4: [1, 2, 3, 4], 5: [1, 3, 2, 4, 5], 6: [1, 3, 2, 0, 4, 5]}
own = {**{n: list(range(1, n + 1)) for n in expected}, 6: [1, 2, 3, 4, 5, 0]}
for (channels, kind), found in seen.items():
    whole = list(range(1, channels + 1))
    if found != ((whole, whole) if kind == "PCM_24" else (own[channels], expected[channels])):
        sys.exit(1)
PYTHON
