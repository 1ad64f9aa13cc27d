#!/bin/bash
# Guess: APOLLO of apollo-torch limits how fast the norm of a matrix's update grows, so that single
# large gradients do no harm. A gradient of zero, at the first step or later, is harmless, too, as
# it is with AdamW: the matrix doesn't move in that step, and learns as before in the next.
#
# apollo-torch 1.0.3, torch 2.13.0: the matrix all but stands still for more than 1,000 steps. The
# limiter (on unless disable_nl=True) lets the norm grow by 1 % at a step, relative to the norm of
# the last step. After an update of zero that is 1 % more than nothing, plus an epsilon of 1e-8: the
# next update has a norm of about 1e-8, and with 1 % at a step it takes some 700 steps to 1e-3 and
# as many again to 1. Zeros are not exotic: if the matrix that writes to the residual stream
# (c_proj) begins as zeros, as in many recipes, the one before it (c_fc) has a gradient of exactly
# zero in the first step, and only there. An expert that gets no token of a batch has it, too.
# Nothing tells: the loss falls, as all other matrices learn. Weight decay isn't limited, so that
# such a matrix shrinks meanwhile. APOLLO-Mini (scale_type="tensor") is the same; the Trainer of
# transformers uses this package for optim="apollo_adamw". With disable_nl=True all is right.
#
# Seen (an MLP with c_fc and c_proj, trained to be like another; how far c_fc has moved):
#   APOLLO: 2.867 after 400 steps, loss 0.0021
#   APOLLO, c_proj begins as zeros: 0.000 after 400 steps, loss 0.0058
#   APOLLO, c_proj begins as zeros: 0.046 after 1200 steps, loss 0.0054
#   APOLLO, c_proj begins as zeros: 3.100 after 2500 steps, loss 0.0009
#   the same without the limiter: 3.610 after 400 steps, loss 0.0013
#   the same with AdamW: 4.167 after 400 steps, loss 0.0005
#   APOLLO, c_fc without gradient in step 100: 0.000 in steps 101 to 400
#   the same without the limiter: 1.646 in steps 101 to 400
#   APOLLO-Mini, c_proj begins as zeros: 0.000 after 400 steps, loss 0.0063

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'apollo-torch==1.0.3'

cd "$folder"
venv/bin/python - 2>log <<'PY' || { cat log; exit 1; }
import torch
from apollo_torch import APOLLOAdamW
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)


def train(name, steps, zeros=False, limit=True, adamw=False, skip=None, scale_type="channel"):
    torch.manual_seed(0)
    c_fc, c_proj = nn.Linear(16, 64, bias=False), nn.Linear(64, 16, bias=False)
    teacher = nn.Sequential(nn.Linear(16, 64, bias=False), nn.GELU(), nn.Linear(64, 16, bias=False))
    if zeros:
        nn.init.zeros_(c_proj.weight)
    weights = [c_fc.weight, c_proj.weight]
    if adamw:
        optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0)
    else:  # the limiter is on unless told otherwise
        group = dict(params=weights, rank=4 if scale_type == "channel" else 1, proj="random",
                     scale_type=scale_type, scale=1, update_proj_gap=200, proj_type="std")
        optimizer = APOLLOAdamW([group], lr=1e-2, disable_nl=not limit)
    generator = torch.Generator().manual_seed(1)
    positions = [c_fc.weight.detach().clone()]
    for step in range(steps):
        x = torch.randn(64, 16, generator=generator)
        with torch.no_grad():
            y = teacher(x)
        loss = F.mse_loss(c_proj(F.gelu(c_fc(x))), y)
        optimizer.zero_grad()
        loss.backward()
        if step == skip:
            c_fc.weight.grad.zero_()
        assert (c_fc.weight.grad.norm() == 0) == (step == skip or (zeros and step == 0))
        optimizer.step()
        positions.append(c_fc.weight.detach().clone())
    if skip is None:
        moved = (positions[-1] - positions[0]).norm().item()
        print(f"{name}: {moved:.3f} after {steps} steps, loss {loss.item():.4f}")
    else:
        moved = (positions[-1] - positions[skip + 1]).norm().item()
        print(f"{name}: {moved:.3f} in steps {skip + 2} to {steps}")
    return moved


assert train("APOLLO", 400) > 1
for steps in (400, 1200):
    assert train("APOLLO, c_proj begins as zeros", steps, zeros=True) < 0.1
assert train("APOLLO, c_proj begins as zeros", 2500, zeros=True) > 1
assert train("the same without the limiter", 400, zeros=True, limit=False) > 1
assert train("the same with AdamW", 400, zeros=True, adamw=True) > 1
assert train("APOLLO, c_fc without gradient in step 100", 400, skip=99) < 1e-3
assert train("the same without the limiter", 400, skip=99, limit=False) > 0.5
assert train("APOLLO-Mini, c_proj begins as zeros", 400, zeros=True, scale_type="tensor") < 1e-3
PY
