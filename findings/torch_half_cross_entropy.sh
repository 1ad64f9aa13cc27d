#!/usr/bin/env bash
# Guess: cross_entropy() averages the losses of a half-precision batch in float32 and rounds the
# mean at the end, as Tensor.mean() does. The number of rows doesn't matter.
#
# torch 2.13.0, CPU: the rows' losses are added up in the logits' own dtype. In float16, the sum
# exceeds 65504 and the loss is infinite, with rows that all have the same, ordinary loss: here
# 16384 of ln 1024 = 6.93. In bfloat16, it is finite but wrong by more than its rounding.
# reduction="none" and mean() give the right value. The gradients aren't touched.
#
# Seen:
#   torch.float16: cross_entropy inf, mean of the rows 6.9297
#   torch.bfloat16: cross_entropy 6.9688, mean of the rows 6.9375
#   torch.float32: cross_entropy 6.9315, mean of the rows 6.9315

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import math

import torch
import torch.nn.functional as F


def losses(dtype):
    logits = torch.zeros(16384, 1024, dtype=dtype, requires_grad=True)
    targets = torch.zeros(16384, dtype=torch.long)
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    assert logits.grad.isfinite().all()
    by_row = F.cross_entropy(logits, targets, reduction="none").mean()
    print(f"{dtype}: cross_entropy {loss.item():.4f}, mean of the rows {by_row.item():.4f}")
    return loss.item(), by_row.item()


half, half_by_row = losses(torch.float16)
bfloat, bfloat_by_row = losses(torch.bfloat16)
single, _ = losses(torch.float32)
assert math.isinf(half)
assert abs(half_by_row - math.log(1024)) < 0.01
assert abs(bfloat_by_row - math.log(1024)) < 0.04
assert abs(single - math.log(1024)) < 0.001
END
