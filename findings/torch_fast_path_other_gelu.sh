#!/usr/bin/env bash
# Guess: in eval mode and without dropout, GPT-2's blocks made of nn.TransformerEncoderLayer with
# norm_first=True and activation=nn.GELU(approximate="tanh") compute the same with gradients and
# without, apart from rounding. The layer's fast path for inference is, by its documentation, for
# ReLU and GELU given by name or as the function; other activations take the ordinary way.
#
# torch 2.13.0: any nn.GELU takes the fast path, which always computes the exact GELU. So a model
# that was trained with GPT-2's tanh approximation is evaluated with another activation under
# no_grad() or inference_mode(), and with its own as soon as gradients are on. The difference is
# hundreds of times that of rounding, yet small enough to pass for it in a check with a loose
# tolerance. Given as a function (functools.partial(F.gelu, approximate="tanh")) the approximation
# stays, as it does after torch.backends.mha.set_fastpath_enabled(False).
#
# Seen (4 layers of width 64, random weights, elements of the output about 1; largest difference
# between no_grad() and a pass with gradients):
#   nn.GELU(): 0.000001
#   nn.GELU(approximate="tanh"): 0.000898
#   the same, from the exact GELU with gradients: 0.000001
#   the same, fast path disabled: 0.000000
#   functional, tanh: 0.000000

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'

"$folder/venv/bin/python" -W ignore - <<'END'
import functools

import torch
import torch.nn.functional as F
from torch import nn


def model(activation):
    torch.manual_seed(1)
    block = nn.TransformerEncoderLayer(64, 4, 256, 0.0, activation, batch_first=True,
                                       norm_first=True)
    blocks = nn.TransformerEncoder(block, 4, norm=nn.LayerNorm(64), enable_nested_tensor=False)
    for weight in blocks.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.1)
    return blocks.eval()


def output(blocks):
    torch.manual_seed(2)
    x = torch.randn(4, 32, 64)
    mask = nn.Transformer.generate_square_subsequent_mask(32)
    return blocks(x, mask=mask, is_causal=True)


def both(blocks):
    with torch.no_grad():
        without = output(blocks)
    return without, output(blocks).detach()


def show(name, a, b):
    difference = (a - b).abs().max().item()
    print(f"{name}: {difference:.6f}")
    return difference


exact_without, exact_with = both(model(nn.GELU()))
tanh_without, tanh_with = both(model(nn.GELU(approximate="tanh")))
assert show("nn.GELU()", exact_without, exact_with) < 1e-5
assert show('nn.GELU(approximate="tanh")', tanh_without, tanh_with) > 2e-4
assert show("the same, from the exact GELU with gradients", tanh_without, exact_with) < 1e-5

torch.backends.mha.set_fastpath_enabled(False)
assert show("the same, fast path disabled", *both(model(nn.GELU(approximate="tanh")))) < 1e-5
torch.backends.mha.set_fastpath_enabled(True)
function = functools.partial(F.gelu, approximate="tanh")
assert show("functional, tanh", *both(model(function))) < 1e-5
END
