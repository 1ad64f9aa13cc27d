#!/usr/bin/env bash
# Guess: a Decoder of x-transformers with any single option turned on is causal (the logits of a
# position don't depend on later tokens) and generates the same with its cache as without it.
#
# x-transformers 2.31.10, torch 2.13.0: not with orthog_residual, attn_orthog_projected_values,
# attn_orthog_projected_values_per_head and mv_split_residual. The orthogonal ones take away from
# an output what is parallel to the residual (to the values). The helper that does it flattens all
# dimensions but the first, so that it is one product of two vectors for the whole text, in place
# of one for each position: every position learns something of all that come after it. The mean of
# mv_split_residual goes over all positions, too. A Decoder doesn't refuse any of them or warn. A
# model learns to use it: of tokens that are independent and uniformly random, about which no
# model can know anything, it predicts a good part, in training and in an evaluation on fresh data
# alike. Only the last position, which has nothing after it, shows the true loss; and generation,
# where there is never more than the last position, is by a model that wasn't trained. With the
# projection done for each position, the same model is causal and learns nothing.
#
# Seen (2 layers of width 64; largest change of the first 8 positions' logits when the 8 tokens
# after them change; then the loss on fresh random tokens after 400 steps, where ln 16 = 2.773 is
# best: mean over positions 1 to 7, and position 8, the last):
#   plain: 0.0000, 2.777, 2.779
#   orthog_residual: 0.0368, 2.003, 2.997
#   attn_orthog_projected_values: 0.0622, 2.457, 2.800
#   mv_split_residual: 0.0168, 0.019, 2.791
#   orthog_residual, by position: 0.0000, 2.777, 2.779
#   attn_orthog_projected_values, by position: 0.0000, 2.777, 2.779

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'x-transformers==2.31.10' 'einops==0.8.2'

cd "$folder"
venv/bin/python - 2>log <<'END' || { cat log; exit 1; }
import math

import torch
import torch.nn.functional as F
from x_transformers import Decoder, TransformerWrapper, x_transformers

torch.set_num_threads(1)
vocab, length = 16, 8
options = ["orthog_residual", "attn_orthog_projected_values", "mv_split_residual"]


def make(option):
    torch.manual_seed(0)
    more = {option: True} if option else {}
    layers = Decoder(dim=64, depth=2, heads=4, attn_dim_head=16, **more)
    return TransformerWrapper(num_tokens=vocab, max_seq_len=64, attn_layers=layers)


@torch.no_grad()
def leak(model):
    torch.manual_seed(1)
    one, other = torch.randint(vocab, (2, 4, 16))
    other[:, :8] = one[:, :8]
    return (model.eval()(one) - model(other))[:, :8].abs().max().item()


def learn(model):
    torch.manual_seed(2)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=2e-3)
    for _ in range(400):
        text = torch.randint(vocab, (64, length + 1))
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        text = torch.randint(vocab, (4000, length + 1))
        logits = model.eval()(text[:, :-1]).transpose(1, 2)
        losses = F.cross_entropy(logits, text[:, 1:], reduction="none").mean(0)
    return losses[:-1].mean().item(), losses[-1].item()


def show(name, option):
    model = make(option)
    seen = leak(model), *learn(model)
    print(f"{name}: {seen[0]:.4f}, {seen[1]:.3f}, {seen[2]:.3f}", flush=True)
    return seen


best = math.log(vocab)
change, early, last = show("plain", None)
assert change < 1e-5 and early > best - 0.01 and last > best - 0.01

for option in options:
    change, early, last = show(option, option)
    assert change > 0.003 and early < best - 0.2 and last > best - 0.01, option

assert leak(make("attn_orthog_projected_values_per_head")) > 0.003


def by_position(x, y):
    direction = F.normalize(y.double(), dim=-1)
    return (x - (x * direction).sum(-1, keepdim=True) * direction).to(x.dtype)


x_transformers.orthog_project = by_position
for option in ["orthog_residual", "attn_orthog_projected_values"]:
    change, early, last = show(f"{option}, by position", option)
    assert change < 1e-5 and early > best - 0.01 and last > best - 0.01, option
END
