#!/usr/bin/env bash
# Guess: Muon of muon-fsdp2 makes for a model sharded with FSDP2 the steps that Muon makes for the
# whole model, with Nesterov momentum (the default) and with nesterov=False.
#
# muon-fsdp2 0.3.0, torch 2.13.0: with nesterov=False, it goes on in the direction of its first step
# and hardly looks at gradients any more. What is to be orthogonalized is put into weight.grad. That
# is a tensor of its own with Nesterov momentum, but without, it's the momentum buffer itself, and
# the orthogonalized shard that comes back is written into it and multiplied by the learning rate's
# scale, 0.2 * sqrt(the larger side). So the memory of all gradients is lost, and what stands there
# instead is much larger than the gradients of a mean loss are: 5 % of one are added to 95 % of
# the last update, which orthogonalized is nearly the last update again. It's so in a single
# process, too. No errors, no NaN: the loss falls at first, if the learning rate is small, and then
# grows. (Without FSDP2 this package's Muon fails loudly, so torch.optim.Muon is the one to compare
# with.) weight.grad is overwritten in any case, so it can't be logged after step().
#
# Seen (a linear layer is to learn another one; the mean squared error before, after 20 and after
# 200 steps, and the cosine between the first update and the last; two processes give the same):
#   1 process, nesterov=True, whole: 0.687 0.288 0.000, -0.02
#   1 process, nesterov=True, sharded: 0.687 0.288 0.000, -0.05
#   1 process, nesterov=False, whole: 0.687 0.288 0.001, 0.05
#   1 process, nesterov=False, sharded: 0.687 0.292 7.694, 0.94

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'muon-fsdp2==0.3.0'
cd "$folder"

cat >compare.py <<'END'
import sys

import torch
import torch.distributed as dist
from muon_fsdp2 import Muon
from torch import nn
from torch.distributed.fsdp import fully_shard

torch.set_num_threads(1)
dist.init_process_group("gloo")
size = dist.get_world_size()


def run(sharded, nesterov):
    """Return the errors before, after 20 and after 200 steps, and a cosine of two updates."""
    torch.manual_seed(0)
    student, teacher = (nn.Linear(24, 32, bias=False) for _ in range(2))
    inputs = torch.randn(256, 24)
    with torch.no_grad():
        targets = teacher(inputs)
    if sharded:
        fully_shard(student)
    group = {"params": [student.weight], "lr": 0.02, "momentum": 0.95, "nesterov": nesterov,
             "weight_decay": 0}
    if sharded:
        optimizer = Muon([{"use_muon": True, **group}])
    else:
        optimizer = torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw")
    weights, errors = [], []
    for step in range(201):
        weight = student.weight.detach()
        weights.append((weight.full_tensor() if sharded else weight).flatten().clone())
        error = (student(inputs) - targets).square().mean()
        errors.append(error.item())
        error.backward()
        optimizer.step()
        optimizer.zero_grad()
    updates = weights[1] - weights[0], weights[-1] - weights[-2]
    cosine = torch.cosine_similarity(*updates, dim=0).item()
    if dist.get_rank() == 0:
        print(f"{size} process{'es'[:2 * (size - 1)]}, nesterov={nesterov}, "
              f"{'sharded' if sharded else 'whole'}: "
              f"{errors[0]:.3f} {errors[20]:.3f} {errors[200]:.3f}, {cosine:.2f}")
    return errors[0], errors[200], cosine


for nesterov in (True, False):
    for sharded in (False, True):
        before, after, cosine = run(sharded, nesterov)
        if sharded and not nesterov:
            assert after > 5 * before and cosine > 0.8
        else:
            assert after < before / 100 and abs(cosine) < 0.5
dist.destroy_process_group()
END
export TORCHDYNAMO_DISABLE=1 OMP_NUM_THREADS=1
for processes in 1 2; do
    "$folder/venv/bin/torchrun" --standalone --nproc-per-node "$processes" compare.py \
        2>"$folder/log" || { cat "$folder/log"; exit 1; }
done
