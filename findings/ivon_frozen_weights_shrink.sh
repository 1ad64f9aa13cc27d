#!/usr/bin/env bash
# Guess: weights that are frozen (requires_grad=False) stay as they are with IVON of ivon-opt, as
# with torch's optimizers, also if it was given model.parameters(): fine-tuning the last block of a
# GPT-2 leaves the embeddings and the other blocks alone, and only what learns is drawn at random.
#
# ivon-opt 0.1.3, torch 2.13.0, transformers 5.24.0: to IVON a frozen weight is one with a gradient
# of zero. So weight decay, by which the weights' prior enters, takes about lr * weight_decay of it
# in every step: with the default of 1e-4 and the README's lr=0.1, it's a tenth in 10000 steps.
# Inside sampled_params() noise is added to it too, and as much as to a weight on which the loss
# doesn't depend, in training and in predictions. Nothing is said about it; the README has no word
# on frozen weights. torch's AdamW and SGD pass over weights without a gradient. Giving IVON only
# the weights that shall learn is a way around.
#
# Seen (a 2-layer GPT-2 that has learned to count, 300 steps more for its last block, lr=0.1 as in
# the README; length of the frozen embeddings after them, divided by that before, in brackets
# (1 - lr * weight_decay) ** 300; the loss, and the mean loss of ten draws):
#   AdamW: 1.000 (1.000), 0.011, 0.011
#   IVON, weight_decay=0.0001: 0.997 (0.997), 0.015, 0.035
#   IVON, weight_decay=0.0001, only what learns: 1.000 (1.000), 0.014, 0.017
#   IVON, weight_decay=0.001: 0.970 (0.970), 0.021, 0.046
#   IVON, weight_decay=0.001, only what learns: 1.000 (1.000), 0.015, 0.017
#   IVON, weight_decay=0.01: 0.740 (0.741), 0.282, 0.431
#   IVON, weight_decay=0.01, only what learns: 1.000 (1.000), 0.021, 0.023

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'ivon-opt==0.1.3'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import contextlib
import copy

import torch
from ivon import IVON
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
texts = (torch.arange(16) + torch.arange(50)[:, None]) % 50
learned = GPT2LMHeadModel(GPT2Config(
    vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
    attn_pdrop=0, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))


def loss_of(model, batch=texts):
    return model(batch, labels=batch).loss


adamw = torch.optim.AdamW(learned.parameters(), lr=1e-2)
for _ in range(60):
    loss_of(learned).backward()
    adamw.step()
    adamw.zero_grad()


def run(name, optimizer, only=False, steps=300, **settings):
    """Train the last block; return the embeddings' length by that before, and losses."""
    torch.manual_seed(1)
    model = copy.deepcopy(learned).requires_grad_(False)
    model.transformer.h[-1].requires_grad_(True)
    weights = [w for w in model.parameters() if w.requires_grad or not only]
    optimizer = optimizer(weights, **settings)
    sampled = getattr(optimizer, "sampled_params", lambda train=False: contextlib.nullcontext())
    for _ in range(steps):
        batch = texts[torch.randint(50, (8,))]
        with sampled(train=True):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
        optimizer.step()
    length = model.transformer.wte.weight.norm() / learned.transformer.wte.weight.norm()
    draws = []
    with torch.no_grad():
        for _ in range(10):
            with sampled():
                draws.append(loss_of(model).item())
    loss, draws = loss_of(model).item(), sum(draws) / 10
    decay = optimizer.defaults["weight_decay"]
    by_hand = (1 - 0.1 * decay) ** steps if isinstance(optimizer, IVON) and not only else 1
    print(f"{name}: {length:.3f} ({by_hand:.3f}), {loss:.3f}, {draws:.3f}")
    return length.item(), loss, draws


length, loss, draws = run("AdamW", torch.optim.AdamW, lr=1e-3, weight_decay=1e-2)
assert length == 1 and loss < 0.02 and draws == loss
for decay in (1e-4, 1e-3, 1e-2):
    settings = {"lr": 0.1, "ess": 1e4, "hess_init": 0.1, "weight_decay": decay}
    name = f"IVON, weight_decay={decay:g}"
    length, loss, draws = run(name, IVON, **settings)
    assert abs(length - (1 - 0.1 * decay) ** 300) < 1e-3
    length, best, fewer = run(f"{name}, only what learns", IVON, only=True, **settings)
    assert length == 1 and loss > best and draws - loss > 4 * (fewer - best)
assert loss > 5 * best
END
