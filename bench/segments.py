"""How well segments say where a sound is: onsets and offsets against two baselines, in one run.

    python bench/segments.py --corpus corpus --work /tmp/events            # the test split
    python bench/segments.py --corpus corpus --work /tmp/val --split val --choose 400
    python bench/segments.py --corpus corpus --work /tmp/events --sed_eval other/bin/python

Mixtures of 30 s with known onsets are drawn from the corpus and rendered, and each is asked for one
class: by the clip's caption, and by an example of another recording. Beside the segments of the
run, two baselines are measured on the same mixtures:

- energy: where the mixture is loud beside the quiet of its last seconds, whatever is asked;
- similarity: where the scorer's embedding of 1 s of the mixture, four a second, is near the query.

F1 is micro, over all events. A found onset may differ by 0.25 s; with offsets, these too, by 0.25 s
or half of the event's length. Pairs are matched by ``mir_eval.util.match_events``, so that each
event counts once. Intervals of 95 % draw recordings of the target with their mixtures. The options
of segments and energy were chosen on the validation split: ``--choose`` draws so many and prints
the best. What is in ``--work`` already is used again.

``--sed_eval`` names a Python with sed_eval (which needs setuptools below 81), to count with it too.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import mir_eval
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from manifests.benchmarks.corpus_sets import EventSettings, build_events, read_corpus
from manifests.files.readers import iter_rows
from manifests.files.writing import write_rows
from manifests.row import ManifestRow
from model import registry, signal, systems
from model.signal import ActivityOptions, Envelope, active_stretches, envelope_of
from pipelines import separate, synthesize

QUERIES = ("text", "examples")
COLLAR_S, LENGTH_SHARE = 0.25, 0.5
_ROUNDING_S = 1e-9
HOP_S, WINDOW_S = 0.25, 1.0
ENERGY = ActivityOptions(
    percentile=5.0, percentile_s=30.0, rise_db=15.0, hysteresis_db=4.0, min_gap_s=0.5,
    min_length_s=0.5,
)  # fmt: skip
SIMILARITY = {"text": 0.35, "examples": 0.35}
SIMILARITY_GAPS = {
    "text": ActivityOptions(hysteresis_db=0.0, min_gap_s=1.2),
    "examples": ActivityOptions(hysteresis_db=0.05, min_gap_s=1.2),
}
"""What the baselines count as active, and the gaps that they close. Those of similarity are the
best of 240 on the test split itself, in its favour."""
DRAWS = 2_000

Times = npt.NDArray[np.float64]
"""Onsets and offsets in seconds, float64[N, 2]."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """A mixture, and what is known of it for one kind of query."""

    id: str
    query: str
    group: str
    label: str
    reference: Times
    segments: Times
    stem: Envelope
    mixture: Envelope
    similarities: npt.NDArray[np.float64]


def main() -> None:
    """Prints the table, or the best options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--corpus", required=True, help="folder with manifest.csv")
    parser.add_argument("--work", required=True, help="folder of mixtures and runs")
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--mixtures", type=int, default=200)
    parser.add_argument("--choose", type=int, default=0, metavar="N")
    parser.add_argument("--sed_eval", metavar="PYTHON")
    options = parser.parse_args()
    work = Path(options.work)
    rows = render(options, work)
    heard = {query: listen(options, work, rows, query) for query in QUERIES}
    if options.choose:
        choose(heard, options.choose)
        return
    print(
        f"{options.model}, split {options.split}: {len(rows)} mixtures, "
        f"{sum(len(each.reference) for each in heard['text'])} events"
    )
    for query, found in heard.items():
        report(query, found)
        if options.sed_eval:
            compare(options.sed_eval, query, found)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


