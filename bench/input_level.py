"""At which level a model hears best: validation mixtures brought to one level after the other.

``python bench/input_level.py --corpus corpus [--model clapsep-mini] [--mixtures 50]``

Two sources at 0 dB in 5 s, asked for by text; SDRi in dB, with the 95 % interval over recordings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model import registry
from model.evaluation.suite import EvaluationSettings, evaluate
from model.training.corpus import Corpus

SETS = ("text_pn", "text_p")
LEVELS_DBFS = (None, -70, -60, -50, -40, -30, -24, -18, -12, -6, 0, 10, 20, 30)


def main() -> None:
    """Prints a line a level; ``as it is`` is without any gain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with manifest.csv")
    parser.add_argument("--model", default="clapsep-mini", help="name or URI")
    parser.add_argument("--mixtures", type=int, default=50)
    parser.add_argument("--levels_dbfs", type=float, nargs="*", default=LEVELS_DBFS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = registry.load(options.model)
    separator = loaded.separator
    corpus = Corpus.load(
        options.corpus, sample_rate_hz=separator.sample_rate_hz, splits=("train", "val")
    )
    settings = EvaluationSettings(split="val", limit=options.mixtures, duration_s=5.0)
    print(f"{loaded.name}, {options.corpus.name}, {options.mixtures} mixtures")
    for level_dbfs in options.levels_dbfs:
        separator.input_level_dbfs = level_dbfs
        results = evaluate(separator, loaded.query_encoder, corpus, SETS, settings=settings)
        found = [results.summary(name) for name in SETS]
        figures = "   ".join(
            f"{name} {each.mean:5.2f} [{each.low:5.2f}, {each.high:5.2f}]"
            for name, each in zip(SETS, found, strict=True)
        )
        level = "as it is" if level_dbfs is None else f"{level_dbfs:g} dBFS"
        print(f"{level:>10}   {figures}", flush=True)


if __name__ == "__main__":
    main()
