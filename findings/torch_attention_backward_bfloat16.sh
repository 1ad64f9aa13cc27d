#!/usr/bin/env bash
# The guess: on a CPU, attention in bfloat16 takes about as long as in float32, backward as well as
# forward, since the kernel multiplies the same numbers and moves half the bytes.
#
# torch 2.13.0, scaled_dot_product_attention on an AMD EPYC with AVX2 only, one thread, 4 heads of
# 48, 2,048 tokens, causal: forward yes, but backward in bfloat16 takes 3 to 7 times as long as in
# float32, and float16 is slower still. (On a Zen 4, which has instructions for bfloat16, backward
# took twice as long up to 256 positions.) So whoever trains under autocast on a CPU does well to
# leave attention, between its matrix products in bfloat16, in float32.
#
# Seen (time in bfloat16 divided by that in float32):
#   32 positions: forward 1.05, backward 3.28
#   64 positions: forward 1.08, backward 4.40
#   128 positions: forward 1.14, backward 4.66

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" - <<'END'
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)


def seconds(n_positions, dtype):
    """Return the least times of attention and of its backward pass, for 2,048 tokens."""
    shape = (2048 // n_positions, 4, n_positions, 48)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
    forward, backward = [], []
    for _ in range(20):
        start = time.perf_counter()
        output = F.scaled_dot_product_attention(*inputs, is_causal=True)
        forward.append(time.perf_counter() - start)
        gradient = torch.ones_like(output)
        start = time.perf_counter()
        torch.autograd.grad(output, inputs, gradient)
        backward.append(time.perf_counter() - start)
    return min(forward), min(backward)


for n_positions in (32, 64, 128):
    single, half = (seconds(n_positions, dtype) for dtype in (torch.float32, torch.bfloat16))
    forward, backward = half[0] / single[0], half[1] / single[1]
    print(f"{n_positions} positions: forward {forward:.2f}, backward {backward:.2f}")
    assert backward > 1.4
END
