#!/usr/bin/env bash
# LoRA adapters on a torch TransformerEncoderLayer learn in train() and do nothing in eval(), until they are merged.
#
# Guess: what peft's adapters on linear1, linear2 or self_attn have learnt is in what the model gives in eval() too.
# Seen (peft 0.21.2, torch 2.13.0, on a CPU): the loss falls while they are trained; after eval() the output is that of
# the model without them, to the bit of disable_adapter(), with and without no_grad. In eval() torch takes a fast path
# that reads the weights of these layers itself and never calls them; peft has frozen them, so that the path is
# taken although gradients are on. No warning. A validation between two epochs says that nothing is learnt, and a checkpoint
# that is chosen by it is chosen by chance. merge_and_unload(), or torch.backends.mha.set_fastpath_enabled(False) before,
# gives what was learnt.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet peft==0.21.2 torch==2.13.0 numpy==2.3.5
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model

print(f"peft {version('peft')}, torch {torch.__version__}")
torch.manual_seed(0)
given, wanted = torch.randn(2, 4, 5, 16)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)


def loss(model):
    return (model(given) - wanted).square().mean()


as_guessed = True
for targets in (["linear1", "linear2"], ["self_attn"]):
    model = get_peft_model(torch.nn.Sequential(copy.deepcopy(layer)), LoraConfig(target_modules=targets))
    optimiser = torch.optim.Adam((each for each in model.parameters() if each.requires_grad), 1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        loss(model).backward()
        optimiser.step()
    seen = {"train()": loss(model).item()}
    model.eval()
    seen["eval()"] = loss(model).item()
    with torch.no_grad():
        seen["eval(), no_grad"] = loss(model).item()
    with model.disable_adapter():
        seen["eval(), disabled"] = loss(model).item()
    torch.backends.mha.set_fastpath_enabled(False)
    seen["eval(), no fast path"] = loss(model).item()
    torch.backends.mha.set_fastpath_enabled(True)
    seen["eval(), merged"] = loss(model.merge_and_unload()).item()
    print(f"{targets}: " + ", ".join(f"{how} {value:.3f}" for how, value in seen.items()))
    learnt, without = seen["train()"], seen["eval(), disabled"]
    heard = {how for how, value in seen.items() if abs(value - learnt) < 1e-3}
    unheard = {how for how, value in seen.items() if abs(value - without) < 1e-3}
    as_guessed &= learnt < 0.5 * without and heard == {"train()", "eval(), no fast path", "eval(), merged"}
    as_guessed &= unheard == {"eval()", "eval(), no_grad", "eval(), disabled"}
sys.exit(not as_guessed)
PYTHON
