#!/usr/bin/env bash
# Guess: get_optimizer_state_dict() only reads. Saving a checkpoint before the first step changes
# nothing in the training that follows.
#
# torch 2.13.0: if the optimizer has no state yet, the getter makes some by calling step() with zero
# gradients and lr = 0. The parameters stay, but Adam's step counter is left at 1, so the first
# real update is bias-corrected as the second one: 26 % too small. And SGD, which would have
# started its momentum with the whole first gradient, now applies the dampening to it: with 0.9,
# the first update is a tenth of what it was.
#
# Seen:
#   AdamW: first update -0.1000 without the getter, -0.0744 with it (step counter after it: 2)
#   SGD: first update -0.1000 without the getter, -0.0100 with it

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def first_update(make_optimizer, look):
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = make_optimizer(model.parameters())
    if look:
        get_optimizer_state_dict(model, optimizer)
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return model.weight.item() - 1, optimizer.state[model.weight]


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.9)


plain, _ = first_update(adamw, look=False)
looked, state = first_update(adamw, look=True)
print(f"AdamW: first update {plain:.4f} without the getter, {looked:.4f} with it "
      f"(step counter after it: {state['step'].item():.0f})")
assert abs(plain + 0.1) < 0.001
assert abs(looked + 0.0744) < 0.001
assert state["step"].item() == 2

plain, _ = first_update(sgd, look=False)
looked, _ = first_update(sgd, look=True)
print(f"SGD: first update {plain:.4f} without the getter, {looked:.4f} with it")
assert abs(plain + 0.1) < 0.001
assert abs(looked + 0.01) < 0.001
END
