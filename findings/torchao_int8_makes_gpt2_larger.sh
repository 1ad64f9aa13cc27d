#!/usr/bin/env bash
# Guess: torchao's weight-only int8 brings transformers' GPT-2 of 124 million
# float32 parameters from about 500 MB to about 125 MB, or, if embeddings are
# left out, to some 240 MB.
#
# Versions: torch 2.13.0, transformers 5.24.0, torchao 0.18.0.
#
# Seen: it gets larger. quantize_ takes nn.Linear, and the four matrices of
# each block are transformers' own Conv1D, which it passes over in silence.
# The one Linear is the output layer; its int8 matrix can't be shared with the
# token embedding, which stays float32, so it is stored on top of it.
#
#   before: 497.8 MB
#   after: 536.7 MB
#   matrices in int8: ['lm_head'], left as they were: 48 Conv1D
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    'torch==2.13.0' 'transformers==5.24.0' 'torchao==0.18.0'

"$work/venv/bin/python" - "$work/weights.pt" 2>"$work/log" <<'PY' || {
import os
import sys

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from torchao.quantization import quantize_
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D


def megabytes(model):
    torch.save(model.state_dict(), sys.argv[1])
    return os.path.getsize(sys.argv[1]) / 1e6


model = GPT2LMHeadModel(GPT2Config()).eval()
before = megabytes(model)
print(f"before: {before:.1f} MB")
quantize_(model, Int8WeightOnlyConfig())
after = megabytes(model)
print(f"after: {after:.1f} MB")

quantized = []
left = 0
for name, module in model.named_modules():
    plain = type(getattr(module, "weight", None)) is nn.Parameter
    if isinstance(module, nn.Linear) and not plain:
        quantized.append(name)
    if isinstance(module, Conv1D) and plain:
        left += 1
print(f"matrices in int8: {quantized}, left as they were: {left} Conv1D")

assert after > before + 30
assert quantized == ["lm_head"]
assert left == 48
PY
    cat "$work/log" >&2
    exit 1
}
