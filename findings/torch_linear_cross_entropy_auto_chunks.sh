#!/usr/bin/env bash
# Guess: torch.nn.LinearCrossEntropyOptions() picks the size of the pieces by what was measured on
# x86 processors, so torch.nn.functional.linear_cross_entropy() with it takes about as long there as
# linear() and cross_entropy(), or a little longer, for much less memory.
#
# torch 2.13.0: for GPT-2's output layer (768 x 50,257, float32) it picks pieces of 8 positions.
# Each piece adds to the whole gradient of the matrix, 154 MB, so that forward and backward take
# several times as long as by hand. Pieces of 512 positions, said explicitly, are as fast as by
# hand, and faster where there are many of them.
#
# Seen (1,024 positions, two AVX2 cores, seconds for forward and backward):
#   by hand: 3.7
#   auto: 15.0
#   512 positions: 2.8

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

cat > "$folder/speed.py" <<'END'
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

ways = {
    "by hand": lambda: F.cross_entropy(F.linear(x, weight), targets),
    "auto": lambda: F.linear_cross_entropy(
        x, weight, targets, options=nn.LinearCrossEntropyOptions()),
    "512 positions": lambda: F.linear_cross_entropy(
        x, weight, targets,
        options=nn.LinearCrossEntropyOptions(batch_chunk_size=512, chunking_method=None)),
}
torch.manual_seed(0)
x = torch.randn(1024, 768, requires_grad=True)
weight = torch.randn(50257, 768).mul(0.02).requires_grad_()
targets = torch.randint(0, 50257, (1024,))
seconds, losses = {}, {}
for name, loss_of in ways.items():
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        loss = loss_of()
        loss.backward()
        best = min(best, time.perf_counter() - start)
    seconds[name], losses[name] = best, loss.item()
    print(f"{name}: {best:.1f}")
assert max(losses.values()) - min(losses.values()) < 1e-3  # all three compute the same
assert seconds["auto"] > 2 * seconds["by hand"]
assert seconds["512 positions"] < 1.5 * seconds["by hand"]
END
"$folder/venv/bin/python" "$folder/speed.py"
