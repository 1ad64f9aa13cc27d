#!/usr/bin/env bash
# The guess: a GPT-2 whose output matrix is its token embedding (one Parameter under two names) stays
# tied when it leaves the "meta" device, where large models are built without memory: .to() keeps
# parameters tied whatever it converts.
#
# PyTorch 2.13.0: Module.to_empty(device="cpu") and load_state_dict(assign=True) each make two
# parameters of the one, without a word; Module.to("meta") on the way there does, too. The model runs
# and trains, but it is no GPT-2 any more: GPT-2 small would have 163 million parameters instead of
# 124, and a second AdamW state of 39 million. Each module is converted on its own, and only where the
# data of a Parameter can be replaced in place (not between "meta" and "cpu") is the Parameter kept.
# So tie the weights again after either call, before an optimizer or FSDP sees them.
#
# Seen (vocabulary 20, width 8):
#   built on meta                 232 parameters, tied
#   .to(bfloat16)                 232 parameters, tied
#   .to("meta")                   392 parameters, untied
#   .to_empty(device="cpu")       392 parameters, untied
#   load_state_dict(assign=True)  392 parameters, untied
#   after one step of SGD, the two matrices differ by more than 0.01

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
import torch.nn as nn
import torch.nn.functional as F


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 20, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        return self.lm_head(torch.tanh(self.body(self.wte(ids))))


def on_meta():
    with torch.device("meta"):
        return Tied()


def describe(name, model):
    count = sum(parameter.numel() for parameter in model.parameters())
    tied = model.lm_head.weight is model.wte.weight
    print(f"{name:29} {count} parameters, {'tied' if tied else 'untied'}")
    return count, tied


torch.manual_seed(0)
whole = Tied()
assigned = on_meta()
assigned.load_state_dict(whole.state_dict(), assign=True)
emptied = on_meta().to_empty(device="cpu")
assert describe("built on meta", on_meta()) == (232, True)
assert describe(".to(bfloat16)", Tied().to(torch.bfloat16)) == (232, True)
assert describe('.to("meta")', Tied().to("meta")) == (392, False)
assert describe('.to_empty(device="cpu")', emptied) == (392, False)
assert describe("load_state_dict(assign=True)", assigned) == (392, False)

# It trains, and the two go their own ways.
emptied.load_state_dict(whole.state_dict())
ids = torch.arange(20)
F.cross_entropy(emptied(ids), (ids + 3) % 20).backward()
torch.optim.SGD(emptied.parameters(), lr=1.0).step()
apart = (emptied.wte.weight - emptied.lm_head.weight).abs().max().item()
assert apart > 0.01, apart
print("after one step of SGD, the two matrices differ by more than 0.01")
END
