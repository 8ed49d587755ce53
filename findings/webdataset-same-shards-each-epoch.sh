#!/usr/bin/env bash
# WebDataset(shardshuffle=100): every epoch reads the shards in the same order, and no seed makes resampling repeatable.
#
# Guess: shards are shuffled anew in every epoch, in a way that seed= repeats; that goes for resampled=True as well.
# Seen (webdataset 1.0.2, torch 2.13.0): one seed is drawn when the data set is made, and each epoch begins with it again:
# three epochs, one order, with and without seed=. detshuffle=True gives each epoch another, but in the workers of
# a DataLoader, which are begun anew, the first again; with persistent_workers=True they differ. resampled=True ignores
# seed=, and two runs read other shards. .shuffle(n) behind it draws anew in every epoch, but mixes neighbours only:
# what stands in the first shard stays at the beginning. detshuffle=True with persistent workers is what was meant; for
# resampling, DataPipeline with ResampledShards(urls, seed=…, deterministic=True).
# Known for shardshuffle as https://github.com/webdataset/webdataset/pull/502. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet webdataset==1.0.2 torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import webdataset
from torch.utils.data import DataLoader
from webdataset.shardlists import ResampledShards

print(f"webdataset {version('webdataset')}")
SHARDS = [f"shard-{number:02d}.tar" for number in range(12)]
for number, shard in enumerate(SHARDS):
    with webdataset.TarWriter(shard) as tar:
        tar.write({"__key__": f"{number:02d}", "txt": "a dog"})


def epochs(samples):
    return [[int(sample["__key__"]) for sample in samples] for _ in range(3)]


def loaded(persistent, **settings):
    data = webdataset.WebDataset(SHARDS, shardshuffle=100, **settings)
    return epochs(DataLoader(data, batch_size=None, num_workers=1, persistent_workers=persistent))


def resampled():
    data = webdataset.WebDataset(SHARDS, resampled=True, shardshuffle=False, seed=1).with_epoch(12)
    return epochs(data)[0]


def deterministic():
    return [each["url"] for each in ResampledShards(SHARDS, nshards=12, seed=1, deterministic=True)]


seen = {
    "without a seed": epochs(webdataset.WebDataset(SHARDS, shardshuffle=100)),
    "seed=1": epochs(webdataset.WebDataset(SHARDS, shardshuffle=100, seed=1)),
    "detshuffle": epochs(webdataset.WebDataset(SHARDS, shardshuffle=100, seed=1, detshuffle=True)),
    "without a seed, DataLoader": loaded(persistent=False),
    "detshuffle, DataLoader": loaded(persistent=False, seed=1, detshuffle=True),
    "detshuffle, DataLoader, persistent": loaded(persistent=True, seed=1, detshuffle=True),
    "resampled, seed=1, made three times": [resampled() for _ in range(3)],
    "ResampledShards, made three times": [deterministic() for _ in range(3)],
}
orders = {}
for what, found in seen.items():
    orders[what] = len({tuple(order) for order in found})
    print(f"{what}: {orders[what]} of 3 orders are different; the first {found[0][:4]} …")
sys.exit(list(orders.values()) != [1, 1, 3, 1, 1, 3, 3, 1])
PYTHON
