"""What presence costs beside a separation, with and without it in turn.

``python bench/presence.py [--model clapsep-mini] [--windows 4] [--rounds 15]``

CPU time of the network on one thread, a window: encoding, and decoding for so many queries. The
medians of the rounds are compared; nothing is read, and no stem is written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model import registry
from model.systems import Condition
from model.systems.clapsep.network import ClapSep

QUERIES = (1, 2, 4, 10)


def spent_s(network: ClapSep, mixture: torch.Tensor, condition: Condition, queries: int) -> float:
    """Answers so many queries of each mixture; returns the seconds of the processor."""
    begun = time.process_time()
    encoded = network.encode(mixture)
    rows = torch.arange(len(mixture)).repeat_interleave(queries)
    for part in rows.split(len(mixture)):
        chosen, asked = encoded.index(part), condition.index(torch.zeros_like(part))
        network.decode(chosen, asked)
        network.presence(chosen, asked)
    return time.process_time() - begun


def main() -> None:
    """Prints a line for each number of queries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="clapsep-mini", help="name or URI")
    parser.add_argument("--windows", type=int, default=4, help="mixtures in a pass")
    parser.add_argument("--queries", type=int, nargs="+", default=QUERIES)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = registry.load(options.model).separator
    if not isinstance(network, ClapSep) or network.listener is None:
        sys.exit(f"--model {options.model}: does not tell presence")
    generator = torch.Generator().manual_seed(0)
    mixture = 0.06 * torch.randn(options.windows, network.window_samples, generator=generator)
    positive, negative = torch.randn(2, 1, network.embedding_dim, generator=generator)
    condition = Condition(positive=positive, negative=negative)
    forms = {"without": None, "with": network.listener}
    print(
        f"{options.model}, {options.windows} windows in a pass, medians of {options.rounds} rounds"
    )
    for queries in options.queries:
        spent: dict[str, list[float]] = {name: [] for name in forms}
        with torch.inference_mode():
            for _ in range(options.rounds + 1):
                for name, listener in forms.items():
                    network.listener = listener
                    spent[name].append(spent_s(network, mixture, condition, queries))
        milliseconds = {
            name: 1000 * statistics.median(each[1:]) / options.windows
            for name, each in spent.items()
        }
        more = milliseconds["with"] / milliseconds["without"] - 1
        print(
            f"{queries:>3} queries   without {milliseconds['without']:6.2f} ms"
            f"   with {milliseconds['with']:6.2f} ms   {100 * more:+5.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
