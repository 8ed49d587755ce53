"""What ``--screen`` leaves out, what it costs, and what it loses: mixtures × queries, in one run.

    python bench/screening.py --corpus corpus --work /tmp/screening             # the test split
    python bench/screening.py --corpus corpus --work /tmp/val --split val --choose

Mixtures of 10 s of two or three sources are drawn from the corpus and rendered. Each is asked every
query: the captions of some classes that do not sound alike, one of which is in each mixture; its
other sources are of classes that no query asks for. Three runs over the same files in one process,
in turn: everything is separated; nothing is (``--screen 1``), which costs what hearing costs and
says for every pair how plausible it is; and what is plausible by ``--value``. A fourth answers the
same again from the windows of the third. What loading the model takes is left out.

Beside presence, the similarity of the windows' embeddings to the query is measured on the same
pairs. ``--choose`` does the first only and prints which value would keep how much: this is how the
value of the bundled model was chosen, on the validation split. ``--most`` takes the classes of
which the split has most clips instead of drawing them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from manifests.benchmarks.clips import clip_uri
from manifests.benchmarks.corpus_sets import CorpusClip, Draw, read_corpus
from manifests.benchmarks.sound_classes import distinct
from manifests.files.writing import write_rows
from manifests.row import ManifestRow
from model import registry, systems
from pipelines import separate, synthesize

KEPT = (0.9, 0.95, 0.97, 0.99)


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--corpus", required=True, nargs="+", help="folders with manifest.csv")
    parser.add_argument("--work", required=True, help="folder of mixtures and runs")
    parser.add_argument("--model", default="clapsep-mini")
    parser.add_argument("--split", default="test")
    parser.add_argument("--recordings", type=int, default=200)
    parser.add_argument("--queries", type=int, default=10)
    parser.add_argument("--most", action="store_true", help="classes with most clips, not drawn")
    parser.add_argument("--value", default="auto", help="as --screen")
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args()
    work = Path(options.work)
    there = render(options, work)
    print(
        f"{options.model}, split {options.split}: {len({r for r, _ in there})} recordings of 10 s "
        f"x {len(queries_of(work))} queries, one present in each"
    )
    timed(options, work, "warm", ["--screen", "1"], "*00.flac")
    hearing = timed(options, work, "hearing", ["--screen", "1"])
    plausible = {
        row["id"]: row["presence"] for row in table(work / "hearing", "metrics", ["id", "presence"])
    }
    by_pair = {pair: plausible[f"{pair[0]}/{pair[1]}"] for pair in there}
    curve("presence in the windows", there, by_pair)
    curve("similarity to the windows", there, similarities(options.model, work, there))
    if options.choose:
        return
    again = timed(options, work, "hearing", ["--screen", "1", "--resume"], asks="again")
    whole = timed(options, work, "whole", [])
    screened = timed(options, work, "screened", ["--screen", options.value])
    print()
    said("everything is separated", whole, whole)
    said("nothing is, all is heard", hearing, whole)
    said("nothing is, as many queries from windows/", again, whole)
    said(f"--screen {options.value}", screened, whole)
    report(work, there)


class _Raw(argparse.RawDescriptionHelpFormatter):
    pass


Pair = tuple[str, str]
"""A recording and a query, by their names."""


def render(options: argparse.Namespace, work: Path) -> dict[Pair, bool]:
    """Makes the recordings and the table of queries; says which pairs are present."""
    truth = work / "truth.json"
    if not truth.exists():
        work.mkdir(parents=True, exist_ok=True)
        drawn = [
            (root, Draw(read_corpus(root), audio_root=root, split=options.split))
            for root in (str(Path(each).absolute()) for each in options.corpus)
        ]
        clips = [(root, clip) for root, draw in drawn for clip in draw.clips]
        classes = chosen(drawn[0][1], [clip for _, clip in clips], options)
        rows, names = [], {}
        rng = drawn[0][1].rng("screening")
        for index in range(options.recordings):
            label = classes[index % len(classes)]
            row = mixture(f"r{index:05d}", label, classes, clips, rng)
            rows.append(row)
            names[row.id] = label
        write_rows(str(work / "rows.jsonl"), rows)
        captions = {
            label: Counter(c.caption for _, c in clips if c.label == label).most_common(1)[0][0]
            for label in classes
        }
        for file, word, form in (("queries", "", "{}"), ("again", "_again", "the sound of {}")):
            lines = [f'{label}{word},"{form.format(text)}"' for label, text in captions.items()]
            text = "\n".join(["name,positive_text", *lines]) + "\n"
            (work / f"{file}.csv").write_text(text, encoding="utf-8")
        _quietly(synthesize.run, "--manifest", work / "rows.jsonl", "--output", work / "mixtures")
        truth.write_text(json.dumps([names, classes]), encoding="utf-8")
    names, classes = json.loads(truth.read_text(encoding="utf-8"))
    return {(name, each): each == label for name, label in names.items() for each in classes}


def chosen(draw: Draw, clips: Sequence[CorpusClip], options: argparse.Namespace) -> list[str]:
    """Classes that do not sound alike, and have clips of two recordings."""
    groups: dict[str, set[str]] = {}
    for clip in clips:
        groups.setdefault(clip.label, set()).add(clip.group)
    labels = sorted(label for label, found in groups.items() if len(found) > 1)
    order = [labels[int(each)] for each in draw.rng("queries").permutation(len(labels))]
    if options.most:
        counts = Counter(clip.label for clip in clips)
        order = sorted(labels, key=lambda label: -counts[label])
    found: list[str] = []
    for label in order:
        if len(found) < options.queries and distinct(label, found):
            found.append(label)
    return found


def mixture(
    name: str,
    label: str,
    classes: Sequence[str],
    clips: Sequence[tuple[str, CorpusClip]],
    rng: np.random.Generator,
) -> ManifestRow:
    """A clip of the class, and one or two of classes that no query asks for, at 0 dB."""
    own = [each for each in clips if each[1].label == label]
    taken = [own[int(rng.integers(len(own)))]]
    for _ in range(int(rng.integers(1, 3))):
        heard = [*classes, *(clip.label for _, clip in taken)]
        others = [each for each in clips if distinct(each[1].label, heard)]
        taken.append(others[int(rng.integers(len(others)))])
    uris = tuple(clip_uri(root, clip.path) for root, clip in taken)
    return ManifestRow(
        id=name,
        target_uri=uris[0],
        interferer_uris=uris[1:],
        snr_db=(0.0,) * (len(uris) - 1),
        duration_s=10.0,
        positive_text=label,
    )


def _quietly(job: Any, *words: Any) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = job([*map(str, words), "--progress", "none"])
    if code != 0:
        raise SystemExit(f"{words}: ended with {code}\n{said.getvalue()}")


def timed(
    options: argparse.Namespace,
    work: Path,
    name: str,
    words: Sequence[str],
    pattern: str = "*.flac",
    asks: str = "queries",
) -> tuple[float, float]:
    """Runs the job; gives the wall seconds of its graph, and processor seconds of it all."""
    began_s = time.process_time()
    _quietly(
        separate.run,
        *("--recordings", work / "mixtures" / "mixtures" / pattern),
        *("--queries", work / f"{asks}.csv", "--model", options.model, "--device", "cpu"),
        *("--output", work / name, *([] if "--resume" in words else ["--overwrite"]), *words),
    )
    used_s = time.process_time() - began_s
    record = json.loads((work / name / "run.json").read_text("utf-8"))
    return record["wall_s"], used_s


def table(output: Path, name: str, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of a table of a run."""
    return [
        row
        for file in sorted((output / name).rglob("*.parquet"))
        for row in pq.ParquetFile(file).read(columns).to_pylist()
    ]


