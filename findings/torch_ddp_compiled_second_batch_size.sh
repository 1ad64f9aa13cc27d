#!/usr/bin/env bash
# Guess: a compiled function is compiled again for a second batch size, wrapped or not. So a
# compiled model in DistributedDataParallel, trained with batches of 8, can be evaluated on 3.
#
# torch 2.13.0, CPU, one process: plain and in FSDP it can, in DistributedDataParallel it depends
# on the model's size. There the graph is cut where a bucket of gradients ends, the first of them
# 1 MB from the output. The second batch size makes the graph's sizes symbolic; where the loss is an
# autograd.Function and lies behind a cut, its part receives a tensor of 64*s24 rows but nobody
# tells it s24, and the compiler fails with an InductorError. Models below 1 MB have no cut. Padding
# the last batch to the full shape, with targets that don't count, avoids the second compilation.
# (Nearly the same models compile, too: one can't tell beforehand.)
#
# Seen:
#   width  16, plain: fine
#   width  16, DDP: fine
#   width 192, plain: fine
#   width 192, FSDP: fine
#   width 192, DDP: InductorError: AssertionError: For 64*s24, expected [s24] to have been
#     codegen-ed.

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cat >"$folder/probe.py" <<'END'
import os
import re
import sys

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost")
os.environ["MASTER_PORT"] = str(20000 + os.getpid() % 20000)
dist.init_process_group("gloo")


class Loss(torch.autograd.Function):
    """The cross-entropy of x @ weight.T, whose gradients are computed in forward (here without the
    targets' part of them, which isn't needed to show anything)."""

    @staticmethod
    def forward(ctx, x, weight, targets, backward_follows):
        total = weight.new_zeros(())
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        log_probs = F.log_softmax(x @ weight.T, dim=-1)
        total += F.nll_loss(log_probs, targets, ignore_index=-1, reduction="sum")
        if backward_follows:
            g = log_probs.exp()
            torch.mm(g, weight, out=grad_x)
            grad_weight += g.T @ x
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return a * g, b * g, None, None


class Net(nn.Module):
    def __init__(self, V=2048, C=192):
        super().__init__()
        self.emb = nn.Embedding(V, C)
        self.layers = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.norm = nn.Identity()

    def forward(self, idx, targets):
        x = self.emb(idx)
        for layer in self.layers:
            x = x + layer(x)
        x = self.norm(x).flatten(0, 1)
        t = targets.flatten()
        return Loss.apply(x, self.emb.weight, t, torch.is_grad_enabled())


wrapper, width = sys.argv[1], int(sys.argv[2])
net = Net(C=width)
if wrapper == "DDP":
    net = nn.parallel.DistributedDataParallel(net)
if wrapper == "FSDP":
    from torch.distributed.fsdp import fully_shard
    fully_shard(net, mesh=dist.init_device_mesh("cpu", (1,)))
f = torch.compile(net)


def loss(n):
    ids = torch.randint(2048, (n, 65))
    return f(ids[:, :-1], ids[:, 1:])


try:
    for _ in range(2):
        loss(8).backward()
    with torch.no_grad():
        loss(8)
        loss(3)
    result = "fine"
except Exception as error:
    found = re.search(r"AssertionError: .*", str(error))
    result = f"{type(error).__name__}: {found[0] if found else str(error)[:99]}"
print(f"width {width:3}, {wrapper}: {result}", flush=True)
dist.destroy_process_group()
END

for case in "plain 16" "DDP 16" "plain 192" "FSDP 192" "DDP 192"; do
    "$folder/venv/bin/python" "$folder/probe.py" $case 2>/dev/null | tee -a "$folder/results"
done
test "$(grep -c 'fine$' "$folder/results")" = 4
grep -q '^width 192, DDP: InductorError: AssertionError' "$folder/results"
