#!/bin/bash
# Guess: a run with MuonAdamAtan2 of adam-atan2-pytorch that is interrupted goes on from its
# checkpoint (weights and state_dict of the optimizer) as the run that wasn't, as with AdamAtan2.
#
# adam-atan2-pytorch 0.4.1, torch 2.13.0: vectors get each other's averages. The optimizer takes the
# parameters for Muon out of the others by list(set(params) - set(muon_params)). A set of tensors is
# ordered by where they happen to be in memory, which differs from process to process, also with
# all seeds fixed. A state_dict has no names, only numbers, and load_state_dict() goes by the order.
# It doesn't compare shapes. Parameters of different shapes are noticed, if late: the first step
# fails if, say, the embedding gets the averages of a bias. Where all of them have one shape, as the
# gains of the norms in a model without biases, whose embeddings have an optimizer of their own,
# nothing tells that the gains go on with averages, squares, too, of other layers. Muon's own
# parameters keep their order. With remove_muon_params_from_params=False and lists that one has
# made oneself all is well. (PolarAdamAtan2 has the same line.)
#
# Seen (largest difference of a gain, and of another weight, between 6 steps at once and 3 steps, a
# new process with their checkpoint, and 3 more; twice; a gain moves by 0.01 at most in a step):
#   AdamAtan2: gains 0.0000, others 0.0000
#   MuonAdamAtan2, own lists: gains 0.0000, others 0.0000
#   MuonAdamAtan2: gains 0.0457, others 0.0002
#   AdamAtan2: gains 0.0000, others 0.0000
#   MuonAdamAtan2, own lists: gains 0.0000, others 0.0000
#   MuonAdamAtan2: gains 0.0445, others 0.0002

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'einops==0.8.2' 'adam-atan2-pytorch==0.4.1'
cd "$folder"

export OMP_NUM_THREADS=1
cat >train.py <<'END'
"""Train, or go on from the checkpoints of another process and compare."""
import sys

import torch
from adam_atan2_pytorch import AdamAtan2, MuonAdamAtan2
from torch import nn
from torch.nn import functional as F

WIDTH, LAYERS, VOCABULARY = 32, 6, 50


class Block(nn.Module):
    """A layer of a transformer without biases."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2)
                   for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1))
        attention = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attention.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def build(kind):
    """Return a model, the same each time, and its optimizers."""
    torch.manual_seed(0)
    wte, blocks = nn.Embedding(VOCABULARY, WIDTH), nn.Sequential(*(Block() for _ in range(LAYERS)))
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    gains = [p for p in blocks.parameters() if p.ndim == 1]
    return nn.ModuleList([wte, blocks]), torch.optim.AdamW(wte.parameters(), lr=1e-3), {
        "AdamAtan2": lambda: AdamAtan2(blocks.parameters(), lr=1e-2),
        "MuonAdamAtan2, own lists": lambda: MuonAdamAtan2(
            matrices, gains, lr=1e-2, remove_muon_params_from_params=False),
        "MuonAdamAtan2": lambda: MuonAdamAtan2(matrices, blocks.parameters(), lr=1e-2),
    }[kind]()


def train(parts, steps):
    """Train for some steps, each with its own texts, and return the state of all parts."""
    (wte, blocks), *optimizers = parts
    for step in steps:
        text = torch.randint(0, VOCABULARY, (4, 17), generator=torch.Generator().manual_seed(step))
        logits = F.linear(blocks(wte(text[:, :-1])), wte.weight)
        loss = F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        parts[0].zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return [part.state_dict() for part in parts]


for kind in ("AdamAtan2", "MuonAdamAtan2, own lists", "MuonAdamAtan2"):
    parts = build(kind)
    if sys.argv[1] == "train":
        torch.save(train(parts, range(3)), f"half {kind}")
        torch.save(train(parts, range(3, 6)), f"whole {kind}")
        continue
    for part, state in zip(parts, torch.load(f"half {kind}")):
        part.load_state_dict(state)
    one, two = train(parts, range(3, 6))[0], torch.load(f"whole {kind}")[0]
    differences = {name: (one[name] - two[name]).abs().max().item() for name in one}
    print(f"{kind}: gains {max(d for n, d in differences.items() if 'norm' in n):.4f}, "
          f"others {max(d for n, d in differences.items() if 'norm' not in n):.4f}")
    if kind == "MuonAdamAtan2":
        assert max(differences.values()) > 0.005
    else:
        assert max(differences.values()) == 0
END

for what in train resume resume; do
    venv/bin/python train.py $what
done
