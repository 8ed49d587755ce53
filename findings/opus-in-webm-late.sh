#!/usr/bin/env bash
# Opus in WebM, written by FFmpeg 5 from speech at 16 kHz, begins 4.3 ms late in PyAV 18 and in its place in 17.
#
# Guess: an upgrade of PyAV moves no sample of a WebM file that FFmpeg itself wrote: a decoder drops what the encoder
# put before the recording, as many samples as the codec's own header says (312 of 48 kHz).
# Seen: FFmpeg 5 (Debian 12 has 5.1) counts these samples at the input's rate when it writes WebM's CodecDelay, so
# that it says 104 where the header says 312. PyAV 17.0.0 (FFmpeg 8.0.1) goes by the header: 14,400 samples, the
# sound where it was. PyAV 18.1.0 (FFmpeg 8.1.2) goes by CodecDelay: 208 samples more, and every sound 208 samples
# (4.3 ms) later, without a warning. Files from 48 kHz are the same in both. A reference in WAV is aligned with one
# decoding and not with the other, and every SDR against it falls. Right is to drop as many samples as bytes 10
# and 11 of the stream's extradata say.
# The file below: `ffmpeg -f f32le -ar 16000 -ac 1 -i SOUND -fflags +bitexact -c:a libopus -b:a 12k
# -application voip`, version 5.1.9-0+deb12u1; 0.3 s with 10 ms of a tone of 1 kHz around 0.155 s.
# Fails if one of the two reads it otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
base64 --decode > speech.webm <<'WEBM'
GkXfo59ChoEBQveBAULygQRC84EIQoKEd2VibUKHgQRChYECGFOAZwEAAAAAAAL1EU2bdLpNu4tTq4QVSalmU6yBoU27i1OrhBZU
rmtTrIHGTbuMU6uEElTDZ1OsggEwTbuMU6uEHFO7a1OsggLf7AEAAAAAAABZAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAVSalmoCrXsYMPQkBNgIRM
YXZmV0GETGF2ZkSJiEBzQAAAAAAAFlSua+WuAQAAAAAAAFzXgQFzxYgAAAAAAAAAAZyBACK1nIN1bmSIgQCGhkFfT1BVU1aqgyEP
i1a7hATEtACDgQLhkZ+BAbWIQM9AAAAAAABiZIEgY6KTT3B1c0hlYWQBATgBgD4AAAAAABJUw2fSc3PPY8CLY8WIAAAAAAAAAAFn
yJlFo4dFTkNPREVSRIeMTGF2YyBsaWJvcHVzZ8iiRaOIRFVSQVRJT05Eh5QwMDowMDowMC4zMDgwMDAwMDAAAB9DtnVBUueBAKOM
gQAAgEgL5ME27MWAo42BABWASAfJcifhROpQo4yBACmASAfJecjJV8CjjIEAPYBIB8l5yMlXwKOMgQBRgEgHyXnIyVfAo4yBAGWA
SAfJecjJV8CjjIEAeYBIB8l5yMlXwKPGgQCNgEiAAog/3+Gl2oBPIMbMhuCfaGwVYeYklgfJQShA76760XOfXWXSF55rmvCHFZA9
eoZB65/UesS3LanX7RW+iGrugKOzgQChgEisO3GWhiu+7ORipu+lDYPtg6qKQnNlYyHarxTXAoEwZxOweIDTlNxAmR6/2mngo4+B
ALWASC57AL+NadGI2c6jjIEAyYBICh9alhzYjKONgQDdgEgHyXnFNPrAJqOMgQDxgEgHyXnIyVfAo4yBAQWASAfJecjJV8CjjIEB
GYBIB8l5yMlXwKCVoYyBAS0ASAfJecjJV8B1ooQAzf5gHFO7a5G7j7OBALeK94EB8YIBh/CBAw==
WEBM
cat > read.py <<'PYTHON'
import sys

import av
import numpy as np

with av.open("speech.webm") as container:
    stream = container.streams.audio[0]
    header = stream.codec_context.extradata
    samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
loudest = int(np.convolve(np.abs(samples), np.hanning(481), "same").argmax())
late = loudest - round(0.155 * 48_000)
print(
    f"PyAV {av.__version__}: {samples.size} samples at 48 kHz, the tone {late} late; "
    f"the header says to drop {int.from_bytes(header[10:12], 'little')}"
)
expected = {"17.0.0": (14_400, 0), "18.1.0": (14_608, 208)}[av.__version__]
sys.exit(samples.size != expected[0] or abs(late - expected[1]) > 5)
PYTHON
for version in 17.0.0 18.1.0; do
  python3 -m venv "$version"
  "$version/bin/python" -m pip install --quiet "av==$version" numpy==2.3.5
  "$version/bin/python" read.py
done
