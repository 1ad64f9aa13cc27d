#!/usr/bin/env bash
# Guess: torchao's IntxWeightOnlyConfig(weight_dtype=torch.int1), which it takes ("torch.intx, where
# 1 <= x <= 8"), makes a much worse model than int2, but one that still has two values per group of
# weights, for example a small and a large one or a negative one and zero. So its outputs are nearer
# to the right ones than those of a layer without weights.
#
# torchao 0.18.0, torch 2.13.0: every weight becomes zero. int1 has the values -1 and 0, and the
# scale of the default mapping, SYMMETRIC, is twice the largest magnitude (largest / half of the
# range), so each weight divided by it is between -0.5 and 0.5 and is rounded to 0, also -0.5
# itself. A layer's output is its bias, a model's logits are all 0, and its loss is the logarithm of
# the vocabulary's size. ASYMMETRIC leaves five weights per hundred, and outputs that are about as
# far off; SYMMETRIC_NO_CLIPPING_ERR divides by the largest value, which is 0, and gives NaN.
# Int8DynamicActivationIntxWeightConfig does the same. Neither warns; only QATConfig refuses int1.
# With intx_choose_qparams_algorithm="hqq_scale_only" there are two values per group, and the
# outputs are nearer. So are they with two values chosen by hand: the mean of the negative weights
# or 0, or plus and minus the mean magnitude.
#
# Seen (a linear layer; share of weights that are zero, and distance of the outputs from the right
# ones, relative to their size):
#   int2: 0.33 0.34
#   int1: 1.00 1.00
#   int1, 8-bit inputs: 1.00 1.00
#   int1, asymmetric: 0.95 0.99
#   int1, no clipping error: 0.00 nan
#   int1, hqq_scale_only: 0.67 0.72
#   by hand, mean of the negative ones or 0: 0.50 0.75
#   by hand, plus and minus the mean: 0.00 0.49
#   a small Llama in int1: largest logit 0.000, loss 4.159, logarithm of its 64 tokens 4.159

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6'
"$folder/venv/bin/pip" install --quiet --no-compile 'torchao==0.18.0' 'transformers==5.24.0' \
    'tokenizers==0.23.3'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import math

import torch
from torch.nn import Linear, Sequential
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerGroup, quantize_)
from torchao.quantization.quant_primitives import MappingType
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
group = PerGroup(32)
weight = torch.empty(256, 256).uniform_(-1, 1)
inputs = torch.randn(100, 256)


def show(name, quantized, outputs):
    right = inputs @ weight.T
    zeros = (quantized == 0).float().mean().item()
    distance = ((outputs - right).norm() / right.norm()).item()
    print(f"{name}: {zeros:.2f} {distance:.2f}")
    return zeros, distance


def by_torchao(name, config):
    model = Sequential(Linear(256, 256, bias=False))
    model[0].weight.data.copy_(weight)
    quantize_(model, config)
    return show(name, model[0].weight.dequantize(), model(inputs))


def weight_only(dtype=torch.int1, **settings):
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=group, **settings)


zeros, distance = by_torchao("int2", weight_only(torch.int2))
assert zeros < 0.5 and distance < 0.5
zeros, distance = by_torchao("int1", weight_only())
assert zeros == distance == 1
zeros, distance = by_torchao("int1, 8-bit inputs", Int8DynamicActivationIntxWeightConfig(
    weight_dtype=torch.int1, weight_granularity=group))
assert zeros == distance == 1
zeros, distance = by_torchao("int1, asymmetric", weight_only(mapping_type=MappingType.ASYMMETRIC))
assert zeros > 0.9 and distance > 0.95
zeros, distance = by_torchao("int1, no clipping error", weight_only(
    mapping_type=MappingType.SYMMETRIC_NO_CLIPPING_ERR))
assert math.isnan(distance)
zeros, distance = by_torchao("int1, hqq_scale_only", weight_only(
    intx_choose_qparams_algorithm="hqq_scale_only"))
assert zeros < 0.8 and distance < 0.85

groups = weight.view(-1, 32)
mean = (groups.clamp(max=0).sum(1) / (groups < 0).sum(1))[:, None]
negative = torch.where(groups < 0, mean, 0).view_as(weight)
zeros, distance = show("by hand, mean of the negative ones or 0", negative, inputs @ negative.T)
assert zeros < 0.6 and distance < 0.85
sign = (groups.sign() * groups.abs().mean(1, keepdim=True)).view_as(weight)
zeros, distance = show("by hand, plus and minus the mean", sign, inputs @ sign.T)
assert zeros < 0.1 and distance < 0.6

model = LlamaForCausalLM(LlamaConfig(
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=32,
    intermediate_size=64, vocab_size=64, tie_word_embeddings=False, initializer_range=0.5))
text = torch.arange(64).view(1, -1)
with torch.no_grad():
    assert model(text).logits.abs().max() > 1
    quantize_(model, weight_only())
    result = model(text, labels=text)
largest, loss = result.logits.abs().max().item(), result.loss.item()
print(f"a small Llama in int1: largest logit {largest:.3f}, loss {loss:.3f}, logarithm of its 64",
      f"tokens {math.log(64):.3f}")
assert largest == 0 and abs(loss - math.log(64)) < 1e-4
END
