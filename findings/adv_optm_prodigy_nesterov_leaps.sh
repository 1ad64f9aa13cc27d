#!/usr/bin/env bash
# Guess: Prodigy_adv of adv-optm with nesterov=True makes steps of about the usual size, as
# AdamW_adv does: the first is 1.9 times as long as without, as the gradient counts twice. Their
# unit is d * lr, and d starts with 1e-6, so that a model that has learned something keeps it while
# Prodigy is looking for a good d.
#
# adv-optm 2.5.16, torch 2.13.0, transformers 5.24.0: the first step is about half a million times
# as long as it should be, and the model is lost. Prodigy's average is one of gradients times d,
# and it's divided by the root of an average of their squares. For Nesterov's momentum the average
# is mixed with the gradient of the step, but not with d times it. So this part is 1 / d times too
# large: a first step of the same length whatever d0 is. With nnmf_factor=True it's the same. With
# use_atan2=True steps can't grow, so that nothing shows, but each weight makes the largest step
# there is, by its gradient's sign. nesterov_coef=1 leaves the gradient out. Nothing is said of it;
# the documentation has Nesterov's momentum for all of its optimizers.
#
# Seen (a 2-layer GPT-2 that has learned to count; its loss before, after 1, 5 and 30 steps; the
# largest change of a weight of a matrix in the first step, divided by d * lr; in brackets by hand):
#   AdamW_adv, lr=0.0001: 0.012 0.012 0.012 0.010, 1 (1)
#   AdamW_adv, lr=0.0001, nesterov=True: 0.012 0.012 0.012 0.010, 1.9 (1.9)
#   Prodigy_adv: 0.012 0.012 0.012 0.001, 3.15 (3.15)
#   Prodigy_adv, d0=1e-06, nesterov=True: 0.012 371.724 404.186 160.678, 3.15e+06 (5.99)
#   Prodigy_adv, d0=0.0001, nesterov=True: 0.012 371.775 402.765 201.535, 3.15e+04 (5.99)
#   Prodigy_adv, nesterov=True, nnmf_factor=True: 0.012 371.724 377.167 179.411, 3.15e+06 (5.99)
#   Prodigy_adv, nesterov=True, use_atan2=True: 0.012 0.012 0.012 0.006, 2 (1.79)

set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0'
"$folder/venv/bin/pip" install --quiet --no-compile 'torch==2.13.0' 'numpy==2.4.6' \
    'transformers==5.24.0' 'tokenizers==0.23.3' 'adv-optm==2.5.16'
cd "$folder"

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
"$folder/venv/bin/python" - 2>"$folder/log" <<'END' || { cat "$folder/log"; exit 1; }
import copy
import math

import torch
from adv_optm import AdamW_adv, Prodigy_adv
from transformers import GPT2Config, GPT2LMHeadModel

torch.manual_seed(0)
learned = GPT2LMHeadModel(GPT2Config(
    vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
    attn_pdrop=0, bos_token_id=0, eos_token_id=0))
text = (torch.arange(16) + torch.randint(50, (32, 1))) % 50


def loss_of(model):
    return model(text, labels=text).loss


adamw = torch.optim.AdamW(learned.parameters(), lr=1e-2)
for _ in range(60):
    loss_of(learned).backward()
    adamw.step()
    adamw.zero_grad()


def run(optimizer, d=1.0, betas=(0.9, 0.999), **settings):
    """Train; print and return losses and the first step's largest change, also by hand."""
    model = copy.deepcopy(learned)
    optimizer = optimizer(model.parameters(), betas=betas, **settings)
    matrix = model.transformer.h[0].mlp.c_fc.weight
    unit = d * optimizer.param_groups[0]["lr"]
    losses, before = [loss_of(model).item()], matrix.detach().double()
    for step in range(30):
        loss_of(model).backward()
        if step == 0:
            gradient = matrix.grad.double()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of(model).item())
        if step == 0:
            change = (matrix.detach().double() - before).abs().max().item() / unit
    losses = [losses[0], losses[1], losses[5], losses[30]]

    average = (1 - betas[0]) * d * gradient
    if settings.get("nesterov"):
        average = betas[0] * average + (1 - betas[0]) * d * gradient
    root = ((1 - betas[1]) * (d * gradient) ** 2).sqrt()
    if optimizer.defaults.get("use_bias_correction"):
        average, root = average / (1 - betas[0]), root / (1 - betas[1]) ** 0.5
    if settings.get("use_atan2"):
        wanted = 4 / math.pi * torch.atan2(average, root)
    else:
        wanted = average / (root + d * 1e-8)
    wanted = wanted.abs().max().item()

    name = ", ".join([type(optimizer).__name__, *(f"{k}={v}" for k, v in settings.items())])
    print(f"{name}:", *(f"{loss:.3f}" for loss in losses), end=f", {change:.3g} ({wanted:.3g})\n")
    return losses, change / wanted


for settings in ({}, {"nesterov": True}):
    losses, factor = run(AdamW_adv, lr=1e-4, **settings)
    assert max(losses) < 0.02 and 0.99 < factor < 1.01
losses, factor = run(Prodigy_adv, 1e-6)
assert max(losses) < 0.02 and 0.95 < factor < 1.05
for d0 in (1e-6, 1e-4):
    losses, factor = run(Prodigy_adv, d0, d0=d0, nesterov=True)
    assert losses[0] < 0.02 and min(losses[1:]) > 20 and 0.4 < factor * d0 < 0.6
losses, factor = run(Prodigy_adv, 1e-6, nesterov=True, nnmf_factor=True)
assert losses[0] < 0.02 and min(losses[1:]) > 20 and 0.4e6 < factor < 0.6e6
losses, factor = run(Prodigy_adv, 1e-6, nesterov=True, use_atan2=True)
assert max(losses) < 0.02 and 1.1 < factor < 1.13
END
