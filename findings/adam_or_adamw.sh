#!/usr/bin/env bash
# The guess: a checkpoint brings an optimizer its state and settings such as lr; whether weight
# decay is decoupled is up to the class, so an AdamW that loads an Adam checkpoint is an AdamW.
#
# torch 2.13.0: AdamW is a subclass of Adam with decoupled_weight_decay=True in its parameter
# groups, and load_state_dict() replaces the groups' settings. So the checkpoint decides: AdamW
# with an Adam checkpoint adds the decay to the gradient, like Adam, and the other way round,
# Adam decays like AdamW. Neither says a word.
#
# Seen (a weight of 2, one step with a zero gradient, after loading):
#   Adam checkpoint: Adam 1.912994, AdamW 1.912994
#   AdamW checkpoint: Adam 1.980000, AdamW 1.980000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import torch


def step(optimizer_class, checkpoint=None):
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = optimizer_class([weight], lr=0.1, weight_decay=0.1)
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint)
    weight.grad = torch.zeros(1)
    optimizer.step()
    return weight.item(), optimizer.state_dict()


results = {}
for saved in (torch.optim.Adam, torch.optim.AdamW):
    _, checkpoint = step(saved)
    adam, _ = step(torch.optim.Adam, checkpoint)
    adamw, _ = step(torch.optim.AdamW, checkpoint)
    print(f"{saved.__name__} checkpoint: Adam {adam:.6f}, AdamW {adamw:.6f}")
    assert adam == adamw
    results[saved] = adam
assert abs(results[torch.optim.AdamW] - 1.98) < 1e-4
assert abs(results[torch.optim.Adam] - 1.913) < 1e-3
END
