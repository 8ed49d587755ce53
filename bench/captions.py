"""What captions that are all different cost: looked up by key, or embedded where they are used.

``PYTHONPATH=.:tests python bench/captions.py --captions 100000``

Looked up: embeddings of 2 KB are a side input that is read by key, and each row asks for its own;
the worker is reached by gRPC, as on any cluster, and its thread waits for each answer. Embedded:
the step of the job, with an encoder that takes no time, so that what is measured is the step; and
the text tower of ``--model`` on one core, for as many captions as ``--embedded``. Fewer are looked
up (``--looked_up``): Beam's local runner needs more memory than its rows for such a side input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsMultiMap
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.transforms.combiners import Count
from apache_beam.transforms.environments import EmbeddedPythonGrpcEnvironment

import tone_clips
import tone_runs
from model import registry
from transforms.elements import EmbeddedQuery, MixtureRows
from transforms.model_cache import ModelChoice, ScorerChoice
from transforms.queries import AttachQueries, embed_query_texts

SIZE = 512


def _caption(number: int) -> str:
    return f"a sound of kind {number} that nobody else asks for, bell"


def _embedded(number: int) -> tuple[str, EmbeddedQuery]:
    vector = np.random.default_rng(number).normal(size=SIZE).astype("<f4")
    return str(number), EmbeddedQuery(embedding=vector.tobytes())


def _looked_up(number: int, table: Any) -> int:
    return len(next(iter(table[str(number)])).embedding)


def _piece(number: int) -> MixtureRows:
    return MixtureRows(rows=(tone_clips.row(str(number), _caption(number)),))


def _by_key(root: Any, count: int) -> Any:
    table = root | "Keys" >> beam.Create(range(count)) | beam.Map(_embedded)
    rows = root | "Rows" >> beam.Create(range(count))
    return rows | "LookUp" >> beam.Map(_looked_up, AsMultiMap(table))


def _in_the_step(root: Any, count: int) -> Any:
    encoder = ScorerChoice(model=ModelChoice(name="tones", device="cpu"))
    nothing = root | "None" >> beam.Create([])
    pieces = root | beam.Create(range(count)) | beam.Map(_piece).with_output_types(MixtureRows)
    attached, _ = (pieces, nothing, nothing) | AttachQueries(encoder, encoder, 1)
    return attached


def _nothing_done(root: Any, count: int) -> Any:
    return root | beam.Create(range(count)) | beam.Map(_piece).with_output_types(MixtureRows)


def _measured(graph: Callable[[Any, int], Any], count: int) -> str:
    started_s, cpu_s = time.perf_counter(), time.process_time()
    environment = EmbeddedPythonGrpcEnvironment.default()
    with (
        tone_runs.tones_as_models(),
        beam.Pipeline(runner=FnApiRunner(default_environment=environment)) as pipeline,
    ):
        _ = graph(pipeline, count) | Count.Globally()
    wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    return f"{wall_s:7.1f} s, {1_000 * cpu_s / count:6.2f} ms of processor time a caption"


def _tower(model: str, count: int) -> Iterator[str]:
    encoder = registry.load_query_encoder(model)
    for size in (1, 32):
        texts = [_caption(number) for number in range(count)]
        cpu_s = time.process_time()
        for start in range(0, count, size):
            embed_query_texts(encoder, texts[start : start + size])
        took_ms = 1_000 * (time.process_time() - cpu_s) / count
        yield f"text tower of {model} on a CPU, {size:2} at a time: {took_ms:.2f} ms a caption"


def run(argv: Sequence[str] | None = None) -> None:
    """Measures each in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--looked_up", type=int, default=10_000)
    parser.add_argument("--embedded", type=int, default=256)
    parser.add_argument("--model", default="clapsep-mini")
    options = parser.parse_args(argv)
    print("captions, all different, through a worker behind gRPC")
    measures = (
        ("rows alone", _nothing_done, options.captions),
        ("in the step", _in_the_step, options.captions),
        ("looked up", _by_key, options.looked_up),
    )
    for name, graph, count in measures:
        print(f"{count:7} {name:12} {_measured(graph, count)}", flush=True)
    for line in _tower(options.model, options.embedded):
        print(line)


if __name__ == "__main__":
    run()
