#!/usr/bin/env bash
# Guess: MLX-LM's awq_quantize, which has a setting for Gemma 3 (gemma3_text_awq), tunes the weights
# of each block on the activations that the model has there, up to the error of rounding.
#
# mlx-lm 0.32.2, mlx 0.32.4: it tunes them on the activations of another model. Gemma multiplies its
# embeddings by the square root of their size before the first block. awq_quantize runs the blocks
# itself, beginning with what comes out of the embedding layer, and leaves the factor out: for Gemma
# 3 1B the text goes into the first block 34 times too small. A norm comes first, so that this block
# reads nearly the right values, but what it adds to the text weighs that many times more than it
# should, and all blocks after it are tuned on activations that have little to do with the model's
# own. The printed "Loss reduction" looks good, since it's taken on the same activations. With the
# factor put back, the same call gives a better model. Llama and Qwen have no such factor.
#
# Seen (a small Gemma 3 with random weights, 3 bits; what the blocks got for tuning, compared to
# what they get in the model; standard deviation of the logits' error on other texts):
#   AWQ:
#     block 0: size 0.088, cosine 0.995
#     block 1: size 0.599, cosine 0.491
#     block 2: size 0.722, cosine 0.440
#   AWQ, embedding scaled:
#     block 0: size 1.000, cosine 0.995
#     block 1: size 1.000, cosine 0.991
#     block 2: size 1.000, cosine 0.988
#   errors of the logits: without AWQ 0.5395, AWQ 0.4821, AWQ, embedding scaled 0.4629
#   the logits themselves: 1.18

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'mlx[cpu]==0.32.4' 'mlx-lm==0.32.2' \
    'numpy==2.4.6' 'transformers==5.24.0'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import contextlib
import io

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path
from mlx_lm.models import gemma3_text
from mlx_lm.quant.awq import awq_quantize, gemma3_text_awq

mx.set_default_device(mx.cpu)
Block, size = gemma3_text.TransformerBlock, 128


def make():
    mx.random.seed(0)
    model = gemma3_text.Model(gemma3_text.ModelArgs(
        model_type="gemma3_text", hidden_size=size, num_hidden_layers=3, intermediate_size=256,
        num_attention_heads=2, head_dim=64, num_key_value_heads=2, vocab_size=64,
        query_pre_attn_scalar=64, sliding_window=64, sliding_window_pattern=3))
    # The channels of the embedding differ in size, as those of trained models do.
    sizes = mx.exp(0.7 * mx.random.normal((1, size)))
    model.update(tree_map_with_path(
        lambda name, weight: mx.random.normal(weight.shape) * (
            0.3 if "norm" in name else 0.1 * sizes if "embed" in name else 0.1),
        model.parameters()))
    mx.eval(model.parameters())
    return model


def draw():
    return mx.random.randint(0, 64, (32, 32))


# Note what each block gets first, and multiply quantized embeddings by a factor.
factor, seen = 1, {}
run_block, embed = Block.__call__, nn.QuantizedEmbedding.__call__


def run(block, x, *rest, **named):
    seen.setdefault(id(block), x)
    return run_block(block, x, *rest, **named)


Block.__call__ = run
nn.QuantizedEmbedding.__call__ = lambda layer, ids: embed(layer, ids) * factor

model = make()
mx.random.seed(1)
calibration, others = draw(), draw()
model(calibration)
right, logits = list(seen.values()), model(others)
mx.eval(right, logits)
errors, cosines = {}, {}
model = make()
nn.quantize(model, class_predicate=lambda name, part: hasattr(part, "to_quantized") and (
    {"group_size": 32, "bits": 4} if "embed" in name else {"group_size": 64, "bits": 3}))
errors["without AWQ"] = mx.std(model(others) - logits).item()
for name, factor in (("AWQ", 1), ("AWQ, embedding scaled", size ** 0.5)):
    model = make()
    seen.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        awq_quantize(model, calibration, gemma3_text_awq, group_size=64, bits=3, n_grid=10)
    factor = 1  # the model itself multiplies
    errors[name] = mx.std(model(others) - logits).item()
    print(f"{name}:")
    for block, (found, real) in enumerate(zip(seen.values(), right, strict=True)):
        cosine = ((found * real).sum() / mx.sqrt((found ** 2).sum() * (real ** 2).sum())).item()
        cosines[name, block] = cosine
        print(f"  block {block}: size {(mx.std(found) / mx.std(real)).item():.3f}, cosine"
              f" {cosine:.3f}")
print("errors of the logits:", ", ".join(f"{name} {value:.4f}" for name, value in errors.items()))
print(f"the logits themselves: {mx.std(logits).item():.2f}")
assert all(cosines["AWQ", block] < 0.7 for block in (1, 2))
assert all(cosines["AWQ, embedding scaled", block] > 0.97 for block in (1, 2))
assert errors["AWQ, embedding scaled"] < errors["AWQ"] < errors["without AWQ"]
END
