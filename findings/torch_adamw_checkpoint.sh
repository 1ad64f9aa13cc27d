#!/usr/bin/env bash
# Guess: a checkpoint brings an optimizer its state and settings such as lr; whether weight decay is
# decoupled is up to the class, so an Adam that loads an AdamW checkpoint is an Adam.
#
# torch 2.13.0: AdamW is a subclass of Adam with decoupled_weight_decay=True in its parameter
# groups, and load_state_dict() replaces the groups' settings. So Adam with an AdamW checkpoint
# decays like AdamW from then on, even if it was made with decoupled_weight_decay=False, and
# doesn't say a word. Only the other way is guarded: AdamW stays AdamW with an Adam checkpoint.
#
# Seen (a weight of 2, one step with a zero gradient):
#   from the start: Adam 1.900, AdamW 1.980
#   with an AdamW checkpoint: Adam 1.980, AdamW 1.980
#   with an Adam checkpoint: Adam 1.900, AdamW 1.913

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import copy

import torch


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1, decoupled_weight_decay=False)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


def step(make_optimizer, checkpoint=None):
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer([weight])
    if checkpoint is not None:
        optimizer.load_state_dict(copy.deepcopy(checkpoint))
    weight.grad = torch.zeros(1)
    optimizer.step()
    return weight.item(), optimizer.state_dict()


def both(name, checkpoint=None):
    x, adam_checkpoint = step(adam, checkpoint)
    y, adamw_checkpoint = step(adamw, checkpoint)
    print(f"{name}: Adam {x:.3f}, AdamW {y:.3f}")
    return x, y, adam_checkpoint, adamw_checkpoint


x, y, adam_checkpoint, adamw_checkpoint = both("from the start")
assert abs(x - 1.9) < 0.001
assert abs(y - 1.98) < 0.001
x, y, _, _ = both("with an AdamW checkpoint", adamw_checkpoint)
assert x == y
assert abs(x - 1.98) < 0.001
x, y, _, _ = both("with an Adam checkpoint", adam_checkpoint)
assert y - x > 0.005
END
