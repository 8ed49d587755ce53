"""Makes the README's pictures from the bundled demo: ``make pictures``.

``extraction.png`` shows spectrograms of mixture, stem and reference; ``report.png`` shows the page
that ``clapsep report`` writes, in Chromium, which has to be installed. Each has less than 150 kB.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import soundfile
from PIL import Image

from model.signal import to_mono
from pipelines.reporting import listening

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "manifests" / "examples" / "demo.csv"
SHOWN = ("dog_barking-in-river", "birds_chirping-in-tabla")
MAX_BYTES = 150_000
PAGE_PIXELS = (1440, 960)
COLOURS = (128, 64, 48, 32, 24, 16)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def run(module: str, *arguments: str | Path) -> None:
    """Runs a command of the project; what it prints is shown where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{module} ended with code {done.returncode}:\n{done.stdout}{done.stderr}")


def demo(folder: Path) -> None:
    """Writes the demo's mixtures and references, its stems, and the report on them."""
    run("pipelines.synthesize", "--manifest", DEMO, "--output", folder / "sets")
    manifest = folder / "sets" / "manifest"
    run("pipelines.separate", "--manifest", manifest, "--output", folder / "demo")
    run("pipelines.report", folder / "demo", "--output", folder / "report")


def extraction(folder: Path) -> bytes:
    """Spectrograms of mixture, stem and reference of some of the demo's clips."""
    with DEMO.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(line for line in stream if not line.startswith("#"))
        queries = {row["id"]: row for row in rows}
    places = {
        "mixture": folder / "sets" / "mixtures",
        "stem": folder / "demo" / "stems",
        "reference": folder / "sets" / "references",
    }
    pictures = []
    for name in SHOWN:
        query = queries[name]
        titles = {
            "mixture": "mixture",
            "stem": f"stem: “{query['positive_text']}”, not “{query['negative_text']}”",
            "reference": "reference",
        }
        signals = {}
        for kind, place in places.items():
            samples, rate_hz = soundfile.read(
                place / "dataset=demo" / f"{name}.flac", dtype="float32", always_2d=True
            )
            signals[kind] = to_mono(samples.T)
        loudest = float(listening.power(signals["mixture"]).max())
        pictures.append(
            [listening.picture(titles[kind], signals[kind], rate_hz, loudest) for kind in places]
        )
    return listening.grid(pictures, "")


def page(folder: Path) -> bytes:
    """The top of the report's page as a browser shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"report.png needs a browser; none of {', '.join(BROWSERS)} is installed")
    shot = folder / "page.png"
    command = [
        browser,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--hide-scrollbars", "--force-device-scale-factor=1"),
        f"--user-data-dir={folder / 'browser'}",
        f"--window-size={','.join(map(str, PAGE_PIXELS))}",
        "--virtual-time-budget=10000",
        f"--screenshot={shot}",
        (folder / "report" / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not shot.is_file():
        sys.exit(f"{browser} ended with code {done.returncode}:\n{done.stderr}")
    return shot.read_bytes()


def small(png: bytes) -> bytes:
    """The picture as a PNG of as many colours as its size allows.

    Raises:
        ValueError: it is too large with the fewest.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in COLOURS:
        buffer = io.BytesIO()
        reduced = picture.quantize(colours, dither=Image.Dither.NONE)
        reduced.save(buffer, format="png", optimize=True)
        if buffer.tell() < MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"{buffer.tell()} bytes in {colours} colours; expected less than {MAX_BYTES}")


def main() -> None:
    """Writes both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0] + ".")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="default: beside this script",
    )
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo(folder)
        made = {"extraction.png": extraction(folder), "report.png": page(folder)}
    for file, png in made.items():
        reduced = small(png)
        (output / file).write_bytes(reduced)
        print(f"{output / file}: {len(reduced)} bytes")


if __name__ == "__main__":
    main()