def queries_of(work: Path) -> list[str]:
    """The names of the queries."""
    classes: list[str] = json.loads((work / "truth.json").read_text("utf-8"))[1]
    return classes


def similarities(model: str, work: Path, there: dict[Pair, bool]) -> dict[Pair, float]:
    """The greatest cosine of a window of a recording and of a query."""
    encoder = registry.load(model).query_encoder
    lines = (work / "queries.csv").read_text("utf-8").splitlines()[1:]
    texts = {line.split(",")[0]: line.split('"')[1] for line in lines}
    asked = {name: systems.embed_texts(encoder, [text])[0] for name, text in texts.items()}
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for row in table(work / "hearing", "windows", ["mixture_uri", "embedding"]):
        if row["embedding"] is not None:
            name = Path(row["mixture_uri"]).stem
            found.setdefault(name, []).append(np.array(row["embedding"]))
    return {
        (name, query): max(float(vector @ asked[query]) for vector in found[name])
        for name, query in there
    }


def curve(title: str, there: dict[Pair, bool], likely: dict[Pair, float]) -> None:
    """Prints which value keeps how much of what is present, and what passes of all pairs."""
    values = np.array([likely[pair] for pair in there])
    present = np.array(list(there.values()))
    ranks = values.argsort().argsort()
    num = int(present.sum())
    area = (ranks[present].sum() - num * (num - 1) / 2) / num / (len(values) - num)
    print(f"\n{title}: AUROC {area:.3f}\n  value  present kept  all pairs kept  absent kept")
    for kept in KEPT:
        value = float(np.quantile(values[present], 1 - kept, method="lower"))
        stays = values >= value
        shares = (stays[present].mean(), stays.mean(), stays[~present].mean())
        print(f"{value:7.3f}" + "".join(f"{share:14.1%}" for share in shares))


def said(what: str, times: tuple[float, float], whole: tuple[float, float]) -> None:
    """Prints the times of a run."""
    wall, used = (part / of for part, of in zip(times, whole, strict=True))
    print(
        f"{what:50s} {times[0]:7.1f} s ({wall:.2f})   {times[1]:7.1f} s of processor ({used:.2f})"
    )


def report(work: Path, there: dict[Pair, bool]) -> None:
    """Prints what of the pairs the screened run separated."""
    rows = table(work / "screened", "metrics", ["id", "stem_uri"])
    stems = {row["id"]: row["stem_uri"] is not None for row in rows}
    kept = [stems[f"{name}/{query}"] for (name, query), present in there.items() if present]
    print(f"{np.mean(list(stems.values())):.1%} of the stems, {np.mean(kept):.1%} of the present")


if __name__ == "__main__":
    main()
