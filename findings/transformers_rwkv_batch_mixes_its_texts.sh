#!/usr/bin/env bash
# Guess: generate() of transformers with an RWKV model gives each prompt of a batch the text that it
# gives this prompt alone. All prompts have the same length here, so that nothing is padded, and the
# decoding is greedy.
#
# transformers 5.24.0, torch 2.13.0: it does so only without a cache. A layer of RWKV mixes each
# token with the one before it. Where a single token is read with a state, that one is taken out of
# the state as [batch, width] and added to the token, which is [batch, 1, width]. By PyTorch's rules
# the sum is [batch, batch, width]: each text goes on with a made-up row of tokens, the token that
# stands before in the first text, in the second, and so on. They are all read into its state, so
# that it ends up with the other texts' contents, and generate() takes the logits of the last one.
# From the second new token on, each text is nonsense; even copies of one prompt go wrong, as the
# same token is read again for each of them. num_return_sequences does the same to samples. The
# shape of the logits would tell, but the prompt, which has more than one token, has the right one,
# and generate() reads only the end of the others. One prompt at a time is right, and so is
# use_cache=False, and reading two or more tokens with a state.
#
# Seen (a small RWKV with random weights, 8 prompts of 12 tokens, 16 new ones; "right" is what a
# forward pass over the whole text, each alone, makes likeliest):
#   one after the other: 8 of 8 texts right
#   in a batch of 8: 0 of 8 texts right, first new token 8 of 8
#   in a batch of 8, without cache: 8 of 8 texts right
#   in batches of 2: 0 of 8 texts right, first new token 8 of 8
#   8 copies of the first prompt: 0 of 8 texts right, first new token 8 of 8
#   1 text, 1 token with a state: logits [1, 1, 100], off by 0.00
#   2 texts, 1 token with a state: logits [2, 2, 100], off by 1.54
#   2 texts, 2 tokens with a state: logits [2, 2, 100], off by 0.00
#   5 texts, 1 token with a state: logits [5, 5, 100], off by 2.39

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
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(
    vocab_size=100, context_length=64, hidden_size=32, num_hidden_layers=2, bos_token_id=0,
    eos_token_id=None)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
prompts = torch.randint(100, (8, 12))


@torch.no_grad()
def by_hand(text):
    for _ in range(16):
        logits = model(text[None], use_cache=False).logits[0, -1]
        text = torch.cat([text, logits.argmax(-1, keepdim=True)])
    return text


def generate(prompts, **settings):
    return model.generate(prompts, do_sample=False, max_new_tokens=16, **settings)


def compare(name, texts, wanted):
    right = (texts == wanted)[:, 12:]
    whole, first = right.all(1).sum().item(), right[:, 0].sum().item()
    print(f"{name}: {whole} of 8 texts right" +
          (f", first new token {first} of 8" if whole < 8 else ""))
    return whole, first


def read(texts, last):
    with torch.no_grad():
        whole = torch.cat([model(text, use_cache=False).logits for text in texts.split(1)])
        state = model(texts[:, :-last], use_cache=True).state
        logits = model(texts[:, -last:], state=state, use_cache=True).logits
    error = (logits[:, -1] - whole[:, -1]).abs().max().item()
    print(f"{len(texts)} text{'s' * (len(texts) > 1)}, {last} token{'s' * (last > 1)} with a "
          f"state: logits {list(logits.shape)}, off by {error:.2f}")
    return logits.shape, error


wanted = torch.stack([by_hand(prompt) for prompt in prompts])
alone = torch.cat([generate(prompt) for prompt in prompts.split(1)])
assert compare("one after the other", alone, wanted) == (8, 8)
whole, first = compare("in a batch of 8", generate(prompts), wanted)
assert whole < 3 and first == 8
assert compare("in a batch of 8, without cache", generate(prompts, use_cache=False),
               wanted) == (8, 8)
pairs = torch.cat([generate(pair) for pair in prompts.split(2)])
whole, first = compare("in batches of 2", pairs, wanted)
assert whole < 3 and first == 8
whole, first = compare("8 copies of the first prompt", generate(prompts[:1].repeat(8, 1)),
                       wanted[:1])
assert whole < 3 and first == 8

shape, error = read(prompts[:1], 1)
assert shape == (1, 1, 100) and error < 1e-4
shape, error = read(prompts[:2], 1)
assert shape == (2, 2, 100) and error > 0.5
shape, error = read(prompts[:2], 2)
assert shape == (2, 2, 100) and error < 1e-4
shape, error = read(prompts[:5], 1)
assert shape == (5, 5, 100) and error > 0.5
END
