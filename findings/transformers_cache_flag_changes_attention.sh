#!/usr/bin/env bash
# Guess: two texts are put in one row of GPT-2 and position_ids start again at
# 0 for the second. That changes the position embeddings and nothing else:
# attention stays causal over the whole row. use_cache=False only saves
# memory, and an attention_mask of ones says what is meant without one.
#
# Versions: torch 2.13.0, transformers 5.24.0.
#
# Seen: with use_cache=False and no mask the second text no longer sees the
# first; its logits are those that it has alone. With the cache, or with a
# mask of ones, it does see it. So the same call gives other logits when only
# use_cache is turned off, or only a mask of ones is added.
#
#   second text, logits compared with those of the text alone:
#   use_cache=True, no mask: differ by 9.3
#   use_cache=True, mask of ones: differ by 9.3
#   use_cache=False, no mask: differ by 0.0
#   use_cache=False, mask of ones: differ by 9.3
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
config = GPT2Config(
    vocab_size=500,
    n_positions=64,
    n_embd=64,
    n_layer=2,
    n_head=4,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=0,
)
model = GPT2LMHeadModel(config).eval()
first = torch.randint(1, 500, (1, 10))
second = torch.randint(1, 500, (1, 10))
row = torch.cat([first, second], dim=1)
positions = torch.arange(10).repeat(2)[None]

difference = {}
with torch.no_grad():
    alone = model(second).logits
    print("second text, logits compared with those of the text alone:")
    for cache in (True, False):
        for name, mask in (
            ("no mask", None),
            ("mask of ones", torch.ones_like(row)),
        ):
            logits = model(
                row,
                position_ids=positions,
                attention_mask=mask,
                use_cache=cache,
            ).logits[:, 10:]
            value = (logits - alone).abs().max().item()
            print(f"use_cache={cache}, {name}: differ by {value:.1f}")
            difference[cache, name] = value

assert difference[True, "no mask"] > 1
assert difference[True, "mask of ones"] > 1
assert difference[False, "no mask"] < 1e-3
assert difference[False, "mask of ones"] > 1
PY
