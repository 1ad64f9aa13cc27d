#!/usr/bin/env bash
# Guess: generate(do_sample=True, top_k=1) takes the likeliest token, so it is
# greedy and no seed matters; top_k=50 draws from 50 tokens. In bfloat16 the
# logits are rougher, but the count is the same.
#
# Versions: torch 2.13.0, transformers 5.24.0.
#
# Seen: every token whose logit equals the k-th largest is kept. Bfloat16 has
# 8 significant bits, and among GPT-2's 50,257 tokens many share a logit:
# top_k=50 keeps more than 50 in most rows, and top_k=1 sometimes keeps two,
# so that the token drawn depends on the seed. In float32 the guess is right.
#
#   float32, top_k=50: 50.0 tokens kept, 50 at most
#   float32, top_k=1: more than one kept for 0 of 512 prompts, two seeds
#   differ for 0
#   bfloat16, top_k=50: 51.5 tokens kept, 57 at most
#   bfloat16, top_k=1: more than one kept for 10 of 512 prompts, two seeds
#   differ for 4
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
prompt = torch.randint(0, 50000, (512, 4))


def sample(seed, top_k):
    torch.manual_seed(seed)
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        pad_token_id=50256,
        do_sample=True,
        top_k=top_k,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
    )
    kept = output.scores[0].isfinite().sum(dim=1)
    return output.sequences[:, -1], kept


def measure(dtype):
    model.to(dtype)
    name = str(dtype).split(".")[1]
    _, kept = sample(0, 50)
    mean = kept.float().mean().item()
    print(f"{name}, top_k=50: {mean:.1f} tokens kept, {kept.max()} at most")
    tokens, kept = sample(0, 1)
    more = (kept > 1).sum().item()
    others, _ = sample(1, 1)
    differ = (tokens != others).sum().item()
    print(
        f"{name}, top_k=1: more than one kept for {more} of 512 prompts, "
        f"two seeds differ for {differ}"
    )
    return mean, more


mean, more = measure(torch.float32)
assert mean < 50.1
assert more == 0
mean, more = measure(torch.bfloat16)
assert mean > 50.5
assert more > 0
PY
