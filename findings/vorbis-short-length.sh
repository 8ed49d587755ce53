#!/usr/bin/env bash
# A short Ogg Vorbis file is up to 448 samples longer or 256 shorter for FFmpeg than for libsndfile, and than it is.
#
# Guess: a Vorbis file has the same samples for every decoder, as many as were written: its last page says how many.
# Seen (soundfile 0.14.0 with libsndfile 1.2.2, PyAV 17.0.0 and 18.1.0 with FFmpeg 8): libsndfile reads what was written. FFmpeg
# does not where all packets of sound lie in one page, as in clips of some seconds with little in them and in clips of
# 125 ms whatever they hold: 10,000 samples of a tone at 16 kHz are 9,744, 24,000 are 24,448; at 44.1 and 48 kHz 128 are
# missing. The samples are the same from the first on; the end is cut, or padded. Noise of 3 s takes several pages and is
# equal. Who decodes mixture and reference of one clip by different libraries gets two lengths.
# Fails if one of these changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > read.py <<'PYTHON'
import sys

import av
import numpy as np
import soundfile

print(f"libsndfile {soundfile.__libsndfile_version__}, PyAV {av.__version__}")
noise = np.random.default_rng(0).normal(0, 0.1, 200_000)
tone = 0.2 * np.sin(0.04 * np.arange(200_000))
EXPECTED = {
    ("tone", 16_000, 2_000): 2_432,
    ("tone", 16_000, 10_000): 9_744,
    ("tone", 16_000, 24_000): 24_448,
    ("tone", 16_000, 48_000): 47_744,
    ("tone", 44_100, 10_000): 9_872,
    ("tone", 48_000, 48_000): 47_872,
    ("noise", 16_000, 2_000): 2_048,
    ("noise", 16_000, 48_000): 48_000,
    ("noise", 44_100, 132_300): 132_300,
}
changed = False
for (what, rate_hz, length), expected in EXPECTED.items():
    samples = {"tone": tone, "noise": noise}[what][:length]
    soundfile.write("x.ogg", samples, rate_hz, "VORBIS", format="OGG")
    pages = open("x.ogg", "rb").read().count(b"OggS") - 2  # without those of the headers
    read, _ = soundfile.read("x.ogg", dtype="float32")
    with av.open("x.ogg") as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    both = min(length, heard.size)
    same = bool(np.allclose(read[:both], heard[:both], atol=1e-6))
    print(
        f"{what}, {length} samples at {rate_hz} Hz, pages of sound {pages}: libsndfile {read.size}, FFmpeg {heard.size}; "
        f"what both have is equal: {same}"
    )
    changed |= read.size != length or heard.size != expected or not same
sys.exit(changed)
PYTHON
for version in 17.0.0 18.1.0; do
  python3 -m venv "$version"
  "$version/bin/python" -m pip install --quiet "av==$version" soundfile==0.14.0 numpy==2.3.5
  "$version/bin/python" read.py
done
