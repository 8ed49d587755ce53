"""Prints the stages of the main job, and how many bytes a row cross each boundary between them.

``PYTHONPATH=.:tests python bench/boundaries.py --rows 200``

The job runs in this process over synthetic mixtures, each with captions of its own, by a separator
of tones whose embeddings are padded to the size of CLAP's. Beam's local runner fuses steps as
Dataflow does, and ends fusion at shuffles, side inputs, flattens and resource hints; what it
buffers between two stages is counted there. ``shuffle`` is a boundary at which elements are
grouped, ``hint`` one at which they change between machines with and without the accelerator.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from apache_beam.runners.portability.fn_api_runner import execution
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

import tone_runs
import tones
from model.systems import Condition

EMBEDDING_SIZE = 512


def _labels(components: Any, buffer_id: str) -> str:
    """What a buffer holds: the step that makes it."""
    kind, _, name = buffer_id.partition(":")
    steps = components.transforms
    if kind == "group":
        step = name if name not in steps else steps[name].unique_name
        return f"shuffle  {_short(step)}"
    for step in steps.values():
        if name in step.outputs.values() and not step.subtransforms:
            (tag,) = (tag for tag, pcoll in step.outputs.items() if pcoll == name)
            tag = "" if tag in ("None", "0", "main") else f" [{tag}]"
            hint = bool(components.environments[step.environment_id].resource_hints)
            return f"{'hint' if hint else 'stage':8} {_short(step.unique_name)}{tag}"
    return f"stage    {_short(name)}"


def _short(name: str) -> str:
    name = name.removeprefix("ref_AppliedPTransform_").replace("SeparateManifest-", "")
    return name.replace("SeparateManifest/", "")


def measured(folder: Path, rows: int, *flags: str) -> tuple[int, dict[str, float]]:
    """Runs the job; gives the number of fused stages, and bytes a row by boundary."""
    given = tone_runs.write_mixtures(folder / "in", count=rows, duration_s=0.1)
    for number, row in enumerate(given):
        row["negative_text"] = f"{row['positive_text']} {number} of many, far away"
    manifest = tone_runs.write_manifest(folder / "rows.jsonl", given)
    counts: Counter[str] = Counter()
    found: dict[str, Any] = {}
    create_stages = FnApiRunner.create_stages
    get_buffer = execution.BundleContextManager.get_buffer

    def remembering(runner: Any, proto: Any) -> Any:
        found["proto"] = proto
        context, stages = create_stages(runner, proto)
        found["stages"] = len(stages)
        return context, stages

    def counting(manager: Any, buffer_id: bytes, transform_id: str) -> Any:
        buffer = get_buffer(manager, buffer_id, transform_id)
        if "append" not in vars(buffer):
            append, name = buffer.append, buffer_id.decode()

            def appending(data: bytes) -> None:
                counts[name] += len(data)
                append(data)

            buffer.append = appending
        return buffer

    with (
        mock.patch.object(tones, "ToneClap", _WideClap),
        mock.patch.object(tones, "ToneSeparator", _WideSeparator),
        tone_runs.tones_as_models(),
        mock.patch.object(FnApiRunner, "create_stages", remembering),
        mock.patch.object(execution.BundleContextManager, "get_buffer", counting),
    ):
        code = tone_runs.run("--manifest", manifest, "--output", folder / "out", *flags)
    if code != 0:
        raise SystemExit(f"the job ended with {code}")
    components = found["proto"].components
    by_label: Counter[str] = Counter()
    for name, size in counts.items():
        by_label[_labels(components, name)] += size
    return found["stages"], {name: size / rows for name, size in by_label.items()}


class _WideClap(tones.ToneClap):
    """The encoder of tones, with as many numbers an embedding as CLAP's."""

    embedding_dim = EMBEDDING_SIZE

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        return _wide(super().embed_text(texts))

    def embed_audio(self, clips: Sequence[torch.Tensor]) -> torch.Tensor:
        return _wide(super().embed_audio(clips))


def _wide(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(vectors, (0, EMBEDDING_SIZE - vectors.shape[1]))


def _narrow(condition: Condition) -> Condition:
    size = len(tones.LABELS)
    return Condition(positive=condition.positive[:, :size], negative=condition.negative[:, :size])


class _WideSeparator(tones.ToneSeparator):
    embedding_dim = EMBEDDING_SIZE

    def decode(self, encoded: tones.ToneEncoded, condition: Condition) -> torch.Tensor:
        return super().decode(encoded, _narrow(condition))


def run(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        stages, sizes = measured(Path(folder), options.rows, "--min_ram", "16GB")
    print(f"{stages} stages, {sum(name.startswith('shuffle') for name in sizes)} shuffles")
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size:9.1f} bytes a row  {name}")


if __name__ == "__main__":
    run()
