#!/usr/bin/env bash
# Guess: a run with came-pytorch's CAME that is interrupted goes on from its checkpoint (weights
# and state_dict of the optimizer) with exactly the steps of the run that wasn't, in float32 and
# for a model in bfloat16.
#
# came-pytorch 0.1.3, torch 2.13.0: in float32 it does. With weights in bfloat16, CAME keeps its
# averages in float32, as it must: they change by 1 of 1,000 and 1 of 10,000 at a step, and
# bfloat16 has no number that is so near to another. The checkpoint holds float32, too. But
# load_state_dict(), which is torch's, turns every state of floating-point numbers into the dtype
# of its weight. CAME doesn't look at the dtype again and goes on averaging in place: each product
# rounds back to what it was. The averages of the squared gradients stand still at what they were
# in the checkpoint, unless gradients become very much larger. Nothing fails, nothing warns.
# Putting the saved float32 tensors into optimizer.state by hand is right.
#
# Seen (a matrix of 64 x 64, 300 steps, then 1500 more with gradients a tenth as large: how far
# the weights are from those of the uninterrupted run, relative to how far they moved; dtype of
# the averages; the mean of the squared gradients' average, which was 0.26 at the checkpoint):
#   torch.float32, uninterrupted: 0.00, torch.float32, 0.07
#   torch.float32, load_state_dict: 0.00, torch.float32, 0.07
#   torch.float32, by hand: 0.00, torch.float32, 0.07
#   torch.bfloat16, uninterrupted: 0.00, torch.float32, 0.07
#   torch.bfloat16, load_state_dict: 0.49, torch.bfloat16, 0.26
#   torch.bfloat16, by hand: 0.00, torch.float32, 0.07

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'came-pytorch==0.1.3'

cd "$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from came_pytorch import CAME

torch.set_num_threads(1)


def start(dtype):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64).to(dtype))
    return weight, CAME([weight], lr=1e-2)


def steps(weight, optimizer, first, last):
    for step in range(first, last):
        torch.manual_seed(step)
        weight.grad = torch.randn(64, 64).to(weight.dtype)
        weight.grad *= 1.0 if step < 300 else 0.1
        optimizer.step()


def run(dtype, how):
    weight, optimizer = start(dtype)
    steps(weight, optimizer, 0, 300)
    if how != "uninterrupted":
        torch.save([weight.data, optimizer.state_dict()], "checkpoint.pt")
        weight, optimizer = start(dtype)
        weight.data, saved = torch.load("checkpoint.pt")
        optimizer.load_state_dict(saved)
        if how == "by hand":
            optimizer.state[weight].update(torch.load("checkpoint.pt")[1]["state"][0])
    before = weight.detach().float().clone()
    steps(weight, optimizer, 300, 1800)
    state = optimizer.state[weight]["exp_avg_sq_row"]
    return weight.detach().float(), before, state


for dtype in [torch.float32, torch.bfloat16]:
    whole, before, state = run(dtype, "uninterrupted")
    print(f"{dtype}, uninterrupted: 0.00, {state.dtype}, {state.mean():.2f}", flush=True)
    assert state.dtype == torch.float32 and state.mean() < 0.1
    for how in ["load_state_dict", "by hand"]:
        resumed, _, state = run(dtype, how)
        off = (resumed - whole).norm() / (whole - before).norm()
        print(f"{dtype}, {how}: {off:.2f}, {state.dtype}, {state.mean():.2f}", flush=True)
        if dtype == torch.bfloat16 and how == "load_state_dict":
            assert off > 0.3 and state.dtype == torch.bfloat16 and state.mean() > 0.2
        else:
            assert off < 1e-4 and state.dtype == torch.float32 and state.mean() < 0.1
END
