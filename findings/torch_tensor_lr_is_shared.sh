#!/usr/bin/env bash
# Guess: lr=torch.tensor(0.001), which PyTorch recommends with a compiled optimizer, means the same
# as lr=0.001. Each parameter group has its own learning rate, and a scheduler sets each.
#
# torch 2.13.0: all groups that don't name an lr of their own hold one and the same tensor, and
# schedulers write into it in place. What is written for one group is written for all. So with
# GPT-2's usual two groups, with and without weight decay, ReduceLROnPlateau halves the learning
# rate once for each group: to a quarter. LambdaLR with a function for each group, and OneCycleLR
# with a maximum for each, give all groups the last one's. `group["lr"] *= 0.5` in a loop over the
# groups halves twice, too. No warning; a schedule that is the same for all groups and computed
# before it is written (LinearLR, CosineAnnealingLR, one function for LambdaLR) is right, and so a
# test with one of those shows nothing. torch.save() and load_state_dict() keep the groups tied.
# Giving each group a tensor of its own helps.
#
# Seen (learning rates of the two groups; "plateau" after one reduction by 0.5, "lambda" with
# functions 1 and 0.1, "one cycle" at its maximum, 0.001 and 0.0001):
#   a number: plateau 0.00050 0.00050, lambda 0.00100 0.00010, one cycle 0.00100 0.00010,
#       by hand 0.00050 0.00050, cosine 0.00050 0.00050
#   a tensor: plateau 0.00025 0.00025, lambda 0.00010 0.00010, one cycle 0.00010 0.00010,
#       by hand 0.00025 0.00025, cosine 0.00050 0.00050
#   a tensor for each: as with a number
#   a tensor, saved and loaded: by hand 0.00025 0.00025

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import io
import math

import torch
from torch.optim import lr_scheduler

LR = 0.001


def build(kind):
    """AdamW for a matrix and a bias, in two groups."""
    matrix, bias = (torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (4,)))
    groups = [{"params": [matrix], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    if kind == "a tensor for each":
        for group in groups:
            group["lr"] = torch.tensor(LR)
    return torch.optim.AdamW(groups, lr=LR if kind == "a number" else torch.tensor(LR))


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def by_hand(optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    return rates(optimizer)


def schedule(kind, make, steps, *metric):
    optimizer = build(kind)
    scheduler = make(optimizer)
    for _ in range(steps):
        optimizer.step()
        scheduler.step(*metric)
    return rates(optimizer)


def try_all(kind):
    return {
        "plateau": schedule(kind, lambda optimizer: lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0), 2, 1.0),
        "lambda": schedule(kind, lambda optimizer: lr_scheduler.LambdaLR(
            optimizer, [lambda step: 1.0, lambda step: 0.1]), 1),
        "one cycle": schedule(kind, lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, [LR, LR / 10], total_steps=10, pct_start=0.3), 2),
        "by hand": by_hand(build(kind)),
        "cosine": schedule(kind, lambda optimizer: lr_scheduler.CosineAnnealingLR(
            optimizer, 4), 2),
    }


def close(got, wanted):
    return all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(got, wanted, strict=True))


number = {"plateau": [0.0005, 0.0005], "lambda": [0.001, 0.0001], "one cycle": [0.001, 0.0001],
          "by hand": [0.0005, 0.0005], "cosine": [0.0005, 0.0005]}
tensor = {"plateau": [0.00025, 0.00025], "lambda": [0.0001, 0.0001],
          "one cycle": [0.0001, 0.0001], "by hand": [0.00025, 0.00025],
          "cosine": [0.0005, 0.0005]}
for kind, wanted in (("a number", number), ("a tensor", tensor), ("a tensor for each", number)):
    seen = try_all(kind)
    print(f"{kind}:", ", ".join(f"{name} {a:.5f} {b:.5f}" for name, (a, b) in seen.items()))
    for name in wanted:
        assert close(seen[name], wanted[name]), (kind, name, seen[name])

file = io.BytesIO()
torch.save(build("a tensor").state_dict(), file)
file.seek(0)
loaded = build("a tensor for each")
loaded.load_state_dict(torch.load(file))
seen = by_hand(loaded)
print("a tensor, saved and loaded: by hand", *(f"{rate:.5f}" for rate in seen))
assert close(seen, [0.00025, 0.00025])
END
