#!/usr/bin/env bash
# Guess: generate(do_sample=True, top_k=1) takes the likeliest token, so it is
# greedy and no seed matters; top_k=50 draws from 50 tokens. In bfloat16 the
# logits are rougher, but the count is the same.
#
# Versions: torch 2.13.0, transformers 5.24.0.
#
# Seen: every token whose logit equals the k-th largest is kept. Bfloat16 has
# 8 bits for a logit, and among GPT-2's 50,257 tokens many share one value:
# top_k=50 keeps more than 50 in most rows, and top_k=1 sometimes keeps two,
# so that "greedy" texts depend on the seed. In float32 the guess is right.
#
#   float32, top_k=50: 50 to 50 tokens kept, 50.0 on average
#   float32, top_k=1: 0 of 64 texts differ between two seeds
#   bfloat16, top_k=50: 50 to 57 tokens kept, 51.9 on average
#   bfloat16, top_k=1: 12 of 64 texts differ between two seeds
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
    'torch==2.13.0' 'transformers==5.24.0'

"$work/venv/bin/python" - <<'PY'
import torch
from transformers import GPT2Config
from transformers import GPT2LMHeadModel

torch.manual_seed(0)
config = GPT2Config(n_positions=64, n_embd=128, n_layer=2, n_head=4)
model = GPT2LMHeadModel(config).eval()
prompt = torch.randint(0, 50000, (64, 8))


def generate(seed, top_k, new):
    torch.manual_seed(seed)
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=50256,
        do_sample=True,
        top_k=top_k,
        max_new_tokens=new,
        output_scores=True,
        return_dict_in_generate=True,
    )


def measure(dtype):
    model.to(dtype)
    name = str(dtype).split(".")[1]
    scores = generate(0, 50, 1).scores[0]
    kept = scores.isfinite().sum(dim=1)
    low = kept.min().item()
    high = kept.max().item()
    mean = kept.float().mean().item()
    print(
        f"{name}, top_k=50: {low} to {high} tokens kept, "
        f"{mean:.1f} on average"
    )
    one = generate(0, 1, 20).sequences
    other = generate(1, 1, 20).sequences
    length = min(one.shape[1], other.shape[1])
    same = (one[:, :length] == other[:, :length]).all(dim=1)
    differ = (~same).sum().item()
    print(
        f"{name}, top_k=1: {differ} of {len(prompt)} texts differ "
        "between two seeds"
    )
    return mean, differ


mean, differ = measure(torch.float32)
assert mean < 50.1
assert differ == 0
mean, differ = measure(torch.bfloat16)
assert mean > 50.5
assert differ > 0
PY
