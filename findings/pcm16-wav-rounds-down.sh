#!/usr/bin/env bash
# Float samples written as 16-bit WAV by soundfile are rounded down, not to the nearest step; as FLAC they are not.
#
# Guess: 16-bit files have the error of rounding: mean 0, RMS 0.289 of a step, in WAV as in FLAC.
# Seen (soundfile 0.14.0 with libsndfile 1.2.2): WAV, AIFF, W64 and CAF have a mean of -0.5 of a step and an RMS of
# 0.577: a constant offset, and 6 dB more noise than FLAC, which rounds to the nearest. The same samples as WAV and
# as FLAC of 16 bits are then not equal: half of them differ by one step.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet soundfile==0.14.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import soundfile

print(f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}")
samples = np.random.default_rng(0).uniform(-0.5, 0.5, 100_000)
steps, means = {}, {}
for form in ("WAV", "AIFF", "W64", "CAF", "FLAC"):
    soundfile.write("x", samples, 48_000, "PCM_16", format=form)
    steps[form], _ = soundfile.read("x", dtype="int16")
    error = steps[form] - samples * 2**15
    means[form] = round(float(error.mean()), 2)
    print(f"{form}: mean {error.mean():+.3f}, RMS {np.sqrt(np.mean(error**2)):.3f} of a step")
differ = float(np.mean(steps["WAV"] != steps["FLAC"]))
print(f"{100 * differ:.0f} % of the samples differ between WAV and FLAC")
down = {form for form, mean in means.items() if mean == -0.5}
sys.exit(down != {"WAV", "AIFF", "W64", "CAF"} or means["FLAC"] != 0.0)
PYTHON
