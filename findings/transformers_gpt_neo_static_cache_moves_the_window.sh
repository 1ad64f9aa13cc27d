#!/usr/bin/env bash
# Guess: generate() of transformers with cache_implementation="static" gives greedily the texts that
# it gives with the growing cache (the default). A static cache only has its memory from the start,
# for max_length tokens, and what isn't filled yet is masked. A model that can't do it says so.
#
# transformers 5.24.0, torch 2.13.0: not GPT-Neo, once max_length is more than its window (256
# tokens in EleutherAI's models). Every other layer of GPT-Neo sees only a window of the last
# tokens. The layer has a table for it, and takes the row of the current token from the number of
# keys: the last row, as the newest token has the last key. In a static cache the last key is that
# of the last token that there is room for. So the window lies at the end of the room, where nothing
# is yet, and as far as it doesn't reach back to the text, all keys are outside. Each gets the
# lowest float, as the masked places do, so that the softmax makes them equal: a token reads the
# mean of all the tokens before it and of empty places, whatever they say. It starts with the
# prompt, so that the first new token depends on max_new_tokens, and ends where the text fills the
# room. Nothing is said. A flag in the source says that GPT-Neo can't be compiled as it "needs a
# hybrid cache"; generate() once refused static caches by this flag, but no longer reads it.
# (TinyStories' models are GPT-Neo, too.) Up to a max_length of the window, the static cache is
# right.
#
# Seen (a small GPT-Neo with random weights, 8 prompts of 12 tokens; how many texts are those that
# forward passes over the whole text give; the weights that the first head of the local layer has):
#   window 256, 100 new tokens: dynamic 8 of 8, static 8 of 8, first token 8 of 8
#   window 256, 244 new tokens: dynamic 8 of 8, static 8 of 8, first token 8 of 8
#   window 256, 260 new tokens: dynamic 8 of 8, static 0 of 8, first token 1 of 8
#   window 256, 300 new tokens: dynamic 8 of 8, static 0 of 8, first token 1 of 8
#   window 8, 20 new tokens: dynamic 8 of 8, static 0 of 8, first token 2 of 8
#   window 4, what token 12 of 12 gives to the tokens 1 to 12, and to empty places:
#     room grows: 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.77 0.23 + 0.00
#     room 12: 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.77 0.23 + 0.00
#     room 14: 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.00 0.77 0.23 + 0.00
#     room 20: 0.06 0.06 0.06 0.06 0.06 0.06 0.06 0.06 0.06 0.06 0.06 0.06 + 0.25

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'transformers==5.24.0' 'numpy==2.4.6' \
    'tokenizers==0.23.3' 'safetensors==0.8.0'

cd "$folder"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import torch
from transformers import DynamicCache, GPTNeoConfig, GPTNeoForCausalLM, StaticCache

prompts = torch.randint(1, 100, (8, 12), generator=torch.Generator().manual_seed(1))


def make(window):
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(GPTNeoConfig(
        vocab_size=100, hidden_size=32, num_layers=2, num_heads=4, window_size=window,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=512,
        bos_token_id=None, eos_token_id=None)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def by_hand(model, new):
    text = prompts
    for _ in range(new):
        logits = model(text, use_cache=False).logits[:, -1]
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    return text


def compare(window, new):
    model = make(window)
    wanted = by_hand(model, new)
    results = []
    for cache in ("dynamic", "static"):
        texts = model.generate(
            prompts, do_sample=False, max_new_tokens=new, pad_token_id=0,
            cache_implementation=cache if cache == "static" else None)
        right = (texts == wanted)[:, 12:]
        results.append((right.all(1).sum().item(), right[:, 0].sum().item()))
    (dynamic, _), (static, first) = results
    print(f"window {window}, {new} new tokens: dynamic {dynamic} of 8, static {static} of 8, "
          f"first token {first} of 8")
    assert dynamic == 8
    return static, first


assert compare(256, 100) == (8, 8)
assert compare(256, 244) == (8, 8)
static, first = compare(256, 260)
assert static < 3 and first < 7
static, first = compare(256, 300)
assert static < 3 and first < 7
static, first = compare(8, 20)
assert static < 3 and first < 7

with torch.no_grad():
    model = make(4)
    model.set_attn_implementation("eager")
    print("window 4, what token 12 of 12 gives to the tokens 1 to 12, and to empty places:")
    for room in (None, 12, 14, 20):
        cache = DynamicCache() if room is None else StaticCache(model.config, max_cache_len=room)
        weights = model(prompts[:1], cache=cache, output_attentions=True).attentions[1][0, 0, -1]
        print(f"  room {room or 'grows'}:", *[f"{weight:.2f}" for weight in weights[:12]],
              f"+ {weights[12:].sum():.2f}")
        if room in (None, 12):
            assert weights[:8].sum() < 1e-6
        else:
            assert weights[:8].sum() > 0.2 if room == 20 else weights[8:10].sum() < 1e-6
END
