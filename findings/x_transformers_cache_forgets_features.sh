#!/usr/bin/env bash
# Guess: generate() of x-transformers' AutoregressiveWrapper, which uses a key/value cache unless
# told otherwise, gives greedily the text that it gives with cache_kv=False, for any position
# scheme and any option of attention. Where a cache can't work, it does without.
#
# x-transformers 2.31.10, torch 2.13.0: not with shift_tokens, nor with attn_data_dependent_alibi
# (the forget gates of the Forgetting Transformer). With a cache, a layer gets the newest token
# only. shift_tokens=1 gives half of each vector to the next token; here there is none before, and
# zeros come in its place, at every step. The gates' bias is the sum of gates between two tokens;
# from one token it is a single 0 for all keys, so nothing is ever forgotten. (One option,
# attn_selective, does turn the cache off; these two don't.) Logits and losses of a whole text are
# right. So a good model writes bad text, in silence, and cache_kv=False makes it good.
#
# Seen (a small model with random weights, 8 prompts of 8 tokens, 24 new ones each, greedy; how
# many of the new tokens are the likeliest one given the whole text before them, by a call without
# cache):
#   plain: 192 of 192 by default, 192 without cache
#   alibi_pos_bias: 192 of 192 by default, 192 without cache
#   rotary_xpos: 192 of 192 by default, 192 without cache
#   attn_selective: 192 of 192 by default, 192 without cache
#   shift_tokens: 149 of 192 by default, 192 without cache
#   attn_data_dependent_alibi: 81 of 192 by default, 192 without cache

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'x-transformers==2.31.10' 'einops==0.8.2'

cd "$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

torch.set_num_threads(1)


@torch.no_grad()
def agreeing(cache, **options):
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=3, heads=4, attn_dim_head=16, **options)
    model = TransformerWrapper(num_tokens=50, max_seq_len=64, attn_layers=layers).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    prompts = torch.randint(50, (8, 8))
    new = AutoregressiveWrapper(model).generate(prompts, 24, temperature=0.0, **cache)
    likeliest = model(torch.cat([prompts, new], 1))[:, 7:-1].argmax(-1)
    return (new == likeliest).sum().item()


# Initially, 1 of 150 is forgotten at each token; the bias of 2 makes it 1 of 8.
gates = {"attn_data_dependent_alibi": True}
gates["attn_data_dependent_alibi_kwargs"] = {"bias_init": 2.0}
for name, options, wrong in [
    ("plain", {}, False),
    ("alibi_pos_bias", {"alibi_pos_bias": True}, False),
    ("rotary_xpos", {"rotary_xpos": True}, False),
    ("attn_selective", {"attn_selective": True}, False),
    ("shift_tokens", {"shift_tokens": 1}, True),
    ("attn_data_dependent_alibi", gates, True),
]:
    default = agreeing({}, **options)
    without = agreeing({"cache_kv": False}, **options)
    print(f"{name}: {default} of 192 by default, {without} without cache", flush=True)
    assert without > 190
    assert default < 170 if wrong else default > 190
END
