#!/usr/bin/env bash
# torchmetrics' AUROC of cosines depends on how they are divided among updates, and that of levels in dB has ties.
#
# Guess: AUROC looks at the order of scores alone: any scale will do, and updates by batch give what one update gives.
# Seen (torchmetrics 1.9.0, torch 2.13.0, scikit-learn 1.9.1): each update in which a score lies outside of 0 to 1 goes
# through a sigmoid, others stay. Of eight cosines, as CLAP scores are, of which two are negative, the AUROC is 1.0 in one
# update, 0.75 in two and 0.5 one by one; average precision likewise. Levels above 17 dB are all 1.0 to float32 then, and
# equal: 0.833 for six that are in perfect order. scikit-learn says 1.0 to all. validate_args=False changes nothing.
# (1 + cosine) / 2, and levels divided by 40, lie within 0 to 1 and come out right.
# Known as https://github.com/Lightning-AI/torchmetrics/issues/2195 and 2819. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torchmetrics==1.9.0 torch==2.13.0 scikit-learn==1.9.1 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

print(f"torchmetrics {version('torchmetrics')}, torch {torch.__version__}")
COSINES, PRESENT = [0.30, 0.10, 0.25, 0.05, 0.20, -0.05, 0.15, -0.10], [1, 0, 1, 0, 1, 0, 1, 0]
LEVELS_DB, LOUD = [31.0, 25.0, 20.0, 18.0, 12.0, 3.0], [1, 1, 1, 0, 0, 0]


def in_updates(metric, scores, truth, size):
    for begin in range(0, len(scores), size):
        metric.update(torch.tensor(scores[begin : begin + size]), torch.tensor(truth[begin : begin + size]))
    return round(metric.compute().item(), 3)


halves = [(score + 1) / 2 for score in COSINES]
seen = {
    "AUROC of cosines by 8, 4, 1": [in_updates(BinaryAUROC(), COSINES, PRESENT, n) for n in (8, 4, 1)],
    "not validated": [in_updates(BinaryAUROC(validate_args=False), COSINES, PRESENT, n) for n in (8, 4, 1)],
    "average precision": [in_updates(BinaryAveragePrecision(), COSINES, PRESENT, n) for n in (8, 4, 1)],
    "AUROC of (1 + cosine) / 2": [in_updates(BinaryAUROC(), halves, PRESENT, n) for n in (8, 4, 1)],
    "AUROC of levels": [in_updates(BinaryAUROC(), LEVELS_DB, LOUD, 6)],
    "AUROC of levels / 40": [in_updates(BinaryAUROC(), [level / 40 for level in LEVELS_DB], LOUD, 6)],
    "scikit-learn": [
        float(roc_auc_score(PRESENT, COSINES)),
        float(average_precision_score(PRESENT, COSINES)),
        float(roc_auc_score(LOUD, LEVELS_DB)),
    ],
}
for what, values in seen.items():
    print(f"{what}: {values}")
apart = [1.0, 0.75, 0.5]
sys.exit(list(seen.values()) != [apart, apart, [1.0, 0.817, 0.525], [1.0] * 3, [0.833], [1.0], [1.0] * 3])
PYTHON
