"""A toy format, metric and system, each added by a line in its table, go through a whole run.

They are added to a copy of the packages, so that what is counted are files of the product: no toy
touches more than two. The copy runs in a process of its own.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tone_runs
import tones
from bench.formats import by_pyav
from manifests.audio_formats import OTHER, recognised
from manifests.columns import METRIC_COLUMNS
from model.registry import entries

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("terminal", "model", "manifests", "transforms", "pipelines")
LONG_S = 3.0
RUN = """
import sys
from pipelines import report, separate
manifest, output, page = sys.argv[1:]
common = ["--model", "halver", "--scorer", "none", "--progress", "none", "--num_threads", "1"]
code = separate.run(["--manifest", manifest, "--output", output, "--max_clip_in_memory_s", "0.5",
                     *common])
sys.exit(code or report.run([output, "--output", page, "--metric", "peak_ratio"]))
"""


@dataclasses.dataclass(frozen=True)
class Toy:
    """What is changed in the product: by file, the text to find and what goes before it.

    Without a text to find, the file is a new one.
    """

    files: dict[str, tuple[str | None, str]]


FORMAT = Toy(
    {
        "manifests/audio_formats.py": (
            "    OTHER,\n)\n",
            """\
    AudioFormat(
        name="True Audio",
        suffixes=(".tta",),
        signature=_begins(b"TTA1"),
        reader="FFmpeg",
        demuxers=("tta",),
        length="counted",
    ),
""",
        )
    }
)
METRIC = Toy(
    {
        "manifests/columns.py": (
            ')\n"""The measured columns of which',
            """\
    Column(
        name="peak_ratio",
        type=_REAL,
        title="Peak ratio",
        better="down",
        shown=True,
        meaning="Peak of the stem over that of the mixture.",
    ),
""",
        ),
        "model/metrics/__init__.py": (
            ')\n"""Every metric.',
            """\
    Metric(
        columns=("peak_ratio",),
        needs=("stem", "mixture"),
        compute=lambda stems, mixtures: [
            (float(abs(stem).max() / abs(mixture).max()),)
            for stem, mixture in zip(stems, mixtures, strict=True)
        ],
    ),
""",
        ),
    }
)
SYSTEM = Toy(
    {
        "model/systems/halver.py": (
            None,
            '''\
"""Gives half of the mixture, whatever is asked for."""

from model.config import SignalConfig
from model.registry import LoadedModel
from model.systems.reference_points import AnyQuery, MixtureSeparator


class Halver(MixtureSeparator):
    def decode(self, encoded, condition):
        return 0.5 * super().decode(encoded, condition)


def load(entry, options):
    return LoadedModel(
        name=entry.name,
        separator=Halver(SignalConfig(), name=entry.name),
        query_encoder=AnyQuery(SignalConfig()),
        model_sha256="",
        clap_sha256="",
        card=entry,
    )
''',
        ),
        "model/catalogue.py": (
            '    Entry(\n        name="mixture",',
            """\
    Entry(
        name="halver",
        kind="reference",
        loader="model.systems.halver:load",
        summary="Gives half of the mixture.",
        licence="Apache-2.0",
        source="a test",
        sample_rate_hz=32_000,
    ),
""",
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the run of the changed product left."""

    run: Path
    page: Path

    def rows(self) -> dict[str, dict[str, object]]:
        return {row["id"]: row for row in tone_runs.table(self.run, "metrics")}


def _copy_with(folder: Path, *toys: Toy) -> None:
    """Links every file of the packages into a folder, and adds the toys there."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            folder / package,
            copy_function=os.symlink,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for toy in toys:
        for name, (before, added) in toy.files.items():
            path = folder / name
            if before is None:
                path.write_text(added, encoding="utf-8")
                continue
            text = path.read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{name} is to have {before!r} once"
            path.unlink()
            path.write_text(text.replace(before, added + before), encoding="utf-8")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    folder = tmp_path_factory.mktemp("toys")
    product = folder / "product"
    _copy_with(product, FORMAT, METRIC, SYSTEM)
    rows = []
    for name, duration_s in (("short", 1.0), ("long", LONG_S)):
        samples = tones.tone("bell", duration_s)
        recording = folder / f"{name}.tta"
        recording.write_bytes(by_pyav(samples[None], tones.RATE_HZ, "tta", "tta"))
        rows.append({"id": name, "mixture_uri": str(recording), "positive_text": "bell"})
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", rows)
    found = Outputs(run=folder / "out", page=folder / "page")
    done = subprocess.run(
        [sys.executable, "-c", RUN, manifest, found.run, found.page],
        cwd=product,
        env={**os.environ, "PYTHONPATH": str(product)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return found


@pytest.mark.parametrize("toy", [FORMAT, METRIC, SYSTEM], ids=["format", "metric", "system"])
def test_a_toy_touches_at_most_two_files_of_the_product(toy: Toy) -> None:
    assert 1 <= len(toy.files) <= 2
    for name, (before, _) in toy.files.items():
        assert (ROOT / name).is_file() == (before is not None)


def test_the_product_itself_knows_none_of_them() -> None:
    assert recognised(b"TTA1\x01\x00\x01\x00") is OTHER
    assert "peak_ratio" not in METRIC_COLUMNS
    assert "halver" not in entries()


def test_a_recording_of_a_toy_format_is_read_short_or_long(outputs: Outputs) -> None:
    assert not (outputs.run / "dead_letters").exists()
    assert {row["id"]: row["duration_s"] for row in outputs.rows().values()} == pytest.approx(
        {"short": 1.0, "long": LONG_S}
    )


def test_a_toy_system_makes_the_stems_and_is_named_in_the_tables(outputs: Outputs) -> None:
    assert {row["model"] for row in outputs.rows().values()} == {"halver"}
    stems = {
        Path(name).stem: samples[:, 0] for name, samples in tone_runs.stems(outputs.run).items()
    }
    for name, duration_s in (("short", 1.0), ("long", LONG_S)):
        middle = slice(1_000, -1_000)  # resampled there and back, which shows at the ends
        expected = 0.5 * tones.tone("bell", duration_s)  # of 8 bits in the file
        np.testing.assert_allclose(stems[name][middle], expected[middle], rtol=0, atol=3e-3)


def test_a_toy_metric_has_a_value_in_the_table_and_a_line_in_the_summary(outputs: Outputs) -> None:
    assert outputs.rows()["short"]["peak_ratio"] == pytest.approx(0.5, abs=1e-3)
    (line,) = (
        row for row in tone_runs.table(outputs.run, "summary") if row["metric"] == "peak_ratio"
    )
    assert (line["n"], line["n_undefined"]) == (1, 1)


def test_a_metric_of_waveforms_says_that_a_long_recording_is_streamed(outputs: Outputs) -> None:
    row = outputs.rows()["long"]
    assert row["peak_ratio"] is None
    assert "peak_ratio=not_streamed" in str(row["undefined_reason"]).split("; ")


def test_the_report_shows_a_toy_metric_under_its_title(outputs: Outputs) -> None:
    written = "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted(outputs.page.rglob("*"))
        if path.suffix in {".md", ".csv", ".html"}
    )
    assert "Peak ratio" in written
