"""At which level a model hears best: validation mixtures brought to one level after the other.

``python bench/input_level.py --corpus corpus [--model clapsep-mini] [--mixtures 50]``

Two sources at 0 dB in 5 s, asked for by text; SDRi in dB, with the 95 % interval over recordings.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from manifests.benchmarks.corpus_sets import build_corpus_sets, read_corpus
from manifests.files.writing import write_rows
from pipelines import separate
from pipelines.evaluation.results import Results, read_scores
from transforms import model_cache
from transforms.storage import Storage

SETS = ("text_pn", "text_p")
LEVELS_DBFS = (None, -70, -60, -50, -40, -30, -24, -18, -12, -6, 0, 10, 20, 30)


def main() -> None:
    """Prints a line a level; ``as it is`` is without any gain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", required=True, help="folder with manifest.csv")
    parser.add_argument("--model", default="clapsep-mini", help="name or URI")
    parser.add_argument("--mixtures", type=int, default=50)
    parser.add_argument("--levels_dbfs", type=float, nargs="*", default=LEVELS_DBFS)
    options = parser.parse_args()
    corpus = str(Path(options.corpus).resolve())
    # The run finds the model in the cache of this process, at the level that it was given here.
    choice = model_cache.ModelChoice(name=options.model, device="cpu")
    separator = model_cache.load_model(choice).separator
    print(f"{options.model}, {Path(corpus).name}, {options.mixtures} mixtures")
    with tempfile.TemporaryDirectory() as folder:
        manifest = f"{folder}/manifest.parquet"
        rows = build_corpus_sets(
            read_corpus(corpus), SETS, limit=options.mixtures, audio_root=corpus, split="val",
            duration_s=5.0,
        )  # fmt: skip
        write_rows(manifest, rows)
        for level_dbfs in options.levels_dbfs:
            separator.input_level_dbfs = level_dbfs
            figures = "   ".join(figures_of(f"{folder}/run", manifest, options.model))
            level = "as it is" if level_dbfs is None else f"{level_dbfs:g} dBFS"
            print(f"{level:>10}   {figures}", flush=True)


def figures_of(output: str, manifest: str, model: str) -> list[str]:
    """Separates the manifest; gives each set's SDRi in words."""
    words = ["--manifest", manifest, "--output", output, "--model", model, "--overwrite"]
    words += ["--device", "cpu", "--scorer", "none", "--progress", "none"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = separate.run(words)
    if code != 0:
        sys.exit(f"{said.getvalue()}pipelines.separate ended with exit code {code}")
    results = Results(split="val", seed=0, limit=None, scores=read_scores(output, Storage()))
    found = {name: by_metric["sdri_db"] for name, by_metric in results.summaries().items()}
    return [
        f"{name} {each.mean:5.2f} [{each.ci_low:5.2f}, {each.ci_high:5.2f}]"
        for name, each in found.items()
    ]


if __name__ == "__main__":
    main()
