"""Every Beam job, with inputs of a few tones, so that one test can be asked of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import tone_runs
import tones
from pipelines import flags, score, separate, synthesize

NUM_ROWS = 5
"""In the manifest of each job; the recording of the last one is missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job as a user meets it.

    Attributes:
        command: its command line.
        run: the command itself.
        more: flags beside those that every job has.
        uses_model: whether it can be given a model.
        audio: folders of the files of audio that it writes.
    """

    command: flags.Command
    run: Callable[[Sequence[str]], int]
    more: tuple[str, ...] = ()
    uses_model: bool = True
    audio: tuple[str, ...] = ()

    def words(self, inputs: Path, output: Path, *more: str, model: str | None = None) -> list[str]:
        """A command line over what :func:`write_inputs` wrote."""
        manifest = inputs / f"{self.command.name}.jsonl"
        words = ["--manifest", str(manifest), "--output", str(output), "--max_failure_rate", "0.5"]
        words += [each.format(inputs=inputs) for each in self.more]
        words += ["--device", "cpu"] if self.uses_model else []  # "auto" would be said
        words += ["--model", model] if model is not None and self.uses_model else []
        return [*words, *more]


JOBS = {
    "separate": Job(
        command=flags.SEPARATE,
        run=separate.run,
        audio=("stems",),
    ),
    "score": Job(
        command=flags.SCORE,
        run=score.run,
        more=("--stems", "{inputs}/stems", "--score_rate_hz", str(tones.RATE_HZ)),
    ),
    "synthesize": Job(
        command=flags.SYNTHESIZE,
        run=synthesize.run,
        uses_model=False,
        audio=("mixtures", "references", "interferers"),
    ),
}


def write_inputs(folder: Path) -> Path:
    """Writes recordings, stems, and a manifest for each job; gives the folder."""
    rows = tone_runs.write_mixtures(folder / "in", count=NUM_ROWS, duration_s=0.9)
    for row in rows:
        stem, _ = soundfile.read(row["reference_uri"], dtype="float32")
        stem += 0.02 * np.random.default_rng(0).standard_normal(len(stem)).astype(np.float32)
        path = folder / "stems" / f"{row['id']}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, stem, tones.RATE_HZ, "FLOAT")
    sources = [_sources(row, rows[(number + 1) % NUM_ROWS]) for number, row in enumerate(rows)]
    rows[-1]["mixture_uri"] = sources[-1]["target_uri"] = "gone.wav"
    for job in JOBS.values():
        mixed = job.command is flags.SYNTHESIZE
        tone_runs.write_manifest(folder / f"{job.command.name}.jsonl", sources if mixed else rows)
    return folder


def _sources(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    queries = {name: row[name] for name in ("id", "positive_text", "negative_text", "dataset")}
    interferers = {"interferer_uris": [other["reference_uri"]], "snr_db": [3.0]}
    return {**queries, "target_uri": row["reference_uri"], **interferers}


def audio(job: Job, output: Path) -> dict[str, np.ndarray]:
    """Samples [T, C] of every file of audio that a run wrote, by its path in the output folder."""
    return {
        str(path.relative_to(output)): soundfile.read(path, always_2d=True)[0]
        for name in job.audio
        for path in sorted((output / name).rglob("*"))
        if path.is_file()
    }


def assert_same(job: Job, one: Path, other: Path) -> None:
    """The same audio and tables."""
    tone_runs.assert_same_results(one, other)
    first, second = audio(job, one), audio(job, other)
    assert first.keys() == second.keys()
    for name, samples in first.items():
        np.testing.assert_allclose(samples, second[name], rtol=0, atol=1e-5, err_msg=name)
    for name in ("manifest", "dead_letters"):
        assert tone_runs.table(one, name) == tone_runs.table(other, name)