def _run(job: Callable[[list[str]], int], *words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = job([*words, "--progress", "none", "--max_failure_rate", "0"])
    if code != 0:
        raise SystemExit(f"{' '.join(words)}: ended with {code}")


def render(options: argparse.Namespace, work: Path) -> list[ManifestRow]:
    """The rows of the mixtures, which are on disk then."""
    output, manifest = work / "mixtures", work / "events.jsonl"
    if not (output / "manifest").exists():
        work.mkdir(parents=True, exist_ok=True)
        corpus = str(Path(options.corpus).absolute())
        settings = EventSettings(
            audio_root=corpus, split=options.split, num_mixtures=options.mixtures
        )
        write_rows(str(manifest), build_events(read_corpus(corpus), settings))
        words = ("--manifest", str(manifest), "--output", str(output), "--stem_format", "wav")
        _run(synthesize.run, *words)
    rows = [row for row in iter_rows(str(output / "manifest")) if isinstance(row, ManifestRow)]
    return sorted(rows, key=lambda row: row.id)


def listen(
    options: argparse.Namespace, work: Path, rows: Sequence[ManifestRow], query: str
) -> list[Heard]:
    """Separates all mixtures by one kind of query, and gathers what is measured of them."""
    output, manifest = work / query, str(work / f"{query}.jsonl")
    asked: dict[str, Any] = {
        "text": {"positive_audio_uris": ()},
        "examples": {"positive_text": None},
    }
    if not (output / "segments").exists():
        write_rows(manifest, [dataclasses.replace(row, extra={}, **asked[query]) for row in rows])
        words = ("--manifest", manifest, "--output", str(output), "--model", options.model)
        _run(separate.run, *words, "--scorer", "none", "--device", "cpu")
    found: dict[str, list[tuple[float, float]]] = {}
    for file in (output / "segments").glob("*.parquet"):
        for record in pq.read_table(file, columns=["id", "start_s", "end_s"]).to_pylist():
            found.setdefault(record["id"], []).append((record["start_s"], record["end_s"]))
    stems = {
        record["id"]: record["stem_uri"]
        for file in (output / "metrics").rglob("*.parquet")
        for record in pq.ParquetFile(file).read(["id", "stem_uri"]).to_pylist()
    }
    events = read_events(work / "mixtures" / "events.csv")
    near = similarities(options.model, work, rows, query)
    return [
        Heard(
            id=row.id,
            query=query,
            group=row.group or row.id,
            label=row.label or "",
            reference=times(events[row.id]),
            segments=times(found.get(row.id, [])),
            stem=envelope(stems[row.id]),
            mixture=envelope(row.mixture_uri or ""),
            similarities=near[row.id],
        )
        for row in rows
    ]


def read_events(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The events of each mixture's target."""
    events: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for line in csv.DictReader(stream):
            if line["role"] == "target":
                event = (float(line["onset_s"]), float(line["offset_s"]))
                events.setdefault(line["id"], []).append(event)
    return events


def times(found: Iterable[tuple[float, float]]) -> Times:
    """Stretches in order of time."""
    return np.array(sorted(found), dtype=np.float64).reshape(-1, 2)


def envelope(path: str) -> Envelope:
    """The envelope of a file."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return envelope_of(signal.to_mono(samples.T), rate_hz)


def similarities(
    model: str, work: Path, rows: Sequence[ManifestRow], query: str
) -> dict[str, npt.NDArray[np.float64]]:
    """Cosines of each query and of 1 s of its mixture, four a second."""
    encoder = registry.load(model).query_encoder
    kept = work / "windows.npz"
    vectors = dict(np.load(kept)) if kept.exists() else {}
    for row in rows:
        if row.id not in vectors:
            vectors[row.id] = embedded_windows(encoder, row.mixture_uri or "")
    np.savez(kept, **vectors)
    found = {}
    for row in rows:
        if query == "text":
            (asked,) = systems.embed_texts(encoder, [row.positive_text or ""])
        else:
            clips = (mono(uri, encoder.sample_rate_hz) for uri in row.positive_audio_uris)
            asked = systems.embed_examples(encoder, clips)
        windows = vectors[row.id].astype(np.float64)
        found[row.id] = windows @ asked / np.linalg.norm(asked) / np.linalg.norm(windows, axis=1)
    return found


def embedded_windows(encoder: Any, path: str) -> npt.NDArray[np.float32]:
    """Embeddings of 1 s each, float32[N, D]; each window gets a whisper that silence has not."""
    rate_hz = encoder.sample_rate_hz
    samples = mono(path, rate_hz)
    length, hop = round(WINDOW_S * rate_hz), round(HOP_S * rate_hz)
    cut = np.lib.stride_tricks.sliding_window_view(samples, length)[::hop]
    with torch.inference_mode():
        parts = [
            encoder.embed_audio([torch.from_numpy(window + 1e-7) for window in cut[i : i + 16]])
            for i in range(0, len(cut), 16)
        ]
    joined: npt.NDArray[np.float32] = torch.cat(parts).float().numpy()
    return joined


def mono(path: str, rate_hz: int) -> npt.NDArray[np.float32]:
    """A file as float32[T] at a rate."""
    samples, found_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return signal.resample(signal.to_mono(samples.T), found_hz, rate_hz)


# ----- who says what ----------------------------------------------------------------------------


def by_energy(heard: Heard, options: ActivityOptions = ENERGY) -> Times:
    """Where the mixture is loud."""
    found = active_stretches(heard.mixture, heard.mixture, options)
    return times((each.start_s, each.end_s) for each in found)


def by_similarity(
    heard: Heard, least: float | None = None, options: ActivityOptions | None = None
) -> Times:
    """Where 1 s is near the query: from the middle of the first such window to that of the last."""
    least = SIMILARITY[heard.query] if least is None else least
    gaps = options or SIMILARITY_GAPS[heard.query]
    runs = signal._runs(heard.similarities - least, HOP_S, gaps)
    middle_s = WINDOW_S / 2
    return times((begin * HOP_S + middle_s, (end - 1) * HOP_S + middle_s) for begin, end in runs)


def by_stem(heard: Heard, options: ActivityOptions) -> Times:
    """Where the stem is active, by other options than those of the run."""
    found = active_stretches(heard.stem, heard.mixture, options)
    return times((each.start_s, each.end_s) for each in found)


def _segments(heard: Heard) -> Times:
    return heard.segments


SYSTEMS: dict[str, Callable[[Heard], Times]] = {
    "segments": _segments,
    "energy": by_energy,
    "similarity": by_similarity,
}


# ----- counting -----------------------------------------------------------------------------------


def counts(reference: Times, found: Times) -> npt.NDArray[np.int64]:
    """Onsets matched, onsets and offsets matched, events, events found."""
    onsets = both = 0
    if len(found) and len(reference):
        limit = COLLAR_S + _ROUNDING_S
        onsets = len(mir_eval.util.match_events(reference[:, 0], found[:, 0], limit))
        matched = mir_eval.util.match_events(reference, found, limit, distance=_of_both)
        both = len(matched)
    return np.array([onsets, both, len(reference), len(found)])


def _of_both(reference: Times, found: Times) -> Times:
    """How far events are apart, where the collar is the unit of offsets too."""
    apart = np.abs(reference[:, None, :] - found[None, :, :])
    allowed = np.maximum(COLLAR_S, LENGTH_SHARE * (reference[:, 1] - reference[:, 0]))
    apart[:, :, 1] *= COLLAR_S / allowed[:, None]
    farther: Times = apart.max(axis=2)
    return farther


def f1(counted: npt.NDArray[np.int64]) -> Times:
    """F1 of onsets, and of onsets with offsets, from counts int64[..., 4]; 0 where all is empty."""
    total = counted[..., 2] + counted[..., 3]
    scores: Times = 2.0 * counted[..., :2] / np.maximum(total, 1)[..., None]
    return scores


def drawn(counted: npt.NDArray[np.int64], groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Counts of resampled sets of recordings, int64[DRAWS, 4], the same draws for all systems."""
    names = sorted(set(groups))
    index = np.array([names.index(group) for group in groups])
    sums = np.zeros((len(names), 4), np.int64)
    np.add.at(sums, index, counted)
    chosen = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    total: npt.NDArray[np.int64] = sums[chosen].sum(axis=1)
    return total


def report(query: str, heard: Sequence[Heard]) -> None:
    """Prints a line a system, and the difference to each baseline."""
    groups = [each.group for each in heard]
    counted = {name: _counted(heard, system) for name, system in SYSTEMS.items()}
    ours = counted["segments"]
    print(f"{query:<9} {'':<11} found  onset F1                onset+offset F1")
    for name, of_each in counted.items():
        total = of_each.sum(axis=0)
        samples = f1(drawn(of_each, groups))
        cells = [
            f"{value:.3f} [{low:.3f}, {high:.3f}]"
            for value, low, high in zip(f1(total), *_interval(samples), strict=True)
        ]
        print(f"{'':<9} {name:<11} {total[3]:>5}  {'   '.join(cells)}")
    for name in ("energy", "similarity"):
        differ = f1(drawn(ours, groups)) - f1(drawn(counted[name], groups))
        point = f1(ours.sum(axis=0)) - f1(counted[name].sum(axis=0))
        cells = [
            f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            for value, low, high in zip(point, *_interval(differ), strict=True)
        ]
        print(f"{'':<9} over {name:<12} {'   '.join(cells)}", flush=True)


def _counted(heard: Sequence[Heard], system: Callable[[Heard], Times]) -> npt.NDArray[np.int64]:
    """The counts of each mixture, int64[N, 4]."""
    return np.stack([counts(each.reference, system(each)) for each in heard])


def _interval(samples: Times) -> tuple[Times, Times]:
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return low, high


# ----- choosing -----------------------------------------------------------------------------------


def choose(heard: dict[str, list[Heard]], num_draws: int) -> None:
    """Draws options for each system, and prints the best by the sum of both F1.

    Those of segments are for both kinds of query, those of the baselines for each.
    """
    rng = np.random.default_rng(0)

    def pick(*values: float) -> float:
        return float(rng.choice(values))

    def activity(**of_level: float) -> ActivityOptions:
        return ActivityOptions(
            percentile_s=pick(20, 30, 60, 120),
            min_gap_s=pick(0.5, 0.8, 1.0, 1.2),
            min_length_s=pick(0.2, 0.3, 0.5),
            **of_level,
        )

    def of_stem() -> tuple[Any, Callable[[Heard], Times]]:
        options = activity(
            level_db=pick(-10, -8, -7, -6, -5, -4, -3, -2),
            percentile=pick(80, 90, 95, 100),
            rise_db=-pick(4, 6, 8, 10, 12, 15, 20),
            hysteresis_db=pick(3, 4, 6, 8, 10, 12),
        )
        return options, lambda each: by_stem(each, options)

    def of_energy() -> tuple[Any, Callable[[Heard], Times]]:
        options = activity(
            percentile=pick(5, 10, 20, 50, 80, 95),
            rise_db=pick(-12, -6, -3, 0, 3, 6, 10, 15),
            hysteresis_db=pick(0, 2, 4, 6),
        )
        return options, lambda each: by_energy(each, options)

    def of_similarity() -> tuple[Any, Callable[[Heard], Times]]:
        options = activity(hysteresis_db=pick(0, 0.05, 0.1, 0.2))
        least = pick(*np.arange(0.05, 0.8, 0.05))
        return (least, options), lambda each: by_similarity(each, least, options)

    both = list(heard)
    for name, draw, queries in (
        ("segments", of_stem, both),
        ("energy", of_energy, both[:1]),
        ("similarity", of_similarity, both[:1]),
        ("similarity", of_similarity, both[1:]),
    ):
        tried = []
        for _ in range(num_draws):
            options, system = draw()
            scores = [f1(_counted(heard[query], system).sum(axis=0)) for query in queries]
            tried.append((float(np.sum(scores)), np.round(scores, 3).tolist(), str(options)))
        print(f"{name}, {' and '.join(queries)}")
        for total, each, said in sorted(tried, reverse=True)[:10]:
            print(f"  {total:.3f} {each} {said}", flush=True)


# ----- another judge ------------------------------------------------------------------------------

_JUDGE = """
import json, sys
import sed_eval
found = {}
for query in json.load(sys.stdin):
    for offset in (False, True):
        judge = sed_eval.sound_event.EventBasedMetrics(
            ["target"], evaluate_onset=True, evaluate_offset=offset, t_collar=0.25,
            percentage_of_length=0.5, event_matching_type="optimal")
        for item in query["mixtures"]:
            lists = [
                [{"filename": item["id"], "event_label": "target", "onset": on, "offset": off}
                 for on, off in item[name]]
                for name in ("reference", "found")]
            judge.evaluate(*lists)
        overall = judge.results_overall_metrics()["f_measure"]["f_measure"]
        found.setdefault(query["name"], []).append(float(overall))
print(json.dumps(found))
"""


def compare(python: str, query: str, heard: Sequence[Heard]) -> None:
    """Prints the figures of sed_eval for the same lists."""
    given = [
        {
            "name": name,
            "mixtures": [
                {
                    "id": each.id,
                    "reference": each.reference.tolist(),
                    "found": system(each).tolist(),
                }
                for each in heard
            ],
        }
        for name, system in SYSTEMS.items()
    ]
    done = subprocess.run(
        [python, "-c", _JUDGE], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    for name, scores in json.loads(done.stdout.splitlines()[-1]).items():
        ours = f1(_counted(heard, SYSTEMS[name]).sum(axis=0))
        said = "   ".join(f"{one:.4f} and {two:.4f}" for one, two in zip(ours, scores, strict=True))
        print(f"{query:<9} {name:<11} mir_eval's matching and sed_eval: {said}", flush=True)


if __name__ == "__main__":
    main()
